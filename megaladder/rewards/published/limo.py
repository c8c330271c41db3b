r"""LIMO's evaluation (arXiv 2502.03387): the last box only.

Then text, option letters, sorted comma lists, numbers to an absolute 1e-4 (also times and divided
by 100), and Qwen's further rules."""

from __future__ import annotations

from megaladder.rewards.published import qwen
from megaladder.rewards.published.latex import as_float, choice_letter, last_boxed, strip_string

TOLERANCE = 1e-4


def judge(response: str, gold: str) -> tuple[bool, str | None]:
    """(correct, extracted answer)."""
    found = last_boxed(response)
    if found is None:
        return False, None
    answer, expected = strip_string(found), strip_string(gold)
    return math_equal(answer, expected), answer


def math_equal(answer: str, gold: str) -> bool:
    """The equality of that evaluation, rule after rule."""
    if answer == gold:
        return True
    if gold in "ABCDE" and choice_letter(answer) == gold:
        return True
    pieces = [sorted(piece.strip() for piece in one.split(",")) for one in (answer, gold)]
    if len(pieces[0]) > 1 and pieces[0] == pieces[1]:
        return True
    numbers = as_float(answer), as_float(gold)
    if numbers[0] is not None and numbers[1] is not None:
        wanted = (numbers[1] / 100, numbers[1], numbers[1] * 100)
        return any(abs(one - numbers[0]) <= TOLERANCE for one in wanted)
    return qwen.math_equal(answer, gold)
