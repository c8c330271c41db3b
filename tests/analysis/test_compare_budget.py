"""compare (paired tests, Holm, equal compute) and budget (truncation of stored token ids)."""

from __future__ import annotations

import json

import numpy as np
import pytest

from megaladder.rewards.grade import grade, grader_label


def graded(correct, start=0, **more):
    return [
        {"id": f"p{start + i}", "correct": np.atleast_1d(row).astype(bool).tolist(), **more}
        for i, row in enumerate(correct)
    ]


def test_two_files(verb, write):
    rng = np.random.default_rng(0)
    skill = rng.random(200)
    a, b = rng.random((200, 8)) < skill[:, None] * 0.7, rng.random((200, 8)) < skill[:, None] * 0.9
    done = verb(
        "analyze compare", "--base", write("a.jsonl", graded(a)), write("b.jsonl", graded(b)[::-1])
    )  # order does not matter
    found = done.json["comparisons"]["b"]
    assert (
        found["difference"] == pytest.approx(100 * (b.mean() - a.mean()))
        and found["real"]
        and found["p"] < 0.001
    )
    assert found["ci95"][0] < found["difference"] < found["ci95"][1]
    difference = b.mean(1) - a.mean(1)
    half = 196 * difference.std(ddof=1) / np.sqrt(200)
    assert found["ci95"] == pytest.approx(
        [found["difference"] - half, found["difference"] + half], abs=0.25
    )  # normal theory, in points
    assert done.json["sentences"][0].startswith("Real: b is ")


def test_a_run_against_itself(verb, write):
    path = write("a.jsonl", graded(np.random.default_rng(0).random((30, 4)) < 0.5))
    done = verb("analyze compare", "--base", path, path)
    found = done.json["comparisons"]["a"]
    assert (
        found["difference"] == 0
        and found["p"] == 1
        and not found["real"]
        and "score the same" in done.out
    )
    # of all problems at most 1 - 0.025^(1/30) may differ, by at most 100 points
    assert found["ci95"] == pytest.approx([-11.570, 11.570], abs=1e-3)


def test_holm_over_benchmarks_and_partial_overlap(verb, write, tmp_path):
    rng = np.random.default_rng(1)
    for name, gain in (("aime24", 0.25), ("gsm8k", 0.02)):
        base = rng.random((60, 4)) < 0.4
        write(f"base/{name}/samples_{name}.jsonl", graded(base))
        write(
            f"tuned/{name}/samples_{name}.jsonl",
            graded(base | (rng.random((60, 4)) < gain), start=2),
        )
    write("tuned/math500/samples_math500.jsonl", graded(rng.random((5, 1)) < 1))
    done = verb("analyze compare", "--base", tmp_path / "base", tmp_path / "tuned")
    found = done.json["comparisons"]
    assert (
        set(found) == {"tuned/aime24", "tuned/gsm8k"}
        and found["tuned/aime24"]["num_problems"] == 58
    )
    ordered = sorted(found.values(), key=lambda c: c["p"])
    assert (
        ordered[0]["p_holm"] == pytest.approx(min(1, 2 * ordered[0]["p"]))
        and ordered[1]["p_holm"] >= ordered[1]["p"]
    )
    assert "only one of" in done.err and "4 problems are in one of them only" in done.err


def test_compare_faults(verb, write, tmp_path):
    a, b = (
        write("a.jsonl", graded(np.ones((3, 1)))),
        write("b.jsonl", graded(np.ones((3, 1)), start=9)),
    )
    assert "share no problem id" in verb("analyze compare", "--base", a, b).err
    write("many/m1/x/samples_x.jsonl", graded(np.ones((3, 1))))
    write("many/m2/x/samples_x.jsonl", graded(np.ones((3, 1))))
    done = verb("analyze compare", "--base", tmp_path / "many", a)
    assert done.status == 2 and "several models (m1, m2)" in done.err


