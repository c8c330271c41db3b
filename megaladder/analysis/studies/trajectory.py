"""Dip and recovery of scores over checkpoints, and which checkpoint to keep.

After Ren et al., arXiv 2604.06628.

With base = score at step 0, low = the lowest later score, last = the final one, and a tolerance in
points: monotone = low is not below base by more than the tolerance; else the curve dips, and
dip-and-recovery = last is back at base (within the tolerance), weak-recovery = last regained more
than the tolerance but stays below base, degrading = last regained no more than the tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megaladder.analysis.runs.read import read_runs
from megaladder.analysis.runs.record import RunRecord, Runs
from megaladder.analysis.tables import Warnings, format_columns, read_csv, write_result
from megaladder.config.verbs.analysis import TrajectoryConfig
from megaladder.errors import DataError


@dataclass(frozen=True, slots=True)
class Point:
    """A checkpoint: score in %, mean response length in tokens where it is known."""

    step: int
    score: float
    length: float | None = None


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The dip below the base and the recovery after it, both in points.

    `dip` = base − lowest score after it (0 when none is below), `recovery` = last − lowest; None
    for monotone curves."""

    kind: str
    dip_step: int | None
    dip: float
    recovery: float | None
    best_step: int


def classify(points: list[Point], tolerance: float) -> Trajectory:
    """The class of one curve; `points` sorted by step, starting with step 0, at least one more."""
    base, later = points[0].score, points[1:]
    low = min(later, key=lambda point: (point.score, point.step))
    last = later[-1].score
    dip, recovery = base - low.score, last - low.score
    best_step = max(points, key=lambda point: (point.score, -point.step)).step
    if dip <= tolerance:
        return Trajectory("monotone", None, max(0.0, dip), None, best_step)
    short_of_base = "weak-recovery" if recovery > tolerance else "degrading"
    kind = "dip-and-recovery" if last >= base - tolerance else short_of_base
    return Trajectory(kind, low.step, dip, recovery, best_step)


def keep_step(curves: list[list[Point]]) -> int | None:
    """The step with the highest mean score over a model's benchmarks.

    Among steps that all of them have; ties go to the earlier."""
    common = sorted(set.intersection(*({point.step for point in points} for points in curves)))
    means = {
        step: (
            sum(point.score for points in curves for point in points if point.step == step)
            / len(curves)
        )
        for step in common
    }
    return max(common, key=lambda step: (means[step], -step)) if common else None


def read_curves(path: str) -> dict[tuple[str, str], list[Point]]:
    """(model, benchmark) → points sorted by step. Each curve needs step 0 and one more step."""
    curves: dict[tuple[str, str], dict[int, Point]] = {}
    for row in read_csv(path, ("model", "benchmark", "step", "score")):
        key, step = (row.text("model"), row.text("benchmark")), row.integer("step")
        curve = curves.setdefault(key, {})
        if step in curve:
            raise DataError(
                f"{row.where}: {key[0]}/{key[1]} already has step {step}; fix: keep one of the rows"
            )
        curve[step] = Point(
            step, row.number("score", 0, 100, "percent"), row.number_or_none("length", low=0)
        )
    for (model, benchmark), curve in curves.items():
        if 0 not in curve:
            raise DataError(
                f"{path}: {model}/{benchmark} has no step 0 (the base model), which a dip is"
                " measured from; fix: add that row"
            )
        if len(curve) == 1:
            raise DataError(
                f"{path}: {model}/{benchmark} has step 0 only; fix: add the scores of its"
                " checkpoints"
            )
    return {key: [curve[step] for step in sorted(curve)] for key, curve in curves.items()}


def curves_of(runs: Runs, only: Sequence[str] = ()) -> dict[tuple[str, str], list[Point]]:
    """(run, benchmark) → points of every run that was evaluated after some step.

    And before the first; `only`: of these benchmarks.

    Raises:
        DataError: no run has such a curve.
    """
    curves = curves_by_run(runs, runs.records, only)
    if not curves:
        raise DataError(
            "expected a run that was evaluated before training and after at least one step, found"
            f" {_evaluated(runs)}; fix: megaladder eval of the base model and of the run's steps, and"
            " give both folders"
        )
    return curves


