"""A source of rows: found, opened, read in order, its columns renamed as `data.fields` says.

Rules: UTF-8 only; only `\\n` ends a line (U+2028 and friends are text); line numbers are 1-based
physical lines; lone surrogates, NaN and non-objects are bad rows. A bad row is *yielded* as a
`BadRow`, so that the caller's policy decides; a file that cannot be read at all raises DataError.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder.data.read import BadRow, RawRow
from megaladder.data.sources.find import DataFile, SavedFolder, SourceSpec, find_files
from megaladder.data.sources.tables import batch_key_sets, table_batches, table_rows
from megaladder.data.sources.text import csv_rows, json_rows, jsonl_rows, text_rows
from megaladder.errors import DataError

TABLES = ("parquet", "arrow")
READERS = {"jsonl": jsonl_rows, "json": json_rows, "csv": csv_rows, "text": text_rows}


@dataclass(frozen=True, slots=True)
class RowSource:
    """Rows that can be iterated more than once. `items`: the files and data sets, in order."""

    spec: SourceSpec
    items: tuple[DataFile | SavedFolder, ...]

    @property
    def path(self) -> str:
        """For messages and reports."""
        return self.spec.name

    def rows(self) -> Iterator[RawRow | BadRow]:
        """Every row in order; unusable ones as BadRow.

        Raises DataError for a field of `spec.fields` that no row has."""
        if not self.spec.fields:
            yield from self._rows()
            return
        missing = dict(self.spec.fields)
        columns: dict[str, None] = {}
        for row in self._rows():
            if isinstance(row, RawRow):
                if missing and len(columns) < 100:
                    columns |= dict.fromkeys(row.data)
                row = RawRow(row.where, renamed(row.data, self.spec.fields), row.nulls)
                for name in [name for name in missing if name in row.data]:
                    del missing[name]
            yield row
        if missing and columns:
            name, column = next(iter(missing.items()))
            raise DataError(
                f"{self.path}: data.fields takes {name} from the column {column!r}, which no row"
                f" has; the columns: {', '.join(columns)}; fix: data.fields"
            )

    def _rows(self) -> Iterator[RawRow | BadRow]:
        for item in self.items:
            if isinstance(item, SavedFolder) or item.kind in TABLES:
                yield from table_rows(item.path, table_batches(item, self.spec))
            else:
                yield from READERS[item.kind](item)

    def key_sets(self) -> Counter[frozenset[str]]:
        """How many rows have which non-null fields.

        Reads everything, keeps nothing. Raises the first bad row where no row can be read."""
        if self.spec.fields or not all(
            isinstance(item, SavedFolder) or item.kind in TABLES for item in self.items
        ):
            return key_sets(self.rows())
        counts: Counter[frozenset[str]] = Counter()
        for item in self.items:
            for table in table_batches(item, self.spec):
                counts.update(batch_key_sets(table))
        return counts

    @property
    def files(self) -> list[Path]:
        """The local files that hold the rows, in order; of a saved folder all its files."""
        found: list[Path] = []
        for item in self.items:
            if isinstance(item, DataFile):
                found += [Path(item.path)] if item.is_local else []
            elif not item.on_hub:
                found += sorted(file for file in Path(item.path).rglob("*") if file.is_file())
        return found

    @property
    def plain_lines(self) -> str | None:
        """The path, where the rows are the lines of one uncompressed local file, unrenamed."""
        item = self.items[0]
        one = len(self.items) == 1 and isinstance(item, DataFile) and not self.spec.fields
        if one and isinstance(item, DataFile) and item.kind == "jsonl" and item.is_local:
            return item.path if item.compression is None else None
        return None

    def identity(self) -> list[list[Any]]:
        """What the rows are, for a fingerprint.

        Name and sha256 of each file, the commit of a hub data set, the renamed columns. Reads every
        file."""
        local = {str(path): path for path in self.files}
        parts: list[list[Any]] = []
        for path in local.values():
            with path.open("rb") as file:
                parts.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
        for item in self.items:
            if isinstance(item, SavedFolder) and item.on_hub:
                parts.append([item.path, self.spec.config, self.spec.split, self.spec.revision])
            elif isinstance(item, DataFile) and not item.is_local:
                with item.open() as stream:
                    parts.append([item.path, hashlib.file_digest(stream, "sha256").hexdigest()])
        return [*parts, *map(list, self.spec.fields)]


def open_source(spec: SourceSpec | str | Path) -> RowSource:
    """Finds out what `spec` means.

    Raises DataError for nothing there, an empty file, an unknown suffix, or a hub id without a
    commit."""
    if not isinstance(spec, SourceSpec):
        spec = SourceSpec(str(spec))
    return RowSource(spec, tuple(find_files(spec)))


def key_sets(rows: Iterator[RawRow | BadRow]) -> Counter[frozenset[str]]:
    """How many rows have which non-null fields; raises the first bad row where none is good."""
    counts: Counter[frozenset[str]] = Counter()
    first_bad: BadRow | None = None
    for row in rows:
        if isinstance(row, RawRow):
            counts[frozenset(row.data)] += 1
        else:
            first_bad = first_bad or row
    if first_bad is not None and not counts:
        raise first_bad
    return counts


def renamed(data: dict[str, Any], fields: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The row with columns under the names in use here.

    A column that was renamed is gone under its own name, unless that name is taken from another
    column."""
    taken = {name: value for name, column in fields if (value := _column(data, column)) is not None}
    old = {column for _, column in fields}
    return {**{key: value for key, value in data.items() if key not in old}, **taken}


def _column(data: dict[str, Any], column: str) -> Any:
    """The value of a column, or of the field inside one that a dotted name means."""
    if column in data:
        return data[column]
    value: Any = data
    for name in column.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
