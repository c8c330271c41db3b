"""power: sizes against simulated tests."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from megaladder.analysis.power.design import (
    Pair,
    Spread,
    half_width,
    measured_covariance,
    measured_spread,
    problems_needed,
    quantiles,
    smallest_effect,
)
from megaladder.errors import DataError


def chances(rng, mean: float, icc: float, shape) -> np.ndarray:
    """Chances of problems with that mean and intra-class correlation."""
    size = (1 - icc) / icc
    return rng.beta(mean * size, (1 - mean) * size, shape)


def test_sizes_by_hand():
    """Mean 50 %, half of the variance between: σ_b² = σ_w² = 0.125. Unpaired with 4 samples a
    difference has 0.25 + 0.25/4 a problem; z = 1.960 + 0.842."""
    one = Spread.of(0.5, 0.5)
    assert (one.between, one.within, one.icc) == (0.125, 0.125, 0.5)
    pair, z = Pair(one, one, 0.1), quantiles(0.05, 0.8)
    assert z == pytest.approx(1.95996 + 0.84162, abs=1e-4)
    assert problems_needed(pair, 0.05, 4, z, paired=False) == math.ceil(z**2 * 0.3125 / 0.0025)
    assert problems_needed(pair, 0.05, 4, z, paired=True) == math.ceil(z**2 * 0.1125 / 0.0025)
    assert smallest_effect(pair, 500, 1, z, paired=False) == pytest.approx(z * (0.5 / 500) ** 0.5)
    assert half_width(one, 100, 1, 0.05) == pytest.approx(1.95996 * 0.05, rel=1e-5)


def test_components_are_found_again():
    rng = np.random.default_rng(0)
    p = chances(rng, 0.4, 0.3, 4000)
    a, b = (rng.random((4000, 5)) < p[:, None] for _ in range(2))
    found = measured_spread(a.tolist())
    assert found.mean == pytest.approx(0.4, abs=0.02) and found.icc == pytest.approx(0.3, abs=0.03)
    # the same chances: all of the variance between problems is shared
    covariance = measured_covariance(a.mean(1), b.mean(1))
    assert covariance == pytest.approx(found.between, abs=0.01)
    with pytest.raises(DataError, match="cannot be told apart"):
        measured_spread([[True], [False]])


@pytest.mark.parametrize("paired", [True, False])
def test_a_planned_evaluation_has_its_power(paired):
    """A true difference of 6 points, with the size that the plan says: seen in 80 % of 2,000
    evaluations (± 3 points)."""
    rng, n, effect, z = np.random.default_rng(1), 4, 0.06, quantiles(0.05, 0.8)
    p = 0.2 + 0.5 * chances(rng, 0.5, 0.5, 400_000)
    between = float(p.var())
    within = [float((q * (1 - q)).mean()) for q in (p, p + effect)]
    spreads = [
        Spread(float(q.mean()), between, w) for q, w in zip((p, p + effect), within, strict=True)
    ]
    size = problems_needed(Pair(*spreads, between), effect, n, z, paired=paired)
    base = rng.choice(p, (2000, size))
    other = base if paired else rng.choice(p, (2000, size))
    difference = (rng.binomial(n, other + effect) - rng.binomial(n, base)) / n
    if paired:
        error = difference.std(axis=1, ddof=1) / size**0.5
    else:
        error = ((spreads[0].between + spreads[1].between + sum(within) / n) / size) ** 0.5
    seen = np.abs(difference.mean(axis=1)) / error > 1.959964
    assert seen.mean() == pytest.approx(0.8, abs=0.03)


def test_the_verb_measures_or_takes_what_is_given(verb, write):
    rng = np.random.default_rng(2)
    p = chances(rng, 0.5, 0.5, 300)
    files = [
        write(
            f"{name}.jsonl",
            [{"id": f"p{i}", "correct": (rng.random(6) < q).tolist()} for i, q in enumerate(p)],
        )
        for name in ("a", "b")
    ]
    given = verb("power", "--effect", "5", "--problems", "300").json
    assert [row["n"] for row in given["rows"]] == [1, 2, 4, 8, 16, 32, 64]
    assert given["rows"][0]["problems_paired"] < given["rows"][0]["problems_unpaired"]
    measured = verb("power", "--effect", "5", "--samples", ",".join(map(str, files)), "--n", "2,8")
    found = measured.json
    assert found["icc"] == pytest.approx(0.5, abs=0.1) and found["problems"] == 300
    assert found["correlation"] > 0.9 and "needs these problems" in measured.out
    assert [row["n"] for row in found["rows"]] == [2, 8]
    # equally good: no look says otherwise
    assert found["stop_against"]["of"] == 6 and found["stop_against"]["decided"] is False
    assert "would have drawn" in measured.out and given["stop_against"] is None
    assert json.dumps(found)
