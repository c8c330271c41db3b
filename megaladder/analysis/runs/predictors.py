"""What `analyze predict` needs of run folders.

Each evaluated SFT step beside the score of the GRPO that began with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megaladder.analysis.runs.record import RunRecord, Runs, Score
from megaladder.analysis.samples.files import flatten
from megaladder.analysis.samples.sets import SampleSet
from megaladder.errors import DataError
from megaladder.run_dir import to_json

# settings that say how long a run is, or where it lies, but not what it is
_LENGTH_KEYS = ("run_dir", "train.epochs", "train.max_steps", "checkpoint.", "log.", "evaluate.")


@dataclass(frozen=True)
class SftStep:
    """One row.

    `series`: equal for runs that differ in training length only. `before`, `after`: the samples by
    benchmark, of the step and of the GRPO runs that began with it (none: a candidate)."""

    name: str
    series: str
    num_updates: int
    before: tuple[SampleSet, ...]
    after: tuple[SampleSet, ...]
    held_out: float | None


def sft_steps(runs: Runs, benchmarks: Sequence[str]) -> list[SftStep]:
    """All evaluated steps after the first of all SFT runs, on the same benchmarks.

    A step without a held-out loss, where others have one, is left out with a warning unless GRPO
    began with it.

    Raises:
        DataError: the steps have no benchmark in common.
    """
    places = [(r, step) for r in runs if r.stage == "sft" for step in r.steps if step > 0]
    names = benchmarks or _common(runs, places)
    if not names:  # evaluations while training may have other benchmarks than those of the end
        places = [(r, step) for r, step in places if step == r.steps[-1] or runs.children(r, step)]
        names = _common(runs, places)
    if places and not names:
        raise DataError(
            "the evaluated SFT steps and the GRPO runs have no benchmark in common; found"
            f" {', '.join(runs.benchmarks)}; fix: evaluate all on one, or --benchmark"
        )
    rows = [row for place in places if (row := _row(runs, *place, names)) is not None]
    measured = [row for row in rows if row.held_out is not None or row.after]
    if any(row.held_out is not None for row in rows) and len(measured) < len(rows):
        runs.warnings.add(
            f"{len(rows) - len(measured)} evaluated SFT steps without a held-out loss and without"
            " GRPO after them left out"
        )
        return measured
    return rows


def _row(runs: Runs, record: RunRecord, step: int, names: Sequence[str]) -> SftStep | None:
    scores = {name: runs.score(record, name, step) for name in names}
    missing = [name for name, score in scores.items() if score is None]
    label = runs.label(record, step)
    if missing:
        runs.warnings.add(f"{label}: not evaluated on {', '.join(missing)}, left out")
        return None
    return SftStep(
        label,
        series_of(record.config),
        step,
        tuple(runs.samples(record, score) for score in scores.values() if score is not None),
        tuple(_after(runs, runs.children(record, step), names)),
        record.held_out.get(step),
    )


def _after(runs: Runs, children: Sequence[RunRecord], names: Sequence[str]) -> Iterator[SampleSet]:
    """The samples of the last step of each GRPO run that has all the benchmarks."""
    for child in (child for child in children if child.stage == "grpo"):
        scores: list[Score | None] = [runs.last(child, name) for name in names]
        if None in scores:
            runs.warnings.add(f"{child.name}: not evaluated on all of {', '.join(names)}, left out")
            continue
        yield from (runs.samples(child, score) for score in scores if score is not None)


def _common(runs: Runs, places: Sequence[tuple[RunRecord, int]]) -> list[str]:
    """Benchmarks that every SFT step has, and every GRPO run with scores."""
    sets = [{s.benchmark for s in record.scores if s.step == step} for record, step in places]
    sets += [set(record.benchmarks) for record in runs.evaluated if record.stage == "grpo"]
    return [name for name in runs.benchmarks if all(name in found for found in sets)]


def series_of(config: Mapping[str, Any]) -> str:
    """A digest of a run's configuration without what decides its length and place."""
    settings = {
        key: value
        for key, value in flatten(dict(config)).items()
        if not key.startswith(_LENGTH_KEYS)
    }
    return hashlib.sha256(to_json(settings, sort_keys=True).encode()).hexdigest()[:12]
