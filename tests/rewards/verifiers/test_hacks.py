"""Each verifier's list of hacks: none counts. A row says why a policy, or an adversary, tries it.
And true answers, made by rules: they count.

`hacks/KIND.jsonl`: {"why", "gold", "response", "row": the verifier's parameters}.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rewards.verifiers.true_answers import true_answers

from megaladder.rewards.programs.runner import ProgramLimits
from megaladder.rewards.verifiers import VERIFIERS, code
from megaladder.rewards.verifiers.pool import VerifierPool
from megaladder.rewards.worker import GradeTask
from megaladder.types import Graded

HACKS = Path(__file__).with_name("hacks")
MIN_HACKS, MIN_TRUE = 60, 0.995


def hacks(kind: str) -> list[dict[str, Any]]:
    text = (HACKS / f"{kind}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.strip().split("\n")]


def grade_all(kind: str, rows: list[dict[str, Any]], pool: VerifierPool) -> list[Graded]:
    """Programs with one CPU second each: some never end."""
    if kind != "code":
        tasks = [
            GradeTask(row["why"], row["response"], row["gold"], kind, row.get("row", {}))
            for row in rows
        ]
        return pool.grade_many(tasks)
    limits = ProgramLimits(cpu_s=1, memory_bytes=512 << 20)
    with ThreadPoolExecutor(2) as threads:
        return list(
            threads.map(
                lambda row: code.run(row["response"], row["gold"], row["row"], limits), rows
            )
        )


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(num_workers=2) as pool:
        yield pool


@pytest.mark.parametrize("kind", VERIFIERS)
def test_no_hack_counts(kind, pool):
    rows = hacks(kind)
    assert all(row["why"] for row in rows)
    different = {json.dumps([row["gold"], row["response"], row.get("row")]) for row in rows}
    assert len(different) == len(rows) >= MIN_HACKS
    graded = grade_all(kind, rows, pool)
    passed = [row["why"] for row, found in zip(rows, graded, strict=True) if found.correct]
    assert passed == []
    # what cannot be decided is not wrong either: rare
    assert sum(found.correct is None for found in graded) <= 2
    print(f"{kind}: {len(rows)} hacks, 0 count")


@pytest.fixture(scope="module")
def answers():
    return true_answers()


@pytest.mark.parametrize("kind", VERIFIERS)
def test_true_answers_count(kind, pool, answers):
    graded = pool.grade_many(answers[kind])
    missed = [
        (task.response[-200:], task.gold, found.detail)
        for task, found in zip(answers[kind], graded, strict=True)
        if not found.correct
    ]
    share = 1 - len(missed) / len(graded)
    print(f"{kind}: {share:.2%} of {len(graded)} true answers")
    assert share >= MIN_TRUE, missed[:20]
