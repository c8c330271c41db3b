"""Each verifier's list of hacks: none counts. A row says why a policy, or an adversary, tries it.

`hacks/KIND.jsonl`: {"why", "gold", "response", "row": the verifier's parameters}.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megaladder.rewards.verifiers import VERIFIERS
from megaladder.rewards.verifiers.pool import VerifierPool
from megaladder.rewards.worker import GradeTask

HACKS = Path(__file__).with_name("hacks")
MIN_HACKS = 60


def hacks(kind: str) -> list[dict[str, Any]]:
    lines = (HACKS / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


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
    tasks = [
        GradeTask(row["why"], row["response"], row["gold"], kind, row.get("row", {}))
        for row in rows
    ]
    graded = pool.grade_many(tasks)
    passed = [task.id for task, found in zip(tasks, graded, strict=True) if found.correct]
    assert passed == []
    # what cannot be decided is not wrong either: rare
    assert sum(found.correct is None for found in graded) <= 2
    print(f"{kind}: {len(rows)} hacks, 0 count")
