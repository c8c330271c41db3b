"""Charts as data: what `page/charts.js` draws, zooms and reads out.

A line holds at most as many points as its share of `MAX_POINTS` allows, between `FEWEST` and `MOST`;
a longer one becomes means over equal runs of steps, and says so. The CSV holds every point.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import overload

import numpy as np

from megaladder.analysis.report.formats import chart_number

NUM_COLOURS = 8
# of a line, in pixels: drawn, left out, …
DASHES: tuple[tuple[int, ...], ...] = ((), (8, 3), (2, 3), (10, 3, 2, 3))
# on a line: SVG paths around (0, 0), as wide as the keys of a legend allow
MARKS = (
    "",
    "M-4 -4H4V4H-4Z",
    "M0 -5L5 4H-5Z",
    "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
    "M0 5L5 -4H-5Z",
    "M-1.6 -5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5V-1.6H-1.6Z",
    "M-5 -5L5 5L5 -5L-5 5Z",
)
# of all lines of a page together, and of one
MAX_POINTS = 120_000
FEWEST, MOST = 16, 400
_X_DIGITS = 9


class Curve(Sequence[tuple[float, float]]):
    """The points of a long line, kept as arrays: steps int64 [N] and values float64 [N]."""

    def __init__(self, steps: np.ndarray, values: np.ndarray) -> None:
        self.steps, self.values = steps, values

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, place: int) -> tuple[float, float]: ...
    @overload
    def __getitem__(self, place: slice) -> Curve: ...
    def __getitem__(self, place: int | slice) -> tuple[float, float] | Curve:
        if isinstance(place, slice):
            return Curve(self.steps[place], self.values[place])
        return int(self.steps[place]), float(self.values[place])

    def array(self) -> np.ndarray:
        """Float64 [N, 2]."""
        return np.column_stack([self.steps.astype(np.float64), self.values])


@dataclass(frozen=True)
class Look:
    """How the lines of one model or run are told from the others.

    Without its colour too: dashes and mark are a pair of its own for each of the first 28 styles;
    with the colour 56 are different."""

    colour: int
    dash: tuple[int, ...]
    mark: str

    @classmethod
    def of(cls, style: int) -> Look:
        row, column = divmod(style, len(DASHES))
        return cls(style % NUM_COLOURS, DASHES[column], MARKS[row % len(MARKS)])


@dataclass(frozen=True)
class Series:
    """Points (x, y) of one line, with optional bounds (low, high) and labels for the tooltip.

    `style` picks its `Look`; `line` False: dots."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 0
    bounds: Sequence[tuple[float, float] | None] = ()
    labels: Sequence[str] = ()
    line: bool = True
    every: int = 1  # points of the run behind each one


@dataclass(frozen=True)
class Chart:
    """One panel.

    `x_log` draws x on a log2 axis; `y_range` is the least that the y axis shows, else it fits the
    data. `note` goes under the title."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_log: bool = False
    y_range: tuple[float, float] | None = None
    note: str = ""
    csv_name: str = ""

    @property
    def description(self) -> str:
        """For who cannot see it."""
        return f"{self.title}: {self.y_label} by {self.x_label}"


def points_a_line(num_lines: int) -> int:
    """How many points each line of a page with so many may have."""
    return min(MOST, max(FEWEST, MAX_POINTS // max(1, num_lines)))


def thin(series: Series, limit: int) -> Series:
    """Means over equal runs of points where there are more than `limit`.

    Dots and lines with an interval stay."""
    size = math.ceil(len(series.points) / limit)
    if size <= 1 or not series.line or series.bounds:
        return series
    given = series.points
    points = given.array() if isinstance(given, Curve) else np.asarray(given, dtype=np.float64)
    starts = np.arange(0, len(points), size)
    counts = np.diff([*starts, len(points)])[:, None]
    means = np.add.reduceat(points, starts, axis=0) / counts
    return replace(series, points=[(float(x), float(y)) for x, y in means], every=size)


@dataclass
class Encoder:
    """Charts as JSON text. Lines of one run share their x: `xs` holds each list once."""

    limit: int
    _places: dict[str, int] = field(default_factory=dict)
    _charts: list[str] = field(default_factory=list)

    def add(self, chart: Chart) -> int:
        """The place of the chart in the data."""
        series = [self._series(thin(one, self.limit)) for one in chart.series if one.points]
        given = {"x": chart.x_label, "y": chart.y_label, "log": chart.x_log, "range": chart.y_range}
        head = json.dumps(given, ensure_ascii=False)
        self._charts.append(f'{head[:-1]}, "series": [{", ".join(series)}]}}')
        return len(self._charts) - 1

    def text(self) -> str:
        """`{"xs": [[…]], "charts": [{…}]}`."""
        xs, charts = ", ".join(self._places), ",\n".join(self._charts)
        return f'{{"xs": [{xs}], "charts": [{charts}]}}'

    def _series(self, series: Series) -> str:
        points = sorted(zip(series.points, range(len(series.points)), strict=True))
        order = [place for _, place in points]
        xs = [x for (x, _), _ in points]
        place = self._places.setdefault(_steps(xs), len(self._places))
        look = Look.of(series.style)
        given = {"n": series.name, "s": look.colour, "x": place}
        given |= {"dash": look.dash} if look.dash else {}
        given |= {"mark": look.mark} if look.mark else {}
        given |= {} if series.line else {"dots": True}
        given |= {"every": series.every} if series.every > 1 else {}
        given |= {"labels": [series.labels[i] for i in order]} if series.labels else {}
        parts = [json.dumps(given, ensure_ascii=False)[:-1]]
        parts.append(f'"v": {_numbers(y for (_, y), _ in points)}')
        if any(series.bounds):
            bounds = [_bound(series, i) for i in order]
            parts += [f'"lo": {_numbers(b[0] for b in bounds)}']
            parts += [f'"hi": {_numbers(b[1] for b in bounds)}']
        return ", ".join(parts) + "}"


def _bound(series: Series, place: int) -> tuple[float, float]:
    found = series.bounds[place] if place < len(series.bounds) else None
    return found or (math.nan, math.nan)


def _numbers(values) -> str:
    return f"[{','.join(map(chart_number, values))}]"


def _steps(xs: Sequence[float]) -> str:
    """A list of numbers; `{"from": 1, "by": 1, "n": 640}` for equal steps."""
    texts = [f"{x:.{_X_DIGITS}g}" for x in xs]
    if len(xs) > 3 and len({f"{b - a:.6g}" for a, b in pairwise(xs)}) == 1:
        by = (xs[-1] - xs[0]) / (len(xs) - 1)
        return f'{{"from": {texts[0]}, "by": {by:.{_X_DIGITS}g}, "n": {len(xs)}}}'
    return f"[{','.join(texts)}]"
