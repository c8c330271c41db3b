"""Which groups dynamic sampling replaces: by accuracy as DAPO does, or by reward."""

from __future__ import annotations

import pytest

from megaladder.config.grpo import GrpoConfig
from megaladder.rewards.terms.builtin import overlong
from megaladder.train.rl.rounds import teaches_nothing, with_advantages
from megaladder.types import (
    Completion,
    FinishReason,
    Graded,
    GradeReason,
    Message,
    Problem,
    RolloutGroup,
)

CONFIG = GrpoConfig(model={"path": "m"}, data={"path": "p.jsonl"})


def group(verdicts: list[bool | None], rewards: list[float | None]) -> RolloutGroup:
    reasons = {True: GradeReason.EXACT, False: GradeReason.DIFFERENT, None: GradeReason.TIMEOUT}
    return RolloutGroup(
        Problem("q", (Message("user", "?"),), "5"),
        (1,),
        tuple(Completion((1,), "x", FinishReason.STOP) for _ in verdicts),
        rewards=tuple(rewards),
        graded=tuple(Graded(verdict, None, reasons[verdict]) for verdict in verdicts),
    )


def test_four_wrong_answers_of_different_lengths_teach_nothing():
    """The recipe's overlong buffer: 20,480 tokens, the last 4,096 of them cost up to 1."""
    lengths = (1_000, 17_000, 19_000, 20_480)
    rewards = [overlong(length, 20_480, 4_096) for length in lengths]
    assert rewards == pytest.approx([0, -0.15, -0.64, -1], abs=0.005)
    wrong = group([False] * 4, rewards)
    assert teaches_nothing(wrong, "accuracy")
    assert not teaches_nothing(wrong, "reward")
    # kept, it would push the policy towards "shorter"
    [kept] = with_advantages([wrong], CONFIG)
    assert kept.advantages == pytest.approx((0.98, 0.65, -0.42, -1.21), abs=0.01)
    assert CONFIG.grpo.preset == "dapo" and CONFIG.grpo.dynamic_sampling == "accuracy"


def test_a_group_with_right_and_wrong_answers_stays():
    assert not teaches_nothing(group([True, False], [1.0, 0.0]), "accuracy")
    assert teaches_nothing(group([True, True], [1.0, 0.5]), "accuracy")
    assert teaches_nothing(group([True, False], [0.5, 0.5]), "reward")


def test_undecided_answers_do_not_count():
    one = group([True, None, None], [1.0, None, None])
    assert teaches_nothing(one, "accuracy") and teaches_nothing(one, "reward")
    mixed = group([True, False, None], [1.0, 0.0, None])
    assert not teaches_nothing(mixed, "accuracy")
    [found] = with_advantages([mixed], CONFIG)
    assert found.advantages[2] == 0.0
    assert (
        found.advantages[:2]
        == with_advantages([group([True, False], [1.0, 0.0])], CONFIG)[0].advantages
    )
