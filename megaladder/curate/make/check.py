r"""Verifies generated rows from their text alone.

Shares no code with the generators, so that a bug there cannot hide here.

Arithmetic: every line of the trace is a chain of equal expressions, the first expressions compute
the question, a recheck is about the numbers of the line before it, `\boxed{}` and `gold` are the
question's value. Countdown: the trace is replayed move by move against the numbers; the boxed
expression uses each number once and is the target. Each `check_*` returns the list of faults (empty
= verified). Expressions are parsed with `ast` over exact fractions; no eval.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
MAX_EXPRESSION = 2000  # characters
RESPONSE = re.compile(
    r"<think>\n(?P<trace>.*)\n</think>\n\n\\boxed\{(?P<boxed>[^{}]*)\}", re.DOTALL
)
RECHECK = "Wait, "
MOVE = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def evaluate(text: str) -> Fraction:
    """The exact value of an expression of whole numbers, + - * / and brackets.

    Anything else is a ValueError."""
    return _value(_parse(text))


def numbers_in(text: str) -> Counter[int]:
    """How often each whole number stands in an expression."""
    return Counter(
        node.value
        for node in ast.walk(_parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, int)
    )


def _parse(text: str) -> ast.expr:
    if len(text) > MAX_EXPRESSION or not re.fullmatch(r"[0-9+\-*/() ]+", text):
        raise ValueError(f"no expression of whole numbers: {text[:80]!r}")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"no expression of whole numbers: {text[:80]!r}") from None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Div) and right == 0:
            raise ValueError("division by zero")
        return OPERATIONS[type(node.op)](left, right)
    raise ValueError(f"unexpected {type(node).__name__} in an expression")


def check_arithmetic(row: Mapping[str, Any]) -> list[str]:
    """Faults of an arithmetic row."""
    question = re.fullmatch(r"What is (.+)\?", row["question"])
    response = RESPONSE.fullmatch(row["messages"][1]["content"])
    if not question or not response or row["messages"][0]["content"] != row["question"]:
        return ["the question or the answer is not in the documented form"]
    value = evaluate(question[1])
    boxed = {"boxed": response["boxed"], "gold": row["gold"]}
    if not row["worked"]:
        wrong = [
            f"{name} is {found}, the question's value is {value}"
            for name, found in boxed.items()
            if found != str(value)
        ]
        return wrong + (["a direct answer shows work"] if response["trace"] else [])
    faults, carried = [], None
    lines = response["trace"].split("\n")
    for number, line in enumerate(lines, start=1):
        sides = line.removeprefix(RECHECK).split(" = ")
        values = {evaluate(side) for side in sides}
        if len(sides) < 2 or len(values) != 1:
            faults.append(f"line {number} is no chain of equal expressions: {line}")
        if line.startswith(RECHECK):
            if number == 1 or _operands_and_value(
                lines[number - 2].split(" = ")
            ) != _operands_and_value(sides):
                faults.append(f"line {number} does not check the one before it: {line}")
            continue
        if carried is not None and sides[0].split(" ")[0] != carried:
            faults.append(f"line {number} does not go on from {carried}: {line}")
        carried = sides[-1]
    faults += [
        f"{name} is {found}, the question's value is {value}"
        for name, found in {"the last line": carried, **boxed}.items()
        if found != str(value)
    ]
    steps = [line for line in lines if not line.startswith(RECHECK)]
    if len(lines) - len(steps) != row["rechecks"]:
        faults.append(f"{len(lines) - len(steps)} rechecks, the row says {row['rechecks']}")
    operations = [line.split(" = ")[0].split(" ")[1:] for line in steps]
    asked = re.findall(r"([-+*]) (\d+)", question[1])
    if [tuple(pair) for pair in operations] != asked:
        faults.append(f"the lines compute {operations}, the question asks for {asked}")
    return faults


def _operands_and_value(sides: list[str]) -> Counter[str]:
    """The three numbers that a line is about: of `23 * 7 = … = 161` 23, 7 and 161."""
    return Counter([*re.findall(r"\d+", sides[0]), sides[-1]])


def check_countdown(row: Mapping[str, Any]) -> list[str]:
    """Faults of a countdown row, found by replaying its trace."""
    response = RESPONSE.fullmatch(row["messages"][1]["content"])
    if not response:
        return ["the answer is not in the documented form"]
    given = re.search(r"numbers ([\d, ]+) exactly", row["question"])
    wanted = re.search(r"make (\d+)\.", row["question"])
    if not given or not wanted:
        return ["the question is not in the documented form"]
    numbers, target = [int(n) for n in given[1].split(", ")], int(wanted[1])
    if numbers != list(row["numbers"]) or target != row["target"] or row["gold"] != str(target):
        return ["numbers, target or gold differ from the question"]
    if not row["worked"]:
        is_bare = response["boxed"] == str(target) and not response["trace"]
        return [] if is_bare else ["a row without work is not the bare target"]
    faults = (
        []
        if is_countdown_solution(response["boxed"], numbers, target)
        else [f"{response['boxed']} does not solve the puzzle"]
    )
    return faults + _replay(response["trace"].split("\n"), numbers, target, row)


def is_countdown_solution(text: str, numbers: list[int], target: int) -> bool:
    """Does the expression use each number exactly once and make the target?.

    Usable as a reward: it looks at nothing else."""
    try:
        return numbers_in(text) == Counter(numbers) and evaluate(text) == target
    except ValueError:
        return False


def _replay(lines: list[str], numbers: list[int], target: int, row: Mapping[str, Any]) -> list[str]:
    """Keeps the stack of states that the trace claims to be in.

    Every line must fit the state on top."""
    if lines[0] != f"Numbers {', '.join(map(str, numbers))}; target {target}.":
        return ["the trace starts with other numbers"]
    stack, tries, backtracks, solved = [Counter(numbers)], 0, 0, False
    for number, line in enumerate(lines[1:], start=2):
        indent, text = (len(line) - len(line.lstrip())) // 2, line.strip()
        if solved or indent != len(stack) - 1:
            return [f"line {number} stands at the wrong place: {line}"]
        if text == "Go back.":
            stack.pop()
            backtracks += 1
            if not stack:
                return [f"line {number} goes back from the start"]
        elif text.startswith("Try "):
            tries += 1
            state, fault = _try(text, stack[-1])
            if fault:
                return [f"line {number}: {fault}"]
            stack.append(state)
        else:
            moves = MOVE.findall(text)
            tries += len(moves)
            solved = text.endswith(f"that is {target}.")
            fault = _check_line(moves, stack[-1], target, solved)
            if fault:
                return [f"line {number}: {fault}"]
    faults = [] if solved else ["the trace ends without the target"]
    return faults + [
        f"{name} is {row[name]}, the trace has {found}"
        for name, found in (("tries", tries), ("backtracks", backtracks))
        if row[name] != found
    ]


def _apply(move: tuple[str, ...], state: Counter[int]) -> Counter[int] | None:
    """The state after a move whose arithmetic is right and whose numbers are there.

    None otherwise."""
    left, operation, right, value = int(move[0]), move[1], int(move[2]), int(move[3])
    used = Counter([left, right])
    if used - state or evaluate(f"{left} {operation} {right}") != value:
        return None
    return state - used + Counter([value])


def _try(text: str, state: Counter[int]) -> tuple[Counter[int], str]:
    match = re.fullmatch(rf"Try ({MOVE.pattern})\. Left: ([\d, ]+)\.", text)
    if not match:
        return state, f"not understood: {text}"
    result = _apply(match.groups()[1:5], state)
    if result is None:
        return state, f"wrong arithmetic, or numbers that are not there: {text}"
    if result != Counter(int(n) for n in match[6].split(", ")):
        return state, f"the numbers left are wrong: {text}"
    return result, ""


def _check_line(
    moves: list[tuple[str, ...]], state: Counter[int], target: int, solved: bool
) -> str:
    """Two numbers must be left.

    All their whole positive results must be listed unless the last one is the target."""
    if state.total() != 2 or not moves:
        return "a check needs two numbers left"
    results = [result for move in moves if (result := _apply(move, state)) is not None]
    if len(results) < len(moves):
        return "a check with wrong arithmetic"
    values = [next(iter(result)) for result in results]
    if solved:
        return (
            ""
            if values[-1] == target and target not in values[:-1]
            else "the target is not where the check says"
        )
    a, b = sorted(state.elements(), reverse=True)
    possible = {a + b, a * b, *([a - b] if a > b else []), *([a // b] if a % b == 0 else [])}
    return (
        "" if target not in values and set(values) == possible else "a check that misses a result"
    )
