"""Statistics with known answers, and the verdicts that follow from an interval."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megaladder.config.resolve.resolver import validate
from megaladder.errors import ConfigError, DataError
from megaladder.study.finding import Bound, Finding
from megaladder.study.measure import Measured, judge, measure
from megaladder.study.scores import Evaluations

N = 4  # samples a problem


def write_scores(out: Path, label: str, correct: list[int], thinking: int | None = None) -> None:
    """An evaluation in which problem i has `correct[i]` of N samples right."""
    folder = out / "evaluate" / label / "sums"
    folder.mkdir(parents=True)
    rows = []
    for index, right in enumerate(correct):
        samples = {
            "exact_matches": [place < right for place in range(N)],
            "num_tokens": [10 + index] * N,
        }
        if thinking is not None:
            samples["num_thinking_tokens"] = [thinking] * N
        rows.append({"doc": {"id": f"p{index}", "samples": samples}, "doc_id": index})
    (folder / "samples_sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def measured(out: Path, **statistic: object) -> Measured:
    return measure(finding(statistic).measured["toy"], Evaluations(out))


def finding(statistic: dict[str, object], **rules: object) -> Finding:
    values = {
        "name": "it",
        "claim": "c",
        "published": "p",
        "reproduced": {"above": 0},
        "opposite": {"below": 0},
        "measured": {"toy": statistic},
        **rules,
    }
    return validate(Finding, values)


def test_a_difference_is_paired_by_problem(tmp_path: Path) -> None:
    before = [0, 1, 2, 3] * 10
    write_scores(tmp_path, "a", before)
    write_scores(tmp_path, "b", [value + 1 for value in before])
    kind = {"kind": "difference", "of": "evaluate/b/sums", "minus": "evaluate/a/sums"}
    found = measured(tmp_path, **kind)
    # every problem gains one sample of four, however different the problems are: of all problems at
    # most 1 - 0.025^(1/40) = 8.81 % do otherwise, which may be between -100 and 100
    assert found.value == 25.0 and found.n == 40
    assert found.ci95 == pytest.approx((25 - 0.08808 * 125, 25 + 0.08808 * 75), abs=1e-2)
    assert judge(finding(kind), "toy", Evaluations(tmp_path)).verdict == "reproduced"
    assert measured(tmp_path, **kind, metric="tokens").value == 0.0


def test_the_interval_covers_what_a_normal_one_covers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    correct = rng.integers(0, N + 1, size=400).tolist()
    write_scores(tmp_path, "a", correct)
    found = measured(tmp_path, kind="level", of="evaluate/a/sums")
    values = 100 * np.array(correct) / N
    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert found.ci95 == pytest.approx((found.value - half, found.value + half), abs=0.35)


def test_a_level_of_nothing_has_the_exact_interval(tmp_path: Path) -> None:
    write_scores(tmp_path, "none", [0] * 100)
    write_scores(tmp_path, "all", [N] * 100)
    assert measured(tmp_path, kind="level", of="evaluate/none/sums").ci95 == pytest.approx(
        (0, 3.6217), abs=1e-3
    )
    assert measured(tmp_path, kind="level", of="evaluate/all/sums").ci95 == pytest.approx(
        (96.3783, 100), abs=1e-3
    )


def test_pass_at_k_and_some_problems_only(tmp_path: Path) -> None:
    write_scores(tmp_path, "a", [1, 1, 0, N])
    rows = [{"id": f"p{i}", "steps": steps} for i, steps in enumerate((1, 1, 2, 2))]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kind = {"kind": "level", "of": "evaluate/a/sums", "metric": "pass@2"}
    # 1 - C(3,2)/C(4,2) = 1/2, twice; 0; 1
    assert measured(tmp_path, **kind).value == pytest.approx(50.0)
    only = {"file": "test.jsonl", "column": "steps", "value": 1}
    assert measured(tmp_path, **kind, only=only).n == 2
    with pytest.raises(DataError, match="no problem is left"):
        measured(tmp_path, **kind, only={**only, "value": 7})


def test_several_evaluations_are_averaged_problem_by_problem(tmp_path: Path) -> None:
    write_scores(tmp_path, "seed1", [0, N])
    write_scores(tmp_path, "seed2", [N, N])
    assert measured(tmp_path, kind="level", of="evaluate/seed*/sums").value == 75.0


def test_slope_and_scaling_per_doubling(tmp_path: Path) -> None:
    for label, correct in (("a", 0), ("b", 1), ("c", 4)):
        write_scores(tmp_path, label, [correct] * 5)
    points = [
        {"x": x, "of": f"evaluate/{label}/sums"} for x, label in ((8, "a"), (16, "b"), (32, "c"))
    ]
    # y = 0, 25, 100 at log2 x = 3, 4, 5
    slope = measured(tmp_path, kind="slope", points=points)
    assert slope.value == pytest.approx(50.0)
    # no slope of scores is steeper, and 1 - 0.025^(1/5) = 52.18 % of problems may do otherwise
    assert slope.ci95 == pytest.approx((50 - 0.5218 * 100, 50), abs=1e-2)
    assert measured(tmp_path, kind="scaling", points=points).value == pytest.approx(
        (25 + 75 + 100 / 2) / 3
    )


def test_control_and_measured_thinking(tmp_path: Path) -> None:
    write_scores(tmp_path, "short", [0, 0], thinking=4)
    write_scores(tmp_path, "long", [N, N], thinking=16)
    points = [{"x": 8, "of": "evaluate/short/sums"}, {"x": 8, "of": "evaluate/long/sums"}]
    assert measured(tmp_path, kind="control", points=points).value == 50.0
    kept = measured(tmp_path, kind="control", points=points[:1])
    # two problems that keep to it show little about all of them
    assert kept.value == 100.0 and kept.ci95 == pytest.approx((100 * 0.025**0.5, 100))
    measured_x = [{"of": "evaluate/short/sums"}, {"of": "evaluate/long/sums"}]
    assert measured(tmp_path, kind="scaling", points=measured_x).value == pytest.approx(50.0)


def correlation(**more: object) -> dict[str, object]:
    column = {"of": "evaluate/{run}/sums", "metric": "accuracy"}
    return {
        "kind": "correlation",
        "runs": ["r0", "r1", "r2", "r3", "r4"],
        "x": column,
        "y": {"of": "evaluate/{run}-rl/sums", "metric": "accuracy"},
        **more,
    }


def test_rank_correlation_over_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for run, skill in enumerate((0.1, 0.3, 0.5, 0.7, 0.9)):
        write_scores(tmp_path, f"r{run}", rng.binomial(N, skill, size=60).tolist())
        write_scores(tmp_path, f"r{run}-rl", rng.binomial(N, skill, size=60).tolist())
        noise = 0.5 + (-1) ** run * 0.2
        write_scores(tmp_path, f"r{run}-noise", rng.binomial(N, noise, size=60).tolist())
    found = measured(tmp_path, **correlation())
    assert found.value == 1.0 and found.ci95 is not None and found.ci95[0] > 0.9
    noise = {"of": "evaluate/{run}-noise/sums", "metric": "accuracy"}
    better = measured(tmp_path, **correlation(better_than=noise))
    assert 0 < better.value <= 1.0


def test_held_out_loss_is_a_column(tmp_path: Path) -> None:
    for run in range(5):
        write_scores(tmp_path, f"r{run}-rl", [run if run < N else N] * 3)
        folder = tmp_path / "sft" / f"r{run}"
        folder.mkdir(parents=True)
        (folder / "held_out.jsonl").write_text(
            '{"step": 0, "held_out_loss": 9.0}\n'
            f'{{"step": 5, "held_out_loss": {1.0 - run / 10}}}\n'
        )
    loss = {"of": "sft/{run}", "metric": "held_out_loss"}
    assert measured(tmp_path, **correlation(x=loss)).value == pytest.approx(-1.0)


def test_shift_of_two_models(tmp_path: Path) -> None:
    for name, rank in (("sft", 11), ("rl", 2)):
        tokens = [{"rank": rank, "logprob_base": -3.0, "logprob_tuned": -1.0}] * 3
        rows = [json.dumps({"tokens": tokens})] * 4
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    shift = {"kind": "shift", "what": "rank", "of": "sft.jsonl", "minus": "rl.jsonl"}
    assert measured(tmp_path, **shift).value == 9.0
    assert measured(tmp_path, kind="shift", what="kl", of="rl.jsonl").value == 2.0


@pytest.mark.parametrize(
    ("ci95", "verdict"),
    [
        ((0.1, 2.0), "reproduced"),
        ((-2.0, -0.1), "opposite"),
        ((-0.1, 2.0), "not at this scale"),
        (None, "not at this scale"),
    ],
)
def test_the_verdict_is_what_the_interval_says(
    ci95: tuple[float, float] | None, verdict: str
) -> None:
    level = {"kind": "level", "of": "evaluate/a/sums"}
    assert finding(level).verdict(ci95) == verdict


def test_between_asks_for_the_whole_interval() -> None:
    inside = Bound(between=(-2.0, 2.0))
    assert inside.holds(-1.0, 1.0) and not inside.holds(-1.0, 2.5)


@pytest.mark.parametrize("rule", [{}, {"above": 1, "below": 2}])
def test_a_rule_is_one_bound(rule: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="one of above, below, between"):
        finding({"kind": "level", "of": "evaluate/a/sums"}, reproduced=rule)


@pytest.mark.parametrize(
    ("statistic", "words"),
    [
        (
            {"kind": "difference", "of": "a/b/c", "minus": "a/d/c", "metric": "pass@4",
             "only": {"file": "f", "column": "steps", "value": [1, 2]}},
            "pass@4 of a/b/c minus a/d/c, paired, problems whose steps is 1 or 2",
        ),
        (
            {"kind": "slope", "points": [{"x": 8, "of": "a/b/c"}, {"x": 16, "of": "a/d/c"}]},
            "accuracy gained a doubling of x (8, 16), least squares: a/b/c, a/d/c",
        ),
        (
            {"kind": "scaling", "points": [{"of": "a/b/c"}, {"of": "a/d/c"}]},
            "accuracy gained a doubling of thinking tokens, mean over all pairs: a/b/c, a/d/c",
        ),
        (
            {"kind": "control", "points": [{"x": 8, "of": "a/b/c"}]},
            "samples whose thinking kept to its budget: a/b/c 8",
        ),
        (
            {"kind": "correlation", "runs": list("wxyz"),
             "x": {"of": "sft/{run}", "metric": "held_out_loss"},
             "y": {"of": "e/{run}/c", "metric": "accuracy"},
             "better_than": {"of": "e/{run}/c", "metric": "pass@1"}},
            "Spearman of held-out-loss of sft/{run} with accuracy of e/{run}/c in size, minus that"
            " of pass@1 of e/{run}/c; runs w, x, y, z",
        ),
        (
            {"kind": "shift", "what": "kl", "of": "a.jsonl", "minus": "b.jsonl"},
            "KL to the base, a.jsonl minus b.jsonl",
        ),
    ],
)  # fmt: skip
def test_a_statistic_is_told_in_words(statistic: dict[str, object], words: str) -> None:
    """The report's table says what was measured, not only how it ended."""
    assert str(finding(statistic).measured["toy"]) == words


