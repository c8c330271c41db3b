"""Rollouts of watched runs: read from their files when someone asks, newest step first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megaladder.analysis.report.blocks import Rollout
from megaladder.analysis.report.collect import Inputs
from megaladder.analysis.report.sections.rollouts import Source, as_json, read_rollouts, sources_of
from megaladder.errors import DataError

MAX_SHOWN = 200
MAX_READ = 20_000
MAX_CHARS = 100_000


@dataclass(frozen=True)
class Wanted:
    """What the form of the page asks for; empty = anything."""

    text: str = ""
    problem: str = ""
    source: str = ""
    step: str = ""
    verdict: str = ""
    cut: str = ""
    least: float | None = None
    most: float | None = None

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Wanted:
        """From the fields of the form; a number that is none asks for nothing."""
        texts = ("text", "problem", "source", "step", "verdict", "cut")
        words = {name: given.get(name, "") for name in texts}
        return cls(**words, least=_number(given.get("least")), most=_number(given.get("most")))

    def fits(self, rollout: Rollout) -> bool:
        """Whether a rollout is asked for; as `fits` of the page's script."""
        words = self.text.lower().split()
        text = f"{rollout.question.head}\n{rollout.response.head}{rollout.response.tail}".lower()
        return (
            all(word in text for word in words)
            and self.problem in rollout.problem
            and (not self.verdict or rollout.correct is (self.verdict == "right"))
            and (not self.cut or rollout.truncated is (self.cut == "yes"))
            and (
                self.least is None or (rollout.reward is not None and rollout.reward >= self.least)
            )
            and (self.most is None or (rollout.reward is not None and rollout.reward <= self.most))
        )

    def holds(self, source: Source) -> bool:
        """Whether a file may have what is asked for."""
        return (not self.source or source.name == self.source) and (
            not self.step or str(source.step) == self.step
        )


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def selected(inputs: Inputs, wanted: Wanted) -> dict[str, Any]:
    """The rollouts that are asked for, how many were read for them, and what there is to choose."""
    found: list[dict[str, Any]] = []
    read = 0
    for rollout in _newest_first(inputs, wanted):
        read += 1
        if wanted.fits(rollout):
            found.append(as_json(rollout))
        if len(found) >= MAX_SHOWN or read >= MAX_READ:
            break
    stopped = (
        "; older ones were not looked at" if read >= MAX_READ or len(found) >= MAX_SHOWN else ""
    )
    note = f"{len(found):,} of {read:,} answers read{stopped}"
    return {"rollouts": found, "note": note, "sources": choices(inputs)}


def choices(inputs: Inputs) -> list[dict[str, Any]]:
    """Names of runs and evaluations, each with its steps."""
    steps: dict[str, list[int]] = {}
    for source in sources_of(inputs):
        steps.setdefault(source.name, []).extend([] if source.step is None else [source.step])
    return [{"name": name, "steps": found} for name, found in steps.items()]


def _newest_first(inputs: Inputs, wanted: Wanted) -> Iterator[Rollout]:
    sources = [source for source in sources_of(inputs) if wanted.holds(source)]
    sources.sort(key=lambda source: -1 if source.step is None else source.step, reverse=True)
    for source in sources:
        try:
            yield from read_rollouts(source, MAX_CHARS)
        except (DataError, OSError):  # being written, or gone
            continue
