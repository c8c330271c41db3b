"""One turn of a row → `Message`: which of its fields are obeyed, and which are refused by name.

Which column of a row holds the turns, and how a turn spells role and text, is the layout's business
(`data.convert`).
"""

from __future__ import annotations

from typing import Any

from megaladder.data.read import BadRow, RawRow, describe
from megaladder.types import Message, Role

ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
# they change what is trained; ignoring them would be a guess
REFUSED_KEYS = ("tool_calls", "function_call", "weight", "train")


def read_turn(
    row: RawRow, place: str, value: Any, keys: tuple[str, str], roles: dict[str, Role]
) -> Message:
    """The turn at `place` (`messages[2]`) of a row. `keys`: its fields for role and text; `roles`:
    its names of roles. Raises BadRow for a field that would change what is trained."""
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
