"""Stages that choose a number of rows: at random, by a value, one per group, in bands."""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from megaladder.curate.score import quality_levels
from megaladder.curate.select.pool import Context, Outcome, PoolRow
from megaladder.curate.select.recipe import Stage

Count = Annotated[int, Field(ge=1)]


def _split(rows: list[PoolRow], chosen: list[PoolRow], reason: str) -> Outcome:
    """Chosen rows in pool order; the others dropped for one reason."""
    ids = {row.id for row in chosen}
    return Outcome(
        [row for row in rows if row.id in ids], [(row, reason) for row in rows if row.id not in ids]
    )


class Sample(Stage):
    """A random sample of `n` rows, or of a `share` of them.

    With one seed a smaller sample is part of a larger one."""

    name: ClassVar[str] = "sample"
    n: Count | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    allow_fewer: bool = False

    @model_validator(mode="after")
    def _one_size(self) -> Sample:
        if (self.n is None) == (self.share is None):
            raise ValueError("expected one of n (rows) and share (of the rows); fix: one of them")
        return self

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        wanted = self.n
        if wanted is None:
            # `_one_size` refused neither and both
            assert self.share is not None
            wanted = math.ceil(len(rows) * self.share)
        context.enough(len(rows), wanted, self.allow_fewer)
        return _split(rows, context.shuffled(rows)[:wanted], "not drawn")


class Take(Stage):
    """Takes N rows by length.

    The longest, the shortest, a random choice, or a mixture, e.g. half longest and half shortest.

    Equal lengths go by a seeded hash of the id. `mixed` takes the parts in the order longest,
    shortest, random, without a row twice.
    """

    name: ClassVar[str] = "take"
    n: Count
    order: Literal["longest", "shortest", "random", "mixed"]
    by: str = "length"
    parts: dict[Literal["longest", "shortest", "random"], Count] = Field(default_factory=dict)
    """Only for mixed: rows of each kind; they sum to n."""
    allow_fewer: bool = False

    @model_validator(mode="after")
    def _parts_fit(self) -> Take:
        if (self.order == "mixed") != bool(self.parts) or (
            self.parts and sum(self.parts.values()) != self.n
        ):
            raise ValueError(
                f"order {self.order}, n {self.n} with parts {self.parts}; fix: parts that sum to n,"
                " with order mixed only"
            )
        return self

    def needs(self) -> tuple[str, ...]:
        return () if self.order == "random" else (self.by,)

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        context.enough(len(rows), self.n, self.allow_fewer)
        shuffled = context.shuffled(rows)
        parts = self.parts if self.order == "mixed" else {self.order: self.n}
        chosen: list[PoolRow] = []
        for order in ("longest", "shortest", "random"):
            if order in parts:
                left = _without(shuffled, chosen)
                if order != "random":
                    sign = -1 if order == "longest" else 1
                    left = sorted(left, key=lambda row: sign * context.number(row, self.by))
                chosen += left[: parts[order]]
        return _split(rows, chosen, f"not among the {self.order}")


def _without(rows: list[PoolRow], taken: list[PoolRow]) -> list[PoolRow]:
    ids = {row.id for row in taken}
    return [row for row in rows if row.id not in ids]


class Top(Stage):
    """The n rows with the highest (or lowest) value; equal values go by id."""

    name: ClassVar[str] = "top"
    n: Count
    by: str = "score"
    order: Literal["highest", "lowest"] = "highest"
    allow_fewer: bool = False

    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        context.enough(len(rows), self.n, self.allow_fewer)
        sign = -1 if self.order == "highest" else 1
        ranked = sorted(rows, key=lambda row: (sign * context.number(row, self.by), row.id))
        return _split(rows, ranked[: self.n], f"{self.by} below the {self.n:,} {self.order}")


class OnePer(Stage):
    """One row of each group.

    The highest or lowest by a value (equal values by id), or a random one."""

    name: ClassVar[str] = "one_per"
    group: str
    by: str | None = None
    """Column to rank by; null = a random row."""
    order: Literal["highest", "lowest"] = "highest"

    def needs(self) -> tuple[str, ...]:
        return (self.group,) if self.by is None else (self.group, self.by)

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        by = self.by
        if by is None:
            ranked = context.shuffled(rows)
        else:
            sign = -1 if self.order == "highest" else 1
            ranked = sorted(rows, key=lambda row: (sign * context.number(row, by), row.id))
        best: dict[str, PoolRow] = {}
        for row in ranked:
            best.setdefault(group_of(row, self.group), row)
        return _split(rows, list(best.values()), f"another row of its {self.group} was chosen")


def group_of(row: PoolRow, column: str) -> str:
    """The group's name; rows without one are groups of their own."""
    value = row.values.get(column)
    return f"row {row.id}" if value is None else f"value {value}"


class Levels(Stage):
    """Bands of equal size by a value, 1 = lowest, stored in a column; `keep` keeps some of them."""

    name: ClassVar[str] = "levels"
    n: Annotated[int, Field(ge=2)] = 5
    by: str = "score"
    into: str = "level"
    keep: list[int] | None = None

    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def produces(self) -> tuple[str, ...]:
        return (self.into,)

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        levels = quality_levels([context.number(row, self.by) for row in rows], self.n)
        for row, level in zip(rows, levels, strict=True):
            row.add(**{self.into: level})
        notes = {"levels": dict(sorted(Counter(levels).items()))}
        if self.keep is None:
            return Outcome(rows, notes=notes)
        kept = [row for row in rows if row.values[self.into] in self.keep]
        return Outcome(
            kept,
            [
                (row, f"level {row.values[self.into]}")
                for row in rows
                if row.values[self.into] not in self.keep
            ],
            notes,
        )
