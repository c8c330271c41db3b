"""The section `reward` of GRPO."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megaladder.config.base import StrictModel
from megaladder.config.sections.shared import Positive

NonNegative = Annotated[float, Field(ge=0)]


class RewardSection(StrictModel):
    """What a completion earns."""

    kind: Literal["auto", "math", "gsm8k", "choice", "exact"] = "auto"
    """Grader: 1 for a correct answer, else 0. The same grader as in evaluation. auto = by the row:
    gsm8k for `#### N`, else math."""
    function: str | None = None
    """Your own reward instead: path.py:function(problem, completion) → number. Runs in a worker
    process with the limits below."""
    format_weight: NonNegative = 0.0
    """Added when the answer stands where it is asked for (one closed \\boxed{} or the format of
    `kind`)."""
    overlong: Positive | None = None
    """Soft punishment of length: the last N tokens before rollout.max_tokens cost linearly up to
    overlong_penalty (DAPO). null = off."""
    overlong_penalty: NonNegative = 1.0
    """Largest such punishment."""
    workers: Positive = 2
    """Grading processes."""
    timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds a completion may take to grade before its worker is killed; it then counts as
    wrong."""
