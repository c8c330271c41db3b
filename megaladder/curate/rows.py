"""Raw rows in and out.

A curation step sees every column of a row, whatever the schema, and loses none of them.

Rows come from `megaladder.data.read` (JSONL, JSON, parquet, Arrow folder, hub) and are used
strictly here: the first bad row raises with its `file:line`. Null fields count as absent. Written
as JSONL or parquet, atomically; JSONL rows that no step changed are copied byte for byte. Not here:
what a row means (`megaladder.data.layouts`).
"""

from __future__ import annotations

import contextlib
import json
import os
from array import array
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megaladder.config.sections.data import Duplicates
from megaladder.data.read import BadRow, RawRow
from megaladder.data.repeats import Repeats, hash_text, numbered
from megaladder.data.sources.source import open_source
from megaladder.errors import DataError
from megaladder.process.storage import fsync_folder, naming, open_temporary
from megaladder.run_dir import to_json

ID_COLUMNS = ("id", "unique_id", "question_hash", "uuid")
QUESTION_COLUMNS = (
    "problem",
    "question",
    "prompt",
    "instruction",
    "message",
    "messages",
    "conversations",
)
BATCH_ROWS = 1024
MISSING = object()

Row = dict[str, Any]


def iter_rows(path: str | Path) -> Iterator[RawRow]:
    """The rows of a file one at a time, in file order.

    The first bad row raises; so does an input without rows."""
    found = False
    for row in open_source(path).rows():
        if isinstance(row, BadRow):
            raise row
        found = True
        yield row
    if not found:
        raise DataError(
            f"{path}: expected at least one row, found none; fix: give a file with rows"
        )


def fetch_rows(path: str | Path, positions: Sequence[int]) -> Iterator[Row | bytes]:
    """The rows at 0-based positions (as `iter_rows` counts them), in the order asked for.

    JSONL rows come as their line's bytes, read by seeking: memory does not grow with the rows.
    Other formats keep the rows asked for.
    """
    source = open_source(path)
    if source.plain_lines is not None:
        offsets = _line_offsets(source.plain_lines)
        with open(source.plain_lines, "rb") as file:
            for position in positions:
                file.seek(offsets[position])
                yield file.readline().removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n") + b"\n"
        return
    wanted = set(positions)
    kept = {
        position: row.data for position, row in enumerate(iter_rows(path)) if position in wanted
    }
    for position in positions:
        yield kept[position]


def parse_fetched(row: Row | bytes, where: str) -> Row:
    """The content of a row from `fetch_rows`, which `iter_rows` has accepted before."""
    if not isinstance(row, bytes):
        return row
    values = json.loads(row)
    assert isinstance(values, dict), where
    return {name: value for name, value in values.items() if value is not None}


def _line_offsets(path: str) -> array[int]:
    """Byte offset of each line; 8 bytes a row."""
    offsets, offset = array("q"), 0
    with open(path, "rb") as file:
        for line in file:
            offsets.append(offset)
            offset += len(line)
    return offsets


