"""The AIME24 ladder from lm-eval files and ours, tier construction, factors."""

from __future__ import annotations

import numpy as np
import pytest

from megaladder.analysis.studies.tiers import AIME24_ANSWERS, AIME24_TIERS, tiers


def lm_eval_rows(share_by_tier, n=8, field="exact_matches"):
    rows = []
    for tier, ids in AIME24_TIERS.items():
        for number in ids:
            hits = [int(i < round(share_by_tier[tier] * n)) for i in range(n)]
            verdict = (
                {"exact_match": hits[0], field: hits}
                if field == "exact_matches"
                else {field: hits[0]}
            )
            rows.append(
                {
                    "doc_id": len(rows),
                    "doc": {"id": number, "problem": "?", "answer": str(AIME24_ANSWERS[number])},
                    **verdict,
                }
            )
    return rows


SHARES = {"easy": 1.0, "medium": 0.75, "hard": 0.25, "exhard": 0.0}


def test_tiers_from_both_layouts(verb, write, tmp_path):
    rows = lm_eval_rows(SHARES)
    write("r/s1/ckpt1/samples_aime24_nofigures_agg8_2025-03-01T10-00-00.123.jsonl", rows)
    write("r/ours/aime24/samples_aime24.jsonl", rows[::-1])
    # another benchmark: ignored
    write("r/ours/math500/samples_math500.jsonl", [{"id": 1, "correct": [True]}])
    write("r/plain/samples_aime24.jsonl", rows)
    done = verb("analyze ladder", tmp_path / "r")
    average = 100 * (4 * 1.0 + 10 * 0.75 + 12 * 0.25) / 30
    expected = {
        "easy": 100.0,
        "medium": 75.0,
        "hard": 25.0,
        "exhard": 0.0,
        "avg@n": pytest.approx(average),
        "cov@n": pytest.approx(2600 / 30),
    }
    assert done.status == 0 and done.json["models"] == {
        "s1": expected,
        "ours": expected,
        "plain": expected,
    }
    lines = done.out.splitlines()
    assert lines[0].split("\t") == [
        "model",
        "easy",
        "medium",
        "hard",
        "exhard",
        "avg@n",
        "cov@n",
        "n",
        "problems",
    ]
    assert lines[1].split("\t")[:5] == ["ours", "100.0", "75.0", "25.0", "0.0"]
    low, high = done.json["ci95"]["s1"]["avg@n"]
    assert low < average < high
    assert done.json["potential"]["s1"]["gap"] == pytest.approx(2600 / 30 - average)


def test_gold_stands_in_for_other_ids(verb, write, tmp_path):
    rows = lm_eval_rows(SHARES)
    for i, row in enumerate(rows):
        row["doc"] = {"problem": f"question {i}", "answer": row["doc"]["answer"].zfill(3)}
        del row["doc_id"]
    write("r/m/samples_aime24.jsonl", rows)
    done = verb("analyze ladder", tmp_path / "r")
    assert done.json["models"]["m"]["medium"] == 75.0 and "gold answer gave the tier" in done.err


def test_checkpoints_stamps_and_scalars(verb, write, tmp_path):
    write(
        "r/m/step_10/samples_aime24_2025-01-01T00-00-00.jsonl",
        lm_eval_rows(dict.fromkeys(SHARES, 0.0)),
    )
    write(
        "r/m/step_10/samples_aime24_2025-02-01T00-00-00.jsonl",
        lm_eval_rows(dict.fromkeys(SHARES, 1.0), field="exact_match"),
    )
    write("r/m/step_20/samples_aime24.jsonl", lm_eval_rows(SHARES))
    done = verb("analyze ladder", tmp_path / "r")
    assert (
        set(done.json["models"]) == {"m/step_10", "m/step_20"}
        and done.json["models"]["m/step_10"]["avg@n"] == 100.0
    )
    assert "several files" in done.err and "different numbers of samples" in done.err


