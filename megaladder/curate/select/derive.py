"""Stages that compute something from the text of each row.

Length, rule score, and the text without its reasoning."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, ClassVar, Literal

from megaladder.curate.rows import Row
from megaladder.curate.score import answer_text, limo_parts, limo_scores, load_rule, map_ordered
from megaladder.curate.select.pool import Context, Outcome, PoolRow
from megaladder.curate.select.recipe import Stage

THINK = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
# belong to the response token by token; a changed response cannot keep them
TRACE_COLUMNS = ("logprob", "entropy")


class Length(Stage):
    """Length of the answer: words, characters, or tokens of a tokenizer folder."""

    name: ClassVar[str] = "length"
    of: str | None = None
    """Column of the text; null = the answer of the row's schema."""
    unit: Literal["words", "characters", "tokens"] = "words"
    tokenizer: str | None = None
    into: str = "length"

    def produces(self) -> tuple[str, ...]:
        return (self.into,)

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        order: list[PoolRow] = []

        def texts():
            for row, content in context.stream(rows):
                order.append(row)
                yield answer_text(content, self.of, f"{context.label}: {row.where}")

        lengths = list(self._lengths(texts(), context))
        for row, length in zip(order, lengths, strict=True):
            row.add(**{self.into: length})
        return Outcome(rows, notes={"unit": self.unit, "tokenizer": self.tokenizer})

    def _lengths(self, texts, context: Context):
        if self.unit != "tokens":
            yield from map_ordered(
                len if self.unit == "characters" else _num_words, texts, context.workers
            )
            return
        from megaladder.curate.tokens import count_tokens

        yield from count_tokens(texts, self.tokenizer, context.label)


def _num_words(text: str) -> int:
    from megaladder.curate.ngrams import words

    return len(words(text))


class Score(Stage):
    """LIMO's rule score over the rows of this stage; parts are stored beside it."""

    name: ClassVar[str] = "score"
    rule: Literal["limo"] = "limo"
    rule_file: str | None = None
    """YAML file with weights, word lists and scale; null = the defaults."""
    of: str | None = None
    """Column of the text; null = the answer of the row's schema."""
    adds: ClassVar[tuple[str, ...]] = ("score", "score_parts")

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        rule = load_rule(self.rule_file)
        order: list[PoolRow] = []

        def texts():
            for row, content in context.stream(rows):
                order.append(row)
                yield answer_text(content, self.of, f"{context.label}: {row.where}")

        parts = list(map_ordered(partial(limo_parts, rule=rule), texts(), context.workers))
        for row, entry in zip(order, limo_scores(parts, rule), strict=True):
            row.add(
                score=entry["score"],
                score_parts={name: value for name, value in entry.items() if name != "score"},
            )
        return Outcome(rows, notes={"rule": rule.model_dump(mode="json")})


class StripReasoning(Stage):
    """Removes `<think>…</think>` from the answers, for NoCoT data.

    Of response, completion, solution, assistant turns. What belonged to the old tokens (logprob,
    entropy) goes too. Rows with an unpaired tag, or with nothing but reasoning, are dropped.
    """

    name: ClassVar[str] = "strip_reasoning"

    def apply(self, rows: list[PoolRow], context: Context) -> Outcome:
        reasons: dict[str, str] = {}
        for row, content in context.stream(rows):
            reason = strip_fault(content)
            if reason:
                reasons[row.id] = reason
            else:
                row.edits.append(strip_row)
        kept = [row for row in rows if row.id not in reasons]
        return Outcome(kept, [(row, reasons[row.id]) for row in rows if row.id in reasons])


def strip_row(row: Row) -> Row:
    """The row without reasoning.

    >>> strip_row({"response": "<think>1+1</think>\\n\\n2", "logprob": [-0.1]})
    {'response': '2'}
    """
    stripped = {name: _strip_value(name, value) for name, value in row.items()}
    return (
        stripped
        if stripped == row
        else {name: value for name, value in stripped.items() if name not in TRACE_COLUMNS}
    )


def strip_fault(row: Row) -> str | None:
    """Why a row cannot be stripped; None if it can."""
    for text in _answers(strip_row(row)):
        if "<think>" in text or "</think>" in text:
            return "unpaired <think>"
        if not text.strip():
            return "nothing but reasoning"
    return None


def _strip_value(name: str, value: Any) -> Any:
    if name in ("response", "completion", "solution") and isinstance(value, str):
        return THINK.sub("", value)
    if name in ("messages", "conversations") and isinstance(value, list):
        return [_strip_turn(turn) for turn in value]
    return value


def _strip_turn(turn: Any) -> Any:
    if not isinstance(turn, dict) or turn.get("role", turn.get("from")) not in ("assistant", "gpt"):
        return turn
    kept = {name: value for name, value in turn.items() if name != "reasoning_content"}
    return {
        name: (
            THINK.sub("", value)
            if name in ("content", "value") and isinstance(value, str)
            else value
        )
        for name, value in kept.items()
    }


def _answers(row: Row) -> list[str]:
    found = [
        row[name]
        for name in ("response", "completion", "solution")
        if isinstance(row.get(name), str)
    ]
    for name in ("messages", "conversations"):
        for turn in row.get(name) or []:
            if isinstance(turn, dict) and turn.get("role", turn.get("from")) in (
                "assistant",
                "gpt",
            ):
                found.append(turn.get("content", turn.get("value")) or "")
    return found
