"""Foreign bytes for every reader of ours: mutations of good inputs, counted by how they end.

    PYTHONPATH=.:tests python -m chaos.fuzz [--inputs 1000] [--reader yaml] [--seed 0]

An input is fine when its reader accepts it or says a MegaladderError. Anything else that is raised
is shown with the bytes that did it, and so is an input that takes more than CPU_S of processor time
or more than MEMORY_BYTES: the reader runs in a fork that the kernel ends for either.
"""

from __future__ import annotations

import argparse
import gc
import mmap
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from chaos.fuzz_readers import Case, cases

from megaladder.errors import MegaladderError

SLOW_S, CPU_S = 1.0, 20.0
MEMORY_BYTES = 2 << 30
_AT = struct.Struct("<Q")


@dataclass
class Outcome:
    """What happened to the inputs of one reader."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, bytes]] = field(default_factory=list)
    slowest_s: float = 0.0
    cpu_s: float = 0.0

    def add(self, other: Outcome) -> None:
        self.counts += other.counts
        self.wrong += other.wrong
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.cpu_s += other.cpu_s


def input_of(case: Case, name: str, seed: int, index: int) -> bytes:
    """The `index`-th input: the same in every run with this seed."""
    rng = random.Random(f"{seed}/{name}/{index}")
    good = rng.choice(case.good())
    return rng.choice(case.mutations)(good, rng)


def read_one(case: Case, raw: bytes, path: Path) -> Outcome:
    """Reads one input; how it ended."""
    outcome = Outcome()
    path.write_bytes(raw)
    began = time.process_time()
    try:
        case.read(path)
        outcome.counts["accepted"] += 1
    except MegaladderError:
        outcome.counts["refused"] += 1
    except MemoryError:
        outcome.counts["memory"] += 1
        outcome.wrong.append((f"more than {MEMORY_BYTES >> 20} MiB", raw))
    except BaseException as error:
        outcome.counts["uncaught"] += 1
        outcome.wrong.append((_place(error), raw))
    outcome.slowest_s = outcome.cpu_s = time.process_time() - began
    if outcome.cpu_s > SLOW_S:
        outcome.counts["slow"] += 1
        outcome.wrong.append((f"{outcome.cpu_s:.1f} s", raw))
    return outcome


def _place(error: BaseException) -> str:
    """The exception and the innermost line of ours that it came through."""
    ours, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "megaladder" in file and "tests/chaos" not in file:
            ours = f"{Path(file).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {ours}: {str(error)[:120]}"


def fuzz(name: str, case: Case, inputs: int, seed: int, folder: Path) -> Outcome:
    """Reads `inputs` mutations in forks; one that is ended by the kernel counts as wrong."""
    path = folder / case.file
    path.parent.mkdir(parents=True, exist_ok=True)
    for good in case.good():  # what nobody touched is accepted
        path.write_bytes(good)
        case.read(path)
    outcome, at = Outcome(), mmap.mmap(-1, _AT.size)
    start = 0
    while start < inputs:
        found, status = _in_fork(name, case, (start, inputs, seed), path, at)
        outcome.add(found)
        (last,) = _AT.unpack(at[:])
        if status == 0:
            break
        outcome.counts["ended by the kernel"] += 1
        outcome.wrong.append((f"status {status}", input_of(case, name, seed, last)))
        start = last + 1
    return outcome


def _in_fork(
    name: str, case: Case, what: tuple[int, int, int], path: Path, at: mmap.mmap
) -> tuple[Outcome, int]:
    start, end, seed = what
    with tempfile.TemporaryFile() as told:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _limits()
                for index in range(start, end):
                    at[:] = _AT.pack(index)
                    signal.setitimer(signal.ITIMER_PROF, CPU_S)
                    # at once: the next input may be the last of this process
                    pickle.dump(read_one(case, input_of(case, name, seed, index), path), told)
                    told.flush()
                status = 0
            finally:
                os._exit(status)
        _, how = os.waitpid(pid, 0)
        told.seek(0)
        outcome = Outcome()
        while told.peek(1):
            outcome.add(pickle.load(told))
    return outcome, os.waitstatus_to_exitcode(how)


def _limits() -> None:
    gc.freeze()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    quiet = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):  # warnings about each input
        os.dup2(quiet, number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--reader", action="append", help="of these; all without it")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    failed = 0
    for name, case in cases().items():
        if given.reader and name not in given.reader:
            continue
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            found = fuzz(name, case, given.inputs, given.seed, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        counts = ", ".join(f"{count:,} {how}" for how, count in sorted(found.counts.items()))
        seconds = f"slowest {found.slowest_s:.3f} s, {found.cpu_s:.0f} s of processor time"
        print(f"{name}: {given.inputs:,} inputs: {counts}; {seconds}", flush=True)
        kinds = {
            what.split(":")[0] + what.split(":")[1][:6] if ":" in what else what: (what, raw)
            for what, raw in found.wrong
        }
        for what, raw in list(kinds.values())[:12]:
            print(f"  {what}\n    {raw[:300]!r}", flush=True)
        failed += len(found.wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
