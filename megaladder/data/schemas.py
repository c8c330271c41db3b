"""Row schemas of SFT files: which one a file has, and raw row → `Example`.

A schema fits a row when the fields it needs are there and not null; further fields are ignored. The
schema is decided once per file from the fields of all rows; a row of another shape is then a bad
row. Where one schema is a richer form of another (s1K rows also have `question`, `solution` and
`text`), the richer one wins (`takes_precedence_over`); any other double fit is an error naming
both.

Rules that are not visible in the field names:
- `prompt`+`completion` strings become a user and an assistant turn and go through the chat template
  like `messages`.
- `question,solution` (LIMO): the answer to learn is `solution`; `answer` is only its final value.
  `question,answer` (GSM8K): `answer`.
- `system_prompt` of the options is put before every conversation without a system turn, in all
  schemas but `text`. LIMO trained with LIMO_SYSTEM_PROMPT; it is never added by itself.
- s1K rows are rendered as `<|im_start|>think\\n…\\n<|im_start|>answer\\nAnswer: …` (s1's
  tokenization.py).
- `message`/`messages`,`response`,`advantage` (Rethinking SFT): the response is tokenised raw and
  ends in the end-of-sequence token.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from megaladder.data.read import (
    MAX_BAD_SHARE,
    BadRow,
    BadRowLog,
    RawRow,
    RowSource,
    describe,
    open_source,
)
from megaladder.errors import DataError
from megaladder.types import Example, Message

LIMO_SYSTEM_PROMPT = r"Please reason step by step, and put your final answer within \boxed{}."
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
}
# they change what is trained; ignoring them would be a guess
REFUSED_KEYS = ("tool_calls", "function_call", "weight", "train")
# whose reasoning → (trajectory field, attempt field); the plain s1K columns are Gemini's
_S1_TRACES = {
    "deepseek": ("deepseek_thinking_trajectory", "deepseek_attempt"),
    "gemini": ("gemini_thinking_trajectory", "gemini_attempt"),
}
_S1_PLAIN = ("thinking_trajectories", "attempt")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a file is read. `format`: auto or a schema name. `s1_teacher`: gemini or deepseek, only
    for s1K rows that hold both."""

    format: str = "auto"
    revision: str | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    system_prompt: str | None = None
    s1_teacher: str | None = None


@dataclass(frozen=True, slots=True)
class Schema:
    """`needs` is for people; `fits` decides by the non-null field names; `convert` raises
    BadRow."""

    name: str
    needs: str
    fits: Callable[[frozenset[str]], bool]
    convert: Callable[[RawRow, ReadOptions], Example] | None
    takes_precedence_over: tuple[str, ...] = ()


def _string(row: RawRow, key: str) -> str:
    value = row.data.get(key)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(
            row.where,
            f"no text in {key}",
            f"text in field {key!r}",
            describe(value),
            f"fill {key!r} or remove the row",
        )
    return value


def _turn(
    row: RawRow, place: str, value: Any, keys: tuple[str, str], roles: dict[str, str]
) -> Message:
    role_key, text_key = keys
    if not isinstance(value, dict):
        raise BadRow(
            row.where,
            "malformed turn",
            f"an object with {role_key!r} and {text_key!r} as {place}",
            describe(value),
            "repair the turn",
        )
    refused = [key for key in REFUSED_KEYS if value.get(key) is not None]
    if refused:
        raise BadRow(
            row.where,
            "unsupported turn",
            f"plain text turns ({place})",
            f"the field {refused[0]!r}",
            "write the turn as text, or remove it",
        )
    role, content, reasoning = (
        value.get(role_key),
        value.get(text_key),
        value.get("reasoning_content"),
    )
    if not isinstance(role, str) or role not in roles:
        raise BadRow(
            row.where,
            "unknown role",
            f"{role_key} of {place} in {sorted(roles)}",
            describe(role),
            "rename the role",
        )
    if not isinstance(content, str):
        raise BadRow(
            row.where,
            "malformed turn",
            f"a string as {text_key} of {place}",
            describe(content),
            "only text turns can be trained on",
        )
    if reasoning is not None and not isinstance(reasoning, str):
        raise BadRow(
            row.where,
            "malformed turn",
            f"a string as reasoning_content of {place}",
            describe(reasoning),
            "repair the turn",
        )
    return Message(roles[role], content, reasoning or None)


def _turns(
    row: RawRow,
    key: str,
    keys: tuple[str, str] = ("role", "content"),
    roles: dict[str, str] | None = None,
) -> tuple[Message, ...]:
    value = row.data.get(key)
    if not isinstance(value, list) or not value:
        raise BadRow(
            row.where,
            "no turns",
            f"a list of turns in {key!r}",
            describe(value),
            f"fill {key!r} or remove the row",
        )
    return tuple(
        _turn(row, f"{key}[{i}]", turn, keys, roles or {role: role for role in ROLES})
        for i, turn in enumerate(value)
    )


