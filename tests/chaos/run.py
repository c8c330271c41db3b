"""`make chaos`: faults at every call of every program, in turns, then drawn schedules until the time
is up; power cuts of the small ones. A table by kind and program at the end, and status 1 with the
shortest schedule for anything that does not hold.

    PYTHONPATH=.:tests python -m chaos.run [--minutes 20] [--workload NAME] [--seed N] [--log FILE]
    PYTHONPATH=.:tests python -m chaos.run --replay training 12:EIO 3:SIGKILL,9:torn
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from chaos import power_cut, schedules
from chaos.calls import read_log
from chaos.kernel import faults, notify
from chaos.kernel.faults import Fault, Starts
from chaos.places import fast_folder
from chaos.programs.base import NAMES, WITH_POWER_CUTS, weight_of

MAX_SHRUNK, MAX_SHOWN = 5, 10


@dataclass(frozen=True, slots=True)
class Budget:
    """What one program may take. scratch: where it makes its folder, beside those of the others;
    until: the moment of the machine's monotonic clock after which no schedule begins, but its
    first; schedules: so many instead; log: a file for a line of each."""

    scratch: Path
    until: float
    schedules: int | None
    seed: str
    per_prefix: int
    log: Path | None = None


@dataclass(slots=True)
class Row:
    """What was tried with one program. tried: different schedules of which a fault happened, by the
    kind of that, or `drawn`; happened: faults, by kind; missed: schedules of which none happened;
    cpu_s: of all of them, without the start of the harness and power cuts: `setup_s`."""

    name: str
    calls: str
    tried: Counter[str] = field(default_factory=Counter)
    happened: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    num_cuts: int = 0
    broken: list[str] = field(default_factory=list)
    wall_s: float = 0.0
    setup_s: float = 0.0
    cpu_s: float = 0.0

    def line(self) -> str:
        per_s = self.tried.total() / self.cpu_s if self.cpu_s else 0.0
        cuts = f", {self.num_cuts} power cuts" if self.num_cuts else ""
        return (
            f"{self.name}: {self.calls}; {self.tried.total()} schedules ({self.missed} more met no"
            f" fault), {self.happened.total()} faults{cuts}; {self.setup_s:.1f} +"
            f" {self.cpu_s:.1f} CPU s ({per_s:.1f} schedules a CPU second), {self.wall_s:.0f} s;"
            f" {len(self.broken)} broken"
        )


def one_program(name: str, budget: Budget) -> Row:
    """Everything that is tried with it, in this process."""
    began = time.monotonic()
    # as in the product: what a pool of spawned processes makes would be spawned too
    multiprocessing.set_start_method("fork", force=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch comes: a fork has no other threads
    os.dup2(os.open(budget.scratch / f"{name}.stderr", os.O_WRONLY | os.O_CREAT), 2)
    bench = schedules.bench(name, budget.scratch)
    row = Row(name, f"{len(bench.size.files)} file calls, {len(bench.size.wires)} wire writes")
    if name in WITH_POWER_CUTS and budget.per_prefix:
        row.num_cuts, lost = power_cuts(bench, budget.per_prefix)
        row.broken += lost
    row.setup_s = _cpu_s()
    for starts in _schedules(bench, budget):
        _attempt(bench, starts, row, budget.log)
    row.cpu_s = _cpu_s() - row.setup_s
    row.wall_s = time.monotonic() - began
    return row


def _cpu_s() -> float:
    """Of this process and of all that it has collected."""
    return sum(os.times()[:4])


def _schedules(bench: schedules.Bench, budget: Budget) -> Iterator[Starts]:
    """Each once. Single faults come from another place with each seed, drawn ones between them."""
    rng, wired = random.Random(budget.seed), bench.workload.wired
    singles = list(faults.single_faults(bench.size, wired))
    place = rng.randrange(len(singles))
    walked = iter(singles[place:] + singles[:place])
    seen: set[Starts] = set()
    while budget.schedules is None or len(seen) < budget.schedules:
        if budget.schedules is None and seen and time.monotonic() > budget.until:
            return
        starts = _next(bench, walked, rng)
        if starts not in seen:
            seen.add(starts)
            yield starts


def _next(bench: schedules.Bench, walked: Iterator[Starts], rng: random.Random) -> Starts:
    """One of a program whose starts are dear is drawn: few of them, and every kind comes early."""
    drawn = faults.drawn(bench.size, bench.workload.wired, rng)
    if rng.random() < 0.2:
        return drawn
    return _one(bench, rng) if bench.workload.dear else next(walked, drawn)


def _one(bench: schedules.Bench, rng: random.Random) -> Starts:
    return faults.drawn_single(bench.size, bench.workload.wired, rng)


def _attempt(bench: schedules.Bench, starts: Starts, row: Row, log: Path | None) -> None:
    found = bench.verdict(starts)
    if found.hit:
        single = len(starts) == 1 and len(starts[0]) == 1
        row.tried[starts[0][0].label if single else "drawn"] += 1
    else:  # the run took another way, and no call was the one
        row.missed += 1
    row.happened += found.hit
    if log is not None:
        line = {"program": row.name, "starts": schedules.words(starts), "hit": dict(found.hit)}
        with log.open("a") as file:
            file.write(json.dumps(line | {"broken": found.broken}) + "\n")
    if found.broken is not None:
        shortest = bench.shrunk(starts) if len(row.broken) < MAX_SHRUNK else starts
        what = bench.verdict(shortest).broken or f"(not every time) {found.broken}"
        row.broken.append(str(schedules.Broken(row.name, shortest, what)))


def power_cuts(bench: schedules.Bench, per_prefix: int) -> tuple[int, list[str]]:
    """States tried, and what was lost in which."""
    calls = power_cut.with_unseen(read_log(bench.record()))
    root, lost, count = str(bench.folder.resolve()), [], 0
    for state in power_cut.states(calls, root, per_prefix):
        count += 1
        state.write_to(bench.folder, root)
        found = bench.workload.broken_promise(bench.folder, state.marks)
        if found is not None:
            gone = [f"{calls[i].name} {Path(calls[i].path).name}" for i in sorted(state.lost)]
            lost.append(f"{bench.workload.name}, after call {state.prefix}: {found}; lost {gone}")
    return count, lost


def table(rows: list[Row]) -> str:
    """Schedules by kind (rows) and program (columns)."""
    kinds = sorted(
        set().union(*(row.tried for row in rows)), key=lambda kind: (kind == "drawn", kind)
    )
    width = max(len(kind) for kind in [*kinds, "all"]) + 2
    names = [*(row.name for row in rows), "all"]
    lines = ["".join([" " * width, *(f"{name:>{len(name) + 2}}" for name in names)])]
    for kind in [*kinds, "all"]:
        counts = [row.tried.total() if kind == "all" else row.tried[kind] for row in rows]
        cells = zip(names, [*counts, sum(counts)], strict=True)
        lines.append(
            f"{kind:<{width}}" + "".join(f"{n or '·':>{len(name) + 2}}" for name, n in cells)
        )
    return "\n".join(lines)


def main() -> int:
    given = _arguments()
    if not notify.supported():
        print("no table of system calls for this architecture; x86_64 or aarch64 is needed")
        return 2
    with tempfile.TemporaryDirectory(prefix="chaos-", dir=fast_folder()) as scratch:
        return (_replay if given.replay else _all)(given, Path(scratch))


def _replay(given: argparse.Namespace, scratch: Path) -> int:
    name, *starts = given.replay
    parsed = tuple(tuple(map(Fault.parse, one.split(","))) for one in starts)
    found = schedules.bench(name, scratch).verdict(parsed)
    print(found.broken or f"held ({', '.join(found.hit) or 'no fault happened'})")
    return 1 if found.broken else 0


def _all(given: argparse.Namespace, scratch: Path) -> int:
    began, names = time.monotonic(), given.workload or NAMES
    rows = []
    for row in _programs(names, began + 60 * given.minutes, given, scratch):
        rows.append(row)
        print("\n  ".join([row.line(), *row.broken[:MAX_SHOWN]]), flush=True)
    rows.sort(key=lambda row: names.index(row.name))
    print(f"\n{table(rows)}\n")
    print(f"{_summary(rows)}; {time.monotonic() - began:.0f} s, seed {given.seed}: ", end="")
    failed = sum(len(row.broken) for row in rows)
    print(f"{failed} did not hold" if failed else "all held")
    return 1 if failed else 0


def _summary(rows: list[Row]) -> str:
    tried, cpu_s = sum(row.tried.total() for row in rows), sum(row.cpu_s for row in rows)
    missed, faults = sum(row.missed for row in rows), sum(row.happened.total() for row in rows)
    return (
        f"{tried} schedules ({missed} more met no fault), {faults} faults,"
        f" {sum(row.num_cuts for row in rows)} power cuts;"
        f" {sum(row.setup_s for row in rows):.0f} + {cpu_s:.0f} CPU s"
        f" ({cpu_s / max(tried, 1):.2f} a schedule)"
    )


def _programs(
    names: Sequence[str], deadline: float, given: argparse.Namespace, scratch: Path
) -> Iterator[Row]:
    """Each in a process of its own, as forks of one that has imported little are cheap; so many at a
    time. The dear ones come first: what one of them takes too long is spread over the others."""
    waiting = sorted(names, key=weight_of, reverse=True)
    running: dict[Future[Row], str] = {}
    ends: dict[str, float] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.processes, spawn, max_tasks_per_child=1) as pool:
        while waiting or running:
            while waiting and len(running) < given.processes:
                busy_until = [ends[name] for name in running.values()]
                name, free = waiting[0], given.processes - len(running)
                ends[name] = share_ends(waiting, deadline, busy_until, free)
                seed = f"{given.seed}/{waiting.pop(0)}"
                limits = (ends[name], given.schedules, seed, given.per_prefix, given.log)
                running[pool.submit(one_program, name, Budget(scratch, *limits))] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield _row_of(future, running.pop(future))


def share_ends(
    waiting: Sequence[str], deadline: float, busy_until: Sequence[float], free: int
) -> float:
    """When the first of `waiting` is to end: its share, by weight, of what processes have left.

    busy_until: planned ends in those that work; free: how many do not."""
    now = time.monotonic()
    left = free * (deadline - now) + sum(deadline - max(now, end) for end in busy_until)
    weight = weight_of(waiting[0]) / sum(map(weight_of, waiting))
    return min(deadline, now + max(left, 0.0) * weight)


def _row_of(future: Future[Row], name: str) -> Row:
    """What came of a program; one that fails undisturbed takes none of the others along."""
    error = future.exception()
    if error is None:
        return future.result()
    return Row(name, "it ended", broken=[f"undisturbed: {type(error).__name__}: {error}"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--workload", metavar="NAME", action="append", help=", ".join(NAMES))
    words = "of what is drawn; without it another one at each time, which the last line tells"
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**6), help=words
    )
    parser.add_argument("--schedules", type=int, help="of each program, instead of minutes")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--per-prefix", type=int, default=10, help="power cuts after each call")
    parser.add_argument("--log", type=Path, help="gets a JSON line for each schedule")
    parser.add_argument("--replay", nargs="+", metavar=("WORKLOAD", "FAULTS"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
