"""Schedules of faults: one start of a workload after another, each with its faults, then one that
nobody disturbs; what must hold afterwards; and the shortest schedule that still breaks it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.calls import KINDS, Calls, Fault
from chaos.workloads import Workload, workload

from megaladder.errors import MegaladderError
from megaladder.process.storage import storage_error

Starts = tuple[tuple[Fault, ...], ...]
ALLOWED = (0, 2, 3, -signal.SIGKILL, -signal.SIGTERM)
STOPPED = (3, -signal.SIGKILL, -signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Broken:
    """A schedule and what did not hold."""

    workload: str
    starts: Starts
    what: str

    def __str__(self) -> str:
        starts = " ".join(",".join(map(str, faults)) for faults in self.starts)
        return (
            f"{self.what}\n    again: python tests/chaos/run.py --replay {self.workload} {starts}"
        )


def start(program: Workload, folder: Path, faults: Sequence[Fault], log: Path | None = None) -> int:
    """One start in a fork: its exit status, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = _status(program, folder, faults, log)
        finally:
            os._exit(status)
    _, how = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(how)


def _status(program: Workload, folder: Path, faults: Sequence[Fault], log: Path | None) -> int:
    """As the command line makes a status of what was raised."""
    try:
        with open(folder.parent / "said", "w") as said:
            os.dup2(said.fileno(), 2)
        with Calls(folder, faults, log) as calls:
            program.run(folder, calls.mark)
        return 0
    except MegaladderError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except BaseException as error:
        words = storage_error(error)
        if words is not None:
            print(words, file=sys.stderr)
            return words.exit_status
        traceback.print_exc()
        return 1


class Bench:
    """One workload in one scratch folder."""

    def __init__(self, program: Workload, scratch: Path) -> None:
        self.workload, self.folder, self._scratch = program, scratch / "at", scratch
        log = scratch / "calls"
        self._clean()
        log.unlink(missing_ok=True)
        assert start(program, self.folder, (), log) == 0, (scratch / "said").read_text()
        self.expected = program.result(self.folder)
        self.log = log

    def _clean(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def num_calls(self) -> int:
        """Mutating calls of an undisturbed start."""
        from chaos.calls import read_log

        return sum(call.name != "mark" for call in read_log(self.log))

    def broken(self, starts: Starts) -> str | None:
        """What did not hold, in words; None when all did."""
        self._clean()
        for faults in starts:
            status = start(self.workload, self.folder, faults)
            if status not in ALLOWED:
                return f"status {status}: {self._said()}"
            if faults and status == 2:
                return f"a fault is blamed on the user: {self._said()}"
        status = start(self.workload, self.folder, ())
        if status != 0:
            return f"the undisturbed start ends with {status}: {self._said()}"
        found = self.workload.result(self.folder)
        return None if found == self.expected else f"result {found!r}, expected {self.expected!r}"

    def _said(self) -> str:
        return (self._scratch / "said").read_text()[-1500:].strip()

    def shrunk(self, starts: Starts) -> Starts:
        """Leaves out starts and faults as long as something breaks."""
        smaller = True
        while smaller:
            smaller = False
            for shorter in _shorter(starts):
                if self.broken(shorter) is not None:
                    starts, smaller = shorter, True
                    break
        return starts


def _shorter(starts: Starts) -> Iterator[Starts]:
    for index in range(len(starts)):
        yield starts[:index] + starts[index + 1 :]
    for index, faults in enumerate(starts):
        if len(faults) > 1:
            for place in range(len(faults)):
                fewer = faults[:place] + faults[place + 1 :]
                yield (*starts[:index], fewer, *starts[index + 1 :])


def single_faults(num_calls: int, quick: bool) -> Iterator[Starts]:
    """Each kind of fault at each call; quick: at each call one kind, in turns."""
    for at in range(num_calls):
        for kind in (KINDS[at % len(KINDS)],) if quick else KINDS:
            yield ((Fault(at, kind),),)


def drawn(num_calls: int, rng: random.Random) -> Starts:
    """Two or three disturbed starts, one or two faults each."""
    return tuple(
        tuple(
            Fault(rng.randrange(num_calls + 5), rng.choice(KINDS)) for _ in range(rng.randint(1, 2))
        )
        for _ in range(rng.randint(2, 3))
    )


def bench(name: str, scratch: Path) -> Bench:
    folder = scratch / name
    folder.mkdir(parents=True, exist_ok=True)
    return Bench(workload(name), folder)
