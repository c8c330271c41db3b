"""Numbers as the page shows them. Every number is rounded here, once, from its full precision.

None, NaN and infinities are `–`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

NOTHING = "–"
# of a point of a chart: what its tooltip shows, as it is
CHART_DIGITS = 5
_UNITS = (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12))


def fixed(value: float | None, digits: int = 1) -> str:
    """`12.3`: digits after the point."""
    return _with(value, f".{digits}f")


def signed(value: float | None, digits: int = 1) -> str:
    """`+12.3`."""
    return _with(value, f"+.{digits}f")


def significant(value: float | None, digits: int = 3) -> str:
    """`0.0123`, `1.23e+09`."""
    return _with(value, f".{digits}g")


def count(value: float | None) -> str:
    """`12,345`."""
    return _with(value, ",.0f")


def percent(share: float | None, digits: int = 1) -> str:
    """A share of one as `12.3 %`."""
    return NOTHING if share is None else f"{_with(100 * share, f'.{digits}f')} %"


def span(bounds: Sequence[float] | None, digits: int = 1) -> str:
    """`[12.3, 15.0]`."""
    return f"[{fixed(bounds[0], digits)}, {fixed(bounds[1], digits)}]" if bounds else NOTHING


def signed_span(bounds: Sequence[float] | None, digits: int = 1) -> str:
    """`[-1.2, +3.4]`."""
    return f"[{signed(bounds[0], digits)}, {signed(bounds[1], digits)}]" if bounds else NOTHING


def amount(value: float | None, digits: int = 4) -> str:
    """`1.5k`, `12.34M`, `2.5e+15`; less than a thousand as it is."""
    if value is None or not math.isfinite(value):
        return NOTHING
    # the unit is that of the rounded value: 999,999 is 1M
    size = abs(float(f"{value:.{digits}g}"))
    unit, scale = next((u for u in reversed(_UNITS) if size >= u[1]), _UNITS[0])
    if size >= 1e15:
        return f"{value:.{digits}g}"
    return f"{value / scale:.{digits}g}{unit}"


def hours(value: float | None, device: str) -> str:
    """`1.5 NVIDIA H200-h`: hours mean nothing without what they are hours of."""
    return NOTHING if value is None else f"{significant(value)} {device}-h"


def clock(seconds: float | None) -> str:
    """`0.4 s`, `42 s`, `3 min 20 s`, `5 h 07 min`, `2 d 03 h`."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, hours_, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 1:
        return f"{whole} s"
    if hours_ < 1:
        return f"{minutes} min {whole % 60:02d} s"
    if days < 1:
        return f"{hours_} h {minutes % 60:02d} min"
    return f"{days} d {hours_ % 24:02d} h"


def mean_std(mean: float | None, std: float | None, digits: int = 2) -> str:
    """`0.81 ± 0.03`."""
    return NOTHING if mean is None else f"{fixed(mean, digits)} ± {fixed(std, digits)}"


def chart_number(value: float) -> str:
    """A point of a chart as JSON."""
    return f"{value:.{CHART_DIGITS}g}" if math.isfinite(value) else "null"


def _with(value: float | None, spec: str) -> str:
    return NOTHING if value is None or not math.isfinite(value) else format(value, spec)
