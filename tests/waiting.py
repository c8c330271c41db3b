"""Waiting in tests: for a condition, never for a time that is hoped to be enough."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.01
_PR_SET_CHILD_SUBREAPER = 36


def wait_until(condition: Callable[[], object], what: str, timeout: float = 240.0) -> None:
    """Returns as soon as `condition()` is true.

    `timeout` (seconds) ends a test that hangs; it is far above what a loaded machine takes, so that
    no test passes or fails by speed. Raises AssertionError with `what` did not come.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout:g} s"
        time.sleep(POLL_S)


def pause(seconds: float) -> None:
    """Lets a process go on to a random moment before it is killed there.

    Only for tests whose promise holds at every moment, so that no length of the pause can break
    them.
    """
    time.sleep(seconds)


def is_alive(pid: int) -> bool:
    """Whether a process runs: a zombie, which nobody has waited for yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def adopt_orphans() -> None:
    """From now on a process whose parent ends becomes this process's child, not init's (Linux), so
    that `descendants` finds it."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(pid: int | None = None) -> dict[int, str]:
    """Every running process below `pid` (default: this one) → its command line."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_alive(int(entry.name)):
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(stat.rsplit(")", 1)[1].split()[1])
    found: dict[int, str] = {}
    frontier = {os.getpid() if pid is None else pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier}
        for child in frontier:
            try:
                line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[child] = line.decode(errors="replace").strip()
    return found
