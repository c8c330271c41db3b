"""Fault points for tests: `MEGALADDER_FAULT="after_save:3:SIGKILL"` makes the third passage through
`fault_point("after_save")` send that signal to its own process (or raise, with `RAISE`). Without
the variable a fault point does nothing.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

_passages: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """A place where a test may kill the process."""
    plan = os.environ.get("MEGALADDER_FAULT")
    if not plan:
        return
    target, count, action = plan.split(":")
    if target != name:
        return
    _passages[name] += 1
    if _passages[name] == int(count):
        if action == "RAISE":
            raise RuntimeError(f"fault point {name}")
        os.kill(os.getpid(), getattr(signal, action))
