r"""Rethinking SFT's reward (arXiv 2604.06628).

The last box, else `<answer>`, else the last line, compared by math-verify; and math-verify's own
extraction and comparison."""

from __future__ import annotations

import logging
import re

from megaladder.rewards.compare.library import published_equal
from megaladder.rewards.published.latex import last_boxed


def judge(response: str, gold: str) -> tuple[bool, str | None]:
    """(correct, extracted answer)."""
    answer = last_boxed(response)
    if answer is None:
        tagged = re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL)
        lines = [line.strip() for line in response.split("\n") if line.strip()]
        answer = tagged[-1].strip() if tagged else lines[-1] if lines else None
    return (False, None) if not answer else (published_equal(gold, answer), answer)


def judge_library(response: str, gold: str) -> tuple[bool, str | None]:
    """math-verify on the whole response.

    With its defaults but for timeouts and for its plain expressions, which Python would evaluate.
    """
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    for name in ("math_verify.parser", "math_verify.grader"):
        # it warns that timeouts are off: `worker` has the clock
        logging.getLogger(name).setLevel(logging.ERROR)
    rules = [LatexExtractionConfig()]
    found = parse(response, rules, parsing_timeout=None)
    if not found:
        return False, None
    expected = parse(f"${gold}$", rules, parsing_timeout=None)
    return bool(verify(expected, found, timeout_seconds=None)), str(found[-1])
