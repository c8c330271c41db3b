"""Graders of published studies, rebuilt from their described rules.

So that a study's number can be reproduced. They are not ours: their known faults are kept.
`GRADERS` names them all.
"""

from __future__ import annotations

from collections.abc import Callable

from megaladder.rewards.published import box_match, limo, minerva, prime, qwen, rethinking
from megaladder.types import Graded, GradeReason

Published = Callable[[str, str], tuple[bool, str | None]]

GRADERS: dict[str, Published] = {
    "qwen": qwen.judge,
    "limo": limo.judge,
    "minerva": minerva.judge,
    "prime": prime.judge,
    "rethinking": rethinking.judge,
    "math_verify": rethinking.judge_library,
    "box_match": box_match.judge,
}
"""Name → (response, gold) → (correct, what was extracted)."""


def published_grade(response: str, gold: str, name: str) -> Graded:
    """A published grader's verdict. It knows no `undecided`: what it cannot read is wrong there."""
    correct, answer = GRADERS[name](response, gold)
    if answer is None:
        return Graded(False, None, GradeReason.NO_ANSWER, name)
    reason = GradeReason.PUBLISHED if correct else GradeReason.DIFFERENT
    return Graded(correct, answer, reason, f"{name}: {answer[:80]} against {gold[:80]}")
