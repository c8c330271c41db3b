"""When to stop: signals, numbers that are not finite, and no progress."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType

from megaladder import parallel
from megaladder.errors import RunStopped
from megaladder.launch import leave_status

RESUMABLE_STATUS = RunStopped.exit_status


class StopSignals:
    """SIGTERM and SIGUSR1 (Slurm's pre-emption and time limit) ask for a stop after the current
    step; all ranks agree on it."""

    def __init__(self) -> None:
        self._received: int | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    @property
    def received(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._received is not None

    def agreed(self) -> bool:
        """True on every rank when any rank was asked to stop. Collective."""
        return parallel.any_rank(self._received is not None)


def stopped(text: str) -> RunStopped:
    """The error of a stop that all ranks agreed on: rank 0 says it."""
    error = RunStopped(text)
    error.told_elsewhere = not parallel.is_main()
    return error


@dataclass
class NonFiniteGuard:
    """Counts updates in a row that were skipped because loss or gradient norm was not finite."""

    limit: int
    in_a_row: int = 0
    skipped: list[int] = field(default_factory=list)

    def record(self, step: int, updated: bool, names: Callable[[], Sequence[str]]) -> str | None:
        """A warning for the log when this step was skipped; `names` gives the step's sample ids.

        Raises:
            RunStopped: `limit` steps in a row were skipped (same decision on every rank: the
            numbers are global).
        """
        if updated:
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        self.skipped.append(step)
        sample_ids = names()
        shown = ", ".join(sample_ids[:20]) + (
            f" … ({len(sample_ids)} in all)" if len(sample_ids) > 20 else ""
        )
        text = f"step {step}: loss or gradient is not finite; no rank was updated; samples: {shown}"
        if self.in_a_row >= self.limit:
            raise RunStopped(
                f"{text}; {self.in_a_row} such steps in a row; fix: lower optim.lr or look at those"
                " samples, then start again to resume from the last checkpoint"
            )
        return text


class Watchdog:
    """Ends the process when no `beat` came for `timeout_s`: a hung collective or a stuck rank must
    not hold the machine.

    It prints every thread's stack and what the rank was doing, then exits with the resumable
    status; the launcher ends the other ranks.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = self._patience_s = timeout_s
        self._doing, self._since = "starting", time.monotonic()
        self._done = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, doing: str, patience_s: float | None = None) -> None:
        """Says that the rank is alive and what it does next, and how long that may take if not
        `timeout_s`."""
        self._doing, self._since, self._patience_s = (
            doing,
            time.monotonic(),
            patience_s or self._timeout_s,
        )

    def stop(self) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._timeout_s / 4)):
            silent_s = time.monotonic() - self._since
            if silent_s > self._patience_s:
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                print(
                    f"error: rank {parallel.rank_from_env()} made no progress for {silent_s:.0f} s"
                    f" while {self._doing} (train.timeout_s); another rank may hang; start again to"
                    " resume from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                leave_status(RESUMABLE_STATUS)
                os._exit(RESUMABLE_STATUS)
