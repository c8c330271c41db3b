"""Predictors of the post-RL score: against explicit loops, the rulings, the published rank flip,
selection."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from megaladder.analysis.studies.predict import held_out_r2, overfit_flags, splits
from megaladder.evaluation.metrics import pass_at_k

HEADER = "run,pass1,loss,rl\n"


def brute_r2(columns, target, size):
    """Every split, by scipy's regression."""
    out = []
    for fit in combinations(range(len(target)), size):
        held = [i for i in range(len(target)) if i not in fit]
        predictions = []
        for x in columns:
            line = stats.linregress(x[list(fit)], target[list(fit)])
            predictions.append(line.slope * x[held] + line.intercept)
        truth, predicted = target[held], np.mean(predictions, axis=0)
        out.append(1 - ((truth - predicted) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())
    return np.array(out)


@pytest.mark.parametrize("num_metrics", [1, 2])
def test_r2_over_all_splits_equals_brute_force(num_metrics):
    rng = np.random.default_rng(3)
    target = rng.normal(40, 5, 7)
    columns = [target + rng.normal(0, 3, 7) for _ in range(num_metrics)]
    # 0.5 · 7 rounds half up
    assert held_out_r2(columns, target, 0.5, 1000, 0) == pytest.approx(brute_r2(columns, target, 4))
    assert held_out_r2(columns, target, 3, 1000, 0) == pytest.approx(brute_r2(columns, target, 3))


def test_random_splits_are_seeded_and_uniform():
    first = np.concatenate(list(splits(20, 10, 3000, 5)))
    again = np.concatenate(list(splits(20, 10, 3000, 5)))
    assert (
        (first == again).all()
        and first.shape == (3000, 20)
        and (np.sort(first, axis=1) == np.arange(20)).all()
    )
    shares = (first[:, :10] == 0).any(axis=1).mean()
    assert abs(shares - 0.5) < 0.04
    assert not (first == np.concatenate(list(splits(20, 10, 3000, 6)))).all()


def test_the_json(verb, write):
    rng = np.random.default_rng(0)
    quality = rng.normal(0, 1, 12)
    rows = HEADER + "".join(
        f"r{i},{30 + 3 * q + e:.3f},{1 - 0.1 * q:.6f},{40 + 5 * q:.6f}\n"
        for i, (q, e) in enumerate(zip(quality, rng.normal(0, 3, 12), strict=True))
    )
    done = verb(
        "analyze predict",
        "--table",
        write("r.csv", rows),
        "--target",
        "rl",
        "--metrics",
        "pass1,loss",
        "--lower-is-better",
        "loss",
    )
    assert done.status == 0 and set(done.json["metrics"]) == {"pass1", "loss", "both"}
    assert all(
        set(found) == {"spearman", "r2_mean", "r2_std"} for found in done.json["metrics"].values()
    )
    loss = done.json["metrics"]["loss"]
    assert (
        loss["spearman"] == 1.0
        and loss["r2_mean"] == pytest.approx(1.0, abs=1e-4)
        and loss["r2_std"] == pytest.approx(0.0, abs=1e-4)
    )
    pass1 = np.array([float(line.split(",")[1]) for line in rows.splitlines()[1:]])
    assert done.json["metrics"]["pass1"]["spearman"] == pytest.approx(
        stats.spearmanr(pass1, quality).statistic
    )
    assert done.json["num_splits"]["pass1"] == 924 and sorted(done.json["select"]) == sorted(
        f"r{i}" for i in range(12)
    )
    best = verb(
        "analyze predict",
        "--table",
        write("r.csv", rows),
        "--target",
        "rl",
        "--metrics",
        "pass1,loss",
        "--lower-is-better",
        "loss",
        "--rank-by",
        "loss",
    )
    assert best.json["select"] == [f"r{i}" for i in np.argsort(-quality)]


def test_two_runs_give_a_spearman_and_a_null_r2(verb, write):
    flip = HEADER + "2ep,32.51,0.7,42.57\n4ep,36.61,0.9,41.63\n"  # Quagmires, Mistral 25k
    done = verb(
        "analyze predict",
        "--table",
        write("r.csv", flip),
        "--target",
        "rl",
        "--metrics",
        "pass1,loss",
        "--lower-is-better",
        "loss",
    )
    assert done.status == 0
    assert done.json["metrics"]["pass1"] == {"spearman": -1.0, "r2_mean": None, "r2_std": None}
    assert done.json["metrics"]["loss"]["spearman"] == 1.0 and any(
        "R² is null" in text for text in done.json["warnings"]
    )
    one = verb(
        "analyze predict",
        "--table",
        write("o.csv", HEADER + "a,1,2,3\n"),
        "--target",
        "rl",
        "--metrics",
        "pass1",
    )
    assert (
        one.status == 0
        and one.json["metrics"]["pass1"]["spearman"] is None
        and one.json["select"] == ["a"]
    )


def test_overfit_flag_drops_a_run_before_ranking(verb, write):
    rows = "run,data,epochs,pass1,loss,rl\na,25k,2,32.51,0.70,42.57\nb,25k,4,36.61,0.80,41.63\n"
    rows += "c,10k,2,30,0.75,40\nd,10k,4,29,0.80,39\ne,5k,2,20,0.9,35\n"
    done = verb(
        "analyze predict",
        "--table",
        write("r.csv", rows),
        "--target",
        "rl",
        "--metrics",
        "pass1,loss",
        "--lower-is-better",
        "loss",
        "--rank-by",
        "pass1",
        "--series",
        "data",
        "--order",
        "epochs",
        "--flag-score",
        "pass1",
    )
    assert done.json["overfit"] == ["b"] and done.json["select"] == ["a", "c", "d", "e"]
    assert overfit_flags(["s", "s", "s"], [3, 1, 2], [5, 5, 5], [3, 1, 2]) == [True, False, True]


def test_candidates_without_a_target_are_what_is_selected(verb, write):
    rows = (
        HEADER + "".join(f"r{i},{i},{9 - i},{2 * i}\n" for i in range(6)) + "new1,7,0,\nnew2,8,0,\n"
    )
    done = verb(
        "analyze predict", "--table", write("r.csv", rows), "--target", "rl", "--metrics", "pass1"
    )
    assert done.json["select"] == ["new2", "new1"] and done.json["num_runs"] == 6
    assert [row["forecast"] for row in done.json["runs"][-2:]] == pytest.approx([14, 16])


def test_pass_at_k_from_samples_and_correlation_by_k(verb, write, tmp_path):
    rng, rows = np.random.default_rng(1), "run,rl\n"
    expected = []
    for i in range(6):
        correct = rng.random((30, 16)) < 0.1 + 0.05 * i
        write(
            f"s/r{i}.jsonl", [{"id": p, "correct": row.tolist()} for p, row in enumerate(correct)]
        )
        expected.append(100 * pass_at_k(np.full(30, 16), correct.sum(1), 8).mean())
        rows += f"r{i},{10 * i}\n"
    done = verb(
        "analyze predict",
        "--table",
        write("r.csv", rows),
        "--target",
        "rl",
        "--metrics",
        "pass@1,pass@8,avg@n",
        "--samples",
        tmp_path / "s",
    )
    assert [row["pass@8"] for row in done.json["runs"]] == pytest.approx(expected)
    assert set(done.json["spearman_by_k"]) == {"1", "8"}
    too_many = verb(
        "analyze predict",
        "--table",
        tmp_path / "r.csv",
        "--target",
        "rl",
        "--metrics",
        "pass@17",
        "--samples",
        tmp_path / "s",
    )
    assert too_many.status == 2 and "16 samples" in too_many.err


@given(st.integers(2, 30), st.floats(0.01, 0.99))
def test_calibration_never_starves_either_side(num_runs, share):
    target = np.arange(num_runs, dtype=float)
    found = held_out_r2([target * 2 + 1], target, share, 50, 0)
    assert (len(found) == 0) == (num_runs < 4) and np.allclose(found, 1.0)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--metrics", "nothing"),
        ("--metrics", "rl"),
        ("--metrics", "pass1", "--lower-is-better", "loss"),
        ("--metrics", "pass1", "--calibration", "1.5"),
        ("--metrics", "pass1", "--series", "run"),
        ("--metrics", "pass1", "--rank-by", "loss"),
    ],
)
def test_wrong_columns_and_options_exit_2(verb, write, arguments):
    rows = HEADER + "a,1,2,3\nb,2,1,4\n"
    assert (
        verb(
            "analyze predict", "--table", write("r.csv", rows), "--target", "rl", *arguments
        ).status
        == 2
    )
