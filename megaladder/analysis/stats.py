"""Small statistics, vectorised and seeded: paired permutation, Holm, Spearman, least squares.

Intervals of means from evaluation.metrics.

P = problems, B = resampling draws. Intervals resample problems, never samples. Nothing here reads
files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import NormalDist

import numpy as np

from megaladder.evaluation.metrics import bootstrap_intervals

# the number of bootstrap samples of s1 (arXiv 2501.19393)
DRAWS = 10_000
CHUNK_VALUES = 2_000_000  # resampled indices held at once: 16 MB
EXACT_FLIPS = 14  # up to 2**14 sign patterns are enumerated instead of sampled


def resample_indices(num_problems: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks int64 [b, P] of problem indices drawn with replacement.

    The chunks add up to `draws` rows."""
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK_VALUES // max(1, num_problems))
    for start in range(0, draws, step):
        yield rng.integers(0, num_problems, size=(min(step, draws - start), num_problems))


def percentile_interval(draws_b: np.ndarray, level: float = 0.95) -> list[float] | None:
    """[low, high] of bootstrap draws; None where a draw has no value (NaN)."""
    if not np.isfinite(draws_b).all():
        return None
    low, high = np.quantile(draws_b, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def mean_intervals(
    values: Mapping[str, np.ndarray],
    draws: int = DRAWS,
    seed: int = 42,
    bounds: tuple[float, float] | None = None,
) -> dict[str, list[float] | None]:
    """95 % interval of the mean of each array [P_name]; None below two problems.

    Arrays of equal length share each draw of problems. bounds: between which all values lie; where
    an array has one value only, the interval is then exact and has a width."""
    by_size: dict[int, dict[str, np.ndarray]] = {}
    for name, array in values.items():
        by_size.setdefault(len(array), {})[name] = np.asarray(array, dtype=np.float64)
    found: dict[str, list[float] | None] = {}
    for arrays in by_size.values():
        within = dict.fromkeys(arrays, bounds) if bounds is not None else None
        pairs = bootstrap_intervals(arrays, draws, seed, bounds=within)
        found |= {
            name: None if pair is None else [pair.low, pair.high] for name, pair in pairs.items()
        }
    return {name: found[name] for name in values}


def sign_flip_p_values(
    differences: Mapping[str, np.ndarray], draws: int = DRAWS, seed: int = 42
) -> dict[str, float]:
    """Two-sided paired permutation tests of "no difference".

    Each problem's difference may as well have the other sign.

    Exact for up to 14 problems that differ; else sampled, p = (1 + hits) / (1 + draws) (never 0).
    1.0 where nothing differs. Arrays of equal length share each draw of signs.
    """
    found: dict[str, float] = {}
    by_size: dict[int, list[str]] = {}
    for name, values in differences.items():
        changed = values[values != 0]
        if len(changed) <= EXACT_FLIPS:
            found[name] = _exact_p_value(changed)
        else:
            by_size.setdefault(len(values), []).append(name)
    for names in by_size.values():
        found |= dict(
            zip(
                names,
                _sampled_p_values(np.stack([differences[n] for n in names], axis=1), draws, seed),
                strict=True,
            )
        )
    return {name: found[name] for name in differences}


def _exact_p_value(values: np.ndarray) -> float:
    if len(values) == 0:
        return 1.0
    patterns = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
    return float((np.abs((2.0 * patterns - 1.0) @ values) >= _observed(values)).mean())


def _sampled_p_values(values_pm: np.ndarray, draws: int, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    step, sums = max(1, CHUNK_VALUES // len(values_pm)), values_pm.sum(axis=0)
    hits = np.zeros(values_pm.shape[1], dtype=np.int64)
    for start in range(0, draws, step):
        shape = (min(step, draws - start), len(values_pm))
        flips = np.unpackbits(
            np.frombuffer(rng.bytes(-(-shape[0] * shape[1] // 8)), dtype=np.uint8),
            count=shape[0] * shape[1],
        )
        sampled = 2.0 * (flips.reshape(shape).astype(np.float64) @ values_pm) - sums
        hits += (np.abs(sampled) >= _observed(values_pm)).sum(axis=0)
    return [float(value) for value in (1 + hits) / (1 + draws)]


def _observed(values: np.ndarray) -> np.ndarray:
    # sums in another order may differ in the last bit
    return np.abs(values.sum(axis=0)) * (1 - 1e-12)


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return [float(value) for value in adjusted]


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1…n, ties share their mean rank."""
    values = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Rank correlation in [−1, 1].

    None where one side is constant or there are fewer than two points."""
    if len(x) < 2:
        return None
    a, b = ranks(x) - (len(x) + 1) / 2.0, ranks(y) - (len(y) + 1) / 2.0
    scale = np.sqrt((a @ a) * (b @ b))
    return float(np.clip((a @ b) / scale, -1.0, 1.0)) if scale > 0 else None


def spearman_interval(
    rho: float | None, num_points: int, level: float = 0.95
) -> list[float] | None:
    """Bonett & Wright (2000): Fisher z with variance (1 + ρ²/2)/(n − 3).

    None for |ρ| = 1 or n < 5, where it has no meaning."""
    if rho is None or num_points < 5 or abs(rho) >= 1.0:
        return None
    half = NormalDist().inv_cdf(0.5 + level / 2) * np.sqrt((1 + rho**2 / 2) / (num_points - 3))
    return [float(np.tanh(np.arctanh(rho) - half)), float(np.tanh(np.arctanh(rho) + half))]


def linear_fit(x_bn: np.ndarray, y_bn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares y ≈ slope·x + intercept for each of B rows → [B], [B].

    A constant x gives slope 0 (it predicts the mean)."""
    x_mean, y_mean = x_bn.mean(axis=1), y_bn.mean(axis=1)
    dx = x_bn - x_mean[:, None]
    spread = (dx * dx).sum(axis=1)
    slope = np.divide(
        (dx * (y_bn - y_mean[:, None])).sum(axis=1),
        spread,
        out=np.zeros_like(spread),
        where=spread > 0,
    )
    return slope, y_mean - slope * x_mean
