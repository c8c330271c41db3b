"""`make chaos`: every single fault of every workload, then drawn schedules until the time is up,
then power cuts. Status 1 and the shortest schedule for anything that does not hold.

    PYTHONPATH=.:tests python -m chaos.run [--minutes 20] [--workload NAME] [--seed 0]
    PYTHONPATH=.:tests python -m chaos.run --replay training 12:EIO 3:SIGKILL,9:torn
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from chaos import power_cut, schedules
from chaos.calls import Fault, read_log
from chaos.workloads import NAMES


def power_cuts(bench: schedules.Bench, per_prefix: int) -> tuple[int, list[str]]:
    """States tried, and what was lost in which."""
    calls = power_cut.with_unseen(read_log(bench.log))
    root, lost, count = str(bench.folder.resolve()), [], 0
    for state in power_cut.states(calls, root, per_prefix):
        count += 1
        state.write_to(bench.folder, root)
        found = bench.workload.broken_promise(bench.folder, state.marks)
        if found is not None:
            gone = [f"{calls[i].name} {Path(calls[i].path).name}" for i in sorted(state.lost)]
            lost.append(f"{bench.workload.name}, after call {state.prefix}: {found}; lost {gone}")
    return count, lost


def faults(
    bench: schedules.Bench, until: float, rng: random.Random, quick: bool
) -> tuple[Counter[str], list[schedules.Broken]]:
    """Single faults first, then drawn schedules; counted by kind."""
    tried: Counter[str] = Counter()
    broken: list[schedules.Broken] = []
    num_calls = bench.num_calls()

    def attempt(starts: schedules.Starts, kind: str) -> None:
        tried[kind] += 1
        if bench.broken(starts) is not None and len(broken) < 5:
            shortest = bench.shrunk(starts)
            what = bench.broken(shortest) or "(not every time)"
            broken.append(schedules.Broken(bench.workload.name, shortest, what))

    for starts in schedules.single_faults(num_calls, quick):
        attempt(starts, starts[0][0].kind)
    while time.monotonic() < until:
        attempt(schedules.drawn(num_calls, rng), "drawn")
    return tried, broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--workload", choices=NAMES, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-prefix", type=int, default=40, help="power cuts after each call")
    parser.add_argument("--quick", action="store_true", help="one kind of fault at each call")
    parser.add_argument("--replay", nargs="+", metavar=("WORKLOAD", "FAULTS"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-", dir=_fast_folder()) as scratch:
        if given.replay:
            name, *starts = given.replay
            parsed = tuple(tuple(map(Fault.parse, one.split(","))) for one in starts)
            print(found := schedules.bench(name, Path(scratch)).broken(parsed))
            return 1 if found else 0
        return _all(given, Path(scratch))


def _all(given: argparse.Namespace, scratch: Path) -> int:
    began, failed, total = time.monotonic(), 0, Counter[str]()
    names = given.workload or NAMES
    for number, name in enumerate(names, start=1):
        bench = schedules.bench(name, scratch)
        num_states, lost = power_cuts(bench, given.per_prefix)
        until = began + 60 * given.minutes * number / len(names)
        tried, broken = faults(bench, until, random.Random(f"{given.seed}/{name}"), given.quick)
        total += tried + Counter({"power cut": num_states})
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(tried.items()))
        print(f"{name}: {bench.num_calls()} calls, {tried.total()} schedules ({kinds}),", end=" ")
        print(f"{num_states} power cuts; {len(broken)} broken, {len(lost)} lost", flush=True)
        for one in (*lost[:5], *broken):
            print(f"  {one}", flush=True)
        failed += len(broken) + len(lost)
    seconds = time.monotonic() - began
    schedules_tried = total.total() - total["power cut"]
    print(
        f"{schedules_tried} schedules, {total['power cut']} power cuts in {seconds:.0f} s: ", end=""
    )
    print(f"{failed} did not hold" if failed else "all held")
    return 1 if failed else 0


def _fast_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    sys.exit(main())