def curves_by_run(
    runs: Runs, records: Sequence[RunRecord], only: Sequence[str] = ()
) -> dict[tuple[str, str], list[Point]]:
    """(run, benchmark) → points, of these records; {} where none has a step 0 and another."""
    curves = {
        (record.name, name): _curve(runs, record, name)
        for record in records
        for name in record.benchmarks
        if not only or name in only
    }
    return {key: points for key, points in curves.items() if len(points) > 1}


def _curve(runs: Runs, record: RunRecord, benchmark: str) -> list[Point]:
    scores = runs.curve(record, benchmark)
    trained = record.is_run or len(record.steps) > 1
    if trained and any(scores) and 0 not in scores:
        began = f"; it began with {record.parent.name}" if record.parent else ""
        runs.warnings.add(
            f"{record.name} on {benchmark}: no score before the first step, which a dip is measured"
            f" from, so it is left out{began}"
        )
    if not trained or not any(scores) or 0 not in scores:
        return []
    points = []
    for step, score in scores.items():
        percent = runs.percent(record, score)
        if percent is None:
            runs.warnings.add(
                f"{record.name} on {benchmark}: {score.headline} is no share, left out"
            )
            return []
        points.append(Point(step, percent, runs.length(record, score)))
    return points


def _evaluated(runs: Runs) -> str:
    """What was found, for an error: each record with its evaluated steps."""
    said = [f"{r.name} ({r.stage}) at steps {r.steps[:8]}" for r in runs.evaluated]
    return ", ".join(said[:6]) or "no evaluation"


def run_trajectory(config: TrajectoryConfig) -> None:
    """The verb `analyze trajectory`."""
    warnings = Warnings()
    curves = (
        read_curves(config.table)
        if config.table is not None
        else curves_of(read_runs(config.runs, warnings), config.benchmark)
    )
    out: dict[str, Any] = {
        "curves": {},
        "points": {},
        "keep": {},
        "best_step": {},
        "tolerance": config.tolerance,
    }
    rows = []
    for (model, benchmark), points in curves.items():
        name, result = f"{model}/{benchmark}", classify(points, config.tolerance)
        if name in out["curves"]:
            raise DataError(
                f"{config.table or 'runs'}: two curves are named {name} (a slash in a model or benchmark);"
                " fix: rename one"
            )
        out["curves"][name] = {
            "class": result.kind,
            "dip_step": result.dip_step,
            "dip": result.dip,
            "recovery": result.recovery,
        }
        out["points"][name] = [
            {"step": p.step, "score": p.score, "length": p.length} for p in points
        ]
        out["best_step"][name] = result.best_step
        drop = max(p.score for p in points) - points[-1].score
        if drop > config.tolerance:
            warnings.add(
                f"{name}: ends {drop:.1f} points below its best checkpoint, step {result.best_step}"
            )
        lengths = {p.step: p.length for p in points if p.length is not None}
        rows.append(
            [
                name,
                result.kind,
                result.dip_step,
                result.dip,
                result.recovery,
                result.best_step,
                max(lengths, key=lengths.__getitem__, default=None),
            ]
        )
    for model in dict.fromkeys(model for model, _ in curves):
        out["keep"][model] = keep_step(
            [points for (name, _), points in curves.items() if name == model]
        )
        if out["keep"][model] is None:
            warnings.add(
                f"{model}: its benchmarks share no step, so no checkpoint can be recommended"
            )
    out["warnings"] = warnings.list()
    write_result(config.json_path, out)
    print(
        format_columns(
            ("curve", "class", "dip at step", "dip", "recovery", "best step", "longest at step"),
            rows,
        )
    )
    print(
        "\n".join(
            f"keep {model}: step {step}" for model, step in out["keep"].items() if step is not None
        )
    )
