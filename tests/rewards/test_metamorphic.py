"""Rewrites of a gold answer that keep its meaning are right, changes of its meaning are wrong: by
rules alone, no pair was picked by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from rewards.metamorphic import Pair, pairs

from megaladder.rewards.worker import GradePool, GradeTask

MAX_FALSE_POSITIVES, MAX_FALSE_NEGATIVES = 0.001, 0.01


def check(found: Sequence[Pair]) -> None:
    """Prints the table of counts by kind and holds the two rates."""
    tasks = [GradeTask(str(i), f"\\boxed{{{one.answer}}}", one.gold) for i, one in enumerate(found)]
    with GradePool(num_workers=2) as pool:
        graded = pool.grade_many(tasks)
    table: dict[str, Counter[str]] = {}
    mistakes: dict[bool, list[Pair]] = {True: [], False: []}
    for one, verdict in zip(found, graded, strict=True):
        right = verdict.correct is one.same
        row = table.setdefault(one.kind, Counter())
        row[f"{'same' if one.same else 'other'}{'' if right else ' missed'}"] += 1
        if not right:
            mistakes[one.same].append(one)
    print(f"\n{'kind':<20} {'same':>6} {'missed':>7} {'other':>6} {'taken':>6}")
    for kind, row in sorted(table.items()):
        same, other = row["same"] + row["same missed"], row["other"] + row["other missed"]
        print(f"{kind:<20} {same:>6} {row['same missed']:>7} {other:>6} {row['other missed']:>6}")
    num_same = sum(one.same for one in found)
    assert len(mistakes[False]) <= MAX_FALSE_POSITIVES * (len(found) - num_same), mistakes[False]
    assert len(mistakes[True]) <= MAX_FALSE_NEGATIVES * num_same, mistakes[True][:20]


def test_a_few_hundred_pairs_of_every_kind() -> None:
    found = pairs(num_generated=46, num_real=0, seed=11)
    assert len(found) >= 300 and len({one.kind for one in found}) >= 20
    check(found)


@pytest.mark.slow
def test_twenty_thousand_pairs() -> None:
    found = pairs(num_generated=1_900, num_real=700)
    assert len(found) >= 20_000 and len({one.gold for one in found}) >= 2_000
    check(found)
