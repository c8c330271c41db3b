"""Stops an evaluation as soon as it is known which of two models is better.

The other model's samples of the same problems are stored. Samples are drawn in waves, and after each
the paired differences are tested. All these looks together find a difference where there is none in
5 % of the evaluations, as one test at the end does: the estimates after n and after N samples a
problem have independent increments, so that the theory of group-sequential trials holds (Jennison &
Turnbull 2000, Group Sequential Methods, chapters 3 and 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.errors import ConfigError
from megaladder.evaluation.run import Grader, Progress, Task, Timing, run_task
from megaladder.evaluation.store import Journal
from megaladder.rollout.engine import Engine
from megaladder.run_dir import read_jsonl

LEVEL = 0.05
# of the information of all samples: with it the interval is 1 % wider, and drawing ends
ENOUGH = 0.98
_LEAST_DIFFERENT = 10  # problems on which the two differ, before a normal test means something
_LEAST_STEP = 1e-3  # of information between two looks; less would not be seen on the grid
_HALF_GRID = 100


class Boundary:
    """How large |z| has to be at each look, whenever the looks come (O'Brien & Fleming's shape).

    Of the error `level`, 4 − 4Φ(z_{1−level/4}/√t) is spent up to a fraction t of the information
    (Lan & DeMets 1983, Biometrika 70, 659-663). How often the process gets there: integrals from
    look to look (Armitage, McPherson & Rowe 1969), by the trapezoid rule.
    """

    def __init__(self, level: float = LEVEL) -> None:
        self.level, self.fraction = level, 0.0
        self._spent = 0.0
        # where the process is if no look decided: values and their probabilities
        self._values, self._masses = np.zeros(1), np.ones(1)

    def critical(self, fraction: float, *, last: bool) -> float:
        """|z| that decides at this look; the last one spends what is left of the error."""
        from scipy.optimize import brentq
        from scipy.special import ndtr, ndtri

        step = np.sqrt(fraction - self.fraction)
        spent = 4 * ndtr(ndtri(self.level / 4) / np.sqrt(fraction)) if not last else self.level

        def excess(bound: float) -> float:
            outside = ndtr((self._values - bound) / step) + ndtr((-self._values - bound) / step)
            return float(self._masses @ outside - (spent - self._spent))

        highest = 10 * float(np.sqrt(fraction))
        bound = highest if excess(highest) >= 0 else float(brentq(excess, 0.0, highest))
        self._move(np.linspace(-bound, bound, 2 * _HALF_GRID + 1), step)
        self.fraction, self._spent = fraction, spent
        return bound / float(np.sqrt(fraction))

    def _move(self, values: np.ndarray, step: float) -> None:
        distances = (values[None, :] - self._values[:, None]) / step
        density = self._masses @ np.exp(-0.5 * distances**2) / (step * np.sqrt(2 * np.pi))
        density[[0, -1]] /= 2
        self._values, self._masses = values, density * (values[1] - values[0])


@dataclass(frozen=True, slots=True)
class Look:
    """A model against the stored one after a wave. Shares: the difference and its 95 % interval."""

    difference: float
    half_width: float
    decided: bool
    ends: bool

    def as_json(self) -> dict[str, object]:
        """As a benchmark's summary holds it."""
        low, high = self.difference - self.half_width, self.difference + self.half_width
        ci95 = [low, high] if np.isfinite(self.half_width) else None
        return {"difference": self.difference, "ci95": ci95, "decided": self.decided}

    def __str__(self) -> str:
        low, high = (100 * (self.difference + side * self.half_width) for side in (-1.0, 1.0))
        verdict = "decided" if self.decided else "not decided"
        return f"{verdict}: {100 * self.difference:+.1f} points [{low:.1f}, {high:.1f}]"


