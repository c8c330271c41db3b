"""What all sections of a report share: the style of each model or run, and numbers as cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megaladder.analysis.report.collect import Inputs
from megaladder.analysis.report.svg import short


@dataclass(frozen=True)
class Palette:
    """Name of a model or run → style, the same on the whole page."""

    names: tuple[str, ...]

    def __getitem__(self, name: str) -> int:
        return self.names.index(name) if name in self.names else len(self.names)

    def legend(self, names: Sequence[str]) -> list[tuple[str, int]]:
        return [(name, self[name]) for name in dict.fromkeys(names)]


def palette(inputs: Inputs) -> Palette:
    """Models first, then runs, in the order of the command line.

    Names that are both share a style."""
    return Palette(tuple(dict.fromkeys([*inputs.models, *(run.name for run in inputs.runs)])))


def span(bounds: Sequence[float] | None, spec: str = ".1f") -> str:
    return f"[{bounds[0]:{spec}}, {bounds[1]:{spec}}]" if bounds else "–"


def number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def amount(value: float | None) -> str:
    return "–" if value is None else short(float(f"{value:.4g}"))
