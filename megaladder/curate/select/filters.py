"""Stages that keep or drop rows by what is in them.

Missing values, conditions, duplicates, benchmark overlap."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from megaladder.config.base import StrictModel
from megaladder.curate.decontaminate import build_index
from megaladder.curate.dedup import ExactDuplicates, NearDuplicates
from megaladder.curate.rows import prompt_text
from megaladder.curate.select.pool import Context, Outcome, PoolRow
from megaladder.curate.select.recipe import Stage
from megaladder.errors import DataError

OPERATORS = ("equals", "one_of", "contains", "matches", "above", "below")


class Condition(StrictModel):
    """One test of one column, e.g. `{column: source_type, contains: AIME}`.

    A row without the column fails it."""

    column: str
    equals: Any = None
    one_of: list[Any] | None = None
    contains: str | None = None
    """Text contains this, or a list has it."""
    matches: str | None = None
    """Text has a match of this regular expression."""
    above: float | None = None
    below: float | None = None
    unless: Condition | None = None
    """The condition does not hold where this one does."""

    @model_validator(mode="after")
    def _one_operator(self) -> Condition:
        given = [name for name in OPERATORS if name in self.model_fields_set]
        if len(given) != 1:
            raise ValueError(
                f"a condition on '{self.column}' has {given or 'no test'}; fix: exactly one of"
                f" {', '.join(OPERATORS)}"
            )
        return self

    @field_validator("matches")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(
                f"no regular expression ({error}); fix: escape special characters"
            ) from None
        return value

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column, *(self.unless.columns if self.unless else ()))

    @property
    def operator(self) -> str:
        return next(name for name in OPERATORS if name in self.model_fields_set)

    def __str__(self) -> str:
        unless = f", unless {self.unless}" if self.unless else ""
        return f"{self.column} {self.operator} {getattr(self, self.operator)!r}{unless}"

    def holds(self, row: PoolRow, context: Context) -> bool:
        value = row.values.get(self.column)
        if value is None:
            return False
        if self.above is not None:
            found = context.number(row, self.column) > self.above
        elif self.below is not None:
            found = context.number(row, self.column) < self.below
        elif self.operator == "equals":
            found = _same(value, self.equals)
        elif self.one_of is not None:
            found = any(_same(value, option) for option in self.one_of)
        else:
            found = self._text_test(row, value, context)
        return found and not (self.unless and self.unless.holds(row, context))

    def _text_test(self, row: PoolRow, value: Any, context: Context) -> bool:
        if self.contains is not None and isinstance(value, (str, list)):
            return self.contains in value
        if self.matches is not None and isinstance(value, str):
            return re.search(self.matches, value) is not None
        raise DataError(
            f"{row.where}: column '{self.column}' is {value!r}, {context.label} tests it as text;"
            " fix: that value"
        )


def _same(value: Any, wanted: Any) -> bool:
    """Equal and of one kind: true is not 1, 1 is 1.0."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


class DropMissing(Stage):
    """Drops rows in which one of the columns is null or absent."""

    name: ClassVar[str] = "drop_missing"
    columns: list[str] = Field(min_length=1)

    def needs(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        outcome = Outcome([])
        for row in rows:
            missing = [name for name in self.columns if row.values.get(name) is None]
            if missing:
                outcome.dropped.append((row, f"no {missing[0]}"))
            else:
                outcome.kept.append(row)
        return outcome


class Drop(Stage):
    """Drops rows for which a rule holds; the first one that holds is the reason."""

    name: ClassVar[str] = "drop"
    rules: list[Condition] = Field(min_length=1)

    def needs(self) -> tuple[str, ...]:
        return tuple(column for rule in self.rules for column in rule.columns)

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        outcome = Outcome([])
        for row in rows:
            rule = next((rule for rule in self.rules if rule.holds(row, context)), None)
            if rule is None:
                outcome.kept.append(row)
            else:
                outcome.dropped.append((row, str(rule)))
        return outcome


class _Alternatives(Stage):
    """`any_of`: lists of conditions; a row fits when all conditions of one list hold.

    `where`: short for a single condition."""

    any_of: list[list[Condition]] = Field(default_factory=list)
    where: Condition | None = None

    @model_validator(mode="after")
    def _has_conditions(self) -> _Alternatives:
        if bool(self.any_of) == bool(self.where):
            raise ValueError(
                "expected one of `where` (a condition) and `any_of` (lists of conditions); fix: one"
                " of them"
            )
        return self

    def alternatives(self) -> list[list[Condition]]:
        return self.any_of if self.where is None else [[self.where]]

    def needs(self) -> tuple[str, ...]:
        return tuple(
            column
            for group in self.alternatives()
            for condition in group
            for column in condition.columns
        )

    def fits(self, row: PoolRow, context: Context) -> bool:
        return any(
            all(condition.holds(row, context) for condition in group)
            for group in self.alternatives()
        )


class Keep(_Alternatives):
    """Keeps the rows that fit."""

    name: ClassVar[str] = "keep"

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        outcome = Outcome([])
        for row in rows:
            if self.fits(row, context):
                outcome.kept.append(row)
            else:
                outcome.dropped.append((row, "does not fit"))
        return outcome


class Mark(_Alternatives):
    """Sets a column to true or false; drops nothing. s1's pre-selection is one."""

    name: ClassVar[str] = "mark"
    into: str

    def produces(self) -> tuple[str, ...]:
        return (self.into,)

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        for row in rows:
            row.values[self.into] = self.fits(row, context)
        return Outcome(rows, notes={"marked": sum(row.values[self.into] for row in rows)})


class Dedup(Stage):
    """Drops rows whose question repeats another one's.

    Of a group the row with the lowest id stays."""

    name: ClassVar[str] = "dedup"
    method: Literal["exact", "near"] = "exact"
    threshold: float = 0.8

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        texts: dict[str, str] = {}
        for row, content in context.stream(rows):
            text = prompt_text(content)
            if text is None:
                raise DataError(
                    f"{row.where}: no question found, which {context.label} compares; fix: a column"
                    " question, problem or prompt"
                )
            texts[row.id] = text
        finder = ExactDuplicates() if self.method == "exact" else NearDuplicates(self.threshold)
        outcome = Outcome([])
        for row in rows:
            duplicate = finder.check(row.id, texts[row.id])
            if duplicate is None:
                outcome.kept.append(row)
            else:
                outcome.dropped.append((row, f"{self.method} duplicate"))
        return outcome


class Decontaminate(Stage):
    """Drops rows whose question shares a word n-gram with a benchmark's question."""

    name: ClassVar[str] = "decontaminate"
    against: list[str] = Field(min_length=1)
    n: int = Field(13, ge=2)
    min_words: int = 8

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        index = build_index(self.against, self.n, self.min_words, training_file="")
        hits: dict[str, str] = {}
        for row, content in context.stream(rows):
            spans = index.find(prompt_text(content) or "")
            if spans:
                hits[row.id] = f"overlap with {spans[0].problem.benchmark}"
        kept = [row for row in rows if row.id not in hits]
        return Outcome(
            kept,
            [(row, hits[row.id]) for row in rows if row.id in hits],
            {"too_short": len(index.too_short)},
        )
