r"""Arithmetic with worked steps.

`What is 23 * 7 + 58?` → short digit-level reasoning in `<think>` → `\boxed{219}`.

A row is a pure function of (spec, seed, position). Every line of the trace is a chain of equal
expressions, which `check.py` evaluates without knowing how it was made. A model of a million
parameters learns the default spec in a minute or two. With `recheck_share`, that share of the rows
goes over every result a second time (`Wait, …`): longer thoughts, the same answers. With
`direct_share`, that share of the rows (from row `direct_from` on) answers without any work
(`<think>` empty, as Qwen3 does when thinking is off): a habit that reinforcement learning can take
away.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megaladder.curate.make.split import is_test_question, question_id
from megaladder.errors import DataError

# draws in a row that gave nothing new before we say that the question space is used up
MAX_REPEATS = 20_000


@dataclass(frozen=True)
class ArithmeticSpec:
    """How hard the questions are.

    >>> ArithmeticSpec()                                    # a*b+c: two digits times one digit plus
    two digits ArithmeticSpec(digits=2, factor_digits=1, steps=2, max_steps=None, operations='*+',
    shuffle=False, recheck_share=0.0, direct_share=0.0, direct_from=0)
    """

    digits: int = 2  # of the first number and of everything added or subtracted
    factor_digits: int = 1  # of everything multiplied with
    steps: int = 2  # number of operations
    # a ladder of difficulty: each question has from `steps` to this many, drawn; None: all `steps`
    max_steps: int | None = None
    operations: str = "*+"  # taken in this order, repeated; with `shuffle` drawn at random
    shuffle: bool = False
    # of the rows, those in which every line is followed by one that checks it
    recheck_share: float = 0.0
    direct_share: float = 0.0  # of the rows, those that answer at once
    direct_from: int = 0  # rows before this one are all worked

    def __post_init__(self) -> None:
        bad = sorted(set(self.operations) - set("+-*"))
        if bad or not self.operations:
            raise DataError(
                f"operations {self.operations!r}: expected some of + - *, found {bad or 'nothing'};"
                " fix: --operations '*+'"
            )
        for name, low, high in (("digits", 1, 9), ("factor_digits", 1, 4), ("steps", 1, 12)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise DataError(
                    f"{name} {value} is outside {low}…{high}; fix: a number in that range"
                )
        if self.max_steps is not None and not self.steps <= self.max_steps <= 12:
            raise DataError(
                f"max_steps {self.max_steps} is outside {self.steps}…12 (steps to 12); fix: a number"
                " in that range"
            )
        for name in ("recheck_share", "direct_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(
                    f"{name} {getattr(self, name)} is outside 0…1; fix: a number in that range"
                )


def arithmetic_rows(
    spec: ArithmeticSpec, num_rows: int, seed: int, test: bool = False
) -> Iterator[dict[str, Any]]:
    """`num_rows` different questions of one half of the split, in a seeded order.

    Row: `id, question, gold, messages` (user, assistant), `worked` (false: it answers at once) and
    the measures `steps, largest, rechecks`. Raises DataError when the spec has fewer questions than
    asked for.
    """
    rng = random.Random(f"arithmetic/{seed}/{test}")
    seen: set[str] = set()
    repeats = 0
    while len(seen) < num_rows:
        question, pairs, value, largest = _draw(spec, rng)
        if question in seen or is_test_question(question) != test:
            repeats += 1
            if repeats > MAX_REPEATS:
                raise DataError(
                    f"only {len(seen):,} different {'test' if test else 'training'} questions"
                    f" found, {num_rows:,} wanted (digits {spec.digits}, steps {spec.steps}); fix:"
                    " fewer rows, more digits or more steps"
                )
            continue
        repeats = 0
        seen.add(question)
        # its own: the questions stay the same whatever the shares
        draw = random.Random(f"style/{seed}/{question}")
        rechecked, worked = (
            draw.random() < spec.recheck_share,
            draw.random() >= spec.direct_share or len(seen) <= spec.direct_from,
        )
        trace = (
            "\n".join(f"{line}\nWait, {check}" if rechecked else line for line, check in pairs)
            if worked
            else ""
        )
        answer = f"<think>\n{trace}\n</think>\n\n\\boxed{{{value}}}"
        yield {
            "id": question_id("arith", question),
            "question": question,
            "gold": str(value),
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ],
            "worked": worked,
            "steps": len(pairs),
            "largest": largest,
            "rechecks": len(pairs) * (rechecked and worked),
        }


def _draw(spec: ArithmeticSpec, rng: random.Random) -> tuple[str, list[tuple[str, str]], int, int]:
    """Draws one question.

    Its text, each line with the one that checks it, the value, the largest number that occurs on
    the way."""
    value = largest = _number(spec.digits, rng)
    expression, last_operation, pairs = str(value), "*", []
    num_steps = spec.steps if spec.max_steps is None else rng.randint(spec.steps, spec.max_steps)
    for step in range(num_steps):
        operation = (
            rng.choice(spec.operations)
            if spec.shuffle
            else spec.operations[step % len(spec.operations)]
        )
        operand = _operand(operation, value, spec, rng)
        if operation == "*" and last_operation != "*":
            expression = f"({expression})"
        expression = f"{expression} {operation} {operand}"
        line, result = _worked(value, operation, operand)
        pairs.append((line, _recheck(value, operation, operand, result)))
        value = result
        last_operation, largest = operation, max(largest, value)
    return f"What is {expression}?", pairs, value, largest


def _number(digits: int, rng: random.Random) -> int:
    return rng.randint(10 ** (digits - 1) if digits > 1 else 1, 10**digits - 1)


def _operand(operation: str, value: int, spec: ArithmeticSpec, rng: random.Random) -> int:
    """Never 0 or 1 as a factor, never more than the value when subtracting.

    All values stay whole and not negative."""
    if operation == "*":
        return max(2, _number(spec.factor_digits, rng))
    number = _number(spec.digits, rng)
    return min(number, value) if operation == "-" else number


def _worked(left: int, operation: str, right: int) -> tuple[str, int]:
    """One operation as a chain of equal expressions.

    The right number (for products the longer one) is taken apart by digits.

    >>> _worked(23, "*", 7)
    ('23 * 7 = 20 * 7 + 3 * 7 = 140 + 21 = 161', 161)
    >>> _worked(161, "+", 58)
    ('161 + 58 = 161 + 50 + 8 = 211 + 8 = 219', 219)
    """
    value = {"+": left + right, "-": left - right, "*": left * right}[operation]
    sides = [f"{left} {operation} {right}"]
    if operation == "*":
        split_left = len(_places(right)) == 1
        parts = _places(left) if split_left else _places(right)
        if len(parts) > 1:
            products = [part * (right if split_left else left) for part in parts]
            sides.append(
                " + ".join(
                    f"{part} * {right}" if split_left else f"{left} * {part}" for part in parts
                )
            )
            sides += [
                " + ".join(map(str, [sum(products[: i + 1]), *products[i + 1 :]]))
                for i in range(len(products) - 1)
            ]
    else:
        parts = _places(right)
        running = left
        for i in range(len(parts) if len(parts) > 1 else 0):
            sides.append(f" {operation} ".join(map(str, [running, *parts[i:]])))
            running = running + parts[i] if operation == "+" else running - parts[i]
    return " = ".join([*sides, str(value)]), value


def _recheck(left: int, operation: str, right: int, value: int) -> str:
    """The same result another way round: commuted, or the subtraction undone.

    >>> _recheck(23, "*", 7, 161), _recheck(100, "-", 58, 42)
    ('7 * 23 = 7 * 20 + 7 * 3 = 140 + 21 = 161', '42 + 58 = 42 + 50 + 8 = 92 + 8 = 100')
    """
    return _worked(value, "+", right)[0] if operation == "-" else _worked(right, operation, left)[0]


def _places(number: int) -> list[int]:
    """347 → [300, 40, 7]; zeros left out; 0 → [0]."""
    text = str(number)
    return [
        int(digit) * 10 ** (len(text) - i - 1) for i, digit in enumerate(text) if digit != "0"
    ] or [0]
