"""A line now and then about a long pass over rows."""

from __future__ import annotations

import sys
import time

PERIOD_S = 10.0


class Progress:
    """Says on stderr how many rows a pass has seen, every `period_s` seconds.

    A pass that is through before says nothing."""

    def __init__(self, what: str, period_s: float = PERIOD_S) -> None:
        self._what, self._period_s, self._rows = what, period_s, 0
        self._began = self._said = time.monotonic()

    def add(self, rows: int = 1) -> None:
        """Counts `rows` more."""
        self._rows += rows
        now = time.monotonic()
        if now - self._said < self._period_s:
            return
        self._said = now
        rate = self._rows / (now - self._began)
        print(f"{self._what}: {self._rows:,} rows, {rate:,.0f} a second", file=sys.stderr)
