"""Sampling that stops when it is known which model is better: boundaries, errors, coverage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation.simulate_stopping import found_by_all, two_models

from megaladder.errors import ConfigError
from megaladder.evaluation.benchmarks.stopping import (
    Boundary,
    Comparison,
    Look,
    looks,
    replayed,
    stored_shares,
)
from megaladder.evaluation.run import Task
from megaladder.rollout.engine import SamplingParams
from megaladder.types import Problem


def test_boundaries_are_the_published_ones():
    """Five looks at equal distances, two-sided 5 %: 4.8769, 3.3569, 2.6803, 2.2898, 2.0310
    (Reboussin, DeMets, Kim & Lan 2000, Controlled Clinical Trials 21, 190-207)."""
    boundary = Boundary()
    found = [boundary.critical(k / 5, last=k == 5) for k in range(1, 6)]
    assert found == pytest.approx([4.8769, 3.3569, 2.6803, 2.2898, 2.0310], abs=2e-4)
    assert Boundary().critical(1.0, last=True) == pytest.approx(1.959964, abs=1e-5)
    # a last look that comes early spends all that is left
    assert Boundary().critical(0.99, last=True) == pytest.approx(1.959964, abs=1e-5)


def test_looks():
    assert looks(1) == [1] and looks(3) == [1, 2, 3]
    assert looks(16) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 16]


@pytest.mark.parametrize(("effect", "most"), [(0.0, 8.0), (0.08, 4.0)])
def test_errors_and_coverage_are_those_of_one_test_at_the_end(effect, most):
    """400 evaluations of 150 problems: a difference is found as often as by the test of all
    samples, and the interval at the stop holds the true one in 95 % (± 3.3, three errors of 400)."""
    rng, held, found, fixed, drawn = np.random.default_rng(7), [], [], [], []
    for _ in range(400):
        verdicts, stored = two_models(rng, (150, 8), 0.4, 0.5, effect)
        look, n = replayed(verdicts, stored)
        held.append(abs(look.difference - effect) <= look.half_width)
        found.append(look.decided)
        assert look.decided == (abs(look.difference) > look.half_width)
        drawn.append(n)
        fixed.append(found_by_all(verdicts, stored))
    assert 0.917 <= np.mean(held) <= 0.983
    assert np.mean(found) == pytest.approx(np.mean(fixed), abs=0.03)
    assert np.mean(drawn) <= most


def test_what_cannot_be_tested_is_not_decided():
    one = np.ones(1)
    assert not Comparison(4).look(one, np.zeros(1), 4).decided
    assert Comparison(4).look(one, np.zeros(1), 4).as_json()["ci95"] is None
    # nothing solved by either: rare ones may still come, so all samples are drawn
    nothing = np.zeros(100)
    assert not Comparison(4).look(nothing, nothing, 2).ends
    assert Comparison(4).look(nothing, nothing, 4) == Look(0.0, 0.0, False, True)
    # everything against nothing, without any spread
    assert Comparison(4).look(np.ones(100), nothing, 1).decided


def test_stored_shares_are_of_the_same_problems(tmp_path: Path):
    problems = tuple(Problem(f"q{i}", "?", "1") for i in range(2))
    task = Task("toy", problems, ("?",) * 2, ((1,),) * 2, SamplingParams(n=2))
    with pytest.raises(ConfigError, match="the folder of a model that `eval` wrote"):
        stored_shares(tmp_path, task)
    rows = [
        {"doc": {"id": "q0", "samples": {"exact_matches": [True, None, False]}}},
        {"doc": {"id": "q1", "samples": {"exact_matches": [None]}}},
    ]
    path = tmp_path / "toy" / "samples_toy.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert stored_shares(tmp_path, task) == {"q0": 0.5}
    path.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(ConfigError, match="1 of 2 problems of toy are not in it, the first is q1"):
        stored_shares(tmp_path, task)
    path.write_text('{"other": 1}\n')
    with pytest.raises(ConfigError, match="not as `eval` writes it"):
        stored_shares(tmp_path, task)
