"""Metrics against brute force, published numbers and their own definitions; intervals against
theory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from itertools import combinations, pairwise
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from megaladder.evaluation import report
from megaladder.evaluation.metrics import (
    SHARE,
    avg_at_n,
    bootstrap_interval,
    bootstrap_intervals,
    cov_at_n,
    maj_at_n,
    pass_at_k,
)
from megaladder.evaluation.store import Record
from megaladder.types import Message, Problem

matrices = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=8).map(
        np.array
    )
)


PUBLISHED = [
    (256, 4, 64, 0.686082),
    (64, 8, 1, 0.125),
    (8, 3, 2, 0.642857),
    (8, 7, 2, 1.0),
    (5, 5, 5, 1.0),
]


@pytest.mark.parametrize(("n", "c", "k", "expected"), PUBLISHED)
def test_pass_at_k_published_numbers(n, c, k, expected):
    assert pass_at_k(np.array([n]), np.array([c]), k)[0] == pytest.approx(expected, abs=5e-7)


@given(st.integers(1, 300), st.data())
def test_pass_at_k_is_the_exact_fraction(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - comb(n - c, k) / comb(n, k)
    assert pass_at_k(np.array([n, n]), np.array([c, 0]), k).tolist() == [
        pytest.approx(exact, abs=1e-12),
        0.0,
    ]


@given(matrices, st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(correct_pn, data):
    num_samples = correct_pn.shape[1]
    k = data.draw(st.integers(1, num_samples))
    brute = [
        np.mean([row[list(chosen)].any() for chosen in combinations(range(num_samples), k)])
        for row in correct_pn
    ]
    counts = np.full(len(correct_pn), num_samples)
    assert np.allclose(pass_at_k(counts, correct_pn.sum(axis=1), k), brute, atol=1e-12)


@given(matrices)
def test_relations_between_the_metrics(correct_pn):
    n, counts = correct_pn.shape[1], np.full(len(correct_pn), correct_pn.shape[1])
    right = correct_pn.sum(axis=1)
    assert (pass_at_k(counts, right, 1) == avg_at_n(correct_pn)).all()
    assert (pass_at_k(counts, right, n) == cov_at_n(correct_pn)).all()
    values = [pass_at_k(counts, right, k) for k in range(1, n + 1)]
    assert all((later >= earlier - 1e-12).all() for earlier, later in pairwise(values))


def test_pass_at_k_refuses_what_it_cannot_estimate():
    for n, c, k in (
        ([4], [2], 5),
        ([4], [5], 1),
        ([4], [-1], 1),
        ([4], [2], 0),
        ([4, 4], [2], 1),
        ([], [], 1),
    ):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(np.array(n), np.array(c), k)


def test_cov_is_a_prefix():
    correct = np.array([[0, 0, 1, 0], [1, 0, 0, 0]], dtype=bool)
    assert [cov_at_n(correct, n).tolist() for n in (1, 2, 3, 4)] == [[0, 1], [0, 1], [1, 1], [1, 1]]
    with pytest.raises(ValueError, match="1 to 4"):
        cov_at_n(correct, 5)


def test_maj_ties_go_to_the_first_seen_and_spellings_of_the_right_answer_are_one():
    def maj(answers, correct, n=None):
        return maj_at_n([answers], np.array([correct], dtype=bool), n)[0]

    assert maj(["6", "5", "5", "6"], [0, 1, 1, 0]) == 0
    assert maj(["5", "6", "6", "5"], [1, 0, 0, 1]) == 1
    assert maj(["6", "6", "0.5", "1/2", r"\frac12"], [0, 0, 1, 1, 1]) == 1
    assert maj(["6", "7", "5", "8"], [0, 0, 1, 0]) == 0
    assert maj([None, None, "5"], [0, 0, 1]) == 1  # no answer is no vote
    assert maj([None, None], [0, 0]) == 0
    assert maj(["6", "5", "5"], [0, 1, 1], n=1) == 0
    with pytest.raises(ValueError, match="shape"):
        maj_at_n([["1"]], np.zeros((1, 2), dtype=bool))


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.sampled_from("abc"))
def test_maj_is_the_published_counter(answers, gold):
    """reasoning_ladder: gold == Counter(first n).most_common(1)."""
    correct = np.array([[answer == gold for answer in answers]])
    for n in range(1, len(answers) + 1):
        assert maj_at_n([answers], correct, n)[0] == (
            Counter(answers[:n]).most_common(1)[0][0] == gold
        )


def test_intervals_are_seeded_and_share_their_draws():
    values = np.random.default_rng(0).random(40)
    first = bootstrap_intervals({"a": values, "b": 1 - values, "c": values}, seed=7)
    assert first == bootstrap_intervals({"a": values, "b": 1 - values, "c": values}, seed=7)
    alone, other = bootstrap_interval(values, seed=7), bootstrap_interval(values, seed=8)
    assert (
        first["a"].low
        == pytest.approx(first["c"].low, abs=1e-12)
        == pytest.approx(alone.low, abs=1e-12)
        != other.low
    )
    assert first["b"].low == pytest.approx(1 - first["a"].high, abs=1e-4)
    assert first["a"].low < values.mean() < first["a"].high


def test_interval_width_is_that_of_the_t_interval():
    """For 30 problems: the standard error of the mean (ddof 1) times the t quantile, within 3 %."""
    values = np.random.default_rng(1).normal(0.5, 0.1, 30)
    found = bootstrap_interval(values, num_draws=200_000)
    half = 2.0452 * values.std(ddof=1) / np.sqrt(30)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.03)


def test_intervals_resample_problems_and_not_samples():
    """Repeating every sample a hundred times tells nothing new about the problems: the interval
    does not move."""
    correct = np.random.default_rng(2).random((30, 4)) < 0.5
    assert bootstrap_interval(avg_at_n(correct)) == bootstrap_interval(
        avg_at_n(np.repeat(correct, 100, axis=1))
    )


def test_interval_corner_cases():
    assert bootstrap_interval(np.array([0.3])) is None
    assert bootstrap_intervals({}) == {}
    same = bootstrap_interval(np.ones(10))
    assert (same.low, same.high) == (1.0, 1.0)


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0, 0.0182749), (1.0, 0.9817251, 1)])
def test_shares_without_a_spread_have_the_exact_interval(value, low, high):
    """0 and 200 of 200: Clopper and Pearson's; a length of 200 equal values has no bounds."""
    values = {"avg@1": np.full(200, value), "response_length": np.full(200, 7.0)}
    found = bootstrap_intervals(values, bounds={"avg@1": SHARE})
    assert (found["avg@1"].low, found["avg@1"].high) == pytest.approx((low, high), abs=1e-6)
    bounds = beta.ppf(0.975, 1, 200), beta.ppf(0.025, 200, 1)
    assert bounds == pytest.approx((0.0182749, 0.9817251), abs=1e-6)
    assert (found["response_length"].low, found["response_length"].high) == (7.0, 7.0)
    assert bootstrap_interval(values["avg@1"], bounds=SHARE) == found["avg@1"]


