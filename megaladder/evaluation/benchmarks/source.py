"""Where a benchmark's rows come from: a local folder first, then the hub at a recorded commit.

Rows are plain dicts with `file:line`.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder.data.read import BadRow
from megaladder.data.sources.find import SourceSpec
from megaladder.data.sources.hub import is_commit, resolve_commit
from megaladder.data.sources.source import open_source
from megaladder.errors import ConfigError, DataError
from megaladder.evaluation.benchmarks.spec import BenchmarkSpec, HubSource

DATA_VARIABLE = "MEGALADDER_DATA"
PARQUET_BRANCH = "refs/convert/parquet"


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
    """The file that the benchmark names itself.

    Else looks in `data_dir` (or $MEGALADDER_DATA), then on the hub. Errors name every place that
    was looked at and the ways out."""
    if spec.data is not None:
        _refuse_revision(revision, spec.data)
        return _from_source(SourceSpec(spec.data), spec.name)
    folder = data_dir or os.environ.get(DATA_VARIABLE)
    if folder is not None:
        if not Path(folder).is_dir():
            raise ConfigError(
                f"data_dir {folder}: no such folder; fix: the folder that holds {spec.files[0]}"
            )
        for name in spec.files:
            path = Path(folder) / name
            if path.is_file():
                _refuse_revision(revision, path)
                return _from_csv(path) if path.suffix == ".csv" else _from_source(path, spec.name)
    return _from_hub(spec, revision, folder)


def _refuse_revision(revision: str | None, path: object) -> None:
    if revision is not None:
        raise ConfigError(
            f"revision {revision} is one of a hub repository, the rows are those of {path}; fix:"
            f" leave --revision out, or --data-dir (and {DATA_VARIABLE})"
        )


def _from_source(place: SourceSpec | Path, name: str) -> BenchmarkRows:
    """Every row of a file, folder or glob, and a digest of the files."""
    try:
        source = open_source(place)
        rows = []
        for row in source.rows():
            if isinstance(row, BadRow):
                raise row
            rows.append(Row(row.where, row.data))
    except DataError as error:
        raise DataError(f"benchmark {name}: {error}") from error
    if not rows:
        raise DataError(f"{source.path}: no rows; fix: the benchmark's own file")
    return BenchmarkRows(tuple(rows), source.path, f"sha256:{_digest(source.files)}")


def _digest(files: Sequence[Path]) -> str:
    """sha256 of the one file, or over the digests of several."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def _from_csv(path: Path) -> BenchmarkRows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        rows = tuple(Row(f"{path}:{reader.line_num}", dict(row)) for row in reader)
    return BenchmarkRows(rows, str(path), f"sha256:{_digest([path])}")


def _from_hub(spec: BenchmarkSpec, revision: str | None, folder: str | None) -> BenchmarkRows:
    looked = f"not in {folder} ({' or '.join(spec.files)})" if folder else "no --data-dir given"
    way_out = f"--data-dir FOLDER with FOLDER/{spec.files[0] if spec.files else 'FILE'}"
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
    pinned = is_commit(revision or spec.hub.revision)
    repeat = "" if pinned else f", the newest; to repeat it: --revision {commit}"
    print(f"{spec.name}: {name} at {commit}{repeat}")
    import datasets

    try:
        rows = [
            Row(f"{name}@{commit[:8]}:{'' if part is None else f'{part}:'}{index}", dict(values))
            for part in spec.hub.files or spec.hub.config or (None,)
            for index, values in enumerate(_load(spec.hub, part, commit))
        ]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{name} at {commit} cannot be loaded ({type(error).__name__}: {error}); fix: on a"
            f" machine with network, `hf download --repo-type dataset {name} --revision {commit}`"
        ) from error
    return BenchmarkRows(tuple(rows), name, commit)


def _load(hub: HubSource, part: str | None, commit: str) -> Iterable[Mapping[str, Any]]:
    """One configuration or file at a commit.

    Sets whose repository holds a script, which `datasets` runs no longer, are read from the hub's
    own conversion to parquet."""
    import datasets

    if hub.files:
        url = f"hf://datasets/{hub.repo}@{commit}/{part}"
        return datasets.load_dataset("json", data_files=url, split="train")
    try:
        return datasets.load_dataset(hub.repo, part, split=hub.split, revision=commit)
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        converted = resolve_commit(hub.repo, PARQUET_BRANCH)
        print(f"{hub.repo} is loaded by a script; its rows from the hub's parquet at {converted}")
        files = f"{part or 'default'}/{hub.split}/*.parquet"
        return datasets.load_dataset(hub.repo, data_files=files, split="train", revision=converted)
