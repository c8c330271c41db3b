"""Findings → numbers with 95 % intervals and verdicts.

Intervals: bootstrap over problems (`analysis.stats`), paired where two scores are of the same
problems. A rank correlation draws runs and, inside them, problems. A shift draws texts, those of
either model for themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megaladder.analysis.stats import mean_intervals, percentile_interval, spearman
from megaladder.errors import DataError
from megaladder.evaluation.metrics import is_constant
from megaladder.study.finding import (
    Column,
    Control,
    Correlation,
    Difference,
    Finding,
    Level,
    Shift,
    Slope,
    Verdict,
)
from megaladder.study.scores import PERCENT, Evaluations
from megaladder.study.study import ScaleName

DRAWS, SEED = 2000, 42


@dataclass(frozen=True)
class Measured:
    """A number, its 95 % interval (None: too few to have one), over `n` of what.

    over: what was drawn for the interval, so whose chance it holds."""

    value: float
    ci95: tuple[float, float] | None
    n: int
    unit: str
    over: str = "problems"


@dataclass(frozen=True)
class Outcome:
    """A finding, what was measured, and what that means by its own rule."""

    finding: Finding
    statistic: str
    measured: Measured
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """As `findings.json` holds it."""
        return {
            "name": self.finding.name,
            "claim": self.finding.claim,
            "published": self.finding.published,
            "statistic": self.statistic,
            "reproduced_if": str(self.finding.reproduced),
            "opposite_if": str(self.finding.opposite),
            "value": self.measured.value,
            "ci95": self.measured.ci95,
            "n": self.measured.n,
            "unit": self.measured.unit,
            "over": self.measured.over,
            "verdict": self.verdict,
        }


def judge(finding: Finding, scale: ScaleName, found: Evaluations) -> Outcome:
    """Measures a finding and applies its rule.

    Raises DataError naming the finding where something is missing."""
    statistic = finding.measured[scale]
    try:
        measured = measure(statistic, found)
    except DataError as error:
        raise DataError(f"finding {finding.name}: {error}") from None
    return Outcome(finding, str(statistic), measured, finding.verdict(measured.ci95))


def measure(
    statistic: Level | Difference | Slope | Control | Correlation | Shift, found: Evaluations
) -> Measured:
    """The number and its interval."""
    if isinstance(statistic, Correlation):
        return _correlation(statistic, found)
    if isinstance(statistic, Shift):
        return _shift(statistic, found)
    if isinstance(statistic, Control):
        return _mean(_kept_share(statistic, found), "%", (0.0, PERCENT))
    if isinstance(statistic, Slope):
        return _slope(statistic, found)
    of = found.scores(statistic.of, statistic.metric, statistic.only).values
    tokens = statistic.metric == "tokens"
    if isinstance(statistic, Level):
        return _mean(list(of.values()), _unit(statistic.metric), None if tokens else (0.0, PERCENT))
    minus = found.scores(statistic.minus, statistic.metric, statistic.only).values
    shared = [name for name in of if name in minus]
    if not shared:
        raise DataError(f"{statistic.of} and {statistic.minus} have no problem in common")
    differences = [of[name] - minus[name] for name in shared]
    if tokens:
        return _mean(differences, "tokens")
    return _mean(differences, "points", (-PERCENT, PERCENT))


def _unit(metric: str) -> str:
    return "tokens" if metric == "tokens" else "%"


def _mean(
    values: Sequence[float], unit: str, bounds: tuple[float, float] | None = None
) -> Measured:
    """The mean over problems. bounds: between which a problem's value lies."""
    array = np.asarray(values, dtype=np.float64)
    interval = mean_intervals({"it": array}, seed=SEED, bounds=bounds)["it"]
    ci95 = None if interval is None else (interval[0], interval[1])
    over = "problems, exact" if bounds is not None and is_constant(array) else "problems"
    return Measured(float(array.mean()), ci95, len(array), unit, over)


def _kept_share(statistic: Control, found: Evaluations) -> list[float]:
    """Per problem, the share of its samples over all budgets that kept to them, in percent."""
    kept: dict[str, list[bool]] = {}
    for point in statistic.points:
        if point.x is None:
            raise DataError(f"{point.of}: control needs the budget as x; fix: x: TOKENS")
        for name, tokens in found.thinking_tokens(point.of).items():
            kept.setdefault(name, []).extend(count <= point.x for count in tokens)
    return [PERCENT * float(np.mean(values)) for values in kept.values()]


