"""Processes that stand still (SIGSTOP, a debugger): they do nothing, not even die of SIGTERM.

The kernel says so, so nobody has to wait for a timeout to know it.
"""

from __future__ import annotations

import time
from pathlib import Path

# whoever continues a whole job continues one process after the other
STOPPED_S = 10.0


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine is stopped; False where that cannot be seen."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "tT"
    except (OSError, IndexError):
        return False


class StoppedProcesses:
    """How long processes have been stopped, by regular looks at them."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def too_long(self, pid: int | None) -> bool:
        """One look: whether the process has been stopped for `STOPPED_S`."""
        if pid is None or not is_stopped(pid):
            self._since.pop(pid or 0, None)
            return False
        return time.monotonic() - self._since.setdefault(pid, time.monotonic()) >= STOPPED_S


def stopped_in_words(pid: int | None) -> str:
    """What to say of one."""
    return f"process {pid} has been stopped for {STOPPED_S:g} s (SIGSTOP, a debugger)"
