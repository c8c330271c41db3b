"""Rows that repeat an earlier one: one rule for every verb that reads rows.

A row repeats an earlier one when both have the same content and the same id, or no id. Data sets
for reinforcement learning are published with every row up to 100 times, so by default repeats are
left out and counted. The same id over other content is always an error: one of the rows is not
what its id says.
"""

from __future__ import annotations

import hashlib
from itertools import islice

from megaladder.config.sections.data import Duplicates
from megaladder.data.read import BadRow
from megaladder.data.sources.source import RowSource

DIGEST_BITS = 32  # of a row's content, kept beside its number


class Repeats:
    """Remembers the rows of a source by hash, about 150 bytes each.

    `count`: repeats so far, left out or kept, as `policy` says.
    """

    def __init__(self, source: RowSource, policy: Duplicates) -> None:
        self.source, self.policy, self.count = source, policy, 0
        self._seen: dict[int, int] = {}
        self._copies: dict[int, int] = {}

    def take(self, number: int, where: str, row_id: str | None, content: str) -> int:
        """Row `number` (counted from 1): 1 = new, 2, 3… = a copy that is kept, 0 = to be left out.

        Raises:
            BadRow: a repeat under `error`, or an id that stood over other content before.
        """
        digest = _hash(content)
        key = digest if row_id is None else _hash(f"id {row_id}")
        short = digest & ((1 << DIGEST_BITS) - 1)
        earlier = self._seen.setdefault(key, number << DIGEST_BITS | short)
        first = earlier >> DIGEST_BITS
        if first == number:
            return 1
        if earlier & ((1 << DIGEST_BITS) - 1) != short:
            found = f"id {row_id!r} again, first at {self._place(first)}, with other content"
            fix = "give the rows different ids, or remove one"
            raise BadRow(where, "duplicate id", "a unique id", found, fix)
        if self.policy == "error":
            fix = "remove it, or data.duplicates: drop (or keep)"
            found = f"one that repeats {self._place(first)}"
            raise BadRow(where, "duplicate row", "a new row", found, fix)
        self.count += 1
        self._copies[key] = self._copies.get(key, 1) + 1
        return self._copies[key] if self.policy == "keep" else 0

    def _place(self, number: int) -> str:
        """`file:line` of a row, read again: only an error asks for it."""
        return next(islice(self.source.rows(), number - 1, None)).where


def repeats_line(count: int, policy: str) -> str:
    """What a report says of repeated rows."""
    what = "left out" if policy == "drop" else "kept"
    return f"{count:,} rows that repeat an earlier one: {what} (data.duplicates {policy})"


def numbered(name: str, copy: int) -> str:
    """The id of a row's copy: `name`, `name-2`, `name-3`…"""
    return name if copy == 1 else f"{name}-{copy}"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")
