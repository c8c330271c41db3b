"""The ledger of a run: the work of every phase, in the rows that tell of it and in total.

    row = ledger.book({"train": work, "generation": more})   → {"train_tokens": …, "train_flops": …}

The keys go into the row of metrics.jsonl (or held_out.jsonl, evaluations.jsonl) that the work
belongs to, so a folder's ledger is the sum over its rows, and rows of lost work take theirs with
them. The total is
in every checkpoint and goes on where a run is resumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any, Literal, get_args

from megaladder.ledger.work import Work

Phase = Literal[
    "train",
    "old_logprobs",
    "reference_logprobs",
    "generation",
    "grading",
    "held_out",
    "evaluation",
    "teacher",
]
"""train: forward and backward. old_logprobs, reference_logprobs: forward passes of GRPO. generation,
grading: rollouts, with what dynamic sampling left out. held_out: held-out loss. evaluation:
benchmarks, generated and graded. teacher: data drawn from a teacher, generated and graded."""
PHASES: tuple[Phase, ...] = get_args(Phase)
_MEASURES = tuple(field.name for field in fields(Work))
# what a model learns from; the others only measure
_COST_OF_TRAINING: tuple[Phase, ...] = (
    "train",
    "old_logprobs",
    "reference_logprobs",
    "generation",
    "grading",
    "teacher",
)
ROW_KEYS = tuple(f"{phase}_{measure}" for phase in PHASES for measure in _MEASURES)


class Ledger:
    """Sums of a run so far. The same on every rank."""

    def __init__(self) -> None:
        self._totals: dict[Phase, Work] = {}

    def book(self, work: Mapping[Phase, Work]) -> dict[str, int | float]:
        """Adds the work of some phases; returns it as keys of a row. Measures of 0 have none."""
        for phase, part in work.items():
            self._totals[phase] = self._totals.get(phase, Work()) + part
        return row_of(work)

    @property
    def flops(self) -> float:
        """Model FLOPs of all phases so far."""
        return sum(work.flops for work in self._totals.values())

    def state(self) -> dict[str, Any]:
        """For the checkpoint; plain JSON."""
        return {phase: asdict(work) for phase, work in self._totals.items()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Takes back what `state` gave."""
        self._totals = {phase: Work(**saved[phase]) for phase in PHASES if phase in saved}

    def lines(self) -> list[tuple[str, str]]:
        """A row of a final table for each phase."""
        return [(f"ledger: {_words(p)}", describe(self._totals[p])) for p in self._totals]


def row_of(work: Mapping[Phase, Work]) -> dict[str, int | float]:
    """`{"train_tokens": 512, "train_flops": 1.5e9}`: what is not 0."""
    return {
        f"{phase}_{measure}": value
        for phase, part in work.items()
        for measure, value in asdict(part).items()
        if value
    }


def read_work(row: Mapping[str, Any]) -> dict[Phase, Work]:
    """The work in a row that `book` filled."""
    found: dict[Phase, Work] = {}
    for phase in PHASES:
        values = {m: row[key] for m in _MEASURES if (key := f"{phase}_{m}") in row}
        if values:
            found[phase] = Work(**values)
    return found


def add_up(rows: Iterable[Mapping[str, Any]]) -> dict[Phase, Work]:
    """The ledger of rows together."""
    ledger: dict[Phase, Work] = {}
    for row in rows:
        for phase, work in read_work(row).items():
            ledger[phase] = ledger.get(phase, Work()) + work
    return ledger


def training_flops(work: Mapping[Phase, Work]) -> float:
    """Model FLOPs of what a model learned from: all but held-out losses and evaluations."""
    return sum(part.flops for phase, part in work.items() if phase in _COST_OF_TRAINING)


def describe(work: Work) -> str:
    """`1,024 tokens (256 of prompts), 3.1e+09 FLOPs, 0.5 CPU s`."""
    prompts = f" ({work.prompt_tokens:,} of prompts)" if work.prompt_tokens else ""
    parts = [f"{work.tokens:,} tokens{prompts}, {work.flops:.3g} FLOPs"] if work.tokens else []
    parts += [f"{work.cpu_s:.1f} CPU s of grading"] if work.cpu_s else []
    return ", ".join(parts) or "nothing"


def _words(phase: Phase) -> str:
    return phase.replace("_", " ")
