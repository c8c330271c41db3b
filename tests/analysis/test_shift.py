"""`analyze shift` on two tiny transformers models against a separate computation, model by model
and token by token."""

from __future__ import annotations

import json

import numpy as np
import pytest
from distributed import run_ranks
from tiny_models import build_tiny_model

from megaladder import platform
from megaladder.analysis.shift.pca import pca_shift
from megaladder.analysis.shift.score import batches_of

ROWS = [
    {"input": "What is 12 + 30?", "output": " The answer is \\boxed{42}."},
    {"input": "Janet sells 9 duck eggs.", "output": " Wait, therefore 9 * 2 = $18.\n#### 18"},
    {"input": "x", "output": " 7"},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shift")
    return build_tiny_model(folder / "base", seed=0), build_tiny_model(folder / "tuned", seed=1)


def brute_force(base, tuned, rows):
    """One forward pass a model and row, float64 log-softmax, plain Python loops over positions and
    vocabulary ranks."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    pair = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (base, tuned)]
    estimate, exact, shifts = [], [], []
    for row in rows:
        prompt = tokenizer(row["input"])["input_ids"]
        output = tokenizer(row["output"], add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = [model(torch.tensor([prompt + output])).logits[0].double() for model in pair]
        here, divergence = [], []
        for i, token in enumerate(output):
            lb, lt = (torch.log_softmax(x[len(prompt) + i - 1], -1) for x in logits)
            here.append(float(lt[token] - lb[token]))
            divergence.append(float(sum(lt.exp() * (lt - lb))))
            shifts.append(sorted(lb.tolist(), reverse=True).index(float(lb[token])))
        estimate.append(np.mean(here))
        exact.append(np.mean(divergence))
    return abs(np.mean(estimate)), np.mean(exact), np.mean(shifts), np.mean(np.array(shifts) > 0)


@pytest.mark.parametrize("chunk", [512, 3])
def test_against_brute_force(verb, write, models, chunk):
    base, tuned = models
    done = verb(
        "analyze shift",
        "--base",
        base,
        "--tuned",
        tuned,
        "--data",
        write("d.jsonl", ROWS),
        "--chunk-tokens",
        chunk,
    )
    kl, exact, shift, fraction = brute_force(base, tuned, ROWS)
    assert done.status == 0
    assert done.json["kl"] == pytest.approx(kl, abs=1e-6) and done.json[
        "kl_exact"
    ] == pytest.approx(exact, abs=1e-6)
    assert done.json["mean_rank_shift"] == pytest.approx(shift, abs=1e-6) and done.json[
        "shifted_fraction"
    ] == pytest.approx(fraction, abs=1e-6)
    assert done.json["num_rows"] == 3 and exact > 0


def test_identical_models_give_exactly_zero(verb, write, models):
    done = verb(
        "analyze shift", "--base", models[0], "--tuned", models[0], "--data", write("d.jsonl", ROWS)
    )
    for key in ("kl", "kl_exact", "mean_rank_shift", "shifted_fraction", "mean_rank_change"):
        assert done.json[key] == 0.0, key
    assert done.json["pca_shift"]["distance"] == 0.0
    assert all(
        p["shift"] == 0.0
        for variant in ("with_padding", "without_padding")
        for p in done.json["pca_shift"][variant]["data"]
    )


def test_pca_against_transformers_features(verb, write, models):
    """Left padding and the mean over all positions, as published; and each text alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models[0], padding_side="left")
    texts = [row["input"] + "  " + row["output"] for row in ROWS]
    features: dict[bool, list] = {True: [], False: []}
    for folder in models:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            batch = tokenizer(
                texts, return_tensors="pt", padding=True, truncation=True, max_length=128
            )
            padded = [
                state.double().mean(1).numpy()
                for state in model(**batch, output_hidden_states=True).hidden_states
            ]
            alone = [
                [
                    s[0].double().mean(0).numpy()
                    for s in model(
                        **tokenizer(t, return_tensors="pt"), output_hidden_states=True
                    ).hidden_states
                ]
                for t in texts
            ]
        features[True].append(np.stack(padded))
        features[False].append(np.stack([np.stack(layer) for layer in zip(*alone, strict=True)]))
    done = verb(
        "analyze shift", "--base", models[0], "--tuned", models[1], "--data", write("d.jsonl", ROWS)
    )
    for padded, name in ((True, "with_padding"), (False, "without_padding")):
        expected, found = pca_shift(*features[padded]), done.json["pca_shift"][name]
        assert found["distance"] == pytest.approx(expected["distance"], rel=1e-4)
        # embeddings and two layers
        assert len(found["data"]) == 2 * 3 and found["data"][1]["state"] == "Updated"


