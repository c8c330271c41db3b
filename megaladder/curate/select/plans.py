"""Training plans of equal budget.

How many unique rows, seen how often, in which batches, make the same number of steps.

Quagmires (arXiv 2510.01624) compares unique samples × epochs at one SFT budget, labelled `25k2ep`;
Rethinking SFT compares 640 steps as 2.5k·bs32·ep8 = 20k·bs32·ep1 = 20k·bs256·ep8. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from megaladder.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """`rows` unique samples, `epochs` passes, batches of `batch` samples.

    >>> Plan(20_480, 8, 256).steps, Plan(2_560, 8, 32).steps, Plan(20_480, 1, 32).steps
    (640, 640, 640)
    """

    rows: int
    epochs: float
    batch: int

    @property
    def steps(self) -> int:
        """Optimizer steps of a plan.

        Whole batches of an epoch (the remainder is dropped, as in the published runs), times
        epochs, rounded up."""
        steps = self.rows // self.batch * Fraction(self.epochs).limit_denominator(10_000)
        return -(-steps.numerator // steps.denominator)

    @property
    def samples_seen(self) -> float:
        return self.rows * self.epochs

    @property
    def label(self) -> str:
        """`25k2ep`; `2.5k8ep`; rows below 1,000 are written out."""
        size = f"{self.rows / 1000:g}k" if self.rows >= 1000 else str(self.rows)
        return f"{size}{self.epochs:g}ep"


def equal_budget(samples_seen: int, epochs: Sequence[int], batch: int) -> list[Plan]:
    """Plans that see `samples_seen` samples in all, one for each number of epochs.

    Raises ConfigError where rows or steps do not divide."""
    plans = []
    for passes in epochs:
        if samples_seen % passes or (samples_seen // passes) % batch:
            raise ConfigError(
                f"budget {samples_seen:,} does not divide into {passes} epochs of whole batches of"
                f" {batch}; fix: a multiple of {batch * passes}, or another batch"
            )
        plans.append(Plan(samples_seen // passes, passes, batch))
    assert len({plan.steps for plan in plans}) <= 1, plans
    return plans
