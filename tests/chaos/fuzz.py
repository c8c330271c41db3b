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
from chaos.places import fast_folder

from megaladder.errors import MegaladderError

SLOW_S, CPU_S = 1.0, 20.0
MEMORY_BYTES = 2 << 30
# of a fork, in memory that outlives it: inputs begun, accepted, refused; seconds: slowest, in all
_TALLY = struct.Struct("<QQQdd")
_BEGUN = struct.Struct("<Q")


@dataclass
class Outcome:
    """What happened to the inputs of one reader."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, bytes]] = field(default_factory=list)
    slowest_s: float = 0.0
    cpu_s: float = 0.0
    inputs: int = 0

    def add(self, other: Outcome) -> None:
        self.counts += other.counts
        self.wrong += other.wrong
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.cpu_s += other.cpu_s


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of one reader: inputs, and seconds of processor time where those take longer."""

    inputs: int
    cpu_s: float


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


def fuzz(name: str, case: Case, limits: Limits, seed: int, folder: Path) -> Outcome:
    """Reads mutations in forks; one that is ended by the kernel counts as wrong."""
    path = folder / case.file
    path.parent.mkdir(parents=True, exist_ok=True)
    for good in case.good():  # what nobody touched is accepted
        path.write_bytes(good)
        case.read(path)
    outcome, status = Outcome(), 1
    while status and outcome.inputs < limits.inputs:
        indices = range(outcome.inputs, limits.inputs)
        with _Fork(limits.cpu_s - outcome.cpu_s) as fork:
            begun, status = fork.read(name, case, indices, seed, path)
            outcome.add(fork.outcome())
        outcome.inputs += begun
        if status:
            last = input_of(case, name, seed, outcome.inputs - 1)
            outcome.counts["ended by the kernel"] += 1
            outcome.wrong.append((f"status {status}", last))
    return outcome


class _Fork:
    """Inputs that one process reads, as long as it lives. What it found stands where its end takes
    none of it along: figures in shared memory, what was wrong in a file."""

    def __init__(self, cpu_s: float) -> None:
        self._cpu_s = cpu_s

    def __enter__(self) -> _Fork:
        self._tally = mmap.mmap(-1, _TALLY.size)
        self._wrong = tempfile.TemporaryFile()
        return self

    def __exit__(self, *exc: object) -> None:
        self._tally.close()
        self._wrong.close()

    def read(self, name: str, case: Case, indices: range, seed: int, path: Path) -> tuple[int, int]:
        """How many it began, and its status."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _limits()
                so_far, began = Outcome(), time.process_time()
                for begun, index in enumerate(indices, 1):
                    if time.process_time() - began > self._cpu_s:
                        break
                    _BEGUN.pack_into(self._tally, 0, begun)
                    signal.setitimer(signal.ITIMER_PROF, CPU_S)
                    self._note(so_far, read_one(case, input_of(case, name, seed, index), path))
                status = 0
            finally:
                os._exit(status)
        _, how = os.waitpid(pid, 0)
        return _BEGUN.unpack_from(self._tally)[0], os.waitstatus_to_exitcode(how)

    def _note(self, so_far: Outcome, one: Outcome) -> None:
        so_far.add(one)
        counts = (so_far.counts[how] for how in ("accepted", "refused"))
        begun = _BEGUN.unpack_from(self._tally)[0]
        _TALLY.pack_into(self._tally, 0, begun, *counts, so_far.slowest_s, so_far.cpu_s)
        if one.wrong:
            so_far.wrong.clear()
            pickle.dump((one.counts, one.wrong), self._wrong)
            self._wrong.flush()

    def outcome(self) -> Outcome:
        """What it found, after its end."""
        _, accepted, refused, slowest_s, cpu_s = _TALLY.unpack(self._tally[:])
        found = Outcome(Counter(accepted=accepted, refused=refused), [], slowest_s, cpu_s)
        self._wrong.seek(0)
        while self._wrong.peek(1):
            counts, wrong = pickle.load(self._wrong)
            found.wrong += wrong
            found.counts += {
                how: n for how, n in counts.items() if how not in ("accepted", "refused")
            }
        return found


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
    parser.add_argument("--inputs", type=int, default=1000, help="of each reader")
    words = "seconds of processor time of each reader, where its inputs take longer"
    parser.add_argument("--cpu-s", type=float, default=float("inf"), help=words)
    parser.add_argument("--reader", action="append", help="of these; all without it")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        tempfile.tempdir = place  # what readers make once for all inputs goes with the end
        wanted = {
            name: case for name, case in cases().items() if not given.reader or name in given.reader
        }
        return 1 if sum(_one_reader(*item, given) for item in wanted.items()) else 0


def _one_reader(name: str, case: Case, given: argparse.Namespace) -> int:
    """Says what came of its inputs; how many were wrong."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=fast_folder()))
    try:
        limits = Limits(given.inputs, given.cpu_s)
        found = fuzz(name, case, limits, given.seed, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    counts = ", ".join(f"{count:,} {how}" for how, count in sorted(found.counts.items()))
    each_ms = 1000 * found.cpu_s / found.inputs
    seconds = f"slowest {found.slowest_s:.3f} s, {each_ms:.2f} ms each"
    print(f"{name}: {found.inputs:,} inputs: {counts}; {seconds}", flush=True)
    kinds = {
        what.split(":")[0] + what.split(":")[1][:6] if ":" in what else what: (what, raw)
        for what, raw in found.wrong
    }
    for what, raw in list(kinds.values())[:12]:
        print(f"  {what}\n    {raw[:300]!r}", flush=True)
    return len(found.wrong)


if __name__ == "__main__":
    sys.exit(main())