def test_protocols_that_differ_are_named(verb, write, tmp_path):
    for name, temperature, sha in (("a", 0.6, "x"), ("b", 1.0, "y"), ("c", 0.6, "z")):
        write(f"{name}/gsm8k/samples_gsm8k.jsonl", graded(np.ones((3, 2)), fingerprint=name))
        protocol = {
            "model": {"sha256": sha},
            "decoding": {"temperature": temperature},
            "fingerprint": name,
        }
        write(f"{name}/gsm8k/results_gsm8k.json", json.dumps({"protocol": protocol}))
    done = verb("analyze compare", "--base", tmp_path / "a", tmp_path / "b")
    assert (
        done.status == 0
        and "b on gsm8k were not made alike: decoding.temperature 0.6 and 1.0" in done.err
    )
    assert verb("analyze compare", "--base", tmp_path / "a", tmp_path / "c").err == ""
    mixed = write(
        "m.jsonl",
        [
            *graded(np.ones((1, 1)), fingerprint="u"),
            *graded(np.ones((1, 1)), start=1, fingerprint="v"),
        ],
    )
    done = verb("analyze compare", "--base", mixed, mixed)
    assert done.status == 2 and "m.jsonl:2: fingerprint v after u" in done.err
    write(
        "a/judged/samples_judged.jsonl",
        [{"id": 1, "doc": {"samples": {"exact_matches": [None, None]}}}],
    )
    assert "left out" in verb("analyze compare", "--base", tmp_path / "a", tmp_path / "c").err


def test_who_graded_is_said_from_command_to_comparison(verb, write, tmp_path):
    """`grade` writes it into the rows, `compare` reads it from there; undecided is not wrong."""
    rows = [{"id": i, "gold": "7", "response": "\\boxed{7}"} for i in range(3)]
    rows.append({"id": 3, "gold": "\\sin(10^{10^9})", "response": "\\boxed{\\cos(10^{10^9})}"})
    source = write("answers.jsonl", rows)
    for name, flags in (("ours", []), ("box_match", ["--grader", "box_match"])):
        command = ["--input", source, "--output", tmp_path / f"{name}.jsonl", "--workers", 1]
        assert verb("grade", *command, *flags, with_json=False).status == 0
    pair = ("--base", tmp_path / "ours.jsonl", tmp_path / "box_match.jsonl")
    done = verb("analyze compare", *pair)
    assert done.status == 0, done.err
    found = done.json["comparisons"]["box_match"]
    assert (found["grader_a"], found["grader_b"]) == (grader_label(), grader_label("box_match"))
    assert (found["undecided_a"], found["undecided_b"]) == (1, 0)
    assert (found["a"], found["num_problems"]) == (100, 3)
    assert (
        f"ours: {grader_label()}, 1 undecided; box_match: {grader_label('box_match')}, 0"
        in done.out
    )
    assert "were not made alike: grader megaladder" in done.err


def run_folder(write, name, tokens, seconds, ranks, parameters=None):
    rows = [{"step": i, "tokens": tokens, "step_s": seconds, "loss": 1.0} for i in (1, 2, 3, 4)]
    path = write(f"{name}/metrics.jsonl", rows).parent
    (path / "config.yaml").write_text(f"parallel: {{ranks: {ranks}, tp: 2}}\n")
    (path / "fingerprint.json").write_text(json.dumps({"model": {"num_parameters": parameters}}))
    return path


def test_equal_compute(verb, write):
    a = write("a.jsonl", graded(np.ones((3, 1))))
    sft, rl = run_folder(write, "sft", 1000, 3600, 2, 10), run_folder(write, "rl", 500, 1800, 8)
    curve = "model,benchmark,step,score\n" + "".join(
        f"{m},b,{s},{10 * s + o}\n" for m, o in (("sft", 0), ("rl", 5)) for s in (0, 2, 4)
    )
    done = verb(
        "analyze compare",
        "--base",
        a,
        a,
        "--compute",
        f"sft={sft},rl={rl}",
        "--table",
        write("c.csv", curve),
    )
    totals, matched = done.json["compute"]["totals"], done.json["compute"]["matched"]["b"]
    assert totals["sft"] == {
        "tokens": 4000,
        "train_flops": 240_000,
        "flops": 240_000,
        "gpu_hours": 8,
        "generated_tokens": None,
    }
    assert (
        totals["rl"]["gpu_hours"] == 16
        and totals["rl"]["flops"] is None
        and "flops not known" in done.err
    )
    assert matched["tokens"] == {"at": 2000, "sft": 20, "rl": 45} and matched["gpu_hours"] == {
        "at": 8,
        "sft": 40,
        "rl": 25,
    }
    assert matched["flops"] == {"at": None, "sft": None, "rl": None}


