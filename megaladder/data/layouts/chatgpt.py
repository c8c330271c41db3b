"""`conversations.json` of ChatGPT's data export: the branch of each tree that was read last.

A conversation is a tree of nodes (`mapping`); regenerated and edited turns are branches. What
counts is the way from `current_node` up to the root. Custom instructions become a system turn. Left
out: messages without text or of weight 0, and what the application says about its hidden thinking
(`thoughts` and `reasoning_recap` are summaries of it, not what the model wrote). Pictures, files
and tools make a row a bad one: its answers lean on what is not in the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megaladder.data.read import BadRow, RawRow, describe
from megaladder.types import Message, Role

ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
ABOUT_THINKING = ("thoughts", "reasoning_recap")
INSTRUCTIONS = ("user_profile", "user_instructions")
FIX = "remove the conversation, or data.on_bad_row: skip leaves such rows out"


def branch_turns(row: RawRow) -> tuple[Message, ...]:
    """The turns from the root to `current_node`. Raises BadRow."""
    turns: list[Message] = []
    for name, message in _branch(row):
        turn = _turn(row, name, message)
        if turn is None:
            continue
        # an answer that was stopped and continued is one answer
        if turns and turns[-1].role == turn.role == "assistant":
            turns[-1] = replace(turns[-1], content=turns[-1].content + turn.content)
        else:
            turns.append(turn)
    return tuple(turns)


def _branch(row: RawRow) -> list[tuple[str, Mapping[str, Any]]]:
    """Names and messages of the nodes on the way, root first."""
    mapping, name = row.data["mapping"], row.data["current_node"]
    found: list[tuple[str, Mapping[str, Any]]] = []
    seen: set[str] = set()
    while name is not None:
        named = isinstance(name, str)
        node = mapping.get(name) if isinstance(mapping, dict) and named else None
        twice = named and name in seen
        if not isinstance(node, dict) or twice:
            expected = "a tree in 'mapping' that leads from 'current_node' to its root"
            again = f"node {name!r} twice" if twice else f"no node {describe(name)}"
            raise BadRow(row.where, "broken tree", expected, again, "export the data again")
        seen.add(name)
        if isinstance(node.get("message"), dict):
            found.append((f"mapping[{name}].message", node["message"]))
        name = node.get("parent")
    return found[::-1]


def _turn(row: RawRow, place: str, message: Mapping[str, Any]) -> Message | None:
    """One message as a turn; None for one that says nothing to the other side."""
    content, author = message.get("content"), message.get("author")
    kind = content.get("content_type") if isinstance(content, dict) else None
    role = author.get("role") if isinstance(author, dict) else None
    if not isinstance(content, dict) or not isinstance(kind, str) or not isinstance(role, str):
        expected = f"an author with a role and a content with a content_type in {place}"
        raise BadRow(row.where, "malformed turn", expected, describe(content), "export it again")
    if kind in ABOUT_THINKING or message.get("weight") == 0:
        return None
    if kind == "user_editable_context":
        texts = [content[key] for key in INSTRUCTIONS if isinstance(content.get(key), str)]
        return _said("system", "\n\n".join(text for text in texts if text.strip()))
    parts = content.get("parts")
    if kind in ("text", "multimodal_text") and not isinstance(parts, list):
        raise BadRow(row.where, "malformed turn", f"parts in {place}", describe(parts), FIX)
    if kind in ("text", "multimodal_text") and parts in ([], [""]):
        return None
    recipient = message.get("recipient") or "all"
    if role not in ROLES or recipient != "all" or parts is None:
        what = f"a message of {role} to {recipient} ({kind})"
        raise BadRow(row.where, f"content {kind}", "a conversation in text", what, FIX)
    return _said(ROLES[role], "".join(_part(row, place, part) for part in parts))


def _said(role: Role, text: str) -> Message | None:
    return Message(role, text) if text.strip() else None


def _part(row: RawRow, place: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    given = part if isinstance(part, dict) else {}
    if given.get("content_type") == "audio_transcription" and isinstance(given.get("text"), str):
        return str(given["text"])
    kind = given.get("content_type")
    found = f"a part {kind}" if kind else describe(part)
    raise BadRow(row.where, f"part {kind}", f"text in {place}", found, FIX)
