"""Raw row → `Example`: what of a row is the conversation to learn (`table` says where).

Rules that are not visible in the field names:
- `prompt`+`completion` strings become a user and an assistant turn and go through the chat template
  like `messages`.
- `question,solution` (LIMO): the answer to learn is `solution`; `answer` is only its final value.
  `question,answer` (GSM8K): `answer`.
- `system_prompt` of the options is put before every conversation without a system turn, in all
  layouts but `text`. LIMO trained with LIMO_SYSTEM_PROMPT; it is never added by itself.
- s1K rows are rendered as `<|im_start|>think\\n…\\n<|im_start|>answer\\nAnswer: …` (s1's
  tokenization.py).
- `message`/`messages`,`response`,`advantage` (Rethinking SFT): the response is tokenised raw and
  ends in the end-of-sequence token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from megaladder.config.sections.data import Duplicates
from megaladder.data.chat.turns import ROLES, read_row_fields, read_turn
from megaladder.data.layouts.chatgpt import branch_turns
from megaladder.data.read import BadRow, RawRow, describe
from megaladder.errors import DataError
from megaladder.types import Example, Message, Role

SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}


# whose reasoning → (trajectory field, attempt field); the plain s1K columns are Gemini's
_S1_TRACES = {
    "deepseek": ("deepseek_thinking_trajectory", "deepseek_attempt"),
    "gemini": ("gemini_thinking_trajectory", "gemini_attempt"),
}


_S1_PLAIN = ("thinking_trajectories", "attempt")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a file is read.

    `format`: auto or a layout's name. `s1_teacher`: gemini or deepseek, only for s1K rows that hold
    both."""

    format: str = "auto"
    on_bad_row: Literal["error", "skip"] = "error"
    duplicates: Duplicates = "drop"
    system_prompt: str | None = None
    s1_teacher: str | None = None


Learn = Callable[[RawRow, ReadOptions], Example]


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


def _turns(
    row: RawRow,
    key: str,
    keys: tuple[str, str] = ("role", "content"),
    roles: dict[str, Role] | None = None,
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
        read_turn(row, f"{key}[{i}]", turn, keys, roles or {role: role for role in ROLES})
        for i, turn in enumerate(value)
    )


def _string_or_turns(row: RawRow, key: str, role: Role) -> tuple[Message, ...]:
    return (
        _turns(row, key)
        if isinstance(row.data.get(key), list)
        else (Message(role, _string(row, key)),)
    )


