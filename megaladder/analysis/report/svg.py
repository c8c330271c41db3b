"""Small drawings inside tables and legends, as inline SVG.

An interval, a bar, a key. Colours come from the page's CSS (classes s0…s7), so one drawing serves
light, dark and print.

They use percent coordinates and stretch with their table cell. Everything textual is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from megaladder.analysis.report.charts import NUM_COLOURS, Look


def legend_key(style: int) -> str:
    """The line of a legend, with the colour, the dashes and the mark that the charts draw."""
    look = Look.of(style)
    dash = f' stroke-dasharray="{" ".join(map(str, look.dash))}"' if look.dash else ""
    drawn = f'<line class="line s{look.colour}" x1="1" x2="33" y1="6" y2="6"{dash}/>'
    if look.mark:
        drawn += f'<path class="s{look.colour}" transform="translate(17 6)" d="{look.mark}"/>'
    return f'<svg class="key" viewBox="0 0 34 12" aria-hidden="true">{drawn}</svg>'


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

    s = style % NUM_COLOURS
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


def filled(share: float | None, style: int, label: str = "") -> str:
    """A bar that is full at a share of 1, as wide as its cell."""
    width = 98 * min(max(share or 0.0, 0.0), 1.0)
    return (
        f'<svg class="strip" role="img" aria-label="{escape(label)}"><rect class="track" x="1%"'
        f' width="98%" y="32%" height="36%"/><rect class="bar s{style % NUM_COLOURS}" x="1%"'
        f' width="{width:.2f}%" y="32%" height="36%"/><title>{escape(label)}</title></svg>'
    )


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
            f'<rect class="bar s{style % NUM_COLOURS}" x="{min(50, end):.2f}%"'
            f' width="{abs(end - 50):.2f}%" y="22%" height="56%"/>'
        )
    return "".join(parts) + f"<title>{escape(label)}</title></svg>"
