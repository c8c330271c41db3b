"""Learning rate as a pure function of the step; no state to save."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from megaladder.config.sections.shared import OptimSection


@dataclass(frozen=True, slots=True)
class LrSchedule:
    """Linear warm-up from 0 over `warmup_steps`, then `kind` over the rest of `total_steps`.

    wsd (warm-up, stable, decay) holds the peak and falls linearly to `min_lr` over the last
    `decay_steps`. Decays aim at `min_lr` one step past the end, so that no update is spent on a
    learning rate of 0.
    """

    kind: Literal["cosine", "linear", "constant", "wsd"]
    peak_lr: float
    min_lr: float
    warmup_steps: int
    total_steps: int
    decay_steps: int = 0

    def lr(self, step: int) -> float:
        """Learning rate of the update that completes step `step` (1-based).

        The first update of a 10-step warm-up uses peak / 10."""
        if step <= self.warmup_steps:
            return self.peak_lr * step / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps + 1))
        if self.kind == "constant":
            return self.peak_lr
        if self.kind == "wsd":
            progress = max(
                0.0,
                min(1.0, (step - (self.total_steps - self.decay_steps)) / (self.decay_steps + 1)),
            )
        share = (
            0.5 * (1.0 + math.cos(math.pi * progress)) if self.kind == "cosine" else 1.0 - progress
        )
        return self.min_lr + (self.peak_lr - self.min_lr) * share


def build_schedule(optim: OptimSection, total_steps: int) -> LrSchedule:
    """The learning-rate schedule of a run.

    The warm-up is `warmup_steps`, else `warmup_ratio` of all steps (rounded up, as in verl).
    """
    warmup = (
        optim.warmup_steps
        if optim.warmup_steps is not None
        else math.ceil(optim.warmup_ratio * total_steps)
    )
    return LrSchedule(
        kind=optim.schedule,
        peak_lr=optim.lr,
        min_lr=optim.min_lr,
        warmup_steps=min(warmup, total_steps),
        total_steps=total_steps,
        decay_steps=(
            math.ceil(optim.wsd_decay_ratio * total_steps) if optim.schedule == "wsd" else 0
        ),
    )
