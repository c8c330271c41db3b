"""math-verify on two LaTeX expressions.

For the sums, integrals and limits that our own grammar does not read, and as the published grader
of that name.

Its expression grammar calls Python's `eval`; only its LaTeX grammar is used here. sympy can hang or
eat memory on hostile text: callers run this inside `worker`. No timeouts here.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from megaladder.rewards.compare.forms import nesting

MAX_CHARS = 1_024  # the longest gold answer of the usual benchmarks has about 200
MAX_NESTING = 64


def library_equal(gold: str, answer: str) -> bool:
    """math-verify's verdict, and only where both sides hold the same letters.

    It drops trailing letters as units."""
    if max(len(gold), len(answer)) > MAX_CHARS or max(map(nesting, (gold, answer))) > MAX_NESTING:
        return False
    if _letters(gold) != _letters(answer):
        return False
    return published_equal(gold, answer)


def published_equal(gold: str, answer: str) -> bool:
    """math-verify's own verdict, with its defaults but for timeouts."""
    from math_verify import verify

    parsed_gold, parsed_answer = _parse(gold), _parse(answer)
    if not parsed_gold or not parsed_answer:
        return False
    return bool(
        verify(parsed_gold, parsed_answer, timeout_seconds=None, allow_set_relation_comp=True)
    )


def _letters(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", text)))


@lru_cache(maxsize=256)
def _parse(latex: str) -> list[Any]:
    """What math-verify reads.

    Kept, because the samples of a group share their gold answer and often their own."""
    from math_verify import parse
    from math_verify.parser import LatexExtractionConfig

    for name in ("math_verify.parser", "math_verify.grader"):
        # it warns that timeouts are off: `worker` has the clock
        logging.getLogger(name).setLevel(logging.ERROR)
    return list(
        parse(
            f"${latex}$",
            [LatexExtractionConfig()],
            fallback_mode="no_fallback",
            parsing_timeout=None,
        )
    )
