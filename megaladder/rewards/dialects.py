r"""Dialects: where a response says its answer. Data only; the marks are read in `extract`.

Every dialect looks at the answer part alone: what stands inside a reasoning block, closed or not,
never counts. Its marks are tried in order and the first that is there decides; one that is there and
holds nothing readable (`\boxed{` that never closes) means no answer. Kinds math, gsm8k, choice and
exact read a dialect; a task with a form of its own (countdown, code, …) has one place for its answer.

These are the places only: what is equal to the gold answer is our own comparison. A study's whole
grader, its comparison and known faults included, is `published`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megaladder.types import DialectName

OWN_DIALECT: DialectName = "megaladder"

Mark = Literal[
    "last box",
    "first box",
    "all boxes",
    "answer tag",
    "#### line",
    "answer phrase",
    "the answer is",
    "final answer sentence",
    "answer line",
    "rest after answer:",
    "last line",
    "last number",
]


@dataclass(frozen=True, slots=True)
class Dialect:
    """marks: in the order in which they are tried. source: who writes answers so."""

    marks: tuple[Mark, ...]
    source: str


DIALECTS: dict[DialectName, Dialect] = {
    "megaladder": Dialect(
        ("last box", "answer tag", "#### line", "answer phrase", "last line"),
        "ours: what all of the below have in common; gsm8k ends with the last number",
    ),
    "last-box": Dialect(
        ("last box",), "LIMO (arXiv 2502.03387) and PRIME (arXiv 2502.01456): a box or nothing"
    ),
    "first-box": Dialect(("first box",), "the first of several boxes, none after it"),
    "all-boxes": Dialect(
        ("all boxes",), "OlympiadBench (arXiv 2402.14008): all boxes, joined by commas"
    ),
    "answer-tag": Dialect(
        ("answer tag",), "DeepSeek-R1-Zero's template (arXiv 2501.12948): <answer>…</answer>"
    ),
    "hashes": Dialect(("#### line",), "GSM8K's solutions (arXiv 2110.14168): #### N"),
    "answer-is": Dialect(
        ("the answer is",), "chain-of-thought prompts (arXiv 2201.11903): The answer is X."
    ),
    "minerva": Dialect(
        ("final answer sentence",),
        "Minerva (arXiv 2206.14858): Final Answer: The final answer is X. I hope it is correct.",
    ),
    "dapo": Dialect(("answer line",), "DAPO (arXiv 2503.14476): a last line Answer: X"),
    "ladder": Dialect(
        ("last box", "rest after answer:"),
        "s1 (arXiv 2501.19393) and reasoning_ladder (arXiv 2504.11741)",
    ),
    "qwen": Dialect(
        ("last box", "the answer is", "last number"), "Qwen2.5-Math (arXiv 2409.12122)"
    ),
    "rethinking": Dialect(
        ("last box", "answer tag", "last line"), "Rethinking SFT (arXiv 2604.06628)"
    ),
    "last-line": Dialect(("last line",), "answers without any mark"),
    "last-number": Dialect(("last number",), "lm-eval's flexible-extract for GSM8K"),
}
"""Name → dialect. `--extract` and `reward.extract` choose one."""
