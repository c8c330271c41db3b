"""Run and evaluation folders for the analysis tests, by the product's own writers: what training
and `eval` leave behind, with verdicts that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.evaluation import lm_eval_format, report
from megaladder.evaluation.run import Task
from megaladder.evaluation.store import Record
from megaladder.rollout.engine import SamplingParams
from megaladder.run_dir import RunDir, model_fingerprint
from megaladder.types import Problem

PROMPT = {"system": None, "chat_template_sha256": "c", "style": "chat"}


def write_model(folder: Path, seed: int) -> Path:
    """A folder that counts as weights of its own."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"seed": seed}))
    return folder


def write_run(
    folder: Path, start: Path, config: dict[str, Any], steps: Sequence[int], **identity: Any
) -> Path:
    """A finished run that began with the weights in `start`, with an export of each step."""
    import yaml

    begun = {**model_fingerprint(str(start), None), "path": str(start.resolve())}
    with RunDir(folder, writer=True) as run:
        run.write_config(yaml.safe_dump({"model": {"path": str(start)}, **config}))
        run.write_fingerprint({"model": begun, **identity})
    rows = [
        {"step": step, "loss": 1.0, "tokens": 1000, "step_s": 2.0, "flops": 1e9}
        for step in range(1, max(steps) + 1)
    ]
    write_rows(folder / "metrics.jsonl", rows)
    for step in steps:
        write_model(folder / "hf" / f"step_{step}", hash((folder.name, step)) % 10**9)
    return folder


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def verdicts(seed: int, skill: float, num_problems: int = 12, n: int = 4) -> np.ndarray:
    """bool [problems, n], about `skill` of them right."""
    return np.random.default_rng(seed).random((num_problems, n)) < skill


def write_eval(
    out: Path,
    model: Path,
    benchmark: str,
    correct_pn: np.ndarray,
    *,
    name: str | None = None,
    budget: dict[str, Any] | None = None,
    thinking: int | None = None,
) -> Path:
    """What `megaladder eval --model MODEL --out OUT` leaves of a benchmark; the answer of problem p,
    sample s has 5 + p + s tokens. Returns the samples file."""
    num_problems, n = correct_pn.shape
    problems = tuple(
        Problem(f"p{i}", (), str(i), source=benchmark, metadata={"question": f"q{i}"})
        for i in range(num_problems)
    )
    params = SamplingParams(n=n, temperature=1.0, max_tokens=99, seed=1, stop_token_ids=(0,))
    prompts = tuple(f"prompt {i}" for i in range(num_problems))
    task = Task(benchmark, problems, prompts, ((1,),) * num_problems, params)
    records = {
        (f"p{i}", s): Record(
            f"p{i}",
            s,
            f"\\boxed{{{i if correct_pn[i, s] else -1 - s % 2}}}",
            [3] * (5 + i + s),
            "stop",
            bool(correct_pn[i, s]),
            str(i if correct_pn[i, s] else -1 - s % 2),
            "exact",
            num_thinking_tokens=thinking,
        )
        for i in range(num_problems)
        for s in range(n)
    }
    protocol = {
        "benchmark": benchmark,
        "model": model_fingerprint(str(model), None),
        "prompt": PROMPT,
        "decoding": {"temperature": 1.0, "seed": 1},
        "budget": budget,
        "data": {"source": "s", "revision": "r", "num_rows": num_problems, "problems_sha256": "x"},
        "engine": {"engine": "fake", "dtype": "float32"},
        "grader": "g",
        "n": n,
    }
    scores = report.score(problems, records, n, 42)
    summary = report.summary_entry(scores, protocol, None)
    place = out / (name or model.name)
    folder = place / benchmark
    lm_eval_format.write_samples(
        folder / f"samples_{benchmark}.jsonl", task, records, scores, f"f{budget}"
    )
    results = lm_eval_format.results_object(task, scores, summary, str(model))
    (folder / f"results_{benchmark}.json").write_text(json.dumps(results))
    (folder / "summary.json").write_text(json.dumps(summary))
    (place / "summary.json").write_text(json.dumps({"model": str(model), "benchmarks": {}}))
    return folder / f"samples_{benchmark}.jsonl"
