"""Rows that repeat an earlier one: one rule for every verb that reads rows.

A row repeats an earlier one when both have the same content and the same id, or no id. Data sets
for reinforcement learning are published with every row up to 100 times, so by default repeats are
left out and counted. The same id over other content is always an error: one of the rows is not
what its id says.
"""

from __future__ import annotations

import hashlib
from array import array
from itertools import islice

from megaladder.config.sections.data import Duplicates
from megaladder.data.read import BadRow
from megaladder.data.sources.source import RowSource

DIGEST_BITS = 32  # of a row's content, kept beside its number
DIGEST_MASK = (1 << DIGEST_BITS) - 1


class HashTable:
    """64-bit keys with a 64-bit note each, in about 28 bytes a key: open addressing over arrays."""

    def __init__(self) -> None:
        self._keys, self._notes = array("Q"), array("Q")
        # 0 = free, else 1 + the key's place
        self._slots = array("I", bytes(4 << 10))

    def place_of(self, key: int, note: int) -> int:
        """Where `key` stands; added with `note`, at the end, if it is new."""
        slots, mask = self._slots, len(self._slots) - 1
        slot = key & mask
        while (found := slots[slot]) and self._keys[found - 1] != key:
            slot = (slot + 1) & mask
        if found:
            return found - 1
        self._keys.append(key)
        self._notes.append(note)
        slots[slot] = len(self._keys)
        if 3 * len(self._keys) > 2 * len(slots):
            self._grow()
        return len(self._keys) - 1

    def _grow(self) -> None:
        mask = 2 * len(self._slots) - 1
        self._slots = slots = array("I", bytes(4 * (mask + 1)))
        for number, key in enumerate(self._keys, 1):
            slot = key & mask
            while slots[slot]:
                slot = (slot + 1) & mask
            slots[slot] = number

    def note(self, place: int) -> int:
        """The note of the key at `place`."""
        return self._notes[place]

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def num_bytes(self) -> int:
        """Of all arrays."""
        return sum(part.itemsize * len(part) for part in (self._keys, self._notes, self._slots))


class Repeats:
    """Remembers the rows of a source by hash, about 30 bytes each.

    `count`: repeats so far, left out or kept, as `policy` says.
    """

    def __init__(self, source: RowSource, policy: Duplicates) -> None:
        self.source, self.policy, self.count = source, policy, 0
        self._seen = HashTable()
        # of each key in the table, only where copies are kept
        self._copies = array("I")

    def take(self, number: int, where: str, row_id: str | None, content: str) -> int:
        """Row `number` (counted from 1): 1 = new, 2, 3… = a copy that is kept, 0 = to be left out.

        Raises:
            BadRow: a repeat under `error`, or an id that stood over other content before.
        """
        digest = hash_text(content)
        key = digest if row_id is None else hash_text(f"id {row_id}")
        note = number << DIGEST_BITS | digest & DIGEST_MASK
        known = len(self._seen)
        place = self._seen.place_of(key, note)
        is_new = len(self._seen) > known
        if not is_new:
            self._refuse(where, row_id, note, self._seen.note(place))
            self.count += 1
        if self.policy != "keep":
            return int(is_new)
        if is_new:
            self._copies.append(0)
        self._copies[place] += 1
        return self._copies[place]

    def _refuse(self, where: str, row_id: str | None, note: int, earlier: int) -> None:
        first = earlier >> DIGEST_BITS
        if (note ^ earlier) & DIGEST_MASK:
            found = f"id {row_id!r} again, first at {self._place(first)}, with other content"
            fix = "give the rows different ids, or remove one"
            raise BadRow(where, "duplicate id", "a unique id", found, fix)
        if self.policy == "error":
            fix = "remove it, or data.duplicates: drop (or keep)"
            found = f"one that repeats {self._place(first)}"
            raise BadRow(where, "duplicate row", "a new row", found, fix)

    def _place(self, number: int) -> str:
        """`file:line` of a row, read again: only an error asks for it."""
        return next(islice(self.source.rows(), number - 1, None)).where


def repeats_line(count: int, policy: str) -> str:
    """What a report says of repeated rows."""
    what = "left out" if policy == "drop" else "kept"
    return f"{count:,} rows that repeat an earlier one: {what} (data.duplicates {policy})"


def numbered(name: str, copy: int) -> str:
    """The id of a row's copy: `name`, `name-2`, `name-3`…."""
    return name if copy == 1 else f"{name}-{copy}"


def hash_text(text: str) -> int:
    """A 64-bit hash, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")
