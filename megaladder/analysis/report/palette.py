"""The style of each model or run: the same on the whole page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megaladder.analysis.report.collect import Inputs


@dataclass(frozen=True)
class Palette:
    """Name of a model or run → style."""

    names: tuple[str, ...]

    def __getitem__(self, name: str) -> int:
        return self.names.index(name) if name in self.names else len(self.names)

    def legend(self, names: Sequence[str]) -> list[tuple[str, int]]:
        return [(name, self[name]) for name in dict.fromkeys(names)]


def palette(inputs: Inputs) -> Palette:
    """Runs first, then models, in the order of the ladder; names that are both share a style."""
    return Palette(tuple(dict.fromkeys([*(run.name for run in inputs.runs), *inputs.models])))
