"""The numbers of a run's JSONL files as columns, read on from where the last reading ended.

A file that a run appends to may be 100 MB long: only what is new is read (`files.growing`), and only
its numbers are kept.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.errors import DataError
from megaladder.files.growing import GrowingLines

METRIC_FILES = ("metrics.jsonl", "held_out.jsonl")

Reject = Callable[[str], None]


@dataclass
class Columns:
    """Rows of numbers by step: `steps` [N] and for each key N values, NaN where a row has none."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: dict[str, array[float]] = field(default_factory=dict)

    def add(self, row: dict[str, Any], step: int) -> None:
        """Appends a row."""
        before = len(self.steps)
        self.steps.append(step)
        for key, value in row.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or key == "step":
                continue
            column = self.values.get(key)
            if column is None:
                column = self.values[key] = array("d", [math.nan]) * before
            column.extend([math.nan] * (before - len(column)))
            column.append(_as_float(value))

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps int64 [M] and values float64 [M] where there are some, by step.

        Of a step that occurs twice the later row."""
        column = np.array(self.values.get(key, ()), dtype=np.float64)
        steps = np.array(self.steps, dtype=np.int64)[: len(column)]
        known = ~np.isnan(column)
        steps, column = steps[known][::-1], column[known][::-1]
        unique, places = np.unique(steps, return_index=True)
        return unique, column[places]


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.nan


@dataclass
class Tail:
    """A growing file of JSON lines.

    `refuse` is told what is wrong with a line, which is then left out; it may raise."""

    path: Path
    refuse: Reject
    columns: Columns = field(default_factory=Columns)
    lines: GrowingLines = field(init=False)

    def __post_init__(self) -> None:
        self.lines = GrowingLines(self.path)

    def read(self) -> bool:
        """Reads what is new; whether anything changed."""
        changed, lines = self.lines.look()
        if changed:
            self.columns = Columns()
        for line in lines:
            changed = True
            self._take(line, f"{self.path}:{self.lines.number}")
        return changed

    def _take(self, line: bytes, where: str) -> None:
        if not line.strip():
            return
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            return self.refuse(f"{where}: not JSON ({str(error)[:120]}); fix: delete that line")
        if not isinstance(row, dict):
            return self.refuse(
                f"{where}: expected a JSON object, found {type(row).__name__}; fix: delete that line"
            )
        step = row.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or abs(step) >= 1 << 62:
            return self.refuse(
                f"{where}: 'step' is {step!r}, expected a whole number; fix: delete that line"
            )
        self.columns.add(row, step)
        return None


def stop_at(problem: str) -> None:
    """A line that is none ends the reading."""
    raise DataError(problem)


@dataclass(frozen=True)
class Metrics:
    """What a run wrote by step, over its files."""

    tails: tuple[Tail, ...]

    @classmethod
    def of(cls, folder: Path, refuse: Reject = stop_at) -> Metrics:
        """The files of a run folder; nothing is read yet."""
        return cls(tuple(Tail(folder / name, refuse) for name in METRIC_FILES))

    def read(self) -> bool:
        """Reads what is new in each; whether anything changed."""
        changed = [tail.read() for tail in self.tails]
        return any(changed)

    @property
    def keys(self) -> list[str]:
        """Of numbers, in order of appearance."""
        return list(dict.fromkeys(key for tail in self.tails for key in tail.columns.values))

    @property
    def last_step(self) -> int:
        """0 before the first."""
        return max((max(tail.columns.steps, default=0) for tail in self.tails), default=0)

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a key: of the file that has most of them."""
        curves = [tail.columns.curve(key) for tail in self.tails]
        return max(curves, key=lambda curve: len(curve[0]))

    def last(self, key: str) -> float | None:
        """The newest value of a key."""
        values = self.curve(key)[1]
        return float(values[-1]) if len(values) else None

    def total(self, key: str) -> float:
        """Sum over steps; 0 for a key that no row has."""
        return float(self.curve(key)[1].sum())

    @property
    def notes(self) -> list[str]:
        """What a reader should know about the files."""
        told = []
        for tail in self.tails:
            if tail.lines.torn:
                told.append(
                    f"{tail.path}: its last line is torn (still being written, or the run was"
                    " killed) and is left out."
                )
            elif not len(tail.columns.steps) and tail is self.tails[0]:
                told.append(f"{tail.path}: is empty (the run has not finished a step).")
        return told
