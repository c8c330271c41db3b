"""Row schemas of SFT files: which one a file has, and its rows as Examples.

A schema fits a row when the fields it needs are there and not null; further fields are ignored. The
schema is decided once per file from the fields of all rows; a row of another shape is then a bad
row. Where one schema is a richer form of another (s1K rows also have `question`, `solution` and
`text`), the richer one wins (`takes_precedence_over`); any other double fit is an error naming
both.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from megaladder.data.layouts.learn import (
    ReadOptions,
    from_messages,
    from_prompt_completion,
    from_question,
    from_s1k,
    from_scored,
    from_sharegpt,
    from_text,
    s1_fields,
)
from megaladder.data.read import MAX_BAD_SHARE, BadRow, BadRowLog, RawRow, describe
from megaladder.data.repeats import Repeats, numbered
from megaladder.data.sources.find import SourceSpec
from megaladder.data.sources.source import RowSource, open_source
from megaladder.errors import DataError
from megaladder.types import Example

LIMO_SYSTEM_PROMPT = r"Please reason step by step, and put your final answer within \boxed{}."


@dataclass(frozen=True, slots=True)
class Schema:
    """`needs` is for people; `fits` decides by the non-null field names; `convert` raises
    BadRow."""

    name: str
    needs: str
    fits: Callable[[frozenset[str]], bool]
    convert: Callable[[RawRow, ReadOptions], Example] | None
    takes_precedence_over: tuple[str, ...] = ()


def _has(*names: str) -> Callable[[frozenset[str]], bool]:
    return lambda keys: keys.issuperset(names)


SCHEMAS = {
    schema.name: schema
    for schema in (
        Schema("messages", "messages", _has("messages"), from_messages),
        Schema(
            "prompt-completion",
            "prompt, completion",
            _has("prompt", "completion"),
            from_prompt_completion,
        ),
        Schema("sharegpt", "conversations", _has("conversations"), from_sharegpt),
        Schema(
            "question-solution",
            "question, solution",
            _has("question", "solution"),
            from_question("solution"),
            ("question-answer",),
        ),
        Schema(
            "question-answer",
            "question, answer",
            _has("question", "answer"),
            from_question("answer"),
        ),
        Schema(
            "s1k",
            "question with thinking_trajectories, attempt or deepseek_/gemini_ thinking_trajectory,"
            " attempt",
            lambda keys: "question" in keys and bool(s1_fields(keys)),
            from_s1k,
            ("question-solution", "question-answer", "text"),
        ),
        Schema("text", "text (already templated)", _has("text"), from_text),
        Schema(
            "scored",
            "message or messages, response, advantage[, logprob]",
            lambda keys: (
                keys.issuperset(("response", "advantage"))
                and not keys.isdisjoint(("message", "messages"))
            ),
            from_scored,
            ("messages",),
        ),
        Schema(
            "verl",
            "data_source, prompt, reward_model, extra_info (RL)",
            _has("data_source", "prompt", "reward_model"),
            None,
        ),
    )
}


def fitting(keys: frozenset[str]) -> frozenset[str]:
    """Names of the schemas that a row with these non-null fields can be, poorer forms removed."""
    names = {name for name, schema in SCHEMAS.items() if schema.fits(keys)}
    covered = {poorer for name in names for poorer in SCHEMAS[name].takes_precedence_over}
    return frozenset(names - covered)


def recognise(path: str, key_sets: Counter[frozenset[str]]) -> Schema:
    """The one schema of a file. Raises DataError naming the candidates when several or none fit."""
    votes: Counter[frozenset[str]] = Counter()
    for keys, count in key_sets.items():
        votes[fitting(keys)] += count
    named = {names: count for names, count in votes.items() if names}
    common = ", ".join(sorted(key_sets.most_common(1)[0][0])) if key_sets else "no readable row"
    if not named:
        known = "\n".join(f"  {schema.name}: {schema.needs}" for schema in SCHEMAS.values())
        raise DataError(
            f"{path}: expected rows of one of these schemas:\n{known}\n  found rows with: {common};"
            " fix: rename the fields"
        )
    best = max(named, key=lambda names: (named[names], sorted(names)))
    if len(best) > 1:
        raise DataError(
            f"{path}: expected rows that fit one schema, found that {' and '.join(sorted(best))}"
            f" both fit (fields: {common}); fix: data.format: {' or '.join(sorted(best))}"
        )
    others = {names: count for names, count in named.items() if names != best}
    if sum(others.values()) > MAX_BAD_SHARE * key_sets.total():
        listing = ", ".join(
            f"{count} × {'/'.join(sorted(names))}"
            for names, count in sorted(named.items(), key=lambda item: -item[1])
        )
        raise DataError(
            f"{path}: expected one schema for all rows, found {listing}; fix: one file per schema,"
            " or force data.format"
        )
    return SCHEMAS[next(iter(best))]


def choose_schema(source: RowSource, name: str) -> Schema:
    """`name` if it is no `auto`, else what the file looks like. Raises DataError for rows that are
    not for SFT."""
    if name != "auto" and name not in SCHEMAS:
        raise DataError(
            f"data.format: expected auto or one of {', '.join(SCHEMAS)}, found {name!r}; fix:"
            " data.format: auto"
        )
    schema = SCHEMAS[name] if name != "auto" else recognise(source.path, source.key_sets())
    if schema.convert is None:
        raise DataError(
            f"{source.path}: expected rows with an answer to learn, found {schema.name} RL rows"
            " (prompt and ground truth only); fix: train on them with `megaladder grpo`, or write"
            " answers first with `megaladder data sample`"
        )
    return schema


class ExampleReader:
    """Iterates a source as Examples, in order. After the iteration `rows`, `repeats.count` and
    `bad_rows` say what happened.

    Ids: the row's `id` (text or integer; 1 and "1" are the same), else a hash of the content.
    """

    def __init__(
        self, spec: SourceSpec | str | Path, options: ReadOptions, bad_rows: BadRowLog | None = None
    ) -> None:
        self.source = open_source(spec)
        self.options = options
        self.schema = choose_schema(self.source, options.format)
        self.bad_rows = bad_rows or BadRowLog(options.on_bad_row)
        self.repeats = Repeats(self.source, options.duplicates)
        self.rows = 0

    def __iter__(self) -> Iterator[Example]:
        for row in self.source.rows():
            self.rows += 1
            try:
                if isinstance(row, BadRow):
                    raise row
                example = self._convert(row)
            except BadRow as bad:
                self.bad_rows.handle(bad)
                continue
            if example is not None:
                yield example
        if self.rows == 0:
            raise DataError(
                f"{self.source.path}: expected at least one row, found none; fix: give a file with"
                " rows"
            )

    def _convert(self, row: RawRow) -> Example | None:
        """The row as an example; None for a repeat that is left out."""
        if not self.schema.fits(frozenset(row.data)):
            raise BadRow(
                row.where,
                "other fields",
                f"the fields of schema {self.schema.name} ({self.schema.needs})",
                describe(row.data),
                "complete the row, remove it, or set data.format",
            )
        # `choose_schema` refuses the others
        assert self.schema.convert is not None
        example = self.schema.convert(row, self.options)
        content = repr(replace(example, id="", where="", metadata={}))
        given = row_id(row)
        copy = self.repeats.take(self.rows, row.where, given, content)
        if copy == 0:
            return None
        name = given or hashlib.sha256(content.encode("utf-8")).hexdigest()[:16]
        return replace(example, id=numbered(name, copy))


def row_id(row: RawRow) -> str | None:
    """The row's own `id` as text. Raises BadRow for one that is neither text nor an integer."""
    given = row.data.get("id")
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        fix = "rename the field, or use text ids"
        raise BadRow(row.where, "bad id", "text or an integer as 'id'", describe(given), fix)
    return str(given)
