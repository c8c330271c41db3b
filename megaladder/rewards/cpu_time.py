"""CPU seconds of processes that grade."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psutil


class CpuMeter:
    """CPU seconds, user and system, of processes that live on between looks.

    What a process used after the last look at it, and before it ended, is not known.
    """

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}
        self._reaped = 0.0

    @property
    def seconds(self) -> float:
        return sum(self._seen.values()) + self._reaped

    def look(self, pids: Iterable[int]) -> None:
        """Notes what each process has used so far, children that it has waited for included."""
        for pid in pids:
            try:
                self._seen[pid] = sum(psutil.Process(pid).cpu_times()[:4])
            except psutil.NoSuchProcess:
                continue

    @contextmanager
    def of_ended_children(self) -> Iterator[None]:
        """Counts the children of this process that start and end in the body."""
        before = _of_ended_children()
        yield
        self._reaped += _of_ended_children() - before


class Activity:
    """Whether a process does anything: it computes, waits for a processor, or for a disk.

    A process that is only slow, because the machine is busy, is never idle.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._seen_s = pid, -1.0
        self._idle_since: float | None = None

    def forget(self) -> None:
        """What follows is counted anew."""
        self._idle_since = None

    def idle_s(self) -> float:
        """One look: for how long the process has slept or been stopped, and computed nothing."""
        now = time.monotonic()
        try:
            process = psutil.Process(self._pid)
            used_s, state = sum(process.cpu_times()[:2]), process.status()
        except psutil.NoSuchProcess:
            return 0.0
        asleep = state in (psutil.STATUS_SLEEPING, psutil.STATUS_STOPPED)
        if not asleep or used_s != self._seen_s or self._idle_since is None:
            self._seen_s, self._idle_since = used_s, now
        return now - self._idle_since


def _of_ended_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