def _string_or_turns(row: RawRow, key: str, role: str) -> tuple[Message, ...]:
    return (
        _turns(row, key)
        if isinstance(row.data.get(key), list)
        else (Message(role, _string(row, key)),)
    )


def _conversation(row: RawRow, messages: tuple[Message, ...], options: ReadOptions) -> Example:
    """Checks that there is something to learn and adds the system prompt."""
    answers = [message for message in messages if message.role == "assistant"]
    if not any(answer.content.strip() for answer in answers):
        raise BadRow(
            row.where,
            "no assistant text",
            "at least one assistant turn with text",
            f"roles {[m.role for m in messages]}",
            "add the answer, or remove the row",
        )
    if not all(answer.content.strip() or answer.reasoning_content for answer in answers):
        raise BadRow(
            row.where,
            "empty assistant turn",
            "text in every assistant turn",
            "an empty one",
            "fill it, or remove the row",
        )
    if messages[-1].role != "assistant":
        found = f"a last turn of {messages[-1].role}"
        raise BadRow(
            row.where,
            "last turn not assistant",
            "a conversation that ends with the assistant",
            found,
            "remove the last turn",
        )
    if messages[0].role == "assistant":
        raise BadRow(
            row.where,
            "no prompt",
            "a user turn before the first answer",
            "the assistant first",
            "add the prompt, or remove the turn",
        )
    if options.system_prompt and messages[0].role != "system":
        messages = (Message("system", options.system_prompt), *messages)
    return Example(id="", where=row.where, messages=messages)


def _from_messages(row: RawRow, options: ReadOptions) -> Example:
    return _conversation(row, _turns(row, "messages"), options)


def _from_prompt_completion(row: RawRow, options: ReadOptions) -> Example:
    completion = _string_or_turns(row, "completion", "assistant")
    if completion[0].role != "assistant":
        raise BadRow(
            row.where,
            "malformed turn",
            "a completion that starts with the assistant",
            f"role {completion[0].role}",
            "move it to prompt",
        )
    return _conversation(row, (*_string_or_turns(row, "prompt", "user"), *completion), options)


def _from_sharegpt(row: RawRow, options: ReadOptions) -> Example:
    turns = _turns(row, "conversations", ("from", "value"), SHAREGPT_ROLES)
    system = row.data.get("system")
    if isinstance(system, str) and system.strip() and turns[0].role != "system":
        turns = (Message("system", system), *turns)
    return _conversation(row, turns, options)


def _from_question(answer_key: str) -> Callable[[RawRow, ReadOptions], Example]:
    def convert(row: RawRow, options: ReadOptions) -> Example:
        turns = (
            Message("user", _string(row, "question")),
            Message("assistant", _string(row, answer_key)),
        )
        return _conversation(row, turns, options)

    return convert


def _s1_fields(keys: frozenset[str]) -> dict[str, tuple[str, str]]:
    """Teacher → fields, for the traces that a row has."""
    found = {teacher: fields for teacher, fields in _S1_TRACES.items() if keys.issuperset(fields)}
    if keys.issuperset(_S1_PLAIN):
        found.setdefault("gemini", _S1_PLAIN)
    return found


def _from_s1k(row: RawRow, options: ReadOptions) -> Example:
    traces = _s1_fields(frozenset(row.data))
    if options.s1_teacher is None and len(traces) > 1:
        raise DataError(
            f"{row.where}: expected the reasoning of one teacher, found {sorted(traces)}; fix:"
            " data.s1_teacher: deepseek (or gemini)"
        )
    teacher = options.s1_teacher or next(iter(traces), "gemini")
    if teacher not in traces:
        raise BadRow(
            row.where,
            "no trace of the teacher",
            f"reasoning of {teacher}",
            f"that of {sorted(traces)}",
            "data.s1_teacher, or remove the row",
        )
    trajectory_key, attempt_key = traces[teacher]
    trajectory, attempt = row.data[trajectory_key], _string(row, attempt_key)
    steps = trajectory if isinstance(trajectory, list) else [trajectory]
    if not all(isinstance(step, str) for step in steps) or not "".join(steps).strip():
        raise BadRow(
            row.where,
            f"no text in {trajectory_key}",
            f"text in {trajectory_key!r}",
            describe(trajectory),
            "remove the row",
        )
    return _conversation(
        row,
        (
            Message("user", _string(row, "question")),
            Message("assistant", s1_answer(steps, attempt)),
        ),
        options,
    )


def s1_answer(trajectory: list[str], attempt: str) -> str:
    """The assistant turn that s1 trains on (simplescaling/s1, data/tokenization.py)."""
    answer = attempt if "Answer:" in attempt else "Answer: " + attempt
    return (
        "<|im_start|>think\n"
        + "\n".join(trajectory).strip()
        + "\n<|im_start|>answer\n"
        + answer.strip()
    )


def _from_text(row: RawRow, options: ReadOptions) -> Example:
    return Example(id="", where=row.where, text=_string(row, "text"))


