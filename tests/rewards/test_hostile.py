"""Model text is hostile: the hostile part of the corpus costs one sample a hang, leaves no file and
no process, runs no code."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from rewards.grader_corpus import children_of, read_corpus

from megaladder.rewards.worker import GradePool, GradeTask
from megaladder.types import GradeReason

HOSTILE = [row for row in read_corpus() if row["source"] == "hostile"]
KILLED = (GradeReason.TIMEOUT, GradeReason.CRASH)


def _files() -> set[str]:
    here = {str(path) for path in Path.cwd().iterdir()}
    return here | {str(path) for path in Path(tempfile.gettempdir()).glob("megaladder-grade-*")}


def test_hostile_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, children = _files(), children_of(os.getpid())
    started = time.monotonic()
    with GradePool(num_workers=2, timeout_s=1.5) as pool:
        graded = pool.grade_many(
            [
                GradeTask(f"row {i}", row["output"], row["gold"], row["kind"])
                for i, row in enumerate(HOSTILE)
            ]
        )
        # neighbours of the killed samples are graded as if nothing had happened, and the pool goes
        # on
        assert pool.grade_many([GradeTask("after", "\\boxed{x+1}", "1+x")])[0].correct
        failures = pool.failures
    seconds = time.monotonic() - started

    wrong = [
        row["output"][:80]
        for row, found in zip(HOSTILE, graded, strict=True)
        if bool(found.correct) != row["expected"]
    ]
    assert wrong == []
    killed = [i for i, found in enumerate(graded) if found.reason in KILLED]
    assert len(HOSTILE) >= 60 and len(killed) <= 2
    # counted and named, each once
    assert sorted(failure.id for failure in failures) == sorted(f"row {i}" for i in killed)
    assert _files() == files
    assert children_of(os.getpid()) == children
    print(f"hostile: {len(HOSTILE)} responses, {len(killed)} killed, {seconds:.1f} s")


def test_what_is_too_costly_is_undecided_wherever_it_stands():
    """By counted operations, so no process is killed and no clock is read."""
    hang = GradeTask("hang", "\\boxed{9^{9^{9^{9^9}}}}", "5")
    good = [GradeTask(f"good {i}", f"\\boxed{{{i}}}", str(i)) for i in range(130)]
    with GradePool(num_workers=1, timeout_s=1.0) as pool:
        for place in (0, 64, 130):
            graded = pool.grade_many([*good[:place], hang, *good[place:]])
            expected = [None if i == place else True for i in range(131)]
            assert [found.correct for found in graded] == expected
            assert graded[place].reason is GradeReason.LIMIT
        assert pool.counts[GradeReason.LIMIT] == 3 and pool.failures == []
