"""The pool that stages work on.

One small record a row, in an order that does not depend on the file's.

A record holds the columns that the recipe's stages name and nothing else; long texts stay in the
file and are streamed where a stage needs them. Records are sorted by id, and random choices are
hashes of (seed, stage, id): shuffling the file changes nothing.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from megaladder.config.sections.data import Duplicates
from megaladder.curate.rows import Row, RowIds, fetch_rows, iter_rows, parse_fetched
from megaladder.errors import DataError


@dataclass(slots=True)
class PoolRow:
    """One row.

    `values`: the named columns (null or absent = not there) and what stages added; `added` of these
    go to the output."""

    id: str
    position: int
    where: str
    values: Row
    added: Row = field(default_factory=dict)
    # applied to the whole row when it is written
    edits: list[Callable[[Row], Row]] = field(default_factory=list)

    def add(self, **values: Any) -> None:
        self.values.update(values)
        self.added.update(values)


@dataclass
class Outcome:
    """What a stage did: the rows it keeps, in pool order, and the reason for each row it drops.

    `notes` go into the stored record."""

    kept: list[PoolRow]
    dropped: list[tuple[PoolRow, str]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def reasons(self) -> Counter[str]:
        return Counter(reason for _, reason in self.dropped)


@dataclass(frozen=True)
class Context:
    """What a stage may know besides the rows.

    `label` is `stage 3 (top) of limo.yaml`; `all_rows` is the pool as it was read."""

    path: str
    seed: int
    label: str
    salt: str  # tells stages of one kind apart; does not change when other stages are added
    all_rows: Sequence[PoolRow]
    workers: int = 1

    def rng(self) -> random.Random:
        """A generator of this stage alone."""
        return random.Random(f"{self.seed}/{self.salt}")

    def shuffled(self, rows: Sequence[PoolRow]) -> list[PoolRow]:
        """A random order in which any prefix is a random sample.

        A row's place depends on seed, stage and id only, so that a sample of 1,000 is part of the
        sample of 2,000."""
        return sorted(rows, key=lambda row: (draw(self.seed, self.salt, row.id), row.id))

    def stream(self, rows: Sequence[PoolRow]) -> Iterator[tuple[PoolRow, Row]]:
        """Each of the rows with its full content, in file order.

        Edits of earlier stages are applied."""
        by_position = {row.position: row for row in rows}
        for position, raw in enumerate(iter_rows(self.path)):
            if (row := by_position.get(position)) is not None:
                yield row, full_row(row, raw.data)

    def number(self, row: PoolRow, column: str) -> float:
        """A finite number of a row, or a DataError that names this stage."""
        value = row.values.get(column)
        if value is None:
            raise DataError(
                f"{row.where}: no column '{column}', which {self.label} needs; fix: add it, or drop"
                " such rows with drop_missing"
            )
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or value != value
            or value in (float("inf"), float("-inf"))
        ):
            raise DataError(
                f"{row.where}: column '{column}' is {value!r}, {self.label} needs a finite number;"
                " fix: that value, or the row"
            )
        return float(value)

    def enough(self, available: int, wanted: int, allow_fewer: bool) -> None:
        """Refuses to give fewer rows than asked for unless the recipe says so."""
        if available < wanted and not allow_fewer:
            raise DataError(
                f"{self.label} wants {wanted:,} rows, {available:,} are left; fix: a smaller n, or"
                " allow_fewer: true"
            )


def draw(seed: int, salt: str, row_id: str) -> int:
    """A uniform 64-bit number per (seed, salt, id)."""
    return int.from_bytes(
        hashlib.blake2b(f"{seed}/{salt}/{row_id}".encode(), digest_size=8).digest(), "big"
    )


def full_row(row: PoolRow, content: Row) -> Row:
    """The row as it is written: its content, columns that stages added, edits applied."""
    content = {**content, **row.added}
    for edit in row.edits:
        content = edit(content)
    return content


def load_pool(
    path: str, columns: Sequence[str], id_column: str | None, duplicates: Duplicates = "drop"
) -> tuple[list[PoolRow], int]:
    """The named columns of every row, sorted by id, and how many rows repeat an earlier one.

    Raises on bad rows and double ids (naming both)."""
    ids, rows = RowIds(path, id_column, duplicates), []
    for position, raw in enumerate(iter_rows(path)):
        row_id = ids.take(raw)
        if row_id is not None:
            values = {name: raw.data[name] for name in columns if name in raw.data}
            rows.append(PoolRow(row_id, position, raw.where, values))
    rows.sort(key=lambda row: row.id)
    return rows, ids.repeats.count


def columns_of(path: str, num_rows: int = 1000) -> list[str]:
    """The columns that the first rows have, for messages."""
    names: dict[str, None] = {}
    for position, raw in enumerate(iter_rows(path)):
        if position == num_rows:
            break
        names.update(dict.fromkeys(raw.data))
    return list(names)


def written_rows(path: str, rows: Sequence[PoolRow]) -> Iterator[Row | bytes]:
    """The rows' full content in the rows' order.

    A row that no stage changed comes as its bytes (JSONL)."""
    for row, content in zip(rows, fetch_rows(path, [row.position for row in rows]), strict=True):
        if row.added or row.edits:
            yield full_row(row, parse_fetched(content, row.where))
        else:
            yield content