def _from_scored(row: RawRow, options: ReadOptions) -> Example:
    keys = [key for key in ("message", "messages") if key in row.data]
    if len(keys) != 1:
        raise BadRow(
            row.where,
            "malformed prompt",
            "one of 'message' and 'messages'",
            f"{keys or 'none'}",
            "keep one of them",
        )
    turns = (
        *_string_or_turns(row, keys[0], "user"),
        Message("assistant", _string(row, "response")),
    )
    advantage, logprobs = row.data.get("advantage"), row.data.get("logprob")
    if not _is_finite(advantage):
        raise BadRow(
            row.where,
            "bad advantage",
            "a finite number as 'advantage'",
            describe(advantage),
            "compute it again, or remove the row",
        )
    if logprobs is not None and not (
        isinstance(logprobs, list) and all(_is_finite(value) for value in logprobs)
    ):
        raise BadRow(
            row.where,
            "bad logprob",
            "a list of finite numbers as 'logprob'",
            describe(logprobs),
            "compute them again, or remove the row",
        )
    return replace(
        _conversation(row, turns, options),
        advantage=float(advantage),
        response_logprobs=None if logprobs is None else tuple(float(value) for value in logprobs),
        raw_response=True,
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _has(*names: str) -> Callable[[frozenset[str]], bool]:
    return lambda keys: keys.issuperset(names)


SCHEMAS = {
    schema.name: schema
    for schema in (
        Schema("messages", "messages", _has("messages"), _from_messages),
        Schema(
            "prompt-completion",
            "prompt, completion",
            _has("prompt", "completion"),
            _from_prompt_completion,
        ),
        Schema("sharegpt", "conversations", _has("conversations"), _from_sharegpt),
        Schema(
            "question-solution",
            "question, solution",
            _has("question", "solution"),
            _from_question("solution"),
            ("question-answer",),
        ),
        Schema(
            "question-answer",
            "question, answer",
            _has("question", "answer"),
            _from_question("answer"),
        ),
        Schema(
            "s1k",
            "question with thinking_trajectories, attempt or deepseek_/gemini_ thinking_trajectory,"
            " attempt",
            lambda keys: "question" in keys and bool(_s1_fields(keys)),
            _from_s1k,
            ("question-solution", "question-answer", "text"),
        ),
        Schema("text", "text (already templated)", _has("text"), _from_text),
        Schema(
            "scored",
            "message or messages, response, advantage[, logprob]",
            lambda keys: (
                keys.issuperset(("response", "advantage"))
                and not keys.isdisjoint(("message", "messages"))
            ),
            _from_scored,
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
    """Iterates a data file as Examples, in file order. After the iteration `rows`, `duplicate_rows`
    and `bad_rows` say what happened.

    Ids: the row's `id` (text or integer; equal ids are an error naming both rows, also 1 and "1"),
    else a hash of the content; rows of equal content without ids are kept, counted, and told apart
    by a suffix `-2`, `-3`…
    """

    def __init__(
        self, path: str | Path, options: ReadOptions, bad_rows: BadRowLog | None = None
    ) -> None:
        self.source = open_source(path, options.revision)
        self.options = options
        self.schema = choose_schema(self.source, options.format)
        self.bad_rows = bad_rows or BadRowLog(options.on_bad_row)
        self.rows = self.duplicate_rows = 0
        self._first_seen: dict[str, str] = {}
        self._copies: Counter[str] = Counter()

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
            yield example
        if self.rows == 0:
            raise DataError(
                f"{self.source.path}: expected at least one row, found none; fix: give a file with"
                " rows"
            )

    def _convert(self, row: RawRow) -> Example:
        keys = frozenset(row.data)
        if not self.schema.fits(keys):
            raise BadRow(
                row.where,
                "other fields",
                f"the fields of schema {self.schema.name} ({self.schema.needs})",
                describe(row.data),
                "complete the row, remove it, or set data.format",
            )
        example = self.schema.convert(row, self.options)
        return replace(example, id=self._identify(row, example))

    def _identify(self, row: RawRow, example: Example) -> str:
        given = row.data.get("id")
        if given is None:
            content = [
                example.text,
                [[m.role, m.content, m.reasoning_content] for m in example.messages],
            ]
            digest = hashlib.sha256(
                json.dumps(content, ensure_ascii=False).encode("utf-8")
            ).hexdigest()[:16]
            self._copies[digest] += 1
            self.duplicate_rows += self._copies[digest] > 1
            return digest if self._copies[digest] == 1 else f"{digest}-{self._copies[digest]}"
        if isinstance(given, bool) or not isinstance(given, (str, int)):
            raise BadRow(
                row.where,
                "bad id",
                "text or an integer as 'id'",
                describe(given),
                "rename the field, or use text ids",
            )
        name = str(given)
        if name in self._first_seen:
            raise BadRow(
                row.where,
                "duplicate id",
                "a unique id",
                f"id {name!r} again, first at {self._first_seen[name]}",
                "give the rows different ids, or remove one",
            )
        self._first_seen[name] = row.where
        return name
