"""Charts as inline SVG.

Colours and fonts come from the page's CSS (classes s0…s7), so one drawing serves light, dark and
print.

Line and scatter charts have a fixed drawing size near a phone's width and are laid out in a grid;
strips (one value with its interval) use percent coordinates and stretch with their table cell.
Everything textual is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 232
RIGHT, TOP, BOTTOM = 12, 10, 38
TICK_CHAR_WIDTH = 6.2  # of the 11 px tick labels, which decide the left margin
NUM_STYLES = 8
# points of one line; more are drawn as means of equal runs of steps (the CSV holds all)
MAX_DRAWN = 400


@dataclass(frozen=True)
class Series:
    """Points (x, y) with optional bounds (low, high) a point, and optional labels for the tooltip.

    `style` picks colour and marker."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 0
    bounds: Sequence[tuple[float, float] | None] = ()
    labels: Sequence[str] = ()
    line: bool = True


@dataclass(frozen=True)
class Chart:
    """One panel.

    `x_log` draws x on a log2 axis; `y_range` fixes the y axis, else it fits the data. `note` goes
    under the title."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_log: bool = False
    y_range: tuple[float, float] | None = None
    note: str = ""
    csv_name: str = ""

    def svg(self) -> str:
        return draw(self)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round tick values that cover [low, high]."""
    # equal but for rounding: an axis around the value
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = abs(low) * 0.05 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / max(1, count - 1)
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of two (every second, fourth … where they would crowd)."""
    first, last = math.floor(math.log2(low) + 1e-9), math.ceil(math.log2(high) - 1e-9)
    stride = max(1, math.ceil((last - first + 1) / 7))
    return [2.0**i for i in range(first, last + 1, stride)]


def short(value: float) -> str:
    """Axis label: 1500 → 1.5k, 0.00005 → 5e-5."""
    if value == 0:
        return "0"
    size = abs(value)
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}" if size >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def _power(value: float) -> str:
    """Label of a power of two: 512, 1k = 1024, 16k."""
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def draw(chart: Chart) -> str:
    """The panel as an <svg> element."""
    series = [_thin(item) for item in chart.series if item.points]
    xs = [x for item in series for x, _ in item.points]
    ys = [y for item in series for _, y in item.points] + [
        v for item in series for pair in item.bounds if pair for v in pair
    ]
    x_ticks = log_ticks(min(xs), max(xs)) if chart.x_log else nice_ticks(min(xs), max(xs))
    y_ticks = nice_ticks(*(chart.y_range or (min(ys), max(ys))))
    x_low, x_high = (min(xs), max(xs)) if min(xs) < max(xs) else (x_ticks[0], x_ticks[-1])
    if not chart.x_log and not any(item.line for item in series):  # dots would sit on the frame
        x_low, x_high = x_low - 0.04 * (x_high - x_low), x_high + 0.04 * (x_high - x_low)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    y_labels = [short(y) for y in y_ticks]
    left = max(30.0, 10 + TICK_CHAR_WIDTH * max(map(len, y_labels)))

    def px(x: float) -> float:
        share = (
            math.log(x / x_low) / math.log(x_high / x_low)
            if chart.x_log and x_high > x_low
            else (x - x_low) / ((x_high - x_low) or 1)
        )
        return left + share * (WIDTH - left - RIGHT)

    def py(y: float) -> float:
        return (
            HEIGHT
            - BOTTOM
            - (min(max(y, y_low), y_high) - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        )

    label = escape(f"{chart.title}: {chart.y_label} by {chart.x_label}")
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">',
        *_axes(chart, x_ticks, dict(zip(y_ticks, y_labels, strict=True)), px, py),
    ]
    for item in series:
        parts.append(_bounds_shape(item, px, py))
    for item in series:
        parts.append(_marks(item, px, py))
    return "".join(parts) + "</svg>"


def _axes(chart: Chart, x_ticks: list[float], y_labels: dict[float, str], px, py) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    left = max(30.0, 10 + TICK_CHAR_WIDTH * max(map(len, y_labels.values())))
    parts = []
    for y, text in y_labels.items():
        parts.append(
            f'<line class="grid" x1="{left:.1f}" x2="{right}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{left - 6:.1f}" y="{py(y) + 3.5:.1f}"'
            f' text-anchor="end">{text}</text>'
        )
    for x in x_ticks:
        at = px(x)
        if left - 1 <= at <= right + 1:
            parts.append(
                f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            )
            anchor, text = (
                "end" if at > right - 12 else "middle",
                _power(x) if chart.x_log else short(x),
            )
            parts.append(
                f'<text class="tick" x="{min(at, right):.1f}" y="{bottom + 16}"'
                f' text-anchor="{anchor}">{text}</text>'
            )
    parts.append(f'<line class="axis" x1="{left:.1f}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(
        f'<text class="label" x="{(left + right) / 2:.1f}" y="{HEIGHT - 4}"'
        f' text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    return parts


def _bounds_shape(item: Series, px, py) -> str:
    """A band under a line, whiskers at scatter points."""
    pairs = [(point, pair) for point, pair in zip(item.points, item.bounds, strict=False) if pair]
    if not pairs:
        return ""
    if item.line and len(pairs) > 1:
        up = " ".join(f"{px(x):.1f},{py(high):.1f}" for (x, _), (_, high) in pairs)
        down = " ".join(f"{px(x):.1f},{py(low):.1f}" for (x, _), (low, _) in reversed(pairs))
        return f'<polygon class="band s{item.style % NUM_STYLES}" points="{up} {down}"/>'
    lines = (
        f'<line class="whisker s{item.style % NUM_STYLES}" x1="{px(x):.1f}" x2="{px(x):.1f}"'
        f' y1="{py(b[0]):.1f}" y2="{py(b[1]):.1f}"/>'
        for (x, _), b in pairs
    )
    return "".join(lines)


def _marks(item: Series, px, py) -> str:
    style = item.style % NUM_STYLES
    parts = []
    if item.line and len(item.points) > 1:
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in item.points)
        parts.append(f'<polyline class="line s{style}" points="{path}"/>')
    if len(item.points) <= 40 or not item.line:
        for i, (x, y) in enumerate(item.points):
            tip = item.labels[i] if i < len(item.labels) else f"{item.name}: {short(x)}, {y:.4g}"
            parts.append(
                '<g class="mark'
                f' s{style}">{marker(style, px(x), py(y))}<title>{escape(tip)}</title></g>'
            )
    return "".join(parts)


def marker(style: int, x: float, y: float, r: float = 3.2) -> str:
    """Circle, square, diamond, triangle in turn.

    So series can be told apart without colour."""
    kind = style % 4
    if kind == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    if kind == 1:
        return f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"/>'
    reach = r * 1.35
    if kind == 2:
        return (
            f'<path d="M{x:.1f} {y - reach:.1f}L{x + reach:.1f} {y:.1f}L{x:.1f}'
            f' {y + reach:.1f}L{x - reach:.1f} {y:.1f}Z"/>'
        )
    return (
        f'<path d="M{x:.1f} {y - reach:.1f}L{x + reach:.1f} {y + r:.1f}L{x - reach:.1f}'
        f' {y + r:.1f}Z"/>'
    )


def _thin(item: Series) -> Series:
    """At most MAX_DRAWN points: means over equal runs of points."""
    size = math.ceil(len(item.points) / MAX_DRAWN)
    if size <= 1 or not item.line:
        return item
    groups = [item.points[i : i + size] for i in range(0, len(item.points), size)]
    points = [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]
    return Series(item.name, points, item.style)


def legend_key(style: int) -> str:
    """The small swatch of an HTML legend."""
    s = style % NUM_STYLES
    drawn = (
        f'<line class="line s{s}" x1="1" x2="21" y1="6" y2="6"/><g class="mark'
        f' s{s}">{marker(s, 11, 6)}</g>'
    )
    return f'<svg class="key" viewBox="0 0 22 12" aria-hidden="true">{drawn}</svg>'


def strip(
    value: float | None,
    bounds: Sequence[float] | None,
    style: int,
    low: float = 0.0,
    high: float = 100.0,
    label: str = "",
) -> str:
    """A value with its interval on the scale [low, high], as wide as its cell."""

    def at(x: float) -> str:
        return f"{1 + 98 * (min(max(x, low), high) - low) / (high - low):.2f}%"

    s = style % NUM_STYLES
    parts = [
        f'<svg class="strip" role="img" aria-label="{escape(label)}"><line class="axis" x1="1%"'
        ' x2="99%" y1="50%" y2="50%"/>'
    ]
    parts += [
        f'<line class="grid" x1="{at(low + q * (high - low))}" x2="{at(low + q * (high - low))}"'
        ' y1="15%" y2="85%"/>'
        for q in (0, 0.25, 0.5, 0.75, 1)
    ]
    if bounds:
        parts.append(
            f'<line class="whisker s{s}" x1="{at(bounds[0])}" x2="{at(bounds[1])}" y1="50%"'
            ' y2="50%"/>'
        )
    if value is not None:
        parts.append(f'<g class="mark s{s}"><circle cx="{at(value)}" cy="50%" r="4.5"/></g>')
    return "".join(parts) + f"<title>{escape(label)}</title></svg>"


def signed_log(x: float) -> float:
    """sign(x)·log10(1 + |x|).

    The axis of transferability plots, where values run from −1000 to 1000 %."""
    return math.copysign(math.log10(1 + abs(x)), x)


def bar(value: float | None, reach: float, style: int, label: str = "") -> str:
    """A bar from zero in the middle on a signed-log scale up to ±`reach`, as wide as its cell."""
    parts = [f'<svg class="strip" role="img" aria-label="{escape(label)}">']
    for tick in (-1000, -100, -10, 0, 10, 100, 1000):
        if abs(tick) <= reach:
            at = 50 + 48 * signed_log(tick) / signed_log(reach)
            parts.append(
                f'<line class="{"axis" if tick == 0 else "grid"}" x1="{at:.2f}%" x2="{at:.2f}%"'
                ' y1="5%" y2="95%"/>'
            )
    if value is not None:
        end = 50 + 48 * signed_log(value) / signed_log(reach)
        parts.append(
            f'<rect class="bar s{style % NUM_STYLES}" x="{min(50, end):.2f}%"'
            f' width="{abs(end - 50):.2f}%" y="22%" height="56%"/>'
        )
    return "".join(parts) + f"<title>{escape(label)}</title></svg>"
