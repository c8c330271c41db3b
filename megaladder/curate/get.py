"""`data get`: published problem sets from the hub into plain files, with where they came from.

A name is a benchmark's (`eval --benchmark list`). Files lie as `eval --data-dir` and the shipped
recipes look for them: OUT/NAME/SPLIT.jsonl, and OUT/NAME/source.json with repository and commit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from megaladder.errors import ConfigError
from megaladder.evaluation.benchmarks.source import BenchmarkRows, load_hub_rows
from megaladder.evaluation.benchmarks.spec import find_benchmark
from megaladder.run_dir import atomic_write

if TYPE_CHECKING:
    from megaladder.config.verbs.data import GetConfig


def run_get(config: GetConfig) -> None:
    """The verb `data get`. A file that is there already is left alone."""
    for given in config.names:
        name = find_benchmark(given).name
        path = Path(config.out) / name / f"{config.split}.jsonl"
        if path.exists():
            print(f"{path}: there already")
            continue
        rows = _fetch(name, config)
        _write(path, rows)
        print(f"{path}: {len(rows.rows):,} rows of {rows.source} at {rows.revision}")


def _fetch(name: str, config: GetConfig) -> BenchmarkRows:
    spec = find_benchmark(name)
    if spec.hub is None:
        raise ConfigError(
            f"{name}: has no home on the hub; fix: put its file to"
            f" {config.out}/{spec.files[0] if spec.files else name} yourself"
        )
    # a benchmark's published split may be called train: it is its test set all the same
    split = spec.hub.split if config.split == "test" else config.split
    hub = spec.hub.model_copy(update={"split": split})
    return load_hub_rows(spec.model_copy(update={"hub": hub}), config.revision)


def _write(path: Path, rows: BenchmarkRows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = {"repository": rows.source, "revision": rows.revision, "rows": len(rows.rows)}
    atomic_write(path.parent / "source.json", json.dumps(source, indent=1) + "\n")
    lines = [json.dumps(row.values, ensure_ascii=False, default=str) for row in rows.rows]
    atomic_write(path, "\n".join(lines) + "\n")
