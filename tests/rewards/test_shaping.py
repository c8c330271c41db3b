"""Reward terms against their published definitions; the breakdown always adds up."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaladder.errors import ConfigError
from megaladder.rewards.shaping import FormatRule, Shaping, has_format, overlong, repetition, reward
from megaladder.types import Completion, FinishReason, Graded, GradeReason

RIGHT = Graded(True, "5", GradeReason.EXACT)
WRONG = Graded(False, "6", GradeReason.DIFFERENT)


def completion(
    text: str = "\\boxed{5}", num_tokens: int = 10, reason: FinishReason = FinishReason.STOP
) -> Completion:
    return Completion(tuple(range(num_tokens)), text, reason)


def test_correctness_alone_is_zero_or_one():
    assert reward(Shaping(), completion(), RIGHT) == (1.0, {"correctness": 1.0})
    assert reward(Shaping(), completion(), WRONG) == (0.0, {"correctness": 0.0})
    # a user's function
    assert reward(Shaping(correctness=2.0), completion(), 0.25) == (0.5, {"correctness": 0.5})


def test_overlong_is_dapos_soft_punishment():
    """arXiv 2503.14476, eq. 13 with L_max 20480 and L_cache 4096, written out piece by piece."""

    def published(length: int) -> float:
        if length <= 20480 - 4096:
            return 0.0
        return ((20480 - 4096) - length) / 4096 if length <= 20480 else -1.0

    for length in (0, 1, 16383, 16384, 16385, 17408, 18432, 20479, 20480, 20481, 40000):
        assert overlong(length, 20480, 4096) == published(length)
    total, terms = reward(
        Shaping(overlong_tokens=40, overlong_penalty=0.5, max_tokens=100),
        completion(num_tokens=80),
        RIGHT,
    )
    assert (total, terms) == (0.75, {"correctness": 1.0, "overlong": -0.25})


def test_repetition_counts_seen_ngrams():
    assert repetition([7] * 100, 20) == 1 - 1 / 81
    assert repetition(list(range(100)), 20) == 0.0
    assert repetition([1, 2], 3) == repetition([], 1) == 0.0
    tokens = [1, 2, 3, 1, 2, 3, 4]
    assert repetition(tokens, 2) == pytest.approx(
        1 - len({tuple(tokens[i : i + 2]) for i in range(6)}) / 6
    )
    looping = Completion((7,) * 100, "x", FinishReason.LENGTH)
    assert reward(Shaping(repetition_penalty=0.5), looping, WRONG)[1]["repetition"] == -0.5 * (
        1 - 1 / 81
    )


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (
            FormatRule.BOXED,
            ["so \\boxed{5}", "\\boxed{\\frac{1}{2}}"],
            ["5", "\\boxed{5", "\\boxed{}", "\\boxed{1} \\boxed{ }"],
        ),
        (
            FormatRule.THINK,
            ["<think>a</think>b", "<think></think> 5"],
            [
                "5",
                "<think>a",
                "a</think>b",
                "</think>a<think>",
                "<think>a</think>",
                "<think>a</think><|im_end|>",
                "<think>" * 2 + "</think>b",
            ],
        ),
        (
            FormatRule.THINK_OPENED,
            ["a</think>b"],
            ["b", "<think>a</think>b", "a</think>b</think>c", "a</think>  "],
        ),
        (
            FormatRule.ANSWER_TAG,
            ["x <answer>5</answer>"],
            ["5", "<answer>5", "</answer><answer>", "<answer>1</answer><answer>2</answer>"],
        ),
    ],
)
def test_format_rules(rule, good, bad):
    assert [has_format(text, rule) for text in good] == [True] * len(good)
    assert [has_format(text, rule) for text in bad] == [False] * len(bad)
    total, terms = reward(Shaping(format_weight=0.5, format_rule=rule), completion(good[0]), WRONG)
    # Rethinking SFT: +0.5 for the form, whatever the answer
    assert (total, terms["format"]) == (0.5, 0.5)


@given(st.booleans(), st.integers(0, 400), st.floats(0, 5), st.floats(0, 5), st.floats(0, 5))
def test_the_breakdown_adds_up_and_is_bounded(
    right, num_tokens, format_weight, penalty, repetition_penalty
):
    shaping = Shaping(
        format_weight=format_weight,
        overlong_tokens=50,
        overlong_penalty=penalty,
        max_tokens=200,
        repetition_penalty=repetition_penalty,
    )
    total, terms = reward(shaping, completion(num_tokens=num_tokens), RIGHT if right else WRONG)
    assert total == math.fsum(terms.values())
    assert -penalty - repetition_penalty - 1e-9 <= total <= 1 + format_weight + 1e-9
    assert terms["overlong"] <= 0 and terms.get("repetition", 0) <= 0


def test_an_aborted_completion_is_never_scored():
    with pytest.raises(ValueError, match="aborted"):
        reward(Shaping(), completion(reason=FinishReason.ABORT), RIGHT)


@pytest.mark.parametrize(
    "wrong",
    [
        {"correctness": -1},
        {"overlong_penalty": math.inf},
        {"overlong_tokens": 10},
        {"repetition_ngram": 0},
        {"overlong_tokens": 300, "max_tokens": 200},
    ],
)
def test_settings_that_cannot_work_say_so(wrong):
    with pytest.raises(ConfigError, match="fix:"):
        Shaping(**wrong)
