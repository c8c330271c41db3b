"""The ledger against hand counts: formulas position by position, whole runs from their records, and
FLOPs against what torch counts while a step runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clean_fork import run_in_fork
from grpo_runs import GrpoRuns
from tiny_models import build_tiny_model

from megaladder.ledger.book import Ledger, add_up, read_work, row_of, training_flops
from megaladder.ledger.sampled import sampled_work, shape_at, write_sampled_ledger
from megaladder.ledger.work import Work, forward_work, generation_work
from megaladder.model.hf_config import ModelShape, model_shape
from megaladder.run_dir import read_object

ROWS = [
    {"question": f"What is {a} + {b}?", "answer": "so " * (a + 1) + f"#### {a + b}"}
    for a in range(8)
    for b in range(4)
]


def small_shape(window: int | None) -> ModelShape:
    """Four layers; with a window, that of the last two."""
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    sliding = {"use_sliding_window": window is not None, "sliding_window": window}
    raw = {"model_type": "qwen2", **sizes, **heads, **sliding, "max_window_layers": 2}
    return model_shape(raw)


def by_position(shape, start: int, end: int, logits: int) -> float:
    """FLOPs of the positions start … end − 1 of one sequence, layer by layer, and of `logits` rows."""
    size = shape.head_dim
    widths = shape.num_attention_heads * size, shape.num_query_groups * size
    weights = shape.hidden_size * (2 * sum(widths) + 3 * shape.ffn_hidden_size)
    total = 0.0
    for layer in range(shape.num_layers):
        sliding = bool(shape.sliding_layers) and shape.sliding_layers[layer]
        for position in range(start, end):
            seen = min(position + 1, shape.sliding_window) if sliding else position + 1
            total += 2 * weights + 2 * 2 * widths[0] * seen
    return total + 2 * shape.hidden_size * shape.vocab_size * logits


@pytest.mark.parametrize("window", [None, 3, 100])
def test_a_forward_pass_by_position(window):
    shape = small_shape(window)
    lengths = [1, 7, 12]
    found = forward_work(shape, np.array(lengths, np.int32), head_tokens=9)
    expected = sum(by_position(shape, 0, n, 0) for n in lengths) + by_position(shape, 0, 0, 9)
    assert (found.tokens, found.flops) == (20, expected)
    assert found.with_backward == Work(20, flops=3 * expected)


@pytest.mark.parametrize("window", [None, 3])
def test_completions_share_their_prompt(window):
    """A prompt of 5 tokens and 3 completions: each feeds back all its tokens but the last one. An
    empty completion costs nothing more."""
    shape, answers = small_shape(window), [4, 1, 9]
    expected = by_position(shape, 0, 5, 0)
    expected += sum(by_position(shape, 5, 5 + n - 1, n) for n in answers)
    found = generation_work(shape, 5, [*answers, 0])
    assert (found.tokens, found.prompt_tokens) == (5 + 14, 5)
    assert found.flops == pytest.approx(expected, rel=1e-12)
    assert generation_work(shape, 5, [0]).flops == by_position(shape, 0, 5, 0)


def test_long_sequences_do_not_overflow():
    shape = small_shape(None)
    found = forward_work(shape, np.array([1 << 17], np.int32), 0).flops
    pairs = (1 << 17) * ((1 << 17) + 1) // 2
    assert found > 4 * shape.num_layers * shape.num_attention_heads * shape.head_dim * pairs


def test_rows_hold_the_ledger_and_the_total_goes_on():
    ledger = Ledger()
    first = {"train": Work(10, flops=60.0), "grading": Work(cpu_s=0.5)}
    rows = [ledger.book(first), ledger.book({"train": Work(1, flops=2.0), "held_out": Work(3)})]
    assert rows[0] == {"train_tokens": 10, "train_flops": 60.0, "grading_cpu_s": 0.5}
    assert read_work(rows[0]) == first and row_of(first) == rows[0]
    assert add_up(rows) == {**first, "train": Work(11, flops=62.0), "held_out": Work(3)}
    resumed = Ledger()
    resumed.restore(json.loads(json.dumps(ledger.state())))
    assert resumed.flops == 62.0 and resumed.lines() == ledger.lines()
    assert training_flops({"train": Work(flops=1.0), "evaluation": Work(flops=5.0)}) == 1.0


def test_samples_without_a_known_model_have_tokens_and_no_flops(tmp_path):
    assert shape_at("") is None and shape_at(str(tmp_path)) is None
    work = sampled_work(None, {"a": 3, "b": 4, "c": 9}, [("a", 2), ("b", 5), ("a", 1)])
    assert work == Work(3 + 4 + 8, 7)
    path = tmp_path / "ledger.json"
    write_sampled_ledger(path, "evaluation", work + Work(cpu_s=1.0))
    # the second start drew no new sample and graded for half a second
    again = write_sampled_ledger(path, "evaluation", work + Work(cpu_s=0.5))
    assert read_object(path, "x") == again
    assert again["evaluation"] == {"tokens": 15, "prompt_tokens": 7, "flops": 0.0, "cpu_s": 1.5}


# ---- whole runs


def count_flops(calls: dict[str, Any], config: Any, run: Any, out: Path) -> int:
    """Runs with torch's counter around methods, and writes their FLOPs call by call. `calls`:
    name → (class, method)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def causal(query: Any, *_: Any, **__: Any) -> int:
        batch, heads, length, size = query
        return batch * heads * size * 4 * length * (length + 1) // 2

    def causal_backward(gradient: Any, query: Any, *rest: Any, **__: Any) -> int:
        return 2 * causal(query)

    def product(left: Any, right: Any, *_: Any, **__: Any) -> int:
        return 2 * left[0] * left[1] * right[1]

    def added_product(_out: Any, left: Any, right: Any, **__: Any) -> int:
        return product(left, right)

    # what torch has no formula for: attention on a CPU, sums in place, the head's own operators
    aten, own = torch.ops.aten, torch.ops.megaladder
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: causal,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: causal_backward,
        aten.addmm_: added_product,
        own.wide_mm: product,
        own.add_product: added_product,
    }
    counts: dict[str, list[int]] = {name: [] for name in calls}

    def counted(name: str, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
                result = method(*args, **kwargs)
            counts[name].append(counter.get_total_flops())
            return result

        return call

    for name, (owner, method) in calls.items():
        setattr(owner, method, counted(name, getattr(owner, method)))
    status = run(config)
    out.write_text(json.dumps(counts))
    return status


def rows_of(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_an_sft_run_by_hand(tmp_path):
    """Tokens from the text, FLOPs from torch: one sequence a micro-batch, so nothing is padded."""
    from transformers import AutoTokenizer

    model = build_tiny_model(tmp_path / "model", hidden=32)
    data, out = tmp_path / "data.jsonl", tmp_path / "counts.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    flags = ["--run-dir", str(tmp_path / "run"), "--model.path", str(model)]
    flags += ["--data.path", str(data), "--data.seq-length", "128", "--data.packing", "false"]
    flags += ["--data.holdout", "8", "--train.global-batch-size", "24", "--train.epochs", "2"]
    flags += ["--checkpoint.export-hf", "false"]

    def run() -> int:
        from megaladder.config.resolve import resolve
        from megaladder.config.sft import SftConfig
        from megaladder.train.sft import run_sft
        from megaladder.train.trainer import Trainer

        config = resolve(SftConfig, flags, prog="test")
        calls = {"train": (Trainer, "update"), "held_out": (Trainer, "evaluate")}
        return count_flops(calls, config, run_sft, out)

    assert run_in_fork(run, stderr=tmp_path / "said") == 0, (tmp_path / "said").read_text()
    counts = json.loads(out.read_text())
    rows, held_out = rows_of(tmp_path / "run"), rows_of(tmp_path / "run", "held_out.jsonl")
    assert [row["train_flops"] for row in rows] == pytest.approx(counts["train"], rel=1e-9)
    assert [row["flops"] for row in rows] == [row["train_flops"] for row in rows]
    found = [row["held_out_flops"] for row in held_out]
    assert found == pytest.approx(counts["held_out"], rel=1e-9)
    tokenizer = AutoTokenizer.from_pretrained(model)
    turns = [
        [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
        for row in ROWS
    ]
    texts = [tokenizer.apply_chat_template(turn, tokenize=False) for turn in turns]
    total = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    # two epochs of 24 samples; the 8 others were held out, before and after
    assert len(rows) == 2 and len(held_out) == 2
    assert {row["train_tokens"] + held_out[0]["held_out_tokens"] for row in rows} == {total}
    everything = add_up([*rows, *held_out])
    before_the_last = held_out[-1]["held_out_flops"]
    flops = sum(work.flops for work in everything.values())
    assert rows[-1]["total_flops"] == pytest.approx(flops - before_the_last)


def test_a_grpo_run_by_hand(tmp_path):
    """Tokens from the stored rollouts; FLOPs of updates and log-prob passes from torch."""
    runs = GrpoRuns(tmp_path)
    out = tmp_path / "counts.json"
    flags = ["--data.packing", "false", "--grpo.recompute-old-logprobs", "always"]
    flags += ["--grpo.kl", "k3", "--train.max-steps", "2"]
    config = runs.config("run", *flags)

    def run() -> int:
        from megaladder.train.grpo import run_grpo
        from megaladder.train.rl.policy import Policy
        from megaladder.train.trainer import Trainer

        calls = {"train": (Trainer, "update"), "logprobs": (Policy, "mini_batches")}
        return count_flops(calls, config, run_grpo, out)

    assert run_in_fork(run, stderr=tmp_path / "said") == 0, (tmp_path / "said").read_text()
    counts, shape = json.loads(out.read_text()), shape_at(str(runs.model))
    rows = rows_of(tmp_path / "run")
    assert add_up(rows)["grading"].cpu_s > 0
    for place, row in enumerate(rows):
        assert row["train_flops"] == pytest.approx(counts["train"][place], rel=1e-9)
        passes = row["old_logprobs_flops"] + row["reference_logprobs_flops"]
        assert passes == pytest.approx(counts["logprobs"][place], rel=1e-9)
        stored = rows_of(tmp_path / "run" / "rollouts", f"step_{row['step']}.jsonl")
        prompts = {one["group"]: len(one["prompt_ids"]) for one in stored}
        answers = [len(one["response_ids"]) for one in stored]
        assert row["generation_prompt_tokens"] == sum(prompts.values())
        assert row["generation_tokens"] == sum(prompts.values()) + sum(answers)
        trained = sum(prompts[one["group"]] for one in stored) + sum(answers)
        assert row["train_tokens"] == row["tokens"] == row["old_logprobs_tokens"] == trained
        expected = math.fsum(by_position(shape, 0, length, 0) for length in prompts.values())
        for one, answer in zip(stored, answers, strict=True):
            start = prompts[one["group"]]
            expected += by_position(shape, start, start + answer - 1, answer)
        assert row["generation_flops"] == pytest.approx(expected, rel=1e-9)
        phases = ("train", "old_logprobs", "reference_logprobs", "generation")
        assert row["flops"] == pytest.approx(sum(row[f"{phase}_flops"] for phase in phases))
