"""Where a benchmark's rows come from: a local folder first, then the hub at a recorded commit.

Rows are plain dicts with `file:line`.
"""

from __future__ import annotations

import csv
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder.data.read import BadRow
from megaladder.data.sources.hub import is_commit, resolve_commit
from megaladder.data.sources.source import open_source
from megaladder.errors import ConfigError, DataError
from megaladder.evaluation.benchmarks.spec import BenchmarkSpec

DATA_VARIABLE = "MEGALADDER_DATA"


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands, `file:line` or `repo@commit:index`."""

    where: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BenchmarkRows:
    """All rows and what identifies them: sha256 of the file, or the hub's commit."""

    rows: tuple[Row, ...]
    source: str
    revision: str


def load_rows(
    spec: BenchmarkSpec, data_dir: str | None, revision: str | None = None
) -> BenchmarkRows:
    """Looks in `data_dir` (or $MEGALADDER_DATA), then on the hub. Errors name every place that was
    looked at and the ways out."""
    folder = data_dir or os.environ.get(DATA_VARIABLE)
    if folder is not None:
        if not Path(folder).is_dir():
            raise ConfigError(
                f"data_dir {folder}: no such folder; fix: the folder that holds {spec.files[0]}"
            )
        for name in spec.files:
            path = Path(folder) / name
            if path.is_file():
                return _from_file(path)
    return _from_hub(spec, revision, folder)


def _from_file(path: Path) -> BenchmarkRows:
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    if not rows:
        raise DataError(f"{path}: no rows; fix: the benchmark's own file")
    return BenchmarkRows(
        tuple(rows), str(path), f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    )


def _json_rows(path: Path) -> list[Row]:
    rows = []
    for row in open_source(path).rows():
        if isinstance(row, BadRow):
            raise row
        rows.append(Row(row.where, row.data))
    return rows


def _csv_rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        return [Row(f"{path}:{reader.line_num}", dict(row)) for row in reader]


def _from_hub(spec: BenchmarkSpec, revision: str | None, folder: str | None) -> BenchmarkRows:
    looked = f"not in {folder} ({' or '.join(spec.files)})" if folder else "no --data-dir given"
    way_out = f"--data-dir FOLDER with FOLDER/{spec.files[0]}"
    if spec.hub is None:
        raise DataError(f"{spec.name}: {looked}, and it has no home on the hub; fix: {way_out}")
    try:
        return load_hub_rows(spec, revision)
    except DataError as error:
        raise DataError(f"{spec.name}: {looked}, and {error}, or {way_out}") from error


def load_hub_rows(spec: BenchmarkSpec, revision: str | None = None) -> BenchmarkRows:
    """The rows of `spec.hub` at `revision`, else the registry's commit, else the newest.

    What was taken stands in the result, so that a score can say which rows it is of.

    Raises:
        DataError: the hub cannot be reached, or has no such data.
    """
    assert spec.hub is not None
    name = spec.hub.repo
    commit = resolve_commit(name, revision or spec.hub.revision)
    if not is_commit(revision or spec.hub.revision):
        print(f"{spec.name}: {name} at {commit}, the newest; to repeat it: --revision {commit}")
    import datasets

    try:
        data = datasets.load_dataset(name, spec.hub.config, split=spec.hub.split, revision=commit)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{name} at {commit} cannot be loaded ({type(error).__name__}: {error}); fix: on a"
            f" machine with network, `hf download --repo-type dataset {name} --revision {commit}`"
        ) from error
    rows = tuple(
        Row(f"{name}@{commit[:8]}:{index}", dict(values)) for index, values in enumerate(data)
    )
    return BenchmarkRows(rows, name, commit)