def test_flops_count_the_tensors_of_the_model_folder(verb, write, tmp_path):
    from tiny_models import build_tiny_model

    model = build_tiny_model(tmp_path / "model")
    folder = run_folder(write, "run", 1000, 10, 1)
    (folder / "config.yaml").write_text(f"model: {{path: {model}}}\n")
    a = write("a.jsonl", graded(np.ones((3, 1))))
    done = verb("analyze compare", "--base", a, a, "--compute", folder)
    from transformers import AutoModelForCausalLM

    count = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(model).parameters())
    assert done.json["compute"]["totals"]["run"]["flops"] == 6 * count * 4000


def test_budget_regrades_what_is_cut(verb, write, tmp_path):
    from tiny_models import build_tokenizer
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(build_tokenizer(tmp_path / "tok") / "tokenizer.json"))
    texts = [
        "first \\boxed{7}, wait, no: the final answer is \\boxed{42}",
        "thinking and thinking, so \\boxed{42}",
        "\\boxed{42}",
    ]
    ids = [tokenizer.encode(text).ids for text in texts]
    rows = [
        {
            "id": "a",
            "gold": "42",
            "responses": texts[:2],
            "response_ids": ids[:2],
            "correct": [True, True],
        },
        {"id": "b", "gold": "42", "response": texts[2], "response_ids": ids[2], "correct": True},
    ]
    path, budgets = write("g.jsonl", rows), sorted({4, len(ids[2]), 12, 20, *map(len, ids), 500})
    done = verb(
        "analyze budget",
        path,
        "--budgets",
        ",".join(map(str, budgets)),
        "--tokenizer",
        tmp_path / "tok",
        "--workers",
        "1",
    )
    for budget in budgets:
        right = [grade(tokenizer.decode(row[:budget]), "42").correct for row in ids]
        assert done.json["accuracy"][str(budget)] == pytest.approx(
            (np.mean(right[:2]) + right[2]) / 2
        ), budget
    assert (
        done.json["accuracy"]["500"] == done.json["native"]["accuracy"] == 1.0
        and done.json["truncated"]["4"] > 0
    )
    plain = verb("analyze budget", path, "--budgets", ",".join(map(str, budgets)))
    for budget in budgets:
        within = [len(row) <= budget for row in ids]
        assert plain.json["accuracy"][str(budget)] == pytest.approx(
            (np.mean(within[:2]) + within[2]) / 2
        )
    assert (
        plain.status == 0
        and "lower bounds" in plain.err
        and plain.json["ci95"]["500"] == pytest.approx([0.025 ** (1 / 2), 1.0])
    )


def test_budget_faults(verb, write):
    assert (
        "keep the token ids"
        in verb(
            "analyze budget", write("a.jsonl", [{"id": 1, "correct": [True]}]), "--budgets", "5"
        ).err
    )
    bad = [{"id": 1, "correct": [True], "response_ids": ["x"]}]
    assert verb("analyze budget", write("b.jsonl", bad), "--budgets", "5").status == 2
    good = write("c.jsonl", [{"id": 1, "correct": [True], "response_ids": [[1, 2]]}])
    assert verb("analyze budget", good, "--budgets", "0").status == 2
    assert (
        "tokenizer.json"
        in verb("analyze budget", good, "--budgets", "1", "--tokenizer", good.parent / "no").err
    )
