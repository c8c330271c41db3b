"""The statistics against scipy and brute force; coverage of the 95 % interval by simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from megaladder.analysis.stats import (
    holm,
    linear_fit,
    mean_intervals,
    ranks,
    sign_flip_p_values,
    spearman,
    spearman_interval,
)


def p_value(differences, draws=10_000, seed=42):
    return sign_flip_p_values({"x": differences}, draws, seed)["x"]


numbers = st.integers(-5, 5).map(float)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12))
def test_spearman_is_scipys(pairs):
    x, y = map(np.array, zip(*pairs, strict=True))
    assert ranks(x) == pytest.approx(stats.rankdata(x))
    found = spearman(x, y)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


@given(st.lists(numbers, min_size=1, max_size=9))
def test_permutation_p_value_is_exact_for_few_problems(values):
    array = np.array(values)
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in product((-1, 1), repeat=len(values))
    ]
    assert p_value(array) == pytest.approx(np.mean([s >= abs(array.sum()) for s in sums]))


def test_permutation_p_value_agrees_with_scipy():
    difference = np.random.default_rng(0).normal(0.25, 1, 80)
    theirs = stats.permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).pvalue
    assert p_value(difference, 20_000, 2) == pytest.approx(theirs, abs=0.01)


def test_permutation_keeps_its_level():
    """No difference: p below 0.05 in 5 % of trials (standard error 0.7 %)."""
    rng = np.random.default_rng(0)
    hits = [
        p_value(rng.binomial(8, 0.5, 40) / 8 - rng.binomial(8, 0.5, 40) / 8, 400, i) <= 0.05
        for i in range(1000)
    ]
    assert 0.03 <= np.mean(hits) <= 0.07


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_step_down_definition(p_values):
    found, order = holm(p_values), np.argsort(p_values, kind="stable")
    for rank, index in enumerate(order):
        expected = max(min(1.0, (len(p_values) - j) * p_values[order[j]]) for j in range(rank + 1))
        assert found[index] == pytest.approx(expected)
    assert all(adjusted >= raw - 1e-15 for adjusted, raw in zip(found, p_values, strict=True))


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=10))
def test_least_squares_is_scipys(pairs):
    x, y = map(np.array, zip(*pairs, strict=True))
    (slope,), (intercept,) = linear_fit(x[None], y[None])
    if np.ptp(x) == 0:
        assert slope == 0 and intercept == pytest.approx(y.mean())
    else:
        line = stats.linregress(x, y)
        assert (slope, intercept) == pytest.approx((line.slope, line.intercept), abs=1e-9)


@pytest.mark.parametrize(
    ("num_problems", "num_samples", "a", "b", "trials"),
    [(30, 16, 0.5, 0.5, 2000), (30, 16, 1, 1, 2000), (100, 4, 1, 1, 1000)],
)
def test_interval_covers_the_truth_in_95_of_100(num_problems, num_samples, a, b, trials):
    """Problems of Beta(a, b) difficulty, n samples each, true mean a/(a+b): 93 to 97 % of the
    intervals hold it."""
    rng, hits = np.random.default_rng(7), 0
    for trial in range(trials):
        accuracy = rng.binomial(num_samples, rng.beta(a, b, num_problems)) / num_samples
        low, high = mean_intervals({"x": accuracy}, 400, trial)["x"]
        hits += low <= a / (a + b) <= high
    assert 0.93 <= hits / trials <= 0.97, hits / trials


def test_spearman_interval_covers_the_truth():
    """Bivariate normal with r = 0.7: the population's rank correlation is 6/π·asin(r/2)."""
    truth, rng, hits = 6 / np.pi * np.arcsin(0.35), np.random.default_rng(5), 0
    for _ in range(2000):
        x = rng.normal(size=20)
        y = 0.7 * x + np.sqrt(1 - 0.49) * rng.normal(size=20)
        low, high = spearman_interval(spearman(x, y), 20)
        hits += low <= truth <= high
    assert 0.93 <= hits / 2000 <= 0.97, hits / 2000
    assert spearman_interval(1.0, 10) is None and spearman_interval(0.5, 4) is None


def test_intervals_share_draws_where_sizes_agree_and_are_null_for_one_problem():
    x = np.random.default_rng(0).random(25)
    found = mean_intervals({"x": x, "one": x[:1], "shifted": x + 1.0}, 500, 3)
    assert found["one"] is None and found["shifted"] == pytest.approx(
        [found["x"][0] + 1, found["x"][1] + 1]
    )
    assert mean_intervals({"x": x}, 500, 3)["x"] == mean_intervals({"x": x}, 500, 3)["x"]


def test_permutation_shares_signs_but_not_results():
    rng = np.random.default_rng(0)
    values = {
        "a": rng.normal(0.3, 1, 50),
        "b": rng.normal(0, 1, 50),
        "few": rng.normal(0, 1, 5),
        "none": np.zeros(9),
    }
    together = sign_flip_p_values(values, 500, 1)
    assert list(together) == list(values) and together["none"] == 1.0
    assert all(together[name] == p_value(array, 500, 1) for name, array in values.items())
