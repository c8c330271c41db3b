"""A source of rows → `Problem`s (questions with a checkable answer), for GRPO and for sampling.

Which columns hold them is the layout's business; what the gold answer becomes, and which verifier
checks it, is said here. A row that its verifier cannot grade is a bad row. Published benchmarks
are `evaluation`'s business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from megaladder.config.sections.data import Duplicates
from megaladder.data.chat.turns import (
    MEDIA_COLUMNS,
    TEMPLATE_COLUMNS,
    read_template_kwargs,
    read_tools,
    refuse_columns,
)
from megaladder.data.layouts.ask import Asked, plain_gold
from megaladder.data.layouts.layout import Layout, check_fits
from megaladder.data.layouts.table import layout_of
from megaladder.data.read import BadRow, BadRowLog, RawRow, describe
from megaladder.data.repeats import Repeats, numbered, repeats_line
from megaladder.data.sources.find import SourceSpec
from megaladder.data.sources.source import open_source
from megaladder.errors import DataError
from megaladder.files.typed import typed
from megaladder.rewards.verifiers import VERIFIERS, check_row
from megaladder.rewards.verifiers.base import parameter
from megaladder.types import Kind, Message, Problem

ID_KEYS = ("id", "unique_id")
VERIFIER_KEY = "verifier"
GSM8K_MARK = "####"


@dataclass(frozen=True, slots=True)
class ProblemOptions:
    """`kind`: grade all rows this way, None = by the row.

    `prompt_suffix` is appended to the question, `system_prompt` put before it (neither where the
    row's prompt is complete). `format`: auto or a layout's name."""

    kind: Kind | None = None
    prompt_suffix: str = ""
    system_prompt: str | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    duplicates: Duplicates = "drop"
    format: str = "auto"
    # writes the prompt around a question that its row leaves open
    around: Callable[[str, Kind], str] | None = None


class ProblemReader:
    """Iterates a source as problems, in order.

    Ids are the rows' own, else content hashes; after the iteration `rows`, `repeats.count` and
    `bad_rows` say what happened."""

    def __init__(
        self,
        spec: SourceSpec | str | Path,
        options: ProblemOptions | None = None,
        bad_rows: BadRowLog | None = None,
    ) -> None:
        self.options = options or ProblemOptions()
        self.source = open_source(spec)
        self.layout = layout_of(self.source, self.options.format, "ask")
        self.bad_rows = bad_rows or BadRowLog(self.options.on_bad_row)
        self.repeats = Repeats(self.source, self.options.duplicates)
        self.rows = 0

    def __iter__(self) -> Iterator[Problem]:
        for row in self.source.rows():
            self.rows += 1
            try:
                if isinstance(row, BadRow):
                    raise row
                problem = self._new(row)
            except BadRow as bad:
                self.bad_rows.handle(bad)
                continue
            if problem is not None:
                yield problem
        if self.rows == 0:
            raise DataError(
                f"{self.source.path}: expected at least one problem, found no row; fix: give a file"
                " with rows"
            )
        self.bad_rows.check(self.source.path, self.rows)

    def _new(self, row: RawRow) -> Problem | None:
        """The row as a problem; None for a repeat that is left out."""
        problem = problem_of(row, self.layout, self.options)
        asked = {
            name: parameter(problem.metadata, name) for name in VERIFIERS[problem.kind].parameters
        }
        shown = (problem.prompt, problem.tools, problem.template_kwargs)
        content = repr((*shown, problem.gold, problem.kind, asked))
        copy = self.repeats.take(self.rows, row.where, problem.id or None, content)
        if copy == 0:
            return None
        name = problem.id or hashlib.sha256(content.encode("utf-8")).hexdigest()[:16]
        return replace(problem, id=numbered(name, copy))

    def lines(self) -> list[str]:
        """What was left out or repeats, for a person."""
        found = [f"{count:,} left out: {reason}" for reason, count in self.bad_rows.counts.items()]
        if self.repeats.count:
            found.append(repeats_line(self.repeats.count, self.options.duplicates))
        return found


# what NuminaMath-1.5 writes where a problem has no final answer
NO_ANSWERS = ("proof", "notfound")


def read_problems(
    path: SourceSpec | str | Path, options: ProblemOptions | None = None
) -> list[Problem]:
    """All problems of a source in order. Raises DataError."""
    return list(ProblemReader(path, options))


def problem_of(row: RawRow, layout: Layout, options: ProblemOptions) -> Problem:
    """One row of a layout as a problem; its id is empty where the row has none. Raises BadRow."""
    check_fits(layout, row)
    refuse_columns(row, MEDIA_COLUMNS)
    # `layout_of` refuses the others
    assert layout.ask is not None
    asked = layout.ask(row)
    used = (*asked.used, *ID_KEYS, VERIFIER_KEY, *TEMPLATE_COLUMNS)
    metadata = {key: value for key, value in row.data.items() if key not in used}
    metadata |= {key: value for key, value in asked.parameters.items() if value is not None}
    kind, gold = _kind_and_gold(row, asked, options.kind or _named_verifier(row))
    _check(row, kind, gold, metadata)
    return Problem(
        id=_given_id(row),
        prompt=_prompt(asked, kind, options),
        gold=gold,
        kind=kind,
        source=str(row.data.get("data_source", "")),
        metadata=metadata,
        conversational=not isinstance(asked.prompt, str),
        tools=read_tools(row),
        template_kwargs=read_template_kwargs(row),
    )


def _prompt(asked: Asked, kind: Kind, options: ProblemOptions) -> tuple[Message, ...]:
    if not isinstance(asked.prompt, str):
        return asked.prompt
    if asked.complete:
        return (Message("user", asked.prompt),)
    system = (Message("system", options.system_prompt),) if options.system_prompt else ()
    text = options.around(asked.prompt, kind) if options.around else asked.prompt
    return (*system, Message("user", text + options.prompt_suffix))


def _named_verifier(row: RawRow) -> Kind | None:
    name = row.data.get(VERIFIER_KEY)
    if name is None or name in get_args(Kind):
        return name
    raise BadRow(
        row.where,
        "unknown verifier",
        f"one of {', '.join(get_args(Kind))} in {VERIFIER_KEY!r}",
        describe(name),
        "name one of them, or remove the column",
    )


def _check(row: RawRow, kind: Kind, gold: str, metadata: dict[str, Any]) -> None:
    """Refuses a row that no answer could satisfy, before anything is generated for it."""
    try:
        check_row(kind, gold, metadata)
    except DataError as error:
        raise BadRow(
            row.where,
            f"not gradable as {kind}",
            f"what the verifier {kind} needs",
            str(error),
            "repair the row",
        ) from None


def _kind_and_gold(row: RawRow, asked: Asked, kind: Kind | None) -> tuple[Kind, str]:
    """The verifier and the gold answer as text. `kind`: as the run or the row says."""
    gold = plain_gold(asked.gold, kind or asked.kind)
    is_text = isinstance(gold, (str, int, float)) and not isinstance(gold, bool)
    text = str(gold).strip() if is_text else ""
    if GSM8K_MARK in text and kind in (None, "gsm8k"):
        kind, text = kind or "gsm8k", text.rsplit(GSM8K_MARK, 1)[1].strip().replace(",", "")
    from_gsm8k = "gsm8k" in str(row.data.get("data_source", "")).lower()
    kind = kind or asked.kind or ("gsm8k" if from_gsm8k else "math")
    if not text and VERIFIERS[kind].needs_gold:
        raise BadRow(
            row.where,
            "empty gold answer",
            "a final answer to compare with",
            describe(asked.gold),
            "fill it, name its column in data.fields, or remove the row",
        )
    if kind == "math" and not asked.kind:
        _refuse_no_value(row, text, asked.used[-1])
    return kind, text


def _refuse_no_value(row: RawRow, gold: str, column: str) -> None:
    """Raises BadRow for a gold answer that no mathematical answer is compared with."""
    expected = "a final answer to compare with"
    if gold.lower() in NO_ANSWERS:
        words = sorted({*NO_ANSWERS, gold})
        stage = f"drop: {{rules: [{{column: {column}, one_of: [{', '.join(words)}]}}]}}"
        path = row.where.rpartition(":")[0]
        file = typed(path) if Path(path).is_file() else "FILE"
        fix = (
            f"`megaladder data select {file} --recipe recipe.yaml --out rows.jsonl` leaves such rows"
            f" out, recipe.yaml: `{{name: answered, stages: [{{{stage}}}]}}`"
        )
        raise BadRow(row.where, "no final answer", expected, f"the word {gold!r}", fix)
    parsed: Any = None
    with suppress(ValueError, RecursionError):
        parsed = json.loads(gold) if gold.startswith("{") else None
    if isinstance(parsed, dict) and parsed:
        fix = "name its verifier in a column 'verifier', or remove the row"
        found = "a JSON object (tests, a rule)"
        raise BadRow(row.where, "gold of another task", expected, found, fix)


def _given_id(row: RawRow) -> str:
    """The row's own id; empty where it has none."""
    for key in ID_KEYS:
        value = row.data.get(key)
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            return str(value)
    return ""
