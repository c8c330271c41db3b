"""Which of the records' scores a study takes."""

from __future__ import annotations

from collections.abc import Sequence

from megaladder.analysis.runs.record import RunRecord, Runs, Score
from megaladder.errors import DataError


def every_score(runs: Runs, only: Sequence[str] = ()) -> dict[str, tuple[RunRecord, Score]]:
    """Model (and step), benchmark and thinking budget as a name → record and score.

    Of all scores with samples; `only`: of these benchmarks. Raises DataError for none."""
    found: dict[str, tuple[RunRecord, Score]] = {}
    for record in runs:
        for score in record.scores:
            if score.samples is None or (only and score.benchmark not in only):
                continue
            name = name_of(runs, record, score)
            found[name if name not in found else str(score.samples)] = (record, score)
    if not found:
        raise DataError(
            f"no stored samples of {', '.join(only) or 'any benchmark'}; found"
            f" {', '.join(runs.benchmarks) or 'none'}; fix: --benchmark, or the folder of an"
            " evaluation"
        )
    return found


def name_of(runs: Runs, record: RunRecord, score: Score) -> str:
    """`run/step_40/aime24`, with the settings of a thinking budget behind it."""
    parts = [runs.label(record, score.step), score.benchmark, *budget_words(score)]
    return "/".join(part for part in parts if part)


def budget_words(score: Score) -> list[str]:
    """The settings of a thinking budget that were set, e.g. `max_thinking=500`."""
    return [f"{key}={value}" for key, value in score.budget.items() if value and key in _SHOWN]


_SHOWN = ("max_thinking", "num_waits", "reject_above", "tokens", "steps", "effort", "cut_at")


def sample_paths(runs: Runs, only: Sequence[str] = ()) -> dict[str, str]:
    """Name → file of samples, of every score that has them."""
    return {name: str(score.samples) for name, (_, score) in every_score(runs, only).items()}