def _slope(statistic: Slope, found: Evaluations) -> Measured:
    """Per problem, its score's gain for a doubling of x; the mean over problems."""
    curves = [found.scores(p.of, statistic.metric, statistic.only).values for p in statistic.points]
    ids = [name for name in curves[0] if all(name in curve for curve in curves)]
    places = [_place(point.x, point.of, found) for point in statistic.points]
    if not ids:
        raise DataError(f"{', '.join(p.of for p in statistic.points)} have no problem in common")
    if min(places) <= 0 or len(set(places)) == 1:
        raise DataError(
            f"a slope a doubling needs points at two places above 0, found {places}; fix: other"
            " points, or their `x`"
        )
    y_kp = np.array([[curve[name] for name in ids] for curve in curves])
    x_k = np.log2(places)
    weights_k = _slope_weights(statistic.kind, x_k)
    most = PERCENT * float(weights_k.clip(min=0).sum())
    bounds = None if statistic.metric == "tokens" else (-most, most)
    gains = [float(value) for value in weights_k @ y_kp]
    return _mean(gains, f"{_unit(statistic.metric)} a doubling", bounds)


def _slope_weights(kind: str, x_k: np.ndarray) -> np.ndarray:
    """What each point counts in the slope; they add up to 0."""
    if kind == "slope":
        centred = x_k - x_k.mean()
        return np.asarray(centred / (centred @ centred))
    pairs = [(a, b) for a, b in itertools.combinations(range(len(x_k)), 2) if x_k[a] != x_k[b]]
    weights_k = np.zeros(len(x_k))
    for a, b in pairs:
        weights_k[[a, b]] += np.array([-1.0, 1.0]) / (x_k[b] - x_k[a]) / len(pairs)
    return weights_k


def _place(x: float | None, of: str, found: Evaluations) -> float:
    if x is not None:
        return x
    tokens = found.thinking_tokens(of).values()
    return float(np.mean([np.mean(counts) for counts in tokens]))


def _correlation(statistic: Correlation, found: Evaluations) -> Measured:
    """Spearman over runs; each draw takes runs with replacement, then problems."""
    columns = [statistic.x, statistic.y]
    columns += [statistic.better_than] if statistic.better_than is not None else []
    values = [[_column(column, run, found) for run in statistic.runs] for column in columns]
    whole = _rank_gain([np.array([v.mean() for v in column]) for column in values])
    if whole is None:
        raise DataError("a column has one value for all runs, so nothing has a rank; fix: runs")
    rng = np.random.default_rng(SEED)
    drawn = []
    for _ in range(DRAWS):
        runs = rng.integers(0, len(statistic.runs), size=len(statistic.runs))
        # a run that is drawn twice is the same run: one value, tied with itself
        means = [
            np.array([rng.choice(run, size=len(run)).mean() for run in column])[runs]
            for column in values
        ]
        drawn.append(_rank_gain(means))
    kept = np.array([value for value in drawn if value is not None])
    interval = percentile_interval(kept) if len(kept) else None
    ci95 = None if interval is None else (interval[0], interval[1])
    return Measured(whole, ci95, len(statistic.runs), "Spearman", "runs")


def _rank_gain(columns: Sequence[np.ndarray]) -> float | None:
    """ρ(x, y), or |ρ(x, y)| − |ρ(other, y)|."""
    rho = spearman(columns[0], columns[1])
    if rho is None or len(columns) == 2:
        return rho
    other = spearman(columns[2], columns[1])
    return None if other is None else abs(rho) - abs(other)


def _column(column: Column, run: str, found: Evaluations) -> np.ndarray:
    of = column.of.replace("{run}", run)
    if column.metric == "held_out_loss":
        return np.array([found.last_held_out(of)])
    return np.array(list(found.scores(of, column.metric).values.values()))


def _shift(statistic: Shift, found: Evaluations) -> Measured:
    of = found.shift_values(statistic.of, statistic.what)
    unit = "nats a token" if statistic.what == "kl" else "ranks"
    if statistic.minus is None:
        return replace(_mean([float(value) for value in of], unit), over="texts")
    minus = found.shift_values(statistic.minus, statistic.what)
    rng = np.random.default_rng(SEED)
    drawn = np.array(
        [
            rng.choice(of, len(of)).mean() - rng.choice(minus, len(minus)).mean()
            for _ in range(DRAWS)
        ]
    )
    interval = percentile_interval(drawn)
    ci95 = None if interval is None else (interval[0], interval[1])
    return Measured(float(of.mean() - minus.mean()), ci95, len(of), unit, "texts")
