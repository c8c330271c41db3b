"""Where the samples of a model lie in a folder, and what the results file beside them says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder.analysis.tables import Warnings, read_text
from megaladder.errors import DataError
from megaladder.process.storage import without_digest

SAMPLE_FILE = re.compile(r"samples_(?P<task>.+?)(?P<stamp>_\d{4}-\d\d-\d\dT[\d.:-]+)?\.jsonl")


def protocol_of(samples: Path) -> dict[str, Any]:
    """What `results_*.json` beside a sample file says about how it was made.

    Our `protocol`, else lm-eval's `config`. {} without one."""
    for path in sorted(
        samples.parent.glob("results_*.json"),
        key=lambda p: (p.name == f"results_{_task(samples)}.json", p.name),
        reverse=True,
    ):
        found = read_object(path)
        for name in ("protocol", "config"):
            if isinstance(found.get(name), dict):
                return flatten(found[name])
    return {}


def _task(samples: Path) -> str:
    match = SAMPLE_FILE.fullmatch(samples.name)
    return match["task"] if match else ""


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object; {} where there is none, or another value."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
        return without_digest(value) if isinstance(value, dict) else {}
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: expected one JSON object, found {str(error)[:200]}; fix: run folders, evaluation"
            " folders or results of `analyze --json`; or mend the file, or remove it"
        ) from None


def section(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A nested object; {} where there is none, or another value."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def text(values: Mapping[str, Any], key: str) -> str | None:
    """A text; None where there is none, or another value."""
    found = values.get(key)
    return found if isinstance(found, str) and found else None


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts → dotted keys with scalar values."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, (str, int, float, bool)):
            out[f"{prefix}{key}"] = value
    return out


@dataclass(frozen=True, slots=True)
class SampleFile:
    """Where the samples of one (model, checkpoint, benchmark) lie."""

    model: str
    checkpoint: str | None
    task: str
    path: Path


def find_sample_files(root: str | Path, warnings: Warnings) -> list[SampleFile]:
    """All `samples_*.jsonl` at most three levels below `root`, sorted.

    Of several time stamps of a task the last is taken, with a warning.

    Layouts: `<model>/<ckpt>/samples_*` (reasoning_ladder), `<model>/samples_*` (lm-eval),
    `<model>/<benchmark>/samples_<benchmark>.jsonl` (ours), or `root` being itself a model's folder
    in one of them.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(
            f"{root}: no such folder; fix: give the folder that holds <model>/…/samples_*.jsonl"
        )
    latest: dict[tuple[str, str | None, str], Path] = {}
    for path in sorted(_walk(folder, depth=3)):
        task = SAMPLE_FILE.fullmatch(path.name)["task"]  # type: ignore[index]
        parts = path.relative_to(folder).parts[:-1]
        if parts and parts[-1] == task:  # our layout: the last folder is the benchmark
            parts = parts[:-1]
        model = parts[0] if parts else folder.resolve().name
        key = (model, "/".join(parts[1:]) or None, task)
        if key in latest:
            warnings.add(f"{path.parent}: several files of {task}; the last, {path.name}, is used")
        latest[key] = path
    return [
        SampleFile(model, checkpoint, task, path)
        for (model, checkpoint, task), path in latest.items()
    ]


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if (
            entry.is_dir()
            and depth > 0
            and not entry.name.startswith(".")
            and not entry.is_symlink()
        ):
            yield from _walk(entry, depth - 1)
        elif entry.is_file() and SAMPLE_FILE.fullmatch(entry.name):
            yield entry


def sample_files_of(root: str | Path, benchmark: str, warnings: Warnings) -> dict[str, Path]:
    """Model name → its file of `benchmark` (task name equal to it or starting with `benchmark_`).

    Other benchmarks are ignored.

    A model is keyed by its folder name; `model/checkpoint` where it has several checkpoints with
    that benchmark.
    """
    matching = [
        file for file in find_sample_files(root, warnings) if is_benchmark(file.task, benchmark)
    ]
    if not matching:
        raise DataError(
            f"{root}: no samples of '{benchmark}' (samples_{benchmark}*.jsonl) in it; fix: the"
            " folder, or --benchmark"
        )
    checkpoints: dict[str, set[str | None]] = {}
    for file in matching:
        checkpoints.setdefault(file.model, set()).add(file.checkpoint)
    chosen: dict[str, tuple[str, Path]] = {}
    for file in matching:
        name = (
            file.model
            if len(checkpoints[file.model]) == 1
            else f"{file.model}/{file.checkpoint or '.'}"
        )
        if name in chosen and chosen[name][0] != file.task:
            raise DataError(
                f"{file.path.parent}: both {chosen[name][0]} and {file.task} fit '{benchmark}';"
                " fix: --benchmark with the full name"
            )
        chosen[name] = (file.task, file.path)
    return {name: path for name, (_, path) in chosen.items()}


def is_benchmark(task: str, benchmark: str) -> bool:
    """`aime24_nofigures_agg8` is `aime24`; `aime24x` is not."""
    return task == benchmark or task.startswith(f"{benchmark}_")