def test_other_benchmark_has_null_tiers_until_they_are_built(verb, write, tmp_path):
    accuracy = {
        "base": [0.6, 0.2, 0.0, 0.0],
        "sft1": [1, 0.8, 0.4, 0.0],
        "sft2": [1, 0.4, 0.2, 0.0],
        "big": [1, 1, 1, 0.05],
    }
    for model, values in accuracy.items():
        write(
            f"r/{model}/amc/samples_amc.jsonl",
            [
                {"id": i, "correct": [j < round(20 * v) for j in range(20)]}
                for i, v in enumerate(values)
            ],
        )
    plain = verb("analyze ladder", tmp_path / "r", "--benchmark", "amc")
    assert (
        plain.status == 0
        and plain.json["models"]["base"]["easy"] is None
        and "no published tiers" in plain.err
    )
    built = verb(
        "analyze ladder",
        tmp_path / "r",
        "--benchmark",
        "amc",
        "--tier-base",
        "base",
        "--tier-sft",
        "sft1,sft2",
    )
    assert built.json["tiers"] == {"easy": ["0"], "medium": ["1"], "hard": ["2"], "exhard": ["3"]}
    assert built.json["models"]["big"] == {
        "easy": 100.0,
        "medium": 100.0,
        "hard": 100.0,
        "exhard": 5.0,
        "avg@n": 76.25,
        "cov@n": 100.0,
    }
    assert (
        verb(
            "analyze ladder",
            tmp_path / "r",
            "--benchmark",
            "amc",
            "--tier-base",
            "nobody",
            "--tier-sft",
            "sft1",
        ).status
        == 2
    )


def test_tier_rules_at_their_borders():
    assert tiers([0.5, 0.51], [[0.5, 0.0]], [[0.5, 0.51], [0.5, 0.0]]) == ["hard", "easy"]
    assert tiers([0.0, 0.0], [[0.09, 0.1]], [[0.0, 0.0], [0.09, 0.1]]) == ["exhard", "hard"]


def test_accuracy_against_log_size(verb, write, tmp_path):
    csv = "model,size,style\n"
    for i, (size, share) in enumerate(((100, 0.25), (1000, 0.5), (10000, 0.75))):
        write(f"r/m{i}/samples_aime24.jsonl", lm_eval_rows({**SHARES, "hard": share}))
        csv += f"m{i},{size},{'R1' if i else 'Gemini'}\n"
    done = verb("analyze ladder", tmp_path / "r", "--factors", write("f.csv", csv))
    fit = done.json["factors"]["hard"]["log_size"]
    assert (
        fit["slope_per_tenfold"] == pytest.approx(25)
        and fit["r2"] == pytest.approx(1)
        and fit["spearman"] == 1.0
    )
    assert done.json["factors"]["hard"]["style"] == {"Gemini": 25.0, "R1": pytest.approx(62.5)}
    assert np.isclose(done.json["factors"]["easy"]["log_size"]["slope_per_tenfold"], 0)


def test_faults(verb, write, tmp_path):
    assert verb("analyze ladder", tmp_path / "nothing").status == 2
    write("r/m/samples_math500.jsonl", [{"id": 1, "correct": [True]}])
    done = verb("analyze ladder", tmp_path / "r")
    assert done.status == 2 and "no samples of 'aime24'" in done.err
    rows = lm_eval_rows(SHARES)
    write("d/m/samples_aime24.jsonl", [*rows, rows[0]])
    done = verb("analyze ladder", tmp_path / "d")
    assert (
        done.status == 2
        and "samples_aime24.jsonl:31:" in done.err
        and "stands there already" in done.err
    )
    write(
        "p/m/samples_aime24.jsonl",
        [{**rows[0], "fingerprint": "a"}, {**rows[1], "fingerprint": "b"}],
    )
    done = verb("analyze ladder", tmp_path / "p")
    assert done.status == 2 and "two protocols" in done.err
    write("q/m/samples_aime24_figures.jsonl", rows)
    write("q/m/samples_aime24_nofigures.jsonl", rows)
    assert verb("analyze ladder", tmp_path / "q").status == 2
    assert verb("analyze ladder", tmp_path / "q", "--benchmark", "aime24_nofigures").status == 0
