"""transfer, scaling, trajectory: the JSON contract, the published rows through the command line,
guards, properties."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaladder.analysis.samples.sets import ProblemSamples, SampleSet
from megaladder.analysis.studies.scaling import Setting, control, majority_curve, scaling
from megaladder.analysis.studies.trajectory import Point, classify, keep_step
from megaladder.analysis.studies.transfer import shared_sigma, transferability
from megaladder.evaluation.metrics import maj_at_n
from megaladder.tools.reproduce_published import TI_PUBLISHED, TI_SCORES

SCORES = "model,group,benchmark,score\n" + "".join(
    f"{model},{group},{group}{i},{score}\n"
    for model, groups in TI_SCORES.items()
    for group, scores in zip(("math", "other", "non"), groups, strict=True)
    for i, score in enumerate(scores)
)


def test_transfer_reproduces_the_published_index(verb, write):
    done = verb(
        "analyze transfer",
        "--table",
        write("s.csv", SCORES),
        "--base",
        "Qwen3-14B-Base",
        "--sigma",
        "1,1.136,1.275",
    )
    assert done.status == 0
    for model, (other, non) in TI_PUBLISHED.items():
        found = done.json["models"][model]
        assert set(found) == {"ti_other", "ti_non", "gain", "warnings"} and found["warnings"] == []
        assert found["ti_other"] == pytest.approx(other, abs=0.1) and found[
            "ti_non"
        ] == pytest.approx(non, abs=0.1)
        assert found["ti_other"] == pytest.approx(
            100 * found["gain"]["other"] / found["gain"]["math"]
        )
    assert set(done.json["models"]) == set(TI_PUBLISHED)


def test_transfer_shares_sigma_over_all_models(verb, write):
    path = write("s.csv", SCORES)
    done = verb("analyze transfer", "--table", path, "--base", "Qwen3-14B-Base", "--variant", "v2")
    gains = [
        np.array(TI_SCORES[m][0]) - np.array(TI_SCORES["Qwen3-14B-Base"][0]) for m in TI_PUBLISHED
    ]
    assert done.json["sigma"]["math"] == pytest.approx(np.std(np.concatenate(gains)))
    one = "".join(line + "\n" for line in SCORES.splitlines() if not line.startswith("SFT"))
    alone = verb("analyze transfer", "--table", write("one.csv", one), "--base", "Qwen3-14B-Base")
    assert (
        alone.status == 0
        and "one model only" in alone.err
        and alone.json["models"]["RL"]["ti_other"] == pytest.approx(70.981, abs=1e-3)
    )


def test_transfer_guards(verb, write):
    head = "model,group,benchmark,score\n"
    zero = head + "b,math,m,0\nb,other,o,10\nb,non,n,10\nx,math,m,5\nx,other,o,20\nx,non,n,20\n"
    done = verb(
        "analyze transfer", "--table", write("z.csv", zero), "--base", "b", "--variant", "v1"
    )
    found = done.json["models"]["x"]
    assert (
        done.status == 0
        and found["ti_other"] is None
        and found["gain"]["math"] is None
        and "base score" in found["warnings"][0]
    )
    assert found["gain"]["other"] == pytest.approx(1.0)
    worse = head + "b,math,m,50\nb,other,o,10\nx,math,m,40\nx,other,o,20\n"
    done = verb(
        "analyze transfer", "--table", write("w.csv", worse), "--base", "b", "--variant", "v1"
    )
    found = done.json["models"]["x"]
    # not positive; no group non
    assert found["ti_other"] is None and found["ti_non"] is None and len(found["warnings"]) == 2
    full = head + "b,math,m,100\nb,other,o,10\nx,math,m,100\nx,other,o,20\n"
    found = verb(
        "analyze transfer", "--table", write("f.csv", full), "--base", "b", "--sigma", "1,1,1"
    ).json["models"]["x"]
    assert found["gain"]["math"] is None and "headroom" in " ".join(found["warnings"])


@given(
    st.lists(st.tuples(st.floats(1, 90), st.floats(1, 100)), min_size=1, max_size=6),
    st.floats(0.1, 50),
    st.floats(0.1, 50),
)
def test_transfer_v2_depends_on_the_ratio_of_sigmas_only(pairs, sigma_math, sigma_other):
    base, model = (
        {"math": [10.0], "other": [p[0] for p in pairs]},
        {"math": [30.0], "other": [p[1] for p in pairs]},
    )
    one = transferability(model, base, {"math": sigma_math, "other": sigma_other}).ti_other
    scaled = transferability(
        model, base, {"math": 7 * sigma_math, "other": 7 * sigma_other}
    ).ti_other
    unit = transferability(model, base, {"math": 1.0, "other": 1.0}).ti_other
    assert one == pytest.approx(scaled, rel=1e-9, abs=1e-9)
    assert one == pytest.approx(unit * math.sqrt(sigma_math / sigma_other), rel=1e-9, abs=1e-9)


def test_transfer_intervals_resample_problems_together(verb, write, tmp_path):
    rng = np.random.default_rng(0)
    scores = "model,group,benchmark,score\n"
    for model, p in (("b", 0.2), ("x", 0.6)):
        for group in ("math", "other", "non"):
            correct = rng.random((60, 4)) < p
            write(
                f"eval/{model}/{group}1/samples_{group}1.jsonl",
                [{"id": i, "correct": c.tolist()} for i, c in enumerate(correct)],
            )
            scores += f"{model},{group},{group}1,{100 * correct.mean():.1f}\n"
    done = verb(
        "analyze transfer",
        "--table",
        write("s.csv", scores),
        "--base",
        "b",
        "--variant",
        "v1",
        "--samples",
        tmp_path / "eval",
        "--draws",
        500,
    )
    found, (low, high) = done.json["models"]["x"], done.json["ci95"]["x"]["ti_other"]
    assert low < found["ti_other"] < high and high - low < 150
    assert shared_sigma({"math": [1.0]}, [{"math": [2.0]}, {"math": [4.0]}]) == {"math": 1.0}


def test_scaling_through_the_command_line(verb, write):
    rows = (
        "method,setting,tokens,accuracy,instructed_min,instructed_max\n"
        "m,a,1000,10,,1000\nm,b,2000,20,1500,\nm,c,8000,50,9000,\n"
    )
    done = verb("analyze scaling", "--table", write("r.csv", rows))
    # slopes per doubling: a–b 10, b–c 15, a–c 40/3
    assert done.json["methods"] == {
        "m": {
            "control": pytest.approx(200 / 3),
            "scaling": pytest.approx((10 + 15 + 40 / 3) / 3),
            "performance": 50.0,
        }
    }


def test_scaling_without_bounds_or_pairs(verb, write):
    rows = "method,setting,tokens,accuracy\none,a,100,10\nsame,a,100,10\nsame,b,100,20\n"
    done = verb("analyze scaling", "--table", write("r.csv", rows))
    assert done.status == 0 and done.json["methods"]["one"] == {
        "control": 100.0,
        "scaling": None,
        "performance": 10.0,
    }
    assert done.json["methods"]["same"]["scaling"] is None and any(
        "trivially" in text for text in done.json["warnings"]
    )


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(0, 100)), min_size=2, max_size=8))
def test_scaling_is_the_mean_slope_in_any_order(points):
    settings = [Setting(t, a) for t, a in points]
    slopes = [
        (b[1] - a[1]) / (math.log2(b[0]) - math.log2(a[0]))
        for a, b in combinations(points, 2)
        if a[0] != b[0]
    ]
    found = scaling(settings)
    assert (found is None) == (not slopes)
    if slopes:
        assert found == pytest.approx(sum(slopes) / len(slopes), rel=1e-9, abs=1e-6)
        assert scaling(settings[::-1]) == pytest.approx(found, rel=1e-9, abs=1e-6)
    assert control(settings) == 100.0


@given(
    st.lists(
        st.lists(st.sampled_from(["1", "2", "3", None]), min_size=4, max_size=4),
        min_size=1,
        max_size=4,
    )
)
def test_parallel_curve_at_all_samples_is_majority_voting(answers):
    correct = [[a == "1" for a in row] for row in answers]
    problems = tuple(
        ProblemSamples(str(i), "", c, list(a), [10] * 4)
        for i, (a, c) in enumerate(zip(answers, correct, strict=True))
    )
    curve = majority_curve(SampleSet("m", "b", "f", problems), draws=40, seed=0)
    assert [point["n"] for point in curve] == [1, 2, 4] and [
        point["tokens"] for point in curve
    ] == [10, 20, 40]
    untied = all(
        sorted(row.count(a) for a in {x for x in row if x})[-2:] != [n, n]
        for row in answers
        for n in (1, 2)
    )
    if untied:  # without ties the order of the samples does not matter
        assert curve[-1]["accuracy"] == pytest.approx(
            100 * maj_at_n(answers, np.array(correct)).mean()
        )


def test_parallel_curve_of_one_sample_is_the_mean():
    problem = ProblemSamples(
        "p", "", [True, False, False, False], ["1", "2", "3", "4"], [5, 5, 5, 5]
    )
    curve = majority_curve(SampleSet("m", "b", "f", (problem,)), draws=4000, seed=1)
    assert curve[0]["accuracy"] == pytest.approx(25, abs=2)  # binomial std 0.7
    # four different answers: the first seen wins
    assert curve[2]["accuracy"] == pytest.approx(25, abs=2)


CLASSES = [
    ([10, 20, 30], "monotone", None, 0.0, None),
    ([50, 60, 49.5], "monotone", None, 0.5, None),
    ([50, 40, 30], "degrading", 20, 20.0, 0.0),
    ([50, 30, 30.5], "degrading", 10, 20.0, 0.5),
    ([50, 30, 35], "weak-recovery", 10, 20.0, 5.0),
    ([50, 30, 49.2], "dip-and-recovery", 10, 20.0, 19.2),
    ([50, 30, 70], "dip-and-recovery", 10, 20.0, 40.0),
]


@pytest.mark.parametrize(("scores", "kind", "step", "dip", "recovery"), CLASSES)
def test_trajectory_classes(verb, write, scores, kind, step, dip, recovery):
    rows = "model,benchmark,step,score\n" + "".join(
        f"m,b,{10 * i},{s}\n" for i, s in reversed(list(enumerate(scores)))
    )
    done = verb("analyze trajectory", "--table", write("c.csv", rows))
    expected = {
        "class": kind,
        "dip_step": step,
        "dip": pytest.approx(dip),
        "recovery": None if recovery is None else pytest.approx(recovery),
    }
    assert done.json["curves"] == {"m/b": expected}


@given(st.lists(st.floats(0, 100), min_size=2, max_size=12), st.floats(0, 5))
def test_trajectory_properties(scores, tolerance):
    found = classify([Point(10 * i, s) for i, s in enumerate(scores)], tolerance)
    assert (found.kind == "monotone") == (scores[0] - min(scores[1:]) <= tolerance)
    assert scores[found.best_step // 10] == max(scores) and found.dip >= 0
    if found.dip_step is not None:
        assert scores[found.dip_step // 10] == min(scores[1:]) and found.recovery == pytest.approx(
            scores[-1] - min(scores[1:])
        )


def test_which_checkpoint_to_keep():
    a, b = [Point(0, 10), Point(5, 30), Point(9, 20)], [Point(0, 10), Point(5, 10), Point(9, 20)]
    # a tie of means goes to the earlier
    assert keep_step([a]) == 5 and keep_step([a, b]) == 5 and keep_step([b]) == 9
    assert keep_step([a, [Point(1, 5)]]) is None
