"""Runs the jobs of a stage as processes, several at a time.

What is stopped or killed goes on with the same command.

A job's commands run one after another. One that fails stops the others in good order (they save),
and is named with the end of its log. A stop signal goes on to all; if this process is killed, the
kernel ends them too, and no start finds a folder in use.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from megaladder.errors import MegaladderError, StopRequested
from megaladder.process import ending, signals
from megaladder.process.launch import available_cores
from megaladder.process.lock import RunLock
from megaladder.process.storage import make_folder
from megaladder.study.plan import Job
from megaladder.study.record import Cost, Records

LAST_LINES = 15  # of the log of a job that failed


class StageFailedError(MegaladderError):
    """A command of a study failed; `exit_status` is its own."""

    reason = "stage"

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.exit_status = status


@dataclass
class _Running:
    """A job whose commands are being worked off."""

    job: Job
    log: Path
    lock: RunLock
    left: Iterator[list[str]]
    started: float = field(default_factory=time.monotonic)
    cpu_s: float = 0.0
    child: subprocess.Popen[bytes] | None = None
    pidfd: int = -1

    @property
    def cost(self) -> Cost:
        return Cost(time.monotonic() - self.started, self.cpu_s)


class Crew:
    """At most `places` jobs at once.

    The same crew for all stages, so that a stop signal between two of them is not lost. `say`
    prints a line of progress."""

    def __init__(self, places: int, say: Callable[[str], None]) -> None:
        self._places, self._say = places, say
        self._running: dict[int, _Running] = {}
        self._selector = selectors.DefaultSelector()
        self._fault: StageFailedError | None = None
        self._stop = signals.StopRequest(self._hand_on, self._end_now)
        if signals.listening():
            signals.replace_action(self._stop)

    def run(self, jobs: Iterable[Job], records: Records) -> None:
        """Returns when all are done, and in the records.

        Raises:
            StageFailedError: a command failed; those beside it were asked to stop.
            StopRequested: a signal did.
        """
        self._records, waiting = records, deque(jobs)
        while waiting or self._running:
            while waiting and len(self._running) < self._places and not self._ends():
                self._begin(waiting.popleft())
            if not self._running:
                break
            for key, _ in self._selector.select():
                self._next(self._collect(key.fd))
        if self._fault is not None:
            raise self._fault
        if self._stop.number is not None:
            raise StopRequested("stopped between two jobs; start the same command again")

    def _ends(self) -> bool:
        return self._fault is not None or self._stop.number is not None

    def _begin(self, job: Job) -> None:
        notes = self._records.notes(job)
        make_folder(notes)
        lock = RunLock(notes)
        self._records.begin(job)
        self._start(_Running(job, notes / "log.txt", lock, iter(list(job.programs()))))

    def _start(self, running: _Running) -> bool:
        """Starts the next command; False where there is none."""
        program = next(running.left, None)
        if program is None:
            return False
        with running.log.open("ab") as log:
            running.child = subprocess.Popen(
                program,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(self._places),
                start_new_session=True,
                preexec_fn=partial(signals.die_with_parent, os.getpid()),
            )
        running.pidfd = os.pidfd_open(running.child.pid)
        self._selector.register(running.pidfd, selectors.EVENT_READ)
        self._running[running.pidfd] = running
        if self._ends():
            # the signal may have come before this child was in the list
            running.child.send_signal(self._stop.number or signal.SIGTERM)
        return True

    def _collect(self, pidfd: int) -> tuple[_Running, int]:
        """The job whose command ended, and its status."""
        running = self._running.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        assert running.child is not None
        _, status, used = os.wait4(running.child.pid, 0)
        running.child.returncode = os.waitstatus_to_exitcode(status)
        running.cpu_s += used.ru_utime + used.ru_stime
        return running, running.child.returncode

    def _next(self, ended: tuple[_Running, int]) -> None:
        """The job's next command, its record, or its failure."""
        running, status = ended
        if status == 0 and not self._ends() and self._start(running):
            return
        done = status == 0 and next(running.left, None) is None
        cost = self._records.add_cost(running.job, running.cost)
        if done:
            self._records.write(running.job, cost)
            self._say(f"{running.job.name}: {cost.wall_s:.0f} s, CPU {cost.cpu_s:.0f} s")
        running.lock.release()
        if status != 0 and not self._ends():
            self._fault = _failure(running, status)
            self._send(signal.SIGTERM)

    def _hand_on(self, number: int) -> None:
        print(ending.stopping_line(number), file=sys.stderr, flush=True)
        self._send(number)

    def _end_now(self, number: int) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        for running in list(self._running.values()):
            # by its pidfd, which names this very process; closed where it has just ended
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(running.pidfd, number)


def _environment(places: int) -> dict[str, str]:
    threads = max(1, available_cores() // places)
    return {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONUNBUFFERED": "1"}


def _failure(running: _Running, status: int) -> StageFailedError:
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    stopped = status < 0 or status in (ending.RESUMABLE, ending.INTERRUPTED)
    lines = running.log.read_text("utf-8", "replace").splitlines()[-LAST_LINES:]
    told = "\n".join(f"    {line}" for line in lines)
    ours = ending.RESUMABLE if stopped else status
    fix = (
        "start the same command again, it goes on"
        if stopped
        else "what its log names, then the same command again"
    )
    return StageFailedError(f"{running.job.name}: {how} ({running.log})\n{told}\nfix: {fix}", ours)
