"""What a grading process may answer; what it says is not trusted by its reader."""

from __future__ import annotations

from typing import Any

from megaladder.types import GradeReason

_REASONS = frozenset(reason.value for reason in GradeReason)


class Nonsense(Exception):
    """A grading process says what it never would by itself; the words go on after `the process`."""


def checked_answers(message: Any, num_pending: int) -> list[list[Any]]:
    """Answers as `child` sends them: a verdict of four parts, or the text of a crash.

    Raises:
        Nonsense: it is something else.
    """
    is_list = isinstance(message, list) and len(message) <= num_pending
    if is_list and all(isinstance(answer, list) and _is_answer(*answer) for answer in message):
        return message
    raise Nonsense("answered with something that is no list of verdicts")


def _is_answer(*parts: Any) -> bool:
    if len(parts) == 1:
        return isinstance(parts[0], str)
    if len(parts) != 4 or not isinstance(parts[0], bool | None):
        return False
    texts = isinstance(parts[1], str | None) and isinstance(parts[3], str)
    return texts and isinstance(parts[2], str) and parts[2] in _REASONS


def is_beginning(message: Any) -> bool:
    """Whether a grading process may begin with this: what protects it, or why it cannot start."""
    if not isinstance(message, dict):
        return False
    ready = message.get("ready")
    protected = isinstance(ready, list) and all(isinstance(one, str) for one in ready)
    return protected or isinstance(message.get("error"), str)