class Comparison:
    """The looks of one evaluation of at most `num_samples` samples a problem."""

    def __init__(self, num_samples: int, level: float = LEVEL) -> None:
        self._num_samples, self._boundary = num_samples, Boundary(level)

    def look(self, shares_p: np.ndarray, stored_p: np.ndarray, n: int) -> Look:
        """After n samples a problem: shares of right ones, and those of the stored model.

        The interval is the t interval of the paired differences; it leaves out 0 where it is decided
        which model is better, and only there.
        """
        from scipy.special import ndtr, ndtri, stdtr, stdtrit

        differences_p, last = shares_p - stored_p, n >= self._num_samples
        count = len(differences_p)
        if count < 2:
            return Look(float(differences_p.sum()), float("inf"), False, last)
        mean, variance = float(differences_p.mean()), float(differences_p.var(ddof=1))
        error = float(np.sqrt(variance / count))
        half_width = float(stdtrit(count - 1, 1 - self._boundary.level / 2)) * error
        fraction = 1.0 if last else self._fraction(shares_p, n, variance)
        least = self._boundary.fraction + _LEAST_STEP
        if not last and (fraction < least or (differences_p != 0).sum() < _LEAST_DIFFERENT):
            return Look(mean, half_width, False, False)
        t = abs(mean) / error if error else float("inf") if mean else 0.0
        # as far out in a normal distribution as t is in its own
        z = -float(ndtri(stdtr(count - 1, -t)))
        ends = last or fraction >= ENOUGH
        critical = self._boundary.critical(max(fraction, least), last=ends)
        if z < critical:
            # as wide as the test that did not decide: the interval holds 0
            half_width = float(stdtrit(count - 1, ndtr(critical))) * error
        return Look(mean, half_width, z >= critical, ends or z >= critical)

    def _fraction(self, shares_p: np.ndarray, n: int, variance: float) -> float:
        """Variance of a problem's difference with all samples, as a share of that with n."""
        if n == 1:
            # one sample a problem does not tell what is within: all of the variance at most
            mean = float(shares_p.mean())
            within = mean * (1 - mean)
        else:
            within = float((shares_p * (1 - shares_p)).mean()) * n / (n - 1)
        to_come = within * (1 / n - 1 / self._num_samples)
        return max(0.0, 1 - to_come / variance) if variance else float(to_come == 0.0)


def looks(num_samples: int) -> list[int]:
    """Samples a problem after which a sequential evaluation looks.

    1, 2, … 8, 10, 12, 15 …, a quarter more each time; `num_samples` last."""
    found = [1]
    while found[-1] < num_samples:
        found.append(min(num_samples, found[-1] + max(1, found[-1] // 4)))
    return found


def replayed(verdicts_pn: np.ndarray, stored_p: np.ndarray) -> tuple[Look, int]:
    """Where samples that are all there would have ended: the look, and the samples a problem."""
    comparison = Comparison(verdicts_pn.shape[1])
    for n in looks(verdicts_pn.shape[1]):
        look = comparison.look(verdicts_pn[:, :n].mean(axis=1), stored_p, n)
        if look.ends:
            break
    return look, n


def run_until_decided(
    task: Task,
    stored: Mapping[str, float],
    engine: Engine,
    pool: Grader,
    journal: Journal,
    progress: Progress | None = None,
) -> tuple[Task, Timing, Look]:
    """`run_task` in waves of samples, until it is known whether the stored model is worse or better.

    stored: its share of right samples by problem. Returns the task with the n that was reached, at
    most its own. A start that finds more samples than it needs stops at the same n.
    """
    total, comparison = Timing(), Comparison(task.params.n)
    for n in looks(task.params.n):
        wave = replace(task, params=replace(task.params, n=n))
        total.add(run_task(wave, engine, pool, journal, progress))
        look = comparison.look(*_pairs(wave, journal, stored), n)
        if look.ends:
            break
    return wave, total, look


def _pairs(
    task: Task, journal: Journal, stored: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of right samples among the decided ones of each problem, ours and the stored."""
    pairs = []
    for problem in task.problems:
        verdicts = [journal.records[problem.id, k].correct for k in range(task.params.n)]
        decided = [verdict for verdict in verdicts if verdict is not None]
        if decided and problem.id in stored:
            pairs.append((sum(decided) / len(decided), stored[problem.id]))
    ours_p, stored_p = np.array(pairs).reshape(-1, 2).T
    return ours_p, stored_p


def stored_shares(folder: Path, task: Task) -> dict[str, float]:
    """Share of right samples by problem, from what `eval` wrote for another model.

    Raises:
        ConfigError: there is no such evaluation, or not of these problems.
    """
    path = folder / task.benchmark / f"samples_{task.benchmark}.jsonl"
    if not path.is_file():
        raise ConfigError(
            f"stop_against {folder}: no {path}; fix: the folder of a model that `eval` wrote, e.g."
            " runs/eval/base"
        )
    try:
        docs = [row["doc"] for row in read_jsonl(path)]
        rows = {str(doc["id"]): _decided(doc["samples"]["exact_matches"]) for doc in docs}
    except (KeyError, TypeError):
        raise ConfigError(f"{path}: not as `eval` writes it; fix: evaluate that model") from None
    missing = [problem.id for problem in task.problems if problem.id not in rows]
    if missing:
        raise ConfigError(
            f"stop_against {folder}: {len(missing)} of {len(task.problems)} problems of"
            f" {task.benchmark} are not in it, the first is {missing[0]}; fix: evaluate both with"
            " the same data and --limit"
        )
    return {name: sum(found) / len(found) for name, found in rows.items() if found}


def _decided(verdicts: Any) -> list[bool]:
    """Raises TypeError for what are no verdicts."""
    found = [verdict for verdict in verdicts if verdict is not None]
    if any(verdict not in (0, 1) for verdict in found):
        raise TypeError(f"verdicts {verdicts}")
    return list(map(bool, found))