@pytest.mark.parametrize("wrong", [np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(3)])
def test_verdicts_must_be_a_matrix(wrong):
    with pytest.raises(ValueError, match="matrix"):
        avg_at_n(wrong)


def test_a_whole_benchmark_takes_no_time():
    correct = np.random.default_rng(3).random((1319, 64)) < 0.4
    started = time.process_time()
    counts = np.full(1319, 64)
    values = {
        "avg": avg_at_n(correct),
        **{str(k): pass_at_k(counts, correct.sum(axis=1), k) for k in (1, 8, 64)},
    }
    bootstrap_intervals(values)
    assert time.process_time() - started < 20.0  # about 0.5 s of CPU


def test_no_torch():
    code = "import sys, megaladder.evaluation.metrics; print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True
        ).stdout.strip()
        == "False"
    )


def test_undecided_samples_are_counted_apart_and_left_out():
    """Problem a: right, undecided; b: wrong, right; c: nothing decided."""
    verdicts = {"a": (True, None), "b": (False, True), "c": (None, None)}
    problems = [Problem(name, (Message("user", "?"),), "5", source="toy") for name in verdicts]
    records = {
        (name, i): Record(
            name, i, "", [1], "stop", correct, "5", "limit" if correct is None else "exact"
        )
        for name, row in verdicts.items()
        for i, correct in enumerate(row)
    }
    found = report.score(problems, records, 2, seed=0)
    assert found.values_p["avg@2"].tolist() == [1.0, 0.5] and found.left_out == {"c"}
    assert found.values_p["pass@1"].tolist() == [1.0, 0.5] and "pass@2" not in found.values_p
    assert (found.num_problems, found.counts["samples"], found.counts["undecided"]) == (2, 6, 3)
