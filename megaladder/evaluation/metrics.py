"""Metrics over P problems with n samples each, and their intervals.

Pure numpy, vectorised over problems; no torch, no files.

Names: `correct_pn` is bool [P, n] (problem, sample in the order they were drawn); a `_p` array has
one value a problem, in [0, 1]. A score is the mean of a `_p` array; `bootstrap_intervals` resamples
its problems, never the samples: problems are what a benchmark draws from a population, and samples
of one problem are not independent (Miller 2024, arXiv 2411.00640).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DEFAULT_DRAWS = 10_000
SHARE = (0.0, 1.0)  # the bounds of a problem's share of right samples
_CHUNK_CELLS = 4_000_000  # draws × problems held at once: 32 MB of counts


@dataclass(frozen=True, slots=True)
class Interval:
    """Bootstrap interval of a mean, in the unit of the mean."""

    low: float
    high: float


def avg_at_n(correct_pn: np.ndarray) -> np.ndarray:
    """Share of correct samples, per problem: float64 [P]."""
    return _as_matrix(correct_pn).mean(axis=1)


def pass_at_k(num_samples_p: np.ndarray, num_correct_p: np.ndarray, k: int) -> np.ndarray:
    """Unbiased pass@k per problem.

    1 − C(n−c, k) / C(n, k), 1 where n−c < k (Chen et al. 2021, arXiv 2107.03374).

    >>> float(pass_at_k(np.array([256]), np.array([4]), 64)[0].round(6))
    0.686082

    The product ∏_{i<k} (n−c−i)/(n−i), once for each distinct (n, c): no large binomials, no
    cancellation, and pass@1 is c/n to the bit. Raises ValueError if k is above some n or the counts
    make no sense.
    """
    n, c = np.asarray(num_samples_p, dtype=np.int64), np.asarray(num_correct_p, dtype=np.int64)
    if (
        k < 1
        or n.shape != c.shape
        or n.size == 0
        or (n < k).any()
        or (c < 0).any()
        or (c > n).any()
    ):
        raise ValueError(
            f"pass@{k}: needs 1 ≤ k ≤ n and 0 ≤ correct ≤ n for every problem; n {n.tolist()[:5]},"
            f" correct {c.tolist()[:5]}"
        )
    pairs, inverse = np.unique(np.stack([n, c]), axis=1, return_inverse=True)
    if k == 1:
        return (pairs[1] / pairs[0])[inverse.reshape(-1)]
    steps = np.arange(k)[:, None]
    all_wrong = np.prod(np.clip(pairs[0] - pairs[1] - steps, 0, None) / (pairs[0] - steps), axis=0)
    return np.asarray(1.0 - all_wrong)[inverse.reshape(-1)]


def cov_at_n(correct_pn: np.ndarray, n: int | None = None) -> np.ndarray:
    """1 if any of the *first* n samples is correct (s1, reasoning_ladder).

    Biased as an estimate of pass@n, kept for comparison."""
    matrix = _as_matrix(correct_pn)
    return np.asarray(matrix[:, : _prefix(matrix.shape[1], n)].any(axis=1), np.float64)


def maj_at_n(
    answers_pn: Sequence[Sequence[str | None]], correct_pn: np.ndarray, n: int | None = None
) -> np.ndarray:
    """1 if the most frequent answer of the first n samples is correct.

    Ties go to the answer seen first (s1, reasoning_ladder).

    Correct answers are one answer however they are spelled; wrong ones are told apart as strings;
    None (no answer) has no vote.
    """
    matrix = _as_matrix(correct_pn)
    if [len(row) for row in answers_pn] != [matrix.shape[1]] * matrix.shape[0]:
        raise ValueError(f"maj@n: answers must have the shape of the verdicts, {matrix.shape}")
    n = _prefix(matrix.shape[1], n)
    return np.array(
        [
            _majority(row[:n], verdicts[:n])
            for row, verdicts in zip(answers_pn, matrix, strict=True)
        ],
        dtype=np.float64,
    )


def _majority(answers: Sequence[str | None], verdicts: np.ndarray) -> bool:
    votes = Counter(
        (True, "") if right else (False, answer)
        for answer, right in zip(answers, verdicts, strict=True)
        if right or answer is not None
    )
    # most_common keeps the order of first appearance among equals
    return bool(votes) and votes.most_common(1)[0][0][0]


def bootstrap_intervals(
    values: Mapping[str, np.ndarray],
    num_draws: int = DEFAULT_DRAWS,
    seed: int = 42,
    level: float = 0.95,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Interval | None]:
    """Interval of the mean of each `_p` array.

    All arrays share each draw of problems. None for fewer than two problems. bounds: between which
    the values of an array lie. Where all its problems have one value, draws would give an interval
    without a width; with bounds it is the exact one (`exact_interval`).

    Drawing P problems with replacement is drawing multinomial counts, so a draw of all metrics is
    one row of a matrix product. Percentiles are expanded for small P (Hesterberg, arXiv 1411.5279,
    section 3.3), as in `analysis.stats`: plain ones of 30 problems are too narrow.
    """
    if not values:
        return {}
    # [P, metrics]
    matrix = np.stack([np.asarray(value, dtype=np.float64) for value in values.values()], axis=1)
    num_problems = matrix.shape[0]
    if num_problems < 2:
        return dict.fromkeys(values)
    rng = np.random.default_rng(seed)
    chunk = max(1, min(num_draws, _CHUNK_CELLS // num_problems))
    means = []
    for start in range(0, num_draws, chunk):
        counts = rng.multinomial(
            num_problems,
            np.full(num_problems, 1.0 / num_problems),
            size=min(chunk, num_draws - start),
        )
        means.append(counts @ matrix / num_problems)
    tail = _expanded_tail(num_problems, level)
    low, high = np.quantile(np.concatenate(means), [tail, 1.0 - tail], axis=0)
    found: dict[str, Interval | None] = {
        name: Interval(float(low[i]), float(high[i])) for i, name in enumerate(values)
    }
    for name, limits in (bounds or {}).items():
        if is_constant(values[name]):
            found[name] = exact_interval(values[name], limits, level)
    return found


def is_constant(value_p: np.ndarray) -> bool:
    """Whether all problems have one value, but for the rounding of sums."""
    return bool(np.ptp(value_p) <= 1e-9)


def exact_interval(value_p: np.ndarray, bounds: tuple[float, float], level: float) -> Interval:
    """Interval of the mean where all P problems have one value.

    Of all problems at most a share of 1 − (α/2)^(1/P) has another one (Clopper & Pearson 1934),
    anywhere between the bounds: 0 of 200 right is [0, 1.8 %]."""
    mean = float(np.mean(value_p))
    others = 1 - ((1 - level) / 2) ** (1 / len(value_p))
    low, high = (mean + others * (bound - mean) for bound in bounds)
    return Interval(low, high)


def bootstrap_interval(
    value_p: np.ndarray,
    num_draws: int = DEFAULT_DRAWS,
    seed: int = 42,
    bounds: tuple[float, float] | None = None,
) -> Interval | None:
    """95 % interval of the mean of one `_p` array. bounds: as in `bootstrap_intervals`."""
    within = None if bounds is None else {"": bounds}
    return bootstrap_intervals({"": value_p}, num_draws, seed, bounds=within)[""]


def _expanded_tail(num_problems: int, level: float) -> float:
    """Φ(√(P/(P−1)) · t_{α/2, P−1}) instead of α/2."""
    from scipy.special import ndtr, stdtrit

    return float(
        ndtr(
            np.sqrt(num_problems / (num_problems - 1))
            * stdtrit(num_problems - 1, (1.0 - level) / 2)
        )
    )


def _as_matrix(correct_pn: np.ndarray) -> np.ndarray:
    matrix = np.asarray(correct_pn, dtype=bool)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(
            "verdicts must be a matrix [problems, samples] with at least one of each; shape"
            f" {matrix.shape}"
        )
    return matrix


def _prefix(num_samples: int, n: int | None) -> int:
    if n is None:
        return num_samples
    if not 1 <= n <= num_samples:
        raise ValueError(f"n {n}: expected 1 to {num_samples}, the samples per problem")
    return n
