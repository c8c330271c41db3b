"""Countdown: the expression is parsed, its numbers counted, its value compared exactly.

Parameters of a row: `numbers` (whole numbers), `target` (a whole number; absent: the gold answer),
`use` ("all": each number exactly once, the default; "some": each at most once), `operators` (the
allowed ones of + - * /; absent: all four). The answer stands in the last `\\boxed{}` or
`<answer>`, as `expression` or `expression = target`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from megaladder.rewards.verifiers.base import (
    Parameters,
    failed,
    marked_answer,
    no_answer,
    parameter,
    passed,
    refuse,
)
from megaladder.rewards.verifiers.expression import parse
from megaladder.types import Graded

OPERATORS = "+-*/"


class Puzzle(NamedTuple):
    """What a row asks for."""

    numbers: Counter[int]
    target: int
    use_all: bool
    operators: frozenset[str]


def verify(response: str, gold: str, parameters: Parameters) -> Graded:
    """Whether the marked expression uses the row's numbers as asked and makes the target."""
    puzzle = _puzzle(gold, parameters)
    found = marked_answer(response)
    if found.text is None:
        return no_answer(found.rule)
    fault = _fault(found.text, puzzle)
    return failed(found.text, fault) if fault else passed(found.text, f"makes {puzzle.target}")


def check(gold: str, parameters: Parameters) -> None:
    """Raises DataError for a row without numbers or target."""
    _puzzle(gold, parameters)


def _puzzle(gold: str, parameters: Parameters) -> Puzzle:
    numbers, use = parameter(parameters, "numbers"), parameter(parameters, "use") or "all"
    if not isinstance(numbers, Sequence) or isinstance(numbers, str) or not numbers:
        raise refuse("numbers", numbers, "a list of whole numbers")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise refuse("numbers", numbers, "whole numbers from 0 on")
    target = parameter(parameters, "target")
    target = gold.strip() if target is None else target
    try:
        target = int(target)
    except (TypeError, ValueError):
        raise refuse("target", target, "a whole number") from None
    operators = parameter(parameters, "operators")
    operators = OPERATORS if operators is None else operators
    if not operators or set(operators) - set(OPERATORS):
        raise refuse("operators", operators, f"some of {OPERATORS}")
    if use not in ("all", "some"):
        raise refuse("use", use, "all or some")
    return Puzzle(Counter(numbers), target, use == "all", frozenset(operators))


def _fault(answer: str, puzzle: Puzzle) -> str:
    """What is wrong with an answer; empty for a solution."""
    left, equals, right = answer.partition("=")
    try:
        parsed = parse(left)
        if equals and parse(right).numbers != (abs(puzzle.target),):
            return f"what follows = is not the target {puzzle.target}"
        if equals and parse(right).value != puzzle.target:
            return f"what follows = is not the target {puzzle.target}"
    except ValueError as error:
        return f"no expression: {error}"
    used = Counter(parsed.numbers)
    if extra := used - puzzle.numbers:
        return f"uses {_listed(extra)} beyond what is given"
    if puzzle.use_all and (left_over := puzzle.numbers - used):
        return f"leaves out {_listed(left_over)}"
    if parsed.operators - puzzle.operators:
        return f"operators {''.join(sorted(parsed.operators - puzzle.operators))} are not allowed"
    if parsed.value != puzzle.target:
        return f"makes {parsed.value}, not {puzzle.target}"
    return ""


def _listed(numbers: Counter[int]) -> str:
    return ", ".join(map(str, sorted(numbers.elements())))