def copy_rows(path: str | Path, dropped: Container[int], writer: RowWriter) -> None:
    """Every row whose 0-based position is not in `dropped`, in file order.

    JSONL lines as they are."""
    source = open_source(path)
    if source.plain_lines is None:
        for position, row in enumerate(iter_rows(path)):
            if position not in dropped:
                writer.write(row.data)
        return
    with open(source.plain_lines, "rb") as file:
        for position, line in enumerate(file):
            if position not in dropped and line.strip():
                writer.write_fetched(line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n") + b"\n")


def text_leaves(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """(place, text) of every string inside a value: `("messages[1].content", "…")`.

    Ids and roles are strings too."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from text_leaves(item, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from text_leaves(item, f"{place}[{index}]")


def prompt_text(row: Mapping[str, Any]) -> str | None:
    """The question of a row of any schema we know: its own column, else the user's turns.

    None if there is none."""
    for name in QUESTION_COLUMNS:
        value = row.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            turns = [
                turn
                for turn in value
                if isinstance(turn, dict)
                and turn.get("role", turn.get("from")) in ("user", "human")
            ]
            found = [
                text
                for turn in turns
                if isinstance(text := turn.get("content", turn.get("value")), str)
            ]
            if found:
                return "\n".join(found)
    return None


def content_id(values: Mapping[str, Any]) -> str:
    """16 hex digits of blake2b over the row's canonical JSON: the id of a row that has none.

    Column order does not matter."""
    return hash_text(to_json(values, sort_keys=True)).to_bytes(8, "little").hex()


class RowIds:
    """Hands out row ids and refuses one id over different rows, also `1` beside `"1"`.

    Rows without an id column get their content hash. A row that repeats an earlier one is left out
    or becomes `-2`, `-3`, as `duplicates` says (they are interchangeable, so their order cannot
    matter). About 30 bytes a row.
    """

    def __init__(
        self, path: str | Path, column: str | None = None, duplicates: Duplicates = "keep"
    ) -> None:
        self.column = column
        self.repeats = Repeats(open_source(path), duplicates)
        self._rows = 0

    def take(self, row: RawRow) -> str | None:
        """The row's id, None for a repeat that is left out.

        Raises BadRow, which names both rows, for the id of another row."""
        self._rows += 1
        given, content = self._given(row), to_json(row.data, sort_keys=True)
        copy = self.repeats.take(self._rows, row.where, given, content)
        return None if copy == 0 else numbered(given or content_id(row.data), copy)

    def _given(self, row: RawRow) -> str | None:
        if self.column is None:
            name = next((name for name in ID_COLUMNS if name in row.data), None)
            return None if name is None else str(row.data[name])
        if self.column not in row.data:
            raise DataError(
                f"{row.where}: no id in column '{self.column}'; fix: another id column, or none"
                " (ids are then content hashes)"
            )
        return str(row.data[self.column])


def check_target(path: str | Path) -> Path:
    """The path, if rows can be written there; a DataError otherwise.

    For finding out before hours of work."""
    target = Path(path)
    if target.suffix not in (".jsonl", ".parquet"):
        raise DataError(
            f"{path}: rows are written as .jsonl or .parquet, not '{target.suffix}'; fix: --out"
            " with one of these suffixes"
        )
    if target.is_dir():
        raise DataError(f"{path}: is a folder; fix: --out FILE")
    return target


class RowWriter:
    """Rows to `.jsonl` or `.parquet`.

    Into a temporary file beside the target, renamed when the block ends well, removed otherwise."""

    def __init__(self, path: str | Path):
        self.path = check_target(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary, self._file = open_temporary(self.path)
        self.num_rows = 0
        self._pending: list[Row] = []
        self._parquet: Any = None

    def write(self, values: Mapping[str, Any]) -> None:
        self.num_rows += 1
        if self.path.suffix == ".jsonl":
            with naming(self.path):
                self._file.write((to_json(values) + "\n").encode("utf-8"))
            return
        self._pending.append(dict(values))
        if len(self._pending) == BATCH_ROWS:
            self._flush_parquet()

    def write_fetched(self, row: Row | bytes) -> None:
        """A row from `fetch_rows`: bytes go to JSONL as they are."""
        if isinstance(row, bytes) and self.path.suffix == ".jsonl":
            self.num_rows += 1
            with naming(self.path):
                self._file.write(row)
        else:
            self.write(parse_fetched(row, str(self.path)))

    def write_all(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for values in rows:
            self.write(values)

    def _flush_parquet(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._pending:
            return
        try:
            schema = self._parquet.schema if self._parquet else None
            table = pa.Table.from_pylist(self._pending, schema=schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{self.path}: rows do not share one parquet schema ({reason}); fix: --out"
                " FILE.jsonl"
            ) from None
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(self._file, table.schema)
        self._parquet.write_table(table)
        self._pending.clear()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                with naming(self.path):
                    self._commit()
        finally:
            # on a full disk closing fails once more, and the file has to go all the same
            with contextlib.suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _commit(self) -> None:
        self._flush_parquet()
        if self._parquet is not None:
            self._parquet.close()
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
        os.replace(self._temporary, self.path)
        fsync_folder(self.path.parent)
