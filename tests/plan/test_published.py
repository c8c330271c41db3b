"""Error bounds over the published figures, read from the data that docs/plan.md is rendered
from; and that the page is current."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from megaladder.tools.study import calibrate_plan
from megaladder.tools.study import published_runs as published

TRAINING, ROUNDS = published.training_comparisons(), published.round_comparisons()
TUNED = [row for row in TRAINING if row.role != "untuned"]


@pytest.mark.parametrize("role", ["calibration", "held out", None])
@pytest.mark.parametrize("figures", [TUNED, ROUNDS], ids=["training", "grpo"])
def test_median_error_is_at_most_12_percent_and_none_above_25(
    figures: list[published.Comparison], role: str | None
) -> None:
    chosen = [row for row in figures if role in (None, row.role)]
    middle, largest = published.summary(chosen)
    assert middle <= 0.12
    assert largest <= 0.25


def test_half_of_the_configurations_are_held_out_by_the_stated_rule() -> None:
    groups = sorted({row.what for row in TUNED})
    roles = {row.what: row.role for row in TUNED}
    assert [roles[group] for group in groups] == ["calibration", "held out"] * (
        len(groups) // 2
    ) + ["calibration"] * (len(groups) % 2)
    assert len(TUNED) >= 35
    assert {row.role for row in ROUNDS} == {"calibration", "held out"}


def test_untuned_rows_say_whose_word_that_is() -> None:
    for row in TRAINING:
        assert bool(row.reason) == (row.role == "untuned")
        assert row.source
    assert all(row["reason"] and row["source"] for row in published.not_modelled())


def test_calibration_is_what_the_tool_fits() -> None:
    """The committed numbers are the fit's, to its last digits: nobody turned them by hand."""
    from megaladder.plan.grpo import grpo_calibration
    from megaladder.plan.throughput import calibration

    fits = (
        (calibrate_plan.fit_training(), calibration()),
        (calibrate_plan.fit_grpo(), grpo_calibration()),
    )
    for fitted, committed in fits:
        assert asdict(fitted) == pytest.approx(asdict(committed), rel=2e-3)


def test_the_page_is_current(repository) -> None:
    text = calibrate_plan.page(calibrate_plan.PRIORS, calibrate_plan.GRPO_PRIORS)
    assert text == (repository / "docs" / "plan.md").read_text(encoding="utf-8"), (
        "fix: python tools/study/calibrate_plan.py --doc"
    )
