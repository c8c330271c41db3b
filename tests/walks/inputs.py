"""The inputs of the walks: rows, graded samples, tables, a tokenizer."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lora.adapter_cases import TrainedAdapters
from tiny_models import build_tiny_model, build_tokenizer

from megaladder.analysis.studies.tiers import AIME24_TIERS
from megaladder.checkpoints_conv.adapters.peft_folder import write_peft
from megaladder.checkpoints_conv.adapters.tensors import AdapterTable
from megaladder.cli import main
from megaladder.model.hf_config import model_shape, read_config_json
from megaladder.model.lora.peft_config import peft_config
from megaladder.model.lora.spec import LoraSpec

_AIME = [number for ids in AIME24_TIERS.values() for number in ids]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def make_inputs(folder: Path) -> None:
    """Everything that the walks read, but models."""
    rng = np.random.default_rng(0)
    build_tokenizer(folder / "tokenizer")
    (folder / "template.jinja").write_text(
        "{{ note }}{% for message in messages %}<|im_start|>{{ message.role }}: {{ message.content }}"
        "<|im_end|>{% endfor %}"
    )
    (folder / "dated.jinja").write_text(
        "{{ strftime_now('%d %B %Y') }}{% for message in messages %}{{ message.content }}"
        "<|im_end|>{% endfor %}"
    )
    _training_rows(folder)
    _problems(folder)
    _graded(folder, rng)
    _tables(folder, rng)
    _studies(folder)
    _scored(folder / "scored")


def _studies(folder: Path) -> None:
    """Two studies of one stage and one command, at both scales."""
    for name, rows in (("study", 2), ("study2", 3)):
        (folder / name).mkdir()
        scales = "".join(
            f"  {scale}:\n    about: {scale}\n    report: [data]\n    stages:\n      - name: data\n"
            "        run: ['data make arithmetic --out ${here}/o.jsonl --rows "
            f"{rows + more}']\n      - name: more\n"
            "        run: ['data make arithmetic --rows 2 --out ${here}/o.jsonl']\n"
            for scale, more in (("toy", 0), ("paper", 5))
        )
        (folder / name / "study.yaml").write_text(
            f"title: t\nsource: s\nfindings: []\nscales:\n{scales}"
        )


def make_models(folder: Path) -> None:
    """Two tiny models with the same tokenizer, one with more layers, two with experts, and a folder
    that is full."""
    for seed, name in enumerate(("model", "other_model")):
        build_tiny_model(folder / name, hidden=32, seed=seed)
    build_tiny_model(folder / "deep_model", hidden=32, num_layers=4)
    for rank, name in ((2, "adapter"), (3, "other_adapter")):
        _adapter(folder / "model", folder / name, rank)
    build_tiny_model(folder / "experts", "qwen3_moe", hidden=32)
    build_tiny_model(folder / "biased_experts", "glm4_moe", hidden=32)
    (folder / "filled").mkdir()
    (folder / "filled" / "notes.txt").write_text("a file that no conversion made")


def _adapter(model: Path, out: Path, rank: int) -> None:
    """A PEFT folder with trained adapters for a model."""
    shape = model_shape(read_config_json(model))
    spec = LoraSpec(rank, 2.0 * rank, ("q_proj", "down_proj"))
    source = TrainedAdapters(AdapterTable(shape, spec))
    write_peft(out, {name: source.read(name) for name in source.shapes}, peft_config(spec, "m"))


def make_conversions(folder: Path) -> None:
    """The two models as checkpoints, and rows with what one of them answered."""
    for name, out in (("model", "converted"), ("other_model", "other_converted")):
        words = ["--hf", str(folder / name), "--out", str(folder / out)]
        assert main(["convert", "hf-to-megatron", *words]) == 0
    for first, name in ((0, "answered"), (3, "other_answered")):
        rows = [
            {"input": f"What is {n} + {n}?", "output": f"So it is {2 * n}, I think."}
            for n in range(first, first + 3)
        ]
        write_rows(folder / f"{name}.jsonl", rows)


def make_runs(folder: Path) -> None:
    """Two finished runs of SFT, and stored rollouts of two of GRPO; needs the models."""
    both = {"model.path": folder / "model", "data.seq-length": 128, "train.max-steps": 2}
    sft = {"data.path": folder / "rows.jsonl", "train.global-batch-size": 2, "checkpoint.every": 1}
    grpo = {
        "data.path": folder / "problems.jsonl",
        "rollout.engine": "fake",
        "rollout.n": 4,
        "rollout.max-tokens": 40,
        "grpo.prompts-per-step": 2,
        "grpo.dynamic-sampling": "none",
        "grpo.mode": "rollout_only",
    }
    adapted = {**sft, "lora.rank": 2, "checkpoint.every": 0}
    runs = (("sft", sft, "trained"), ("grpo", grpo, "rounds"), ("sft", adapted, "adapted"))
    for verb, flags, name in runs:
        for seed, out in ((1, name), (2, f"other_{name}")):
            given = {**both, **flags, "train.seed": seed, "run-dir": folder / out}
            words = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
            assert main([verb, *words]) == 0


def _problems(folder: Path) -> None:
    """Questions with answers, alone and as benchmarks."""
    for first, name in ((0, ""), (5, "2")):
        rows = [
            {"id": f"p{index}", "question": f"What is {index} + {7 - index}?", "answer": "7"}
            for index in range(first, first + 8)
        ]
        write_rows(folder / ("other_problems.jsonl" if name else "problems.jsonl"), rows)
        write_rows(folder / f"repeated_problems{name}.jsonl", [*rows, rows[0]])
        write_rows(folder / f"bench{name}" / "amc23.jsonl", rows)
        write_rows(folder / f"bench{name}" / "gsm8k.jsonl", rows)
        write_rows(folder / f"bench{name}" / "hexphi" / "test.jsonl", rows)
        programs = [{**row, "tests": '[{"input": "1", "output": "7"}]'} for row in rows]
        write_rows(folder / f"bench{name}" / "livecodebench.jsonl", programs)
    rising = [{**row, "question": f"Rising: {row['question']}"} for row in rows]
    write_rows(folder / "rising" / "amc23.jsonl", rising)
    for name, own in (("registry", "bench"), ("other_registry", "bench2")):
        (folder / f"{name}.yaml").write_text(f"benchmarks: {{mine: {{data: {own}/amc23.jsonl}}}}\n")
    texts = ["so \\boxed{1/2}", "\\boxed{2}, no: \\boxed{0.5}", "The answer is 0.5."]
    for number, name in ((3, "answers"), (2, "other_answers")):
        answers = [{"id": f"p{n}", "gold": "0.5", "response": texts[n]} for n in range(number)]
        write_rows(folder / f"{name}.jsonl", answers)


def _training_rows(folder: Path) -> None:
    words = [
        "apple",
        "bird",
        "cloud",
        "door",
        "east",
        "fire",
        "gold",
        "hill",
        "iron",
        "jade",
        "kite",
        "lamp",
        "moon",
        "nest",
        "oak",
    ]
    rows = []
    for index in range(24):
        text = " ".join(words[(index * 7 + step * 3) % 15] for step in range(14))
        answer = f"Wait, let me check. Therefore {text} perhaps. " * (1 + index % 4)
        rows.append(
            {"id": f"r{index}", "question": f"{text} {index}?", "answer": f"{answer}#### {index}"}
        )
    write_rows(folder / "repeats.jsonl", [*rows, rows[0]])
    write_rows(folder / "broken.jsonl", [*({**rows[n % 24], "id": n} for n in range(150)), {}])
    thought = {
        "role": "assistant",
        "content": "<think>\nHm.\n</think>\n\n42",
        "reasoning_content": "",
    }
    turns = [{"role": "user", "content": "6 * 7?"}, thought] * 2
    write_rows(folder / "thoughts.jsonl", [{"id": n, "messages": turns} for n in range(4)])
    rows.append({**rows[1], "id": "near", "question": rows[1]["question"] + " please"})
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "more.jsonl", rows[4:])
    write_rows(folder / "bench.jsonl", [{"problem": rows[3]["question"]}, {"problem": "short one"}])
    write_rows(folder / "other.jsonl", [{"problem": rows[5]["answer"]}])
    write_rows(folder / "text.jsonl", [{"text": "question: 1 + 1\nanswer: 2 answer: 3"}] * 3)
    judged = {"message": "1 + 1?", "response": "2", "logprob": [-0.5, -9.0]}
    judged_rows = [{**judged, "id": n, "advantage": 1.0 - n % 2 * 2} for n in range(4)]
    write_rows(folder / "judged.jsonl", judged_rows)
    one = {"text": "question: 1 + 1\nanswer: 2"}
    write_rows(folder / "one_answer.jsonl", [{**one, "id": n} for n in range(4)])
    s1 = {
        f"{who}_{what}": f"{who} {what}"
        for who in ("gemini", "deepseek")
        for what in ("thinking_trajectory", "attempt")
    }
    s1_rows = [{"question": f"1 + {n}?", "solution": f"{1 + n}", **s1} for n in range(4)]
    write_rows(folder / "s1.jsonl", s1_rows)
    stages = "  - sample: {n: 8}\n"
    (folder / "recipe.yaml").write_text(f"name: test\nseed: 1\nstages:\n{stages}")
    (folder / "other.yaml").write_text(f"name: other\nseed: 2\nstages:\n{stages}")
    (folder / "grid.yaml").write_text(
        "name: grid_{n}\nvary: {n: [2, 4]}\nstages:\n  - sample: {n: '{n}'}\n"
    )
    (folder / "taken.yaml").write_text("{}\n")
    for name, path in (("trl", "model_name_or_path"), ("axolotl", "base_model")):
        (folder / f"{name}.yaml").write_text(
            f"{path}: m\nlearning_rate: 1e-5\ndataset_name: d.jsonl\ndatasets: [{{path: e.jsonl}}]\n"
        )
    (folder / "rule.yaml").write_text(
        "weights: {elaboration: 1.0, verification: 0, exploration: 0, granularity: 0}\n"
    )


def _graded(folder: Path, rng: np.random.Generator) -> None:
    for name, skill in (("a", 0.4), ("b", 0.6), ("c", 0.5)):
        rows = _graded_rows(rng, skill)
        write_rows(folder / f"{name}.jsonl", rows)
        for benchmark in ("math1", "other1", "non1"):
            own = _graded_rows(rng, skill + 0.1 * rng.random())
            write_rows(folder / "eval" / name / benchmark / f"samples_{benchmark}.jsonl", own)
        aime = [{**row, "id": number} for row, number in zip(rows * 2, _AIME, strict=False)]
        for ladder in ("ladder", "ladder2") if name != "c" else ("ladder",):
            write_rows(folder / ladder / name / "math1" / "samples_math1.jsonl", rows)
            write_rows(folder / ladder / name / "aime24" / "samples_aime24.jsonl", aime)
        write_rows(folder / "steps" / "m" / f"step_{ord(name)}" / "samples_aime24.jsonl", aime)
    for samples in ("samples", "samples2"):
        for run in range(12):
            write_rows(folder / samples / f"r{run}.jsonl", _graded_rows(rng, 0.05 * run))
    steps = [{"step": step, "loss": 1.0, "tokens": 1000, "step_s": 1.0} for step in range(5)]
    write_rows(folder / "run" / "metrics.jsonl", steps)
    (folder / "run" / "config.yaml").write_text("parallel: {ranks: 2, tp: 2}\n")
    (folder / "run" / "fingerprint.json").write_text('{"model": {"num_parameters": 10}}')
    write_table(
        folder / "factors.csv",
        [{"model": name, "size": 10**power} for power, name in enumerate("abc", 2)],
    )


def _scored(folder: Path) -> None:
    """A folder that `eval` might have written."""
    entry = {"headline": "avg@4", "metrics": {"avg@4": 0.3}, "num_problems": 9, "n": 4}
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"benchmarks": {"gsm8k": entry}}))


def _graded_rows(rng: np.random.Generator, skill: float) -> list[dict[str, Any]]:
    return [
        {
            "id": f"p{index}",
            "gold": str(index),
            "correct": [bool(one) for one in rng.random(8) < skill],
            "tokens": [int(one) for one in rng.integers(10, 90, 8)],
            "responses": ["so " * 50 + f"\\boxed{{{index + shift % 2}}}" for shift in range(8)],
            "extracted_answer": [str(index + shift % 3) for shift in range(8)],
            "response_ids": [[int(t) for t in rng.integers(5, 200, 6 + 4 * n)] for n in range(8)],
        }
        for index in range(20)
    ]


def _tables(folder: Path, rng: np.random.Generator) -> None:
    scores = [
        {
            "model": model,
            "group": group,
            "benchmark": f"{group}1",
            "score": round(float(rng.uniform(20, 70)), 2),
        }
        for model in ("a", "b", "c")
        for group in ("math", "other", "non")
    ]
    write_table(folder / "scores.csv", scores)
    write_table(
        folder / "scores2.csv", [{**row, "score": row["score"] ** 2 / 100} for row in scores]
    )
    for name, factor in (("runs", 1), ("runs2", 2)):
        write_table(
            folder / f"{name}.csv",
            [
                {
                    "method": "forcing",
                    "setting": s,
                    "tokens": 500 * s * factor,
                    "accuracy": 20 + 7 * s * factor,
                }
                for s in (1, 2, 4)
            ],
        )
        write_table(
            folder / f"predict_{name}.csv",
            [
                {
                    "run": f"r{i}",
                    "series": f"s{i % 4}",
                    "pairs": f"s{i % 2}",
                    "epochs": i // 4,
                    "hours": 9 - i // 4,
                    "pass1": round(float(rng.normal(40, 5)), 3),
                    "pass8": round(float(rng.normal(60, 5)), 3),
                    "loss": round(float(rng.normal(1, 0.1)), 3),
                    "loss2": round(float(rng.normal(1, 0.1)), 3),
                    "rl": round(float(rng.normal(50, 5)), 3),
                    "rl2": round(float(rng.normal(50, 5)), 3),
                }
                for i in range(12)
            ],
        )
    for name, dip in (("curve", 3.0), ("curve2", 9.0)):
        write_table(
            folder / f"{name}.csv",
            [
                {"model": "a", "benchmark": "math1", "step": step, "score": score}
                for step, score in enumerate((40, 40 - dip, 42, 44, 43.2))
            ],
        )
