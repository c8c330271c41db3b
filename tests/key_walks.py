"""The walks of the verbs that need no model, and their inputs. See `key_walk`."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from key_walk import Walk
from tiny_models import build_tokenizer

from megaladder.analysis.studies.tiers import AIME24_TIERS

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
    """Everything that the walks below read."""
    rng = np.random.default_rng(0)
    build_tokenizer(folder / "tokenizer")
    (folder / "template.jinja").write_text(
        "{{ note }}{% for message in messages %}<|im_start|>{{ message.role }}: {{ message.content }}"
        "<|im_end|>{% endfor %}"
    )
    _training_rows(folder)
    _graded(folder, rng)
    _tables(folder, rng)
    _studies(folder)


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
    rows.append({**rows[1], "id": "near", "question": rows[1]["question"] + " please"})
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "more.jsonl", rows[4:])
    write_rows(folder / "bench.jsonl", [{"problem": rows[3]["question"]}, {"problem": "short one"}])
    write_rows(folder / "other.jsonl", [{"problem": rows[5]["answer"]}])
    write_rows(folder / "text.jsonl", [{"text": "question: 1 + 1\nanswer: 2 answer: 3"}] * 3)
    s1 = {
        f"{who}_{what}": f"{who} {what}"
        for who in ("gemini", "deepseek")
        for what in ("thinking_trajectory", "attempt")
    }
    write_rows(folder / "s1.jsonl", [{"question": "1 + 1?", "solution": "2", **s1}])
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


def cheap_walks(i: Path) -> list[Walk]:
    """`i`: the folder of `make_inputs`."""
    grpo = {
        "workload": "grpo",
        "prompts_per_step": 8,
        "n": 8,
        "response_length": 2000,
        "max_tokens": 4096,
        "global_batch_size": None,
    }
    flagged = {"series": "series", "order": "epochs", "flag_score": "pass1", "flag_loss": "loss"}
    read_by_grpo = ("prompts_per_step", "n", "mini_batches", "prompt_length", "response_length")
    return [
        Walk(
            "plan",
            {"model": "Qwen3-14B", "gpus": 8, "seq_length": 8192, "global_batch_size": 64},
            values={
                "tp": 2,
                "pp": 2,
                "cp": 2,
                "engine_tp": 2,
                "engine_gpus": 4,
                "max_tokens": 3000,
                "model": "Qwen3-8B",
                "gpu": "h100",
                "sample_length": 1000.0,
                "top": 3,
                "vpp": 2,
            },
            beside={
                "vpp": {"pp": 2},
                **dict.fromkeys((*read_by_grpo, "max_tokens", "engine_tp", "engine_gpus"), grpo),
                "lag": {**grpo, "engine_gpus": 4},
            },
            together={"workload": grpo},
        ),
        Walk(
            "import-config",
            {"file": str(i / "trl.yaml"), "out": "run.yaml"},
            values={
                "file": str(i / "axolotl.yaml"),
                "overrides": ["seed=7"],
                "out": "another.yaml",
                "source": "axolotl",
            },
            beside={"force": {"out": str(i / "taken.yaml"), "force": True}},
        ),
        Walk(
            "data make arithmetic",
            {"kind": "arithmetic", "rows": 20, "out": "o.jsonl"},
            values={
                "operations": "+-",
                "recheck_share": 0.5,
                "out": "another.jsonl",
                "test_out": "t.jsonl",
            },
            beside={"test_rows": {"test_out": "t.jsonl"}, "direct_from": {"direct_share": 0.9}},
        ),
        Walk(
            "data make countdown",
            {"kind": "countdown", "rows": 10, "out": "o.jsonl"},
            values={
                "numbers": 3,
                "max_target": 50,
                "max_backtracks": 1,
                "out": "another.jsonl",
                "test_out": "t.jsonl",
                "min_backtracks": 3,
            },
            beside={"test_rows": {"test_out": "t.jsonl"}, "bare_from": {"bare_share": 0.9}},
        ),
        Walk(
            "data stats",
            {"path": str(i / "rows.jsonl")},
            values={
                "path": str(i / "more.jsonl"),
                "tokenizer": str(i / "tokenizer"),
                "chat_template": str(i / "template.jinja"),
                "response_template": "answer:",
                "s1_teacher": "deepseek",
                "fields": {"question": "id"},
                "chat_template_kwargs": {"note": "hello"},
                "duplicates": "keep",
            },
            beside={
                "duplicates": {"path": str(i / "repeats.jsonl"), "tokenizer": str(i / "tokenizer")},
                "chat_template_kwargs": {
                    "tokenizer": str(i / "tokenizer"),
                    "chat_template": str(i / "template.jinja"),
                },
                "chat_template": {"tokenizer": str(i / "tokenizer")},
                "sample": {"tokenizer": str(i / "tokenizer")},
                "response_template": {
                    "tokenizer": str(i / "tokenizer"),
                    "path": str(i / "text.jsonl"),
                    "response_template": "question:",
                },
                "s1_teacher": {
                    "tokenizer": str(i / "tokenizer"),
                    "path": str(i / "s1.jsonl"),
                    "s1_teacher": "gemini",
                },
            },
            probes=("megaladder.curate.stats:SourceSpec",),
        ),
        Walk(
            "data decontaminate",
            {"path": str(i / "rows.jsonl"), "against": [str(i / "bench.jsonl")], "out": "o.jsonl"},
            values={
                "path": str(i / "text.jsonl"),
                "against": [str(i / "other.jsonl")],
                "out": "another.jsonl",
                "min_words": 2,
                "n": 3,
                "columns": ["answer"],
                "max_matches": 1,
                "near_threshold": 0.99,
                "id_column": "question",
            },
            beside={"near_threshold": {"dedup": "near"}, "max_matches": {"n": 3}},
        ),
        Walk(
            "data score",
            {"path": str(i / "rows.jsonl"), "out": "o.jsonl"},
            values={
                "path": str(i / "text.jsonl"),
                "out": "another.jsonl",
                "column": "question",
                "levels": 3,
                "rule_file": str(i / "rule.yaml"),
            },
            probes=("megaladder.curate.score:map_ordered",),
        ),
        Walk(
            "data select",
            {"path": str(i / "rows.jsonl"), "recipe": str(i / "recipe.yaml"), "out": "o.jsonl"},
            values={
                "path": str(i / "more.jsonl"),
                "recipe": str(i / "other.yaml"),
                "out": "another.jsonl",
                "set": ["seed=5"],
                "only": "grid_2*",
                "seed": 9,
            },
            beside={
                "only": {"recipe": str(i / "grid.yaml"), "out": "folder/"},
                "duplicates": {"path": str(i / "repeats.jsonl")},
            },
            probes=("megaladder.curate.select.run:select",),
        ),
        Walk(
            "analyze pass-at-k",
            {"runs": [str(i / "a.jsonl")], "draws": 200},
            values={"runs": [str(i / "b.jsonl")], "k": [2], "benchmark": ["math1"]},
            beside={"benchmark": {"runs": [str(i / "eval" / "a")]}},
        ),
        Walk(
            "analyze transfer",
            {"table": str(i / "scores.csv"), "base": "a", "json_path": "j.json"},
            values={
                "table": str(i / "scores2.csv"),
                "base": "b",
                "sigma": [1.0, 1.1, 1.2],
                "samples": str(i / "eval"),
            },
            beside={k: {"samples": str(i / "eval"), "draws": 200} for k in ("draws", "seed")},
        ),
        Walk(
            "analyze scaling",
            {"table": str(i / "runs.csv")},
            values={"table": str(i / "runs2.csv"), "samples": str(i / "a.jsonl")},
            beside={k: {"samples": str(i / "a.jsonl")} for k in ("draws", "seed")},
        ),
        Walk(
            "analyze ladder",
            {"runs": [str(i / "ladder")], "draws": 200, "json_path": "j.json"},
            values={
                "runs": [str(i / "ladder2")],
                "benchmark": "math1",
                "steps": "last",
                "tier_base": "a",
                "tier_sft": ["c"],
                "factors": str(i / "factors.csv"),
            },
            beside={
                "tier_sft": {"tier_base": "a", "tier_sft": ["b"], "benchmark": "math1"},
                "steps": {"runs": [str(i / "steps")]},
            },
            together={"tier_base": {"tier_sft": ["b"], "benchmark": "math1"}},
        ),
        Walk(
            "analyze predict",
            {
                "table": str(i / "predict_runs.csv"),
                "target": "rl",
                "metrics": ["pass1", "loss"],
                "splits": 20,
            },
            values={
                "table": str(i / "predict_runs2.csv"),
                "target": "rl2",
                "metrics": ["pass8", "loss"],
                "calibration": 0.4,
                "lower_is_better": ["loss"],
                "rank_by": "loss",
                "series": "pairs",
                "order": "hours",
                "flag_score": "pass8",
                "flag_loss": "loss2",
                "samples": str(i / "samples2"),
            },
            beside={
                **dict.fromkeys(("series", "order", "flag_score", "flag_loss"), flagged),
                "samples": {"metrics": ["pass@2", "loss"], "samples": str(i / "samples")},
            },
        ),
        Walk(
            "analyze trajectory",
            {"table": str(i / "curve.csv")},
            values={"table": str(i / "curve2.csv"), "tolerance": 5.0},
        ),
        Walk(
            "analyze budget",
            {"runs": [str(i / "a.jsonl")], "budgets": [6, 20], "workers": 1, "json_path": "j.json"},
            values={
                "runs": [str(i / "b.jsonl")],
                "budgets": [5, 20],
                "benchmark": ["math1"],
                "tokenizer": str(i / "tokenizer"),
                "kind": "exact",
            },
            beside={
                **{key: {"tokenizer": str(i / "tokenizer")} for key in ("kind", "workers")},
                "benchmark": {"runs": [str(i / "eval" / "a")]},
            },
            probes=(
                "megaladder.analysis.studies.budget:GradePool",
                # 20 problems: another seed may well give the same interval
                "megaladder.analysis.studies.budget:mean_intervals",
            ),
        ),
        Walk(
            "analyze compare",
            {
                "base": str(i / "a.jsonl"),
                "runs": [str(i / "b.jsonl"), str(i / "c.jsonl")],
                "draws": 200,
                "json_path": "j.json",
            },
            values={
                "base": str(i / "c.jsonl"),
                "runs": [str(i / "c.jsonl")],
                "level": 0.999,
                "table": str(i / "curve.csv"),
                "compute": [f"a={i / 'run'}"],
            },
            beside={"table": {"compute": [f"a={i / 'run'}"]}},
        ),
        Walk(
            "report",
            {"run_dirs": [str(i / "eval")]},
            values={"run_dirs": [str(i / "eval" / "a")], "out": "another.html", "max_chars": 100},
        ),
        Walk(
            "study",
            {"name": str(i / "study"), "dry_run": True},
            values={
                "name": str(i / "study2"),
                "out": "another",
                "only": "data",
                "jobs": 7,
                "dry_run": False,
            },
            beside={"jobs": {"dry_run": False}, "launcher": {"dry_run": False}},
            probes=("megaladder.study.verb:Crew",),
        ),
        Walk("doctor", {}),
    ]
