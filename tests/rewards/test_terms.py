"""Reward terms against their published definitions; the breakdown always adds up."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaladder.config.sections.reward import Language, RewardSection
from megaladder.errors import RewardError
from megaladder.rewards.terms.builtin import Sample, has_format, overlong, repetition
from megaladder.rewards.terms.total import RewardTerms, Scored
from megaladder.rewards.verifiers.language import LANGUAGES
from megaladder.types import Completion, FinishReason, Graded, GradeReason, Message, Problem

RIGHT = Graded(True, "5", GradeReason.EXACT)
WRONG = Graded(False, "6", GradeReason.DIFFERENT)
UNDECIDED = Graded(None, None, GradeReason.TIMEOUT, "killed")


def sample(
    graded: Graded = RIGHT, text: str = "\\boxed{5}", tokens=range(10), kind: str = "math"
) -> Sample:
    completion = Completion(tuple(tokens), text, FinishReason.STOP)
    problem = Problem("q", (Message("user", "?"),), "5", kind)
    return Sample("q/0", problem, completion, graded, max_tokens=100)


def score(terms: list, *samples: Sample) -> list[Scored]:
    return RewardTerms(RewardSection(terms=terms)).score(samples)


def test_correctness_alone_is_zero_or_one():
    assert RewardSection() == RewardSection(terms=["correctness"])
    assert score(["correctness"], sample(RIGHT), sample(WRONG)) == [
        Scored(1.0, {"correctness": 1.0}),
        Scored(0.0, {"correctness": 0.0}),
    ]


def test_an_undecided_verdict_is_no_reward_of_zero():
    [found] = score(["correctness", {"name": "format", "weight": 0.5}], sample(UNDECIDED))
    assert (found.reward, found.why) == (None, "killed")
    # a reward that does not read the verdict does not need one
    assert score([{"name": "format", "rule": "boxed"}], sample(UNDECIDED))[0].reward == 1.0


def test_overlong_is_dapos_soft_punishment():
    """arXiv 2503.14476, eq. 13 with L_max 20480 and L_cache 4096, written out piece by piece."""

    def published(length: int) -> float:
        if length <= 20480 - 4096:
            return 0.0
        return ((20480 - 4096) - length) / 4096 if length <= 20480 else -1.0

    for length in (0, 1, 16383, 16384, 16385, 17408, 18432, 20479, 20480, 20481, 40000):
        assert overlong(length, 20480, 4096) == published(length)
    terms = ["correctness", {"name": "overlong", "tokens": 40, "weight": 0.5}]
    [found] = score(terms, sample(tokens=range(80)))
    assert found == Scored(0.75, {"correctness": 1.0, "overlong": -0.25})


def test_repetition_counts_seen_ngrams():
    assert repetition([7] * 100, 20) == 1 - 1 / 81
    assert repetition(list(range(100)), 20) == 0.0
    assert repetition([1, 2], 3) == repetition([], 1) == 0.0
    tokens = [1, 2, 3, 1, 2, 3, 4]
    assert repetition(tokens, 2) == pytest.approx(
        1 - len({tuple(tokens[i : i + 2]) for i in range(6)}) / 6
    )
    [found] = score([{"name": "repetition", "weight": 0.5}], sample(WRONG, tokens=[7] * 100))
    assert found.reward == -0.5 * (1 - 1 / 81)


def test_length_costs_correct_answers_only_unless_asked_otherwise():
    terms = [{"name": "length", "tokens": 20}]
    assert [one.reward for one in score(terms, sample(RIGHT), sample(WRONG))] == [-0.5, 0.0]
    terms[0]["correct_only"] = False
    assert [one.reward for one in score(terms, sample(RIGHT), sample(WRONG))] == [-0.5, -0.5]
    assert score(terms, sample(tokens=range(90)))[0].reward == -1.0


def test_language_is_the_share_of_the_text():
    assert get_args(Language) == LANGUAGES
    english = "the answer is not in the box but it is on the table"
    german = "das ist nicht ein Haus und die Antwort ist auch da"
    terms = [{"name": "language", "language": "en"}]
    assert score(terms, sample(text=english))[0].reward == 1.0
    assert score(terms, sample(text=german))[0].reward == 0.0
    mixed = score(terms, sample(text=f"{english}\n{german}\n\\boxed{{5}}"))[0].reward
    assert 0.3 < mixed < 0.7


FORMS = {
    "boxed": (
        ["so \\boxed{5}", "\\boxed{\\frac{1}{2}}"],
        ["5", "\\boxed{5", "\\boxed{}", "\\boxed{1} \\boxed{ }"],
    ),
    "hashes": (["so\n#### 5", "#### -1,234.5", "\\boxed{5}"], ["5", "#### five", "#### 5\nno"]),
    "letter": (["\\boxed{B}", "\\boxed{(c)}"], ["B", "\\boxed{5}", "\\boxed{}"]),
    "think": (
        ["<think>a</think>b", "<think></think> 5"],
        [
            *("5", "<think>a", "a</think>b", "</think>a<think>", "<think>a</think>"),
            *("<think>a</think><|im_end|>", "<think>" * 2 + "</think>b"),
        ],
    ),
    "think-opened": (
        ["a</think>b"],
        ["b", "<think>a</think>b", "a</think>b</think>c", "a</think>  "],
    ),
    "answer-tag": (
        ["x <answer>5</answer>"],
        ["5", "<answer>5", "</answer><answer>", "<answer>1</answer><answer>2</answer>"],
    ),
    "code": (["```python\nprint(1)\n```"], ["print(1)", "```python\nprint(1)"]),
}


@pytest.mark.parametrize("rule", FORMS)
def test_format_rules(rule):
    good, bad = FORMS[rule]
    assert [has_format(text, rule) for text in good] == [True] * len(good)
    assert [has_format(text, rule) for text in bad] == [False] * len(bad)
    [found] = score([{"name": "format", "weight": 0.5, "rule": rule}], sample(WRONG, good[0]))
    assert found.reward == 0.5  # Rethinking SFT: +0.5 for the form, whatever the answer


def test_the_form_follows_the_verifier():
    answers = {"math": "\\boxed{5}", "gsm8k": "#### 5", "choice": "\\boxed{B}"}
    for kind, text in answers.items():
        assert score(["format"], sample(text=text, kind=kind))[0].reward == 1.0
    assert score(["format"], sample(text="#### 5", kind="math"))[0].reward == 0.0


@given(st.booleans(), st.integers(0, 400), st.floats(0, 5), st.floats(0, 5), st.floats(0, 5))
def test_the_breakdown_adds_up_and_is_bounded(right, num_tokens, form, penalty, repeated):
    terms = [
        "correctness",
        {"name": "format", "weight": form},
        {"name": "overlong", "tokens": 50, "weight": penalty},
        {"name": "repetition", "weight": repeated},
    ]
    [found] = score(terms, sample(RIGHT if right else WRONG, tokens=range(num_tokens)))
    assert found.reward == math.fsum(found.terms.values())
    assert -penalty - repeated - 1e-9 <= found.reward <= 1 + form + 1e-9
    assert found.terms["overlong"] <= 0 and found.terms["repetition"] <= 0


def test_an_aborted_completion_is_never_scored():
    with pytest.raises(ValueError, match="aborted"):
        Sample("q", sample().problem, Completion((1,), "x", FinishReason.ABORT), RIGHT, 100)


def test_a_reward_beyond_all_bounds_is_refused_with_its_sample():
    with pytest.raises(RewardError, match=r"sample q/0: reward 1e\+300"):
        score([{"name": "correctness", "weight": 1e300}], sample())


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "correctness", "weight": math.inf},
        {"name": "overlong"},
        {"name": "overlong", "tokens": 0},
        {"name": "repetition", "ngram": 0},
        {"name": "format", "rule": "nice"},
        {"name": "nobody"},
        {"name": "language", "language": "tlh"},
        7,
        {},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValueError, match="terms"):
        RewardSection(terms=[wrong])
