"""A raw row with its place, a row that cannot be used, and the policy for those.

Where rows come from is `sources`' business, what they mean `layouts`'.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from megaladder.errors import DataError

MAX_BAD_SHARE = 0.01  # of the rows, under on_bad_row: skip


class BadRow(DataError):
    """One row that cannot be used.

    `reason` is the short class it is counted under; the message is `where: expected …, found …;
    fix: …`."""

    def __init__(self, where: str, reason: str, expected: str, found: str, fix: str) -> None:
        super().__init__(f"{where}: expected {expected}, found {found}; fix: {fix}")
        self.where, self.reason = where, reason


@dataclass(frozen=True, slots=True)
class RawRow:
    """`where` is `file:line` (text files) or `file:row N` (1-based, columnar files).

    Null fields are left out of `data` and named in `nulls`."""

    where: str
    data: dict[str, Any]
    nulls: tuple[str, ...] = ()

    @property
    def whole(self) -> dict[str, Any]:
        """The row with its null fields."""
        return {**dict.fromkeys(self.nulls), **self.data} if self.nulls else self.data


def without_nulls(where: str, row: dict[str, Any]) -> RawRow:
    """The row with its null fields set apart."""
    nulls = tuple(key for key, item in row.items() if item is None)
    return RawRow(
        where, {key: row[key] for key in row if key not in nulls} if nulls else row, nulls
    )


@dataclass
class BadRowLog:
    """Applies `on_bad_row`.

    `counts` is by reason, `first` keeps the first message of each reason."""

    policy: Literal["error", "skip"] = "error"
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def handle(self, bad: BadRow) -> None:
        """Raises under `error`, counts under `skip`."""
        if self.policy == "error":
            raise bad
        self.counts[bad.reason] += 1
        self.first.setdefault(bad.reason, str(bad))

    def check(self, path: str, rows: int) -> None:
        """Raises DataError when more than MAX_BAD_SHARE of `rows` were skipped."""
        skipped = self.counts.total()
        if skipped > MAX_BAD_SHARE * rows:
            listing = "\n".join(
                f"  {count} × {reason}; first: {self.first[reason]}"
                for reason, count in self.counts.most_common()
            )
            raise DataError(
                f"{path}: expected at most {MAX_BAD_SHARE:.0%} bad rows under on_bad_row skip,"
                f" found {skipped} of {rows}:\n{listing}\n  fix: repair these rows, or check"
                " data.format"
            )


def describe(value: Any) -> str:
    """A short form of a value for messages."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return f"an object with {sorted(value)[:8]}" if value else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}" + (f" ({type(value[0]).__name__} first)" if value else "")
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}"
