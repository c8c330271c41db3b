"""What a verifier is, and the verdicts that verifiers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megaladder.errors import DataError
from megaladder.rewards.extract import Candidate, answer_part, last_box
from megaladder.types import Graded, GradeReason

Parameters = Mapping[str, Any]
"""What a row says beside its gold answer: its columns, as JSON values."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """One kind of task: how a response to it is checked.

    verify: (response, gold, parameters) → verdict; pure, and without executing anything.
    check: (gold, parameters) raises DataError for a row that no response could satisfy.
    parameters: the columns that it reads, beside the gold answer.
    needs_gold: False where the parameters say everything.
    runs_programs: the verdict needs the program sandbox; `verify` is then never called.
    """

    verify: Callable[[str, str, Parameters], Graded]
    check: Callable[[str, Parameters], None]
    parameters: tuple[str, ...] = ()
    needs_gold: bool = True
    runs_programs: bool = False


def passed(answer: str, detail: str = "") -> Graded:
    return Graded(True, answer, GradeReason.EXACT, detail)


def failed(answer: str | None, detail: str) -> Graded:
    return Graded(False, answer, GradeReason.DIFFERENT, detail)


def no_answer(detail: str) -> Graded:
    return Graded(False, None, GradeReason.NO_ANSWER, detail)


def undecided(detail: str) -> Graded:
    """No verdict, through no fault of the answer: counted apart, never trained on."""
    return Graded(None, None, GradeReason.TIMEOUT, detail)


def parameter(parameters: Parameters, name: str) -> Any:
    """A parameter of a row: its own column, else the one inside verl's `extra_info`; else None."""
    value = parameters.get(name)
    nested = parameters.get("extra_info")
    if value is None and isinstance(nested, Mapping):
        return nested.get(name)
    return value


def refuse(name: str, value: object, expected: str) -> DataError:
    """The error for a parameter that is missing or of another form."""
    return DataError(
        f"{name} is {str(value)[:80]!r}: expected {expected}; fix: fill that column, or name"
        " another verifier"
    )


def marked_answer(response: str) -> Candidate:
    r"""The last `\boxed{…}` of the answer part, else its last `<answer>…</answer>`.

    Prose never counts: a task with a form asks for one.
    """
    text = answer_part(response)
    if text is None:
        return Candidate(None, "the reasoning never ended")
    box = last_box(text)
    if box is not None:
        return box
    start = text.rfind("<answer>")
    end = text.find("</answer>", start)
    if start < 0 or end < 0:
        return Candidate(None, "neither \\boxed{} nor <answer>")
    return Candidate(text[start + len("<answer>") : end].strip(), "<answer>")