def _conversation(row: RawRow, messages: tuple[Message, ...], options: ReadOptions) -> Example:
    """Checks that there is something to learn and adds the system prompt."""
    answers = [message for message in messages if message.role == "assistant"]
    if not any(answer.content.strip() or answer.tool_calls for answer in answers):
        raise BadRow(
            row.where,
            "no assistant text",
            "at least one assistant turn with text",
            f"roles {[m.role for m in messages]}",
            "add the answer, or remove the row",
        )
    if not all(one.content.strip() or one.reasoning_content or one.tool_calls for one in answers):
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
    if not any(answer.trained for answer in answers):
        raise BadRow(
            row.where,
            "no trained turn",
            "at least one assistant turn with loss",
            f"flags that take it from all {len(answers)}",
            "remove the row",
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
    return read_row_fields(row, Example(id="", where=row.where, messages=messages))


def from_messages(row: RawRow, options: ReadOptions) -> Example:
    """Turns in a column `messages`."""
    return _conversation(row, _with_system(row, _turns(row, "messages")), options)


def from_prompt_completion(row: RawRow, options: ReadOptions) -> Example:
    """Prompt and completion, each a string or turns; answers inside the prompt are context."""
    completion = _string_or_turns(row, "completion", "assistant")
    if completion[0].role != "assistant":
        raise BadRow(
            row.where,
            "malformed turn",
            "a completion that starts with the assistant",
            f"role {completion[0].role}",
            "move it to prompt",
        )
    prompt = [
        replace(turn, trained=turn.role != "assistant")
        for turn in _string_or_turns(row, "prompt", "user")
    ]
    return _conversation(row, (*prompt, *completion), options)


def from_sharegpt(row: RawRow, options: ReadOptions) -> Example:
    """Turns with `from` and `value` in a column `conversations`, or with `role` and `content`."""
    first = row.data["conversations"][:1] if isinstance(row.data["conversations"], list) else []
    plain = bool(first) and isinstance(first[0], dict) and "role" in first[0]
    keys = ("role", "content") if plain else ("from", "value")
    turns = _turns(_with_calls(row, *keys), "conversations", keys, SHAREGPT_ROLES)
    return _conversation(row, _with_system(row, turns), options)


def _with_calls(row: RawRow, role: str, text: str) -> RawRow:
    """The row with its `function_call` turns as answers that call a tool.

    Their text is the call as JSON."""
    turns = row.data["conversations"]
    if not isinstance(turns, list):
        return row
    found = []
    for turn in turns:
        if isinstance(turn, dict) and turn.get(role) == "function_call":
            calls = turn.get(text)
            if isinstance(calls, str) and not calls.lstrip().startswith("["):
                calls = f"[{calls}]"
            turn = {**turn, text: None, "tool_calls": calls}
        found.append(turn)
    return RawRow(row.where, {**row.data, "conversations": found}, row.nulls)


def pair(question: str, answer: str, system: str = "system") -> Learn:
    """A question and the answer to learn, each a column; a text in column `system` comes first."""

    def convert(row: RawRow, options: ReadOptions) -> Example:
        turns = (
            *_system_turn(row, system),
            *_history(row),
            *_string_or_turns(row, question, "user"),
            *_string_or_turns(_first_of_texts(row, answer), answer, "assistant"),
        )
        return _conversation(row, turns, options)

    return convert


def reasoned(question: str, reasoning: str, answer: str) -> Learn:
    """A question, the reasoning and the answer, each a column: the template marks the reasoning."""

    def convert(row: RawRow, options: ReadOptions) -> Example:
        turns = (
            Message("user", _string(row, question)),
            Message("assistant", _string(row, answer), _string(row, reasoning)),
        )
        return _conversation(row, turns, options)

    return convert


def instruction(context: str, answer: str) -> Learn:
    """`instruction`, with the text of column `context` below it where there is one (Alpaca)."""

    def convert(row: RawRow, options: ReadOptions) -> Example:
        asked, extra = _string(row, "instruction"), row.data.get(context)
        if isinstance(extra, str) and extra.strip():
            asked = f"{asked}\n\n{extra}"
        turns = (Message("user", asked), Message("assistant", _string(row, answer)))
        before = (*_system_turn(row, "system"), *_history(row))
        return _conversation(row, (*before, *turns), options)

    return convert


def from_conversation(row: RawRow, options: ReadOptions) -> Example:
    """Turns in a column `conversation`."""
    return _conversation(row, _with_system(row, _turns(row, "conversation")), options)


def from_chatgpt_export(row: RawRow, options: ReadOptions) -> Example:
    """The branch of a conversation's tree that was read last."""
    return _conversation(row, branch_turns(row), options)


def from_preference(row: RawRow, options: ReadOptions) -> Example:
    """The chosen answer of a pair, as a text after `prompt`, or with the prompt's turns in it.

    LLaMA-Factory's pairs hold one turn, after those of `conversations`."""
    chosen, shared = row.data.get("chosen"), row.data.get("conversations")
    if isinstance(chosen, dict) and isinstance(shared, list):
        whole = {**row.data, "conversations": [*shared, chosen]}
        return from_sharegpt(RawRow(row.where, whole, row.nulls), options)
    answer = _string_or_turns(row, "chosen", "assistant")
    if answer[0].role == "assistant":
        answer = (*_string_or_turns(row, "prompt", "user"), *answer)
    return _conversation(row, answer, options)


def from_first_response(row: RawRow, options: ReadOptions) -> Example:
    """The first of `responses`, a list of objects with a text in `response`."""
    responses = row.data["responses"]
    first = responses[0] if isinstance(responses, list) and responses else None
    text = first.get("response") if isinstance(first, dict) else None
    if not isinstance(text, str):
        expected = "a list of objects with 'response' in 'responses'"
        raise BadRow(row.where, "no response", expected, describe(responses), "repair the row")
    turns = (Message("user", _string(row, "question")), Message("assistant", text))
    return _conversation(row, turns, options)


def _first_of_texts(row: RawRow, key: str) -> RawRow:
    """The row with the first of several texts in a column (OlympiadBench's solutions)."""
    value = row.data.get(key)
    listed = isinstance(value, list) and bool(value) and isinstance(value[0], str)
    return RawRow(row.where, {**row.data, key: value[0]}) if listed and value else row


def _history(row: RawRow) -> tuple[Message, ...]:
    """Earlier turns in a column `history`, as pairs of question and answer (LLaMA-Factory, swift).

    Raises BadRow for a history of another form."""
    pairs = row.data.get("history") or ()
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and [type(text) for text in pair] == [str, str]
        for pair in pairs
    ):
        expected, found = "pairs of question and answer in 'history'", describe(pairs)
        fix = "write the turns in a column 'messages'"
        raise BadRow(row.where, "malformed history", expected, found, fix)
    roles: tuple[Role, Role] = ("user", "assistant")
    return tuple(
        Message(role, text) for pair in pairs for role, text in zip(roles, pair, strict=True)
    )


def _with_system(row: RawRow, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns after the text of a column `system` or `system_prompt`, unless they have their own."""
    if turns[0].role == "system":
        return turns
    return (*(_system_turn(row, "system") or _system_turn(row, "system_prompt")), *turns)


def _system_turn(row: RawRow, key: str) -> tuple[Message, ...]:
    text = row.data.get(key)
    return (Message("system", text),) if isinstance(text, str) and text.strip() else ()


def s1_fields(keys: frozenset[str]) -> dict[str, tuple[str, str]]:
    """Teacher → fields, for the traces that a row has."""
    found = {teacher: fields for teacher, fields in _S1_TRACES.items() if keys.issuperset(fields)}
    if keys.issuperset(_S1_PLAIN):
        found.setdefault("gemini", _S1_PLAIN)
    return found


def from_s1k(row: RawRow, options: ReadOptions) -> Example:
    """A row of s1K as s1 trains on it, with the reasoning of the teacher that was asked for."""
    traces = s1_fields(frozenset(row.data))
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


def from_text(row: RawRow, options: ReadOptions) -> Example:
    return read_row_fields(row, Example(id="", where=row.where, text=_string(row, "text")))


def from_scored(row: RawRow, options: ReadOptions) -> Example:
    """A response with its advantage and, optionally, the log-probs of its tokens."""
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
        advantage=float(row.data["advantage"]),
        response_logprobs=None if logprobs is None else tuple(float(value) for value in logprobs),
        raw_response=True,
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
