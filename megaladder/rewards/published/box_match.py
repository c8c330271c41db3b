r"""reasoning_ladder's and s1's extraction without their language model.

What follows `<|im_start|>answer`, the last box or the rest after "Answer:", whole numbers without
leading zeros, equal strings."""

from __future__ import annotations

import re

from megaladder.rewards.published.latex import last_boxed

_ANSWER = re.compile(r"(?i)Answer\s*:\s*(.*)", re.DOTALL)


def judge(response: str, gold: str) -> tuple[bool, str | None]:
    """(correct, extracted answer)."""
    answer = extract(response)
    return (False, None) if answer is None else (answer == _plain(gold), answer)


def extract(response: str) -> str | None:
    """The answer as those evaluations find it; None if there is none."""
    mark = "<|im_start|>answer\n"
    if mark in response:
        response = response.split(mark)[-1]
    elif "<|im_start|>" in response:
        response = response.rsplit("<|im_start|>", 1)[-1].partition("\n")[2]
    found = last_boxed(response)
    if found is None:
        phrases = _ANSWER.findall(response)
        found = phrases[-1] if phrases else None
    return None if found is None else _plain(found)


def _plain(text: str) -> str:
    text = text.strip()
    return str(int(text)) if text.isdigit() else text
