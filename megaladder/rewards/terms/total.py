"""The sum: Σ weight × value over the configured terms, with its breakdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megaladder.config.sections.reward import FunctionTerm, RewardSection
from megaladder.errors import RewardError
from megaladder.rewards.terms.builtin import NEEDS_VERDICT, Sample, value_of
from megaladder.rewards.terms.function_pool import FunctionPool, Value

LARGEST = 1e9
"""A larger reward is a mistake; its group's statistics would overflow."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A sample's reward and what it is made of; reward None: undecided, never trained on."""

    reward: float | None
    terms: dict[str, float]
    why: str = ""


class RewardTerms:
    """The terms of a configuration, ready to score. Holds the processes of users' functions."""

    def __init__(self, config: RewardSection):
        self._terms = config.terms
        self._pools = {
            term.label: FunctionPool(term.function, config.workers, term.timeout_s)
            for term in config.terms_of(FunctionTerm)
        }

    def score(self, samples: Sequence[Sample]) -> list[Scored]:
        """Rewards in the order of the samples.

        Raises:
            RewardError: a function raised, or a value is no finite number; names the sample.
        """
        messages = [message_of(sample) for sample in samples] if self._pools else []
        columns = {label: pool.values(messages) for label, pool in self._pools.items()}
        return [
            self._sum(sample, {label: values[place] for label, values in columns.items()})
            for place, sample in enumerate(samples)
        ]

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the processes of users' functions so far."""
        return sum(pool.cpu.seconds for pool in self._pools.values())

    def _sum(self, sample: Sample, values: dict[str, Value]) -> Scored:
        found: dict[str, float] = {}
        for term in self._terms:
            if sample.graded.correct is None and isinstance(term, NEEDS_VERDICT):
                return Scored(None, {}, sample.graded.detail or "no verdict")
            value = values[term.label] if isinstance(term, FunctionTerm) else value_of(term, sample)
            if isinstance(value, str):
                return Scored(None, {}, f"{term.label}: {value}")
            if value is not None:
                found[term.label] = term.weight * value
        total = math.fsum(found.values())
        if not abs(total) <= LARGEST:
            raise RewardError(
                f"sample {sample.id}: reward {total:g} ({found}); fix: terms whose sum is below"
                f" {LARGEST:g}"
            )
        return Scored(total, found)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


def message_of(sample: Sample) -> dict[str, Any]:
    """A sample as users' functions see it (`signatures.Message`)."""
    problem = sample.problem
    messages = [{"role": each.role, "content": each.content} for each in problem.prompt]
    return {
        "id": sample.id,
        "prompt": problem.prompt_text or "\n\n".join(each.content for each in problem.prompt),
        "messages": messages if problem.conversational else None,
        "completion": sample.completion.text,
        "completion_ids": list(sample.completion.token_ids),
        "gold": problem.gold,
        "kind": problem.kind,
        "source": problem.source,
        "correct": sample.graded.correct,
        "metadata": dict(problem.metadata),
    }
