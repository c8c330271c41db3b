"""A busy machine gives the same verdicts: limits count operations and CPU time, never the clock."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rewards.grader_corpus import read_corpus
from rewards.metamorphic import pairs

from megaladder.rewards.worker import GradePool, GradeTask
from megaladder.types import Graded

NUM_ANSWERS, NUM_BUSY = 5_000, 8


def answers() -> list[GradeTask]:
    """Pairs of every kind, and the whole corpus with its hostile part."""
    found = [
        GradeTask(f"corpus {i}", row["output"], row["gold"], row["kind"])
        for i, row in enumerate(read_corpus())
    ]
    for i, one in enumerate(pairs(num_generated=520, num_real=0, seed=3)):
        found.append(GradeTask(f"pair {i}", f"\\boxed{{{one.answer}}}", one.gold))
    return found[:NUM_ANSWERS]


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that do nothing but use the CPU, until the block ends."""
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def grade_all(tasks: list[GradeTask]) -> list[Graded]:
    """Verdicts by two workers; prints how many answers a second."""
    with GradePool(num_workers=2) as pool:
        pool.grade_many(tasks[:100])
        started = time.monotonic()
        graded = pool.grade_many(tasks)
        print(f"{len(tasks) / (time.monotonic() - started):,.0f} answers/s")
        return graded


@pytest.mark.slow
def test_five_thousand_verdicts_are_the_same_beside_eight_busy_processes() -> None:
    tasks = answers()
    assert len(tasks) == NUM_ANSWERS
    alone = grade_all(tasks)
    with busy_processes(NUM_BUSY):
        crowded = grade_all(tasks)
    different = [t.id for t, a, b in zip(tasks, alone, crowded, strict=True) if a != b]
    assert different == []
