"""Results in the layout of lm-eval 0.4 (`lm_eval/result_schema.py`).

`results_<benchmark>.json` and `samples_<benchmark>.jsonl`.

One samples row per problem, conforming to `SampleResult`: every further key of a row is a number
(the problem's metrics). What lm-eval has no place for, the lists over a problem's samples, is in
`doc.samples`: `exact_matches`, `extracted_answers`, `response_ids`, `num_tokens`, `finish_reasons`,
`reasons`, `fingerprint`. As in lm-eval, `exact_match` of a row is its first sample's; avg@n has its
own key.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from megaladder import __version__
from megaladder.evaluation.report import Scores
from megaladder.evaluation.run import Task
from megaladder.evaluation.store import Record
from megaladder.run_dir import atomic_lines, to_json

FILTER = "none"
SCHEMA_VERSION = 1.0


def write_samples(
    path: Path,
    task: Task,
    records: Mapping[tuple[str, int], Record],
    scores: Scores,
    fingerprint: str,
) -> None:
    """`samples_<benchmark>.jsonl`, atomically: old rows or new rows."""
    rows = sample_rows(task, records, scores, fingerprint)
    atomic_lines(path, (to_json(row).encode("utf-8") + b"\n" for row in rows))


def sample_rows(
    task: Task, records: Mapping[tuple[str, int], Record], scores: Scores, fingerprint: str
) -> Iterator[dict[str, Any]]:
    """One row per problem, in the benchmark's order."""
    decoding = gen_kwargs(task)
    graded = [problem.id for problem in task.problems if problem.id not in scores.left_out]
    place_of = {name: place for place, name in enumerate(graded)}
    for index, problem in enumerate(task.problems):
        samples = [records[problem.id, sample] for sample in range(scores.num_samples)]
        doc = {
            "id": problem.id,
            "question": problem.metadata.get("question", ""),
            "answer": problem.gold,
            "kind": problem.kind,
            "samples": _sample_lists(samples, fingerprint),
        }
        place = place_of.get(problem.id)
        values = (
            {}
            if place is None
            else {name: float(value_p[place]) for name, value_p in scores.values_p.items()}
        )
        yield {
            "doc_id": index,
            "doc": doc,
            "target": problem.gold,
            "arguments": {"gen_args_0": {"arg_0": task.prompts[index], "arg_1": decoding}},
            "resps": [[record.response for record in samples]],
            "filtered_resps": [record.answer or "" for record in samples],
            "filter": FILTER,
            "metrics": sorted(values),
            "doc_hash": _sha256(
                to_json(
                    {key: value for key, value in doc.items() if key != "samples"}, sort_keys=True
                )
            ),
            "prompt_hash": _sha256(task.prompts[index]),
            "target_hash": _sha256(problem.gold),
            **values,
        }


def _sample_lists(samples: Sequence[Record], fingerprint: str) -> dict[str, Any]:
    lists: dict[str, Any] = {
        "exact_matches": [record.correct for record in samples],
        "extracted_answers": [record.answer for record in samples],
        "response_ids": [record.response_ids for record in samples],
        "num_tokens": [record.num_tokens for record in samples],
        "finish_reasons": [record.finish_reason for record in samples],
        "reasons": [record.reason for record in samples],
        "fingerprint": fingerprint,
    }
    if any(record.num_thinking_tokens is not None for record in samples):
        lists["num_thinking_tokens"] = [record.num_thinking_tokens for record in samples]
    return lists


def results_object(
    task: Task, scores: Scores, summary: Mapping[str, Any], model: str
) -> dict[str, Any]:
    """`results_<benchmark>.json` as lm-eval's `EvalResults`.

    With our `protocol`, `ci95`, `counts`, `timing` beside its keys."""
    name = task.benchmark
    protocol = summary["protocol"]
    table: dict[str, Any] = {"name": name, "alias": name, "sample_len": scores.num_problems}
    for metric, value_p in scores.values_p.items():
        table[f"{metric},{FILTER}"] = float(value_p.mean())
        if len(value_p) > 1:
            # over problems
            table[f"{metric}_stderr,{FILTER}"] = float(value_p.std(ddof=1) / np.sqrt(len(value_p)))
    return {
        "results": {name: table},
        "group_subtasks": {name: []},
        "configs": {
            name: {
                "task": name,
                "output_type": "generate_until",
                "repeats": str(scores.num_samples),
                "dataset_path": str(protocol["data"]["source"]),
                "dataset_revision": str(protocol["data"]["revision"]),
            }
        },
        "versions": {name: SCHEMA_VERSION},
        "n-shot": {name: 0},
        "higher_is_better": {name: {metric: _direction(metric) for metric in scores.values_p}},
        "n-samples": {
            name: {"original": protocol["data"]["num_rows"], "effective": scores.num_problems}
        },
        "config": {
            "model": "megaladder",
            "model_args": f"pretrained={model}",
            "model_dtype": str(protocol["engine"]["dtype"]),
            "batch_size": "auto",
            "device": protocol["engine"].get("device"),
            "limit": protocol.get("limit"),
            "bootstrap_iters": 10000,
            "gen_kwargs": gen_kwargs(task),
            "random_seed": protocol["decoding"]["seed"],
        },
        "git_hash": f"megaladder-{__version__}",
        "date": time.time(),
        "transformers_version": _version("transformers"),
        "model_source": "megaladder",
        "model_name": model,
        "model_name_sanitized": sanitized(model),
        "system_instruction": protocol["prompt"]["system"],
        "chat_template_sha": protocol["prompt"]["chat_template_sha256"],
        "task_hashes": {name: protocol["data"]["problems_sha256"]},
        "total_evaluation_time_seconds": str(summary.get("timing", {}).get("wall_s", 0.0)),
        **({"groups": _groups(scores)} if scores.groups else {}),
        **{key: summary[key] for key in ("protocol", "ci95", "counts", "timing") if key in summary},
    }


def _groups(scores: Scores) -> dict[str, Any]:
    """Tiers in lm-eval's form of a group."""
    return {
        name: {
            "name": name,
            "alias": f"{scores.benchmark} {name}",
            "sample_len": count,
            f"{scores.headline},{FILTER}": mean,
        }
        for name, (mean, count) in scores.groups.items()
    }


def gen_kwargs(task: Task) -> dict[str, Any]:
    """The decoding in lm-eval's words."""
    params = task.params
    return {
        "do_sample": params.temperature > 0,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "max_gen_toks": params.max_tokens,
        "until": list(params.stop),
        "seed": params.seed,
        "repeats": params.n,
    }


def sanitized(name: str) -> str:
    """A model's name as a folder name: no separators, at most 100 bytes."""
    clean = (
        "".join(
            char if char.isalnum() or char in "-_." else "__" for char in name.strip("/")
        ).strip(".")
        or "model"
    )
    raw = clean.encode("utf-8")
    return (
        clean if len(raw) <= 100 else raw[:83].decode("utf-8", "ignore") + "-" + _sha256(name)[:16]
    )


def _direction(metric: str) -> bool | None:
    return (
        None
        if metric in ("response_length", "thinking_tokens")
        else metric not in ("attack_success_rate", "harm_score")
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
