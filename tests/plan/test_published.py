"""Error bounds over the published figures, read from the data that docs/plan.md is rendered
from; and that the page is current."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from megaladder.tools.study import calibrate_plan
from megaladder.tools.study import published_runs as published

TRAINING, ROUNDS = published.training_comparisons(), published.round_comparisons()
TUNED = [row for row in TRAINING if row.role != "untuned"]
EXPERTS = [row for row in published.expert_comparisons() if row.role != "untuned"]


@pytest.fixture(scope="module")
def unseen() -> list[published.Comparison]:
    return calibrate_plan.without_their_source()


@pytest.fixture(scope="module")
def unseen_experts() -> list[published.Comparison]:
    return calibrate_plan.experts_without_their_source()


@pytest.mark.parametrize("fitted", [True, False], ids=["fitted", "without their source"])
def test_training_median_is_at_most_8_percent_and_none_above_20(
    fitted: bool, unseen: list[published.Comparison]
) -> None:
    figures = TUNED if fitted else unseen
    assert len(figures) >= 41
    middle, largest = published.summary(figures)
    assert middle <= 0.08
    assert largest <= 0.20


@pytest.mark.parametrize("role", ["calibration", "held out"])
def test_round_median_is_at_most_12_percent_and_none_above_20(role: str) -> None:
    middle, largest = published.summary([row for row in ROUNDS if row.role == role])
    assert middle <= 0.12
    assert largest <= 0.20


def test_each_source_is_predicted_without_itself(unseen: list[published.Comparison]) -> None:
    """Six sources, every calibrating figure once."""
    assert sorted(row.id for row in unseen) == sorted(row.id for row in TUNED)
    assert len({row.family for row in unseen}) == 6


def test_experts_are_met_with_four_numbers(unseen_experts: list[published.Comparison]) -> None:
    """Qwen3-30B-A3B and 235B-A22B on H100 and B200, three sources: 14 configurations."""
    assert len(EXPERTS) >= 25
    middle, largest = published.summary(EXPERTS)
    assert middle <= 0.10
    assert largest <= 0.35
    count, middle, _ = published.of_configurations(EXPERTS)
    assert count == 14
    assert middle <= 0.15
    middle, _ = published.summary(unseen_experts)
    assert middle <= 0.20


def test_rounds_with_experts_are_within_a_third() -> None:
    rows = published.expert_round_comparisons()
    middle, largest = published.summary(rows)
    assert middle <= 0.18
    assert largest <= 0.40


def test_our_own_measurements_are_met() -> None:
    """Qwen3-14B layers on one H200, seconds a step: 6 and 12 layers, bf16 and FP8."""
    own = [row for row in TUNED if row.family == "own"]
    assert len(own) == 4
    assert all(abs(row.error) <= 0.10 for row in own)


def test_untuned_rows_say_whose_word_that_is() -> None:
    for row in TRAINING:
        assert bool(row.reason) == (row.role == "untuned")
        assert row.source
    assert all(row["reason"] and row["source"] for row in published.not_modelled())


def test_calibration_is_what_the_tool_fits() -> None:
    """The committed numbers are the fit's, to its last digits: nobody turned them by hand."""
    from megaladder.plan.experts import expert_calibration
    from megaladder.plan.grpo import grpo_calibration
    from megaladder.plan.throughput import calibration

    fits = (
        (calibrate_plan.fit_training(), calibration()),
        (calibrate_plan.fit_grpo(), grpo_calibration()),
        (calibrate_plan.fit_experts(published.calibrating_expert_runs()), expert_calibration()),
    )
    for fitted, committed in fits:
        assert asdict(fitted) == pytest.approx(asdict(committed), rel=2e-3)


def test_the_page_is_current(repository, unseen, unseen_experts) -> None:
    text = calibrate_plan.the_page(unseen, unseen_experts)
    assert text == (repository / "docs" / "plan.md").read_text(encoding="utf-8"), (
        "fix: python tools/study/calibrate_plan.py --doc"
    )
