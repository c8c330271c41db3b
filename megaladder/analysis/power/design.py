"""Problems × samples for an effect, from the variance between problems and within them.

The mean of P problems with n samples each has variance (σ_b² + σ_w²/n)/P: σ_b² between the chances
of the problems, σ_w² of one sample around its problem's. A difference of two models on the same
problems has ω² = σ_bA² + σ_bB² − 2·cov in the place of σ_b² (paired); on other problems cov is 0.
Sizes are those of a two-sided normal test (Miller 2024, arXiv 2411.00640, section 5). Shares in
[0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import numpy as np

from megaladder.errors import DataError


@dataclass(frozen=True, slots=True)
class Spread:
    """Variances of one model's scores: between problems and within one."""

    mean: float
    between: float
    within: float

    @property
    def icc(self) -> float:
        """Share of one sample's variance that is between problems."""
        total = self.between + self.within
        return self.between / total if total else 0.0

    @classmethod
    def of(cls, mean: float, icc: float) -> Spread:
        """Right-or-wrong samples of a mean and an intra-class correlation: together mean·(1 − mean)."""
        total = mean * (1 - mean)
        return cls(mean, icc * total, (1 - icc) * total)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models on the same problems. covariance: of the problems' chances under both."""

    a: Spread
    b: Spread
    covariance: float

    def variance(self, n: int, *, paired: bool) -> float:
        """Of the difference on one problem with n samples of each model."""
        between = self.a.between + self.b.between - (2 * self.covariance if paired else 0.0)
        return max(0.0, between) + (self.a.within + self.b.within) / n


def measured_spread(correct: Sequence[Sequence[bool]]) -> Spread:
    """Unbiased components from stored samples: a row of verdicts for each problem.

    Raises:
        DataError: no problem has two samples, so that nothing tells the two apart.
    """
    means = np.array([fmean(row) for row in correct])
    inside = [
        (m * (1 - m) * len(row) / (len(row) - 1))
        for m, row in zip(means, correct, strict=True)
        if len(row) > 1
    ]
    if not inside or len(means) < 2:
        raise DataError(
            f"{len(means)} problems, {len(inside)} with two samples or more: between and within"
            " problems cannot be told apart; fix: more samples, or --mean and --icc"
        )
    within = fmean(inside)
    noise = within * fmean(1 / len(row) for row in correct)
    between = max(0.0, float(means.var(ddof=1)) - noise)
    return Spread(float(means.mean()), between, within)


def measured_covariance(means_a: np.ndarray, means_b: np.ndarray) -> float:
    """Of the chances of the same problems; samples of two models are independent given those."""
    return float(np.cov(means_a, means_b)[0, 1])


def problems_needed(pair: Pair, effect: float, n: int, z: float, *, paired: bool) -> int:
    """Problems with n samples of each model that show a difference of `effect`."""
    return math.ceil(z**2 * pair.variance(n, paired=paired) / effect**2)


def smallest_effect(pair: Pair, problems: int, n: int, z: float, *, paired: bool) -> float:
    """The difference that so many problems with n samples of each model show."""
    return z * math.sqrt(pair.variance(n, paired=paired) / problems)


def half_width(spread: Spread, problems: int, n: int, level: float) -> float:
    """Of the interval of one model's score."""
    z = NormalDist().inv_cdf(1 - level / 2)
    return z * math.sqrt((spread.between + spread.within / n) / problems)


def quantiles(level: float, power: float) -> float:
    """z of a two-sided test at `level`, and of its power, together."""
    return NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(power)
