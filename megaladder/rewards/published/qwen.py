r"""The grader of Qwen2.5-Math's evaluation (arXiv 2409.12122; descends from ToRA's and MATH's).

Extraction: the last box, else what follows "answer is", else the last number. Equality: text without
case; option letters; floats to a relative 1e-4, also times and divided by 100; tuples and matrices
piece by piece; equations by their difference; sympy.
"""

from __future__ import annotations

import re
from math import isclose

from megaladder.rewards.published.latex import (
    as_float,
    choice_letter,
    last_boxed,
    numerically_equal,
    strip_string,
    symbolically_equal,
)

TOLERANCE = 1e-4
_MATRIX = re.compile(r"^\\begin\{[pb]matrix\}(.*)\\end\{[pb]matrix\}$", re.DOTALL)
_BRACKETED = re.compile(r"^[(\[].+[)\]]$", re.DOTALL)


def judge(response: str, gold: str) -> tuple[bool, str | None]:
    """(correct, extracted answer)."""
    answer = extract(response)
    return (False, None) if answer is None else (math_equal(answer, strip_string(gold)), answer)


def extract(response: str) -> str | None:
    """The answer as that evaluation finds it; None if there is none."""
    found = last_boxed(response)
    if found is None:
        phrases = re.split(r"(?:he answer is|final answer is)", response)
        if len(phrases) > 1:
            found = phrases[-1].split(". ")[0].split("\n")[0].strip().strip("$.")
        else:
            numbers = re.findall(r"-?\d*\.?\d+", response.replace(",", ""))
            found = numbers[-1] if numbers else None
    return strip_string(found.strip().rstrip("./")) if found else None


def math_equal(answer: str, gold: str) -> bool:
    """The equality of that evaluation, rule after rule."""
    if answer.strip().lower() == gold.strip().lower():
        return True
    if gold in "ABCDE" and choice_letter(answer) == gold:
        return True
    numbers = as_float(answer), as_float(gold)
    if numbers[0] is not None and numbers[1] is not None:
        wanted = (numbers[1] / 100, numbers[1], numbers[1] * 100)
        return any(isclose(one, numbers[0], rel_tol=TOLERANCE) for one in wanted)
    if not answer:
        return False
    return _same_form(answer.strip(), gold.strip())


def _same_form(answer: str, gold: str) -> bool:
    bare = [re.sub(r"[{}()\[\]]", "", one).lower() for one in (answer, gold)]
    if bare[0] == bare[1]:
        return True
    if _BRACKETED.match(answer) and _BRACKETED.match(gold):
        pieces = answer[1:-1].split(","), gold[1:-1].split(",")
        if len(pieces[0]) == len(pieces[1]) and all(map(math_equal, *pieces)):
            return True
    matrices = _MATRIX.match(answer), _MATRIX.match(gold)
    if matrices[0] and matrices[1]:
        return _same_matrix(matrices[0].group(1), matrices[1].group(1))
    if answer.count("=") == gold.count("=") == 1:
        return _same_equation(answer, gold)
    for one, other in ((answer, gold), (gold, answer)):
        if one.count("=") == 1 and len(one.split("=")[0].strip()) <= 2 and "=" not in other:
            return math_equal(one.split("=")[1], other)
    return symbolically_equal(answer, gold) or numerically_equal(answer, gold, TOLERANCE)


def _same_matrix(answer: str, gold: str) -> bool:
    rows = [
        [row.split("&") for row in re.split(r"\\\\?", one) if row.strip()] for one in (answer, gold)
    ]
    if [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
        return False
    return all(
        math_equal(left.strip(), right.strip())
        for first, second in zip(*rows, strict=True)
        for left, right in zip(first, second, strict=True)
    )


def _same_equation(answer: str, gold: str) -> bool:
    left, right = (f"{one.split('=')[0]}-({one.split('=')[1]})" for one in (answer, gold))
    return symbolically_equal(left, right) or symbolically_equal(f"-({left})", right)
