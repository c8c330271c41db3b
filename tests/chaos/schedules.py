"""Schedules of faults: one start of a program after another, each with its faults, then one that
nobody disturbs; what must hold afterwards; and the shortest schedule that still breaks it."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos.calls import Calls
from chaos.kernel import supervisor
from chaos.kernel.faults import Fault, Starts, shorter
from chaos.kernel.supervisor import Ended
from chaos.programs.base import Workload, status_of, workload
from chaos.programs.forked import in_fork

from megaladder.files import shared_memory

NO_PERMISSION = ("EACCES", "EROFS")
_OF_SIGNALS = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGPIPE)


@dataclass(frozen=True, slots=True)
class Broken:
    """A schedule and what did not hold."""

    workload: str
    starts: Starts
    what: str

    def __str__(self) -> str:
        told = words(self.starts)
        again = f"PYTHONPATH=.:tests python -m chaos.run --replay {self.workload} {told}"
        return f"{self.what}\n    again: {again}"


@dataclass(slots=True)
class Verdict:
    """What came of one schedule: what did not hold, and the faults that happened."""

    broken: str | None = None
    hit: Counter[str] = field(default_factory=Counter)


class Bench:
    """One program in one scratch folder: `at` is its own; `inputs`, `temporary` and `shared` lie
    beside."""

    def __init__(self, program: Workload, scratch: Path) -> None:
        self.workload, self.folder, self._scratch = program, scratch / "at", scratch
        self._temporary, self._shared = scratch / "temporary", scratch / "shared"
        os.environ["TMPDIR"] = str(self._temporary)
        # what is shared through memory, apart from the runs of others; its starts are forks
        shared_memory.ROOT = self._shared
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch / "compiled")  # no temporary files
        self._clean()
        program.prepare(scratch)
        gc.collect()
        gc.freeze()  # a fork's collections do not touch what all of them share
        ended = self._start(())
        assert ended.status == 0, f"{program.name}: status {ended.status}\n{self._said()}"
        self.size = ended.size
        self.expected = program.result(self.folder)

    def record(self) -> Path:
        """The calls of an undisturbed start, for power cuts."""
        log = self._scratch / "calls"
        self._clean()
        log.unlink(missing_ok=True)

        def run() -> int:
            with Calls(self.folder, log) as calls:
                return status_of(self.workload, self.folder, calls.mark)

        in_fork(run)
        return log

    def _clean(self) -> None:
        for folder in (self.folder, self._temporary, self._shared):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self._marks.unlink(missing_ok=True)

    @property
    def _marks(self) -> Path:
        return self._scratch / "marks"

    def _start(self, faults: Sequence[Fault] | None) -> Ended:
        """None: undisturbed, and its calls are not counted."""

        def program() -> int:
            with self._marks.open("a", buffering=1) as marks:
                return status_of(self.workload, self.folder, lambda name: print(name, file=marks))

        given = self.workload
        limits = supervisor.Limits(given.patience_s, given.grace_s, given.wired)
        said = self._scratch / "said"
        if faults is None:
            return supervisor.run_undisturbed(program, said, limits)
        return supervisor.run(program, self.folder, faults, said, limits)

    def verdict(self, starts: Starts) -> Verdict:
        """Runs a schedule."""
        found = Verdict()
        self._clean()
        for faults in starts:
            ended = self._start(faults)
            found.hit.update(fault.label for fault in ended.hit)
            found.broken = self._wrong(ended) or self._forgotten()
            if found.broken is not None:
                return found
        ended = self._start(None)
        found.broken = self._wrong(ended) or self._at_the_end(ended, starts)
        return found

    def _wrong(self, ended: Ended) -> str | None:
        """Whether a start ended as it may."""
        kinds = {fault.kind for fault in ended.hit}
        if ended.hung:
            return f"it hung: {self._said()}"
        if ended.left:
            return f"processes are left: {'; '.join(ended.left)}"
        if "Traceback (most recent call last)" in self._said():
            return f"status {ended.status} and a traceback: {self._said()}"
        if ended.status in (0, 3) or (ended.status in _OF_SIGNALS and kinds):
            return None
        if ended.status == 130 and "SIGINT" in kinds and not self.workload.resumes:
            return None
        if ended.status == 2 and kinds:
            innocent = f"a fault is blamed on the user: {self._said()}"
            return None if kinds.intersection(NO_PERMISSION) else innocent
        return f"status {ended.status}: {self._said()}"

    def _forgotten(self) -> str | None:
        """What was promised and is not there."""
        if not self.workload.reads_only or not self._marks.exists():
            return None
        return self.workload.broken_promise(self.folder, self._marks.read_text().splitlines())

    def _at_the_end(self, ended: Ended, starts: Starts) -> str | None:
        if ended.status != 0:
            return f"the undisturbed start ends with {ended.status}: {self._said()}"
        result = self.workload.result(self.folder)
        if result != self.expected:
            return f"another result: {_difference(result, self.expected)}"
        killed = any(fault.kind in ("SIGKILL", "torn") for faults in starts for fault in faults)
        left = {path.name for at in (self._temporary, self._shared) for path in at.iterdir()}
        if left and not killed:
            return f"temporary files or shared memory are left: {sorted(left)}"
        return None

    def _said(self) -> str:
        return (self._scratch / "said").read_text(errors="replace")[-3000:].strip()

    def shrunk(self, starts: Starts) -> Starts:
        """Leaves out starts and faults as long as something breaks."""
        smaller = True
        while smaller:
            smaller = False
            for fewer in shorter(starts):
                if self.verdict(fewer).broken is not None:
                    starts, smaller = fewer, True
                    break
        return starts


def _difference(found: object, expected: object) -> str:
    """The first place where two results differ, and what stands there."""
    one, other = repr(found), repr(expected)
    at = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, at - 60)
    return f"…{one[start : at + 200]!r} instead of …{other[start : at + 200]!r}"


def words(starts: Starts) -> str:
    """As `--replay` takes them."""
    return " ".join(",".join(map(str, faults)) for faults in starts)


def bench(name: str, scratch: Path) -> Bench:
    """A program by its name, in a folder of its own."""
    folder = scratch / name
    folder.mkdir(parents=True, exist_ok=True)
    return Bench(workload(name), folder)
