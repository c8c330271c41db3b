"""Every power cut of everything that a run or an evaluation writes.

    PYTHONPATH=.:tests python -m chaos.power_cuts [--states 10000] [--workload NAME] [--seed 0]

After each call of a program the power goes: `power_cut` says what the disk may hold then. A reader
must find what was promised, and the same program started again must come to the same end.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from chaos import power_cut
from chaos.calls import Call, Calls, read_log
from chaos.places import fast_folder
from chaos.power_workloads import WORKLOADS
from chaos.programs.base import WITH_POWER_CUTS, Workload, workload
from chaos.programs.forked import in_fork

ALL = (*WORKLOADS, *(name for name in WITH_POWER_CUTS if name != "careless"))


class Bench:
    """One program: the calls of an undisturbed start below `folder`, and what it comes to."""

    def __init__(self, program: Workload, scratch: Path) -> None:
        self.workload, self.folder = program, scratch / "at"
        self.folder.mkdir(parents=True)
        program.prepare(scratch)
        log = scratch / "calls"

        def run() -> None:
            with Calls(self.folder, log) as calls:
                program.run(self.folder, calls.mark)

        in_fork(run)
        self.calls: list[Call] = power_cut.with_unseen(read_log(log))
        self.expected = program.result(self.folder)


def lost_in(bench: Bench, state: power_cut.State, root: str) -> str | None:
    """What a reader lacks on that disk, or what the next start does otherwise; None for neither."""
    state.write_to(bench.folder, root)
    found = bench.workload.broken_promise(bench.folder, state.marks)
    if found is not None:
        return found
    try:
        bench.workload.run(bench.folder, lambda name: None)
        result = bench.workload.result(bench.folder)
    except Exception as error:
        return f"the next start ends with {type(error).__name__}: {str(error)[:300]}"
    return None if result == bench.expected else f"the next start comes to {result!r:.300}"


def states_of(bench: Bench, root: str, per_prefix: int, seed: int) -> Iterator[power_cut.State]:
    """Disks of several draws, each once, until a draw brings nothing new."""
    seen: set[bytes] = set()
    for draw in range(seed, seed + 8):
        before = len(seen)
        for state in power_cut.states(bench.calls, root, per_prefix, draw):
            key = power_cut.digest(state.tree, state.marks)
            if key not in seen:
                seen.add(key)
                yield state
        if len(seen) == before:
            return


def cut(name: str, scratch: Path, most: int, seed: int) -> tuple[int, list[str]]:
    """Different disks tried, at most so many, and what was lost on which."""
    program = WORKLOADS.get(name) or workload(name)
    bench = Bench(program, scratch / name)
    root, lost = str(bench.folder.resolve()), []
    count = 0
    for state in itertools.islice(states_of(bench, root, 400, seed), most):
        count += 1
        if (found := lost_in(bench, state, root)) is not None:
            gone = [bench.calls[i].name for i in sorted(state.lost)]
            lost.append(f"{name}, after call {state.prefix}: {found}; lost {gone}")
    return count, lost


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of readers that have something made again."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=10_000, help="at most, over all programs")
    parser.add_argument("--workload", choices=ALL, action="append")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    names, total, failed = given.workload or ALL, 0, 0
    with tempfile.TemporaryDirectory(prefix="power-", dir=fast_folder()) as scratch:
        for number, name in enumerate(names):
            left = (given.states - total) // (len(names) - number)
            with _quiet():
                count, lost = cut(name, Path(scratch), left, given.seed)
            total, failed = total + count, failed + len(lost)
            print(f"{name}: {count:,} disks, {len(lost)} lost something", flush=True)
            print("".join(f"    {one}\n" for one in lost[:4]), end="", flush=True)
    print(f"{total:,} disks: {failed or 'none'} lost something")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
