"""IFEval's verifiable instructions (arXiv 2311.07911), in our own words: all 25 published kinds.

Parameters of a row, as published: `instruction_id_list` (names of kinds) and `kwargs` (for each its
arguments; null ones are ignored). A response is correct if it follows every instruction: the
published prompt-level strict accuracy. What is checked is what follows the reasoning; an empty
answer follows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megaladder.errors import DataError
from megaladder.rewards.extract import answer_part
from megaladder.rewards.verifiers.base import (
    Parameters,
    failed,
    no_answer,
    parameter,
    passed,
    refuse,
)
from megaladder.rewards.verifiers.instructions import INSTRUCTIONS
from megaladder.rewards.verifiers.visible import says_something, visible
from megaladder.types import Graded


def verify(response: str, gold: str, parameters: Parameters) -> Graded:
    """Whether the answer part follows every instruction of the row."""
    answer = visible(answer_part(response) or "").strip()
    if not says_something(answer):
        return no_answer("nothing after the reasoning")
    broken = [
        name for name, given in _instructions(parameters) if not INSTRUCTIONS[name](answer, **given)
    ]
    return failed(answer[:200], f"not followed: {', '.join(broken)}") if broken else passed(answer)


def check(gold: str, parameters: Parameters) -> None:
    """Raises DataError for an unknown instruction, or arguments that it does not take."""
    for name, given in _instructions(parameters):
        try:
            INSTRUCTIONS[name]("text", **given)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise refuse("kwargs", given, f"the arguments of {name} ({error})") from None


def _instructions(parameters: Parameters) -> list[tuple[str, dict[str, Any]]]:
    names = parameter(parameters, "instruction_id_list")
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise refuse("instruction_id_list", names, "a list of instruction names")
    unknown = [name for name in names if name not in INSTRUCTIONS]
    if unknown:
        raise DataError(
            f"instruction_id_list has {', '.join(map(repr, unknown))}; fix: of"
            f" {', '.join(sorted(INSTRUCTIONS))}"
        )
    arguments = parameter(parameters, "kwargs") or [{}] * len(names)
    if len(arguments) != len(names) or not all(isinstance(one, Mapping) for one in arguments):
        raise refuse("kwargs", arguments, f"{len(names)} mappings, one an instruction")
    return [
        (name, {key: value for key, value in given.items() if value is not None})
        for name, given in zip(names, arguments, strict=True)
    ]
