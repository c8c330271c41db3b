"""CPU seconds of processes that grade."""

from __future__ import annotations

import resource
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


def _of_ended_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