def test_pca_axes_are_the_main_ones():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(40, 6)) * np.array([5, 3, 1, 1, 1, 1])
    found = pca_shift(base[None], (base + np.array([2.0, 0, 0, 0, 0, 0]))[None])
    values, vectors = np.linalg.eigh(np.cov(base.T))
    first = vectors[:, values.argmax()] * np.sign(
        vectors[np.abs(vectors[:, values.argmax()]).argmax(), values.argmax()]
    )
    assert found["data"][1]["shift"] == pytest.approx(2 * first[0])
    assert found["distance"] == pytest.approx(
        np.hypot(
            found["data"][1]["shift"], found["data"][1]["principle"] - found["data"][0]["principle"]
        )
    )


def test_token_view_and_faults(verb, write, models, tmp_path):
    data = write("d.jsonl", [*ROWS, {"input": "q", "output": ""}])
    done = verb(
        "analyze shift",
        "--base",
        models[0],
        "--tuned",
        models[1],
        "--data",
        data,
        "--tokens",
        tmp_path / "t.jsonl",
        "--pca-texts",
        "0",
    )
    views = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert done.json["tokens"] == "t.jsonl", "from where the JSON lies"
    assert ["".join(token["token"] for token in view["tokens"]) for view in views] == [
        row["output"] for row in ROWS
    ]
    assert (
        sum(token["rank"] > 1 for view in views for token in view["tokens"])
        == done.json["num_shifted"]
    )
    assert "1 rows without output tokens" in done.err and done.json["pca_shift"]["distance"] is None
    assert (
        verb("analyze shift", "--base", models[0], "--tuned", tmp_path, "--data", data).status == 2
    )
    broken = verb(
        "analyze shift",
        "--base",
        models[0],
        "--tuned",
        models[1],
        "--data",
        write("e.jsonl", [{"input": "a"}]),
    )
    assert broken.status == 2 and "e.jsonl:1: expected strings" in broken.err
    empty = verb(
        "analyze shift",
        "--base",
        models[0],
        "--tuned",
        models[1],
        "--data",
        write("f.jsonl", [{"input": "a", "output": ""}]),
    )
    assert empty.status == 2 and "no row has output tokens" in empty.err


def test_ranks_share_the_rows(verb, write, models, tmp_path):
    """Two ranks give the numbers of one, row by row in the file's order; the first one writes."""
    rows = [*ROWS, {"input": "y", "output": ""}, {"input": "7 + 7", "output": " = 14, wait"}]
    data = write("d.jsonl", rows)
    given = ["--base", models[0], "--tuned", models[1], "--data", data, "--batch-tokens", "40"]
    alone = verb("analyze shift", *given, "--tokens", tmp_path / "one.jsonl")
    out = ["--json", tmp_path / "two.json", "--tokens", tmp_path / "two.jsonl"]
    run_ranks("analysis/shift_worker.py", 2, *map(str, [*given, *out]))
    shared = json.loads((tmp_path / "two.json").read_text())
    assert (
        shared["num_ranks"] == 2 and shared["num_rows"] == 4 and shared["device"] == "cpu, float32"
    )
    for key in ("kl", "kl_exact", "mean_rank_shift", "shifted_fraction", "num_tokens"):
        assert shared[key] == pytest.approx(alone.json[key], abs=1e-6), key
    for variant in ("with_padding", "without_padding"):
        found = [p[variant]["distance"] for p in (shared["pca_shift"], alone.json["pca_shift"])]
        assert found[0] == pytest.approx(found[1], rel=1e-4)
    views = [(tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("one", "two")]
    said = [
        [(t["id"], t["rank"]) for t in json.loads(v)["tokens"]] for lines in views for v in lines
    ]
    assert said[:4] == said[4:]


def test_batches_hold_what_they_may():
    assert batches_of([3, 9, 4, 9], 18) == [[1, 3], [2, 0]]
    assert batches_of([30, 2], 10) == [[0], [1]]
    assert batches_of([], 10) == []


def test_a_gpu_that_is_not_there_is_named(verb, write, models):
    given = ("--base", models[0], "--tuned", models[1], "--data", write("d.jsonl", ROWS))
    for device in ("cuda", "spread"):
        done = verb("analyze shift", *given, "--device", device)
        if not platform.has_cuda():
            assert done.status == 2 and f"--device {device}: no GPU" in done.err
    done = verb("analyze shift")
    assert done.status == 2 and "base, tuned, data missing" in done.err
