"""One turn of a row → `Message`: every field of it is used, known to change nothing, or refused.

A turn's fields are an allow-list: what is in none of the tables below is refused by its name, since
it may change what should be trained. A row's columns beside its turns are metadata, save those that
`read_row_fields` uses or refuses. Which column holds the turns, and how a turn spells role and
text, is the layout's business (`data.layouts`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megaladder.data.read import BadRow, RawRow, describe
from megaladder.types import Example, Message, Role

ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
# one value under the names that frameworks give it
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# whether a turn is trained, under the names that frameworks give it
LOSS_KEYS = ("loss", "loss_mask", "loss_weight", "weight", "train", "trainable")
# where a part of a turn may have its text (OpenAI; LLaMA-Factory's newer rows; others)
PART_KEYS = ("text", "value", "content")
TOOL_KEYS = ("tool_calls", "tool_call_id", "name")
# notes about a turn that no framework trains by
NEUTRAL_KEYS = (
    *("id", "index", "turn", "uuid", "timestamp", "created_at", "model", "info", "source"),
    *("metadata", "language", "lang", "score", "rating"),
)
# columns of a row that its chat template reads
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
# columns of a row that would change the loss, or that no text model can take in
MEDIA_COLUMNS = ("images", "image", "videos", "video", "audios", "audio")
WEIGHT_COLUMNS = ("weight", "loss_weight", "sample_weight", "loss_mask")
# columns that may hold the thoughts before an answer: as text, not as a word about the row (on, off)
THOUGHT_COLUMNS = ("reasoning_content", "thinking", "reasoning")
# arguments of the template that the row may not set: the program sets them
RESERVED_ARGUMENTS = ("messages", "tools", "add_generation_prompt", "continue_final_message")


def read_turn(
    row: RawRow, place: str, value: Any, keys: tuple[str, str], roles: dict[str, Role]
) -> Message:
    """The turn at `place` (`messages[2]`) of a row.

    `keys`: its fields for role and text; `roles`: its names of roles. Raises BadRow for a malformed
    turn and for a field that is not known."""
    role_key, text_key = keys
    if not isinstance(value, dict):
        expected = f"an object with {role_key!r} and {text_key!r} as {place}"
        raise _malformed(row, expected, value)
    role = value.get(role_key)
    if not isinstance(role, str) or role not in roles:
        expected = f"{role_key} of {place} in {sorted(roles)}"
        raise BadRow(row.where, "unknown role", expected, describe(role), "rename the role")
    known = {role_key, text_key, *REASONING_KEYS, *LOSS_KEYS, *TOOL_KEYS, *NEUTRAL_KEYS}
    for key in value:
        if key not in known and not _is_empty(value[key]):
            raise _unknown(row, place, key)
    tool_calls = _tool_calls(row, place, value.get("tool_calls"))
    content = "" if value.get(text_key) is None and tool_calls else value.get(text_key)
    return Message(
        roles[role],
        _plain_text(row, f"{text_key} of {place}", content),
        _reasoning(row, place, value),
        trained=_is_trained(row, place, value, roles[role]),
        tool_calls=tool_calls,
        tool_call_id=_text(row, place, value, "tool_call_id"),
        name=_text(row, place, value, "name"),
    )


def read_row_fields(row: RawRow, example: Example) -> Example:
    """`example` with the row's `tools` and `chat_template_kwargs`.

    Raises BadRow for columns that would change the loss, and for images, video and sound.
    """
    refuse_columns(row, MEDIA_COLUMNS)
    if row.data.get("label") is False:  # KTO
        expected, fix = "answers that are wanted", "remove the rows whose label is false"
        raise BadRow(row.where, "unwanted answer", expected, "label false", fix)
    if not _is_empty(row.data.get("functions")):
        expected, fix = "tools in a column 'tools'", "data.fields: {tools: functions}"
        raise BadRow(row.where, "column functions", expected, "the column 'functions'", fix)
    for key in WEIGHT_COLUMNS:
        value = row.data.get(key)
        if not _is_empty(value) and not _is_one(value):
            expected, fix = "rows that all weigh 1", "remove the column, or the rows it would drop"
            found = f"{describe(value)} in column {key!r}"
            raise BadRow(row.where, f"column {key}", expected, found, fix)
    _refuse_lost_thoughts(row, example)
    return replace(example, tools=read_tools(row), template_kwargs=read_template_kwargs(row))


def _refuse_lost_thoughts(row: RawRow, example: Example) -> None:
    """Raises BadRow where a column of thoughts stands in no turn: they would not be trained."""
    trained = [text for one in example.messages for text in (one.content, one.reasoning_content)]
    for key in THOUGHT_COLUMNS:
        value = row.data.get(key)
        if not isinstance(value, str) or len(value.split()) < 2:
            continue
        if not any(value.strip() in text for text in trained if text):
            expected, found = (
                "thoughts in the turn that they lead to",
                f"the column {key!r} beside it",
            )
            fix = "write them as reasoning_content of the turn, or remove the column"
            raise BadRow(row.where, f"column {key}", expected, found, fix)


def refuse_columns(row: RawRow, columns: Sequence[str]) -> None:
    """Raises BadRow where one of the columns holds something: no text without it would be right."""
    for key in columns:
        if not _is_empty(row.data.get(key)):
            expected, fix = "rows of text", "remove the row, or the column if the text needs none"
            raise BadRow(row.where, f"column {key}", expected, f"the column {key!r}", fix)


def _plain_text(row: RawRow, name: str, content: Any) -> str:
    """A string, or parts that are all text, joined."""
    if isinstance(content, list) and content:
        kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
        other = next((kind for kind in kinds if kind != "text"), None)
        if other is not None:
            expected, fix = f"text in {name}", "only text can be trained on; remove the row"
            raise BadRow(row.where, f"part {other}", expected, f"a part of type {other!r}", fix)
        content = "".join(_part_text(row, name, part) for part in content)
    if not isinstance(content, str):
        fix = "only text turns can be trained on"
        raise _malformed(row, f"a string as {name}", content, fix)
    return content


def _part_text(row: RawRow, name: str, part: Any) -> str:
    given = part if isinstance(part, dict) else {}
    texts = [given[key] for key in PART_KEYS if isinstance(given.get(key), str)]
    if len(texts) != 1:
        raise _malformed(row, f"one text ({' or '.join(PART_KEYS)}) in each part of {name}", part)
    return texts[0]


def read_tools(row: RawRow) -> tuple[dict[str, Any], ...]:
    """The column `tools`, a list or JSON text. Raises BadRow."""
    tools = _parsed(row, "tools", row.data.get("tools"))
    if _is_empty(tools):
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise _malformed(row, "a list of tool descriptions in 'tools'", tools)
    return tuple(_without_nulls(tool) for tool in tools)


def read_template_kwargs(row: RawRow) -> dict[str, Any]:
    """The column `chat_template_kwargs`, an object or JSON text. Raises BadRow."""
    kwargs = _parsed(row, "chat_template_kwargs", row.data.get("chat_template_kwargs"))
    if _is_empty(kwargs):
        return {}
    if not isinstance(kwargs, dict):
        raise _malformed(row, "an object in 'chat_template_kwargs'", kwargs)
    for key in kwargs:
        if key in RESERVED_ARGUMENTS:
            expected = "arguments of the template's own in 'chat_template_kwargs'"
            fix = "remove it; turns and tools have columns of their own"
            raise BadRow(row.where, "reserved argument", expected, repr(key), fix)
    # readers of tables fill the fields of other rows in with null
    return {key: value for key, value in kwargs.items() if value is not None}


def _tool_calls(row: RawRow, place: str, value: Any) -> tuple[dict[str, Any], ...]:
    """Calls in the form that templates take: arguments as an object, not as JSON text."""
    if _is_empty(value):
        return ()
    name = f"tool_calls of {place}"
    calls = _parsed(row, name, value)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise _malformed(row, f"a list of calls as {name}", calls)
    found = []
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _malformed(row, f"the name of a function in {name}", function)
        arguments = _parsed(row, f"arguments of {name}", function.get("arguments"))
        plain = {"name": function["name"], "arguments": {} if arguments is None else arguments}
        outer = {key: call[key] for key in ("id",) if isinstance(call.get(key), str)}
        found.append({"type": "function", **outer, "function": _without_nulls(plain)})
    return tuple(found)


def _reasoning(row: RawRow, place: str, value: dict[str, Any]) -> str | None:
    given = {key: value[key] for key in REASONING_KEYS if not _is_empty(value.get(key))}
    for key, text in given.items():
        if not isinstance(text, str):
            raise _malformed(row, f"a string as {key} of {place}", text)
    if len(set(given.values())) > 1:
        expected, found = f"one reasoning in {place}", f"{' and '.join(given)} of different text"
        raise BadRow(row.where, "several reasonings", expected, found, "keep one of them")
    return next(iter(given.values()), None)


def _is_trained(row: RawRow, place: str, value: dict[str, Any], role: Role) -> bool:
    """What the turn's loss flags say, which have to agree; without any: every assistant turn."""
    given = {key: value[key] for key in LOSS_KEYS if value.get(key) is not None}
    for key, flag in given.items():
        if flag not in (0, 1):
            expected = f"{key} of {place} that is true, false, 1 or 0"
            fix = "set it to one of them: a turn is trained or it is not"
            raise BadRow(row.where, f"bad {key}", expected, describe(flag), fix)
    if len({bool(flag) for flag in given.values()}) > 1:
        expected, found = f"flags of {place} that agree", f"{given}"
        raise BadRow(row.where, "flags that disagree", expected, found, "keep one of them")
    asked = next((key for key, flag in given.items() if flag and "weight" not in key), None)
    if role != "assistant" and asked is not None:
        expected, found = "loss on assistant turns only", f"{asked!r} set in {place} ({role})"
        raise BadRow(row.where, "loss on a prompt", expected, found, f"remove {asked!r} there")
    return role != "assistant" or all(given.values())


def _text(row: RawRow, place: str, value: dict[str, Any], key: str) -> str | None:
    found = value.get(key)
    if found is not None and not isinstance(found, str):
        raise _malformed(row, f"a string as {key} of {place}", found)
    return found or None


def _parsed(row: RawRow, name: str, value: Any) -> Any:
    """`value`, read as JSON where it is text: tables cannot hold free-form objects otherwise."""
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise _malformed(row, f"JSON in {name}", value) from None


def _without_nulls(value: Any) -> Any:
    """Without the nulls that readers of tables fill in for the fields of other rows."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def _is_one(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 1


def _malformed(row: RawRow, expected: str, found: Any, fix: str = "repair the turn") -> BadRow:
    return BadRow(row.where, "malformed turn", expected, describe(found), fix)


def _unknown(row: RawRow, place: str, key: str) -> BadRow:
    known = ", ".join((*REASONING_KEYS, *LOSS_KEYS, *TOOL_KEYS))
    return BadRow(
        row.where,
        f"unknown field {key} of a turn",
        f"fields of {place} that training knows (besides role and text: {known})",
        f"the field {key!r}",
        "remove it, or write what it says as text",
    )
