"""What a process and its children hold, over time, and whether it grows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")
CURVES = (
    "rss_mib",
    "tree_rss_mib",
    "descriptors",
    "threads",
    "processes",
    "shared_mib",
    "temporary_files",
)
# from the moment a process has its helpers: first steps and caches
WARM_S, HELPERS = 300.0, 3
# growth in an hour that counts as none: a share of the mean, or this much
FLAT_SHARE, FLAT_AT_LEAST = 0.02, 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. `at_s`: since the soak began; `age_s`: since this process was started."""

    at_s: float
    age_s: float
    pid: int
    rss_mib: float
    tree_rss_mib: float
    descriptors: int
    threads: int
    processes: int
    shared_mib: float
    temporary_files: int


def tree_of(pid: int) -> list[int]:
    """A process and all below it, itself first."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def look(pid: int, temporary: Path, at_s: float, age_s: float) -> Sample | None:
    """None when it is gone meanwhile."""
    try:
        tree = tree_of(pid)
        threads = len(os.listdir(f"/proc/{pid}/task"))
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        each = [rss for one in tree if (rss := _rss_mib(one)) is not None]
        own = _rss_mib(pid)
        if own is None:
            return None
    except OSError:
        return None
    return Sample(
        round(at_s, 1),
        round(age_s, 1),
        pid,
        round(own, 2),
        round(sum(each), 2),
        descriptors,
        threads,
        len(tree),
        round(_shared_mib(), 2),
        sum(len(files) for _, _, files in os.walk(temporary)),
    )


def _rss_mib(pid: int) -> float | None:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 2**20
    except (OSError, IndexError):
        return None


def _shared_mib() -> float:
    """Of all runs on this machine."""
    total = 0
    for path in Path("/dev/shm").glob("megaladder-*/**/*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total / 2**20


def curves(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """Of each curve: the range, the growth in an hour within the lives of processes (one slope, a
    level for each life), and whether that counts as flat."""
    warm = _warm(samples)
    return {name: _curve(name, warm) for name in CURVES}


def growth(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the memory of the process that lived longest consists of (rows of `heap`): of each part
    the first and the last figure once it was warm, and its growth in an hour (least squares)."""
    lives: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        lives.setdefault(row["pid"], []).append(row)
    longest = max(lives.values(), key=lambda life: life[-1]["age_s"], default=[])
    warm = [row for row in longest if row["age_s"] >= WARM_S]
    if len(warm) < 3:
        return {}
    found: dict[str, Any] = {"minutes": round(longest[-1]["age_s"] / 60, 1), "looks": len(warm)}
    for name in warm[0].keys() - {"pid", "age_s"}:
        points = [(row["age_s"], float(row[name])) for row in warm]
        per_hour = 3600 * _least_squares([points])
        found[name] = [warm[0][name], warm[-1][name], round(per_hour, 2)]
    return found


def _warm(samples: Sequence[Sample]) -> list[Sample]:
    """Those of processes that have had their helpers for a while."""
    since: dict[int, float] = {}
    for sample in samples:
        if sample.processes >= HELPERS:
            since.setdefault(sample.pid, sample.age_s)
    return [s for s in samples if s.pid in since and s.age_s >= since[s.pid] + WARM_S]


def _curve(name: str, samples: Sequence[Sample]) -> dict[str, Any]:
    values = [float(getattr(sample, name)) for sample in samples]
    if len(values) < 3:
        return {"flat": False, "why": f"{len(values)} samples of warm processes"}
    within = _slope(samples, values)
    mean = sum(values) / len(values)
    limit = max(FLAT_SHARE * mean, FLAT_AT_LEAST)
    return {
        "least": min(values),
        "most": max(values),
        "per_hour_within_a_life": round(within, 3),
        "limit_per_hour": round(limit, 3),
        "flat": within < limit,
    }


def _slope(samples: Sequence[Sample], values: Sequence[float]) -> float:
    """Change in an hour, with one level for each process."""
    lives: dict[int, list[tuple[float, float]]] = {}
    for sample, value in zip(samples, values, strict=True):
        lives.setdefault(sample.pid, []).append((sample.age_s, value))
    return 3600 * _least_squares(lives.values())


def _least_squares(lives: Iterable[Sequence[tuple[float, float]]]) -> float:
    """One slope of all, (x, y) each, with a level of its own for each."""
    top = bottom = 0.0
    for rows in lives:
        mean_t = sum(t for t, _ in rows) / len(rows)
        mean_v = sum(v for _, v in rows) / len(rows)
        top += sum((t - mean_t) * (v - mean_v) for t, v in rows)
        bottom += sum((t - mean_t) ** 2 for t, _ in rows)
    return top / bottom if bottom else 0.0