def test_what_an_interval_draws_is_told(tmp_path: Path) -> None:
    write_scores(tmp_path, "all", [N] * 100)
    write_scores(tmp_path, "some", [N, 0] * 50)
    over = [measured(tmp_path, kind="level", of=f"evaluate/{name}/sums").over
            for name in ("all", "some")]  # fmt: skip
    assert over == ["problems, exact", "problems"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    missing = finding({"kind": "level", "of": "evaluate/a/sums"})
    with pytest.raises(DataError, match=r"finding it: .*samples_sums\.jsonl; fix: run that stage"):
        judge(missing, "toy", Evaluations(tmp_path))


def test_a_slope_without_two_places_or_without_shared_problems_is_refused(tmp_path: Path) -> None:
    for label in ("a", "b"):
        write_scores(tmp_path, label, [0, N] * 5, thinking=8)
    write_scores(tmp_path, "none", [0, N] * 5, thinking=0)
    points = [{"of": f"evaluate/{label}/sums"} for label in ("a", "b", "none")]
    for kind in ("slope", "scaling"):
        with pytest.raises(DataError, match=r"two places above 0, found \[8\.0, 8\.0\]; fix:"):
            measured(tmp_path, kind=kind, points=points[:2])
        with pytest.raises(DataError, match=r"two places above 0, found \[8\.0, 0\.0\]; fix:"):
            measured(tmp_path, kind=kind, points=points[1:])
    other = tmp_path / "evaluate" / "other" / "sums" / "samples_sums.jsonl"
    other.parent.mkdir(parents=True)
    text = (tmp_path / "evaluate" / "a" / "sums" / "samples_sums.jsonl").read_text()
    other.write_text(text.replace('"id": "p', '"id": "q'))
    apart = [{"x": 1, **points[0]}, {"x": 2, "of": "evaluate/other/sums"}]
    with pytest.raises(DataError, match=r"evaluate/a/sums, evaluate/other/sums have no problem in"):
        measured(tmp_path, kind="slope", points=apart)
