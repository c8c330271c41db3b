"""One row of each published data set, typed in the published form with short values of our own,
and what each verb makes of it.

`learned`: the last assistant text that SFT learns; `asked`: the gold answer and the verifier of
GRPO; `graded`: the number of stored responses that `grade` takes. None: refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Q, A = "What is 2+3?", "5"
WORK = "Two and three are \\boxed{5}."
TURNS = [{"role": "user", "content": Q}, {"role": "assistant", "content": WORK}]
SHARED = [{"from": "human", "value": Q}, {"from": "gpt", "value": WORK}]
DOC = {"id": 7, "problem": Q, "answer": A}


@dataclass(frozen=True)
class Published:
    """`source`: where rows of this form are published."""

    source: str
    row: Any
    learned: str | None = None
    asked: tuple[str, str] | None = None
    graded: int | None = None


def verl(source: str, **more: Any) -> dict[str, Any]:
    return {
        "data_source": source,
        "prompt": TURNS[:1],
        "ability": "math",
        "reward_model": {"ground_truth": A, "style": "rule"},
        "extra_info": {"index": "0"},
        **more,
    }


MATH, GSM8K = (A, "math"), (A, "gsm8k")
S1 = "<|im_start|>think\nstep\n<|im_start|>answer\nAnswer: 5"
