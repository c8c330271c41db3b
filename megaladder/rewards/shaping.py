r"""A reward as a weighted sum of terms, with its breakdown. Pure: one completion and its verdict
in, numbers out.

    correctness   weight · 1[correct] (or · the number that a user's function gave)
    format        weight · 1[the response has the asked form], see `FormatRule`
    overlong      soft punishment of length, DAPO (arXiv 2503.14476, eq. 13): 0 up to max_tokens −
                  buffer, falling linearly to −penalty at max_tokens
    repetition    −penalty · share of repeated n-grams of tokens (open-r1's repetition penalty, over
                  tokens instead of words)

The total is the sum of the breakdown, exactly. Not here: group baselines and advantages
(`train.policy_loss`), dropping samples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from megaladder.errors import ConfigError
from megaladder.rewards.extract import last_box
from megaladder.types import Completion, FinishReason, Graded


class FormatRule(StrEnum):
    """What counts as the asked form."""

    BOXED = "boxed"  # the last \boxed{} closes and is not empty
    # exactly one <think>…</think> pair, in that order, and text after it (Rethinking SFT's +0.5)
    THINK = "think"
    # the template already opened <think>: exactly one </think>, and text after it
    THINK_OPENED = "think-opened"
    ANSWER_TAG = "answer-tag"  # exactly one <answer>…</answer> pair


@dataclass(frozen=True, slots=True)
class Shaping:
    """Weights of the terms; 0 or None switches a term off. `max_tokens` is the rollout's limit (the
    overlong term needs it).

    >>> Shaping(overlong_tokens=4096, max_tokens=20480)   # DAPO's published setting: 16,384 free,
    4,096 of buffer    # doctest: +SKIP
    """

    correctness: float = 1.0
    format_weight: float = 0.0
    format_rule: FormatRule = FormatRule.BOXED
    overlong_tokens: int | None = None  # length of the buffer before max_tokens
    overlong_penalty: float = 1.0
    max_tokens: int | None = None
    repetition_penalty: float = 0.0
    repetition_ngram: int = 20  # tokens

    def __post_init__(self) -> None:
        weights = (
            self.correctness,
            self.format_weight,
            self.overlong_penalty,
            self.repetition_penalty,
        )
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise ConfigError(
                f"reward weights must be finite and not negative, found {weights}; fix: penalties"
                " are given as positive numbers"
            )
        if self.overlong_tokens is not None and not (
            self.max_tokens and 0 < self.overlong_tokens <= self.max_tokens
        ):
            raise ConfigError(
                f"overlong buffer {self.overlong_tokens} tokens with max_tokens {self.max_tokens};"
                " fix: a buffer of 1 to max_tokens tokens"
            )
        if self.repetition_ngram < 1:
            raise ConfigError(f"repetition_ngram {self.repetition_ngram}; fix: at least 1 token")


def reward(
    shaping: Shaping, completion: Completion, verdict: Graded | float | None
) -> tuple[float, dict[str, float]]:
    """(total, breakdown by term) of one completion. `verdict`: the grader's, or the number a user's
    function gave.

    Only terms that are switched on are in the breakdown. An aborted completion and an undecided
    verdict (`correct` None, or no number) have no reward: the caller must not score them.
    """
    if completion.finish_reason is FinishReason.ABORT:
        raise ValueError(
            "an aborted completion is never scored: the engine gave up on it; drop or sample it"
            " again"
        )
    value = verdict.correct if isinstance(verdict, Graded) else verdict
    if value is None:
        raise ValueError("an undecided answer is never scored: leave its group out")
    score = float(value)
    terms = {"correctness": shaping.correctness * score}
    if shaping.format_weight:
        terms["format"] = shaping.format_weight * has_format(completion.text, shaping.format_rule)
    if shaping.overlong_tokens is not None:
        terms["overlong"] = shaping.overlong_penalty * overlong(
            len(completion.token_ids), shaping.max_tokens, shaping.overlong_tokens
        )
    if shaping.repetition_penalty:
        terms["repetition"] = -shaping.repetition_penalty * repetition(
            completion.token_ids, shaping.repetition_ngram
        )
    return math.fsum(terms.values()), terms


def has_format(text: str, rule: FormatRule) -> bool:
    """Whether a response has the asked form."""
    if rule is FormatRule.BOXED:
        box = last_box(text)
        return box is not None and bool(box.text and box.text.strip())
    if rule is FormatRule.ANSWER_TAG:
        return _one_pair(text, "<answer>", "</answer>")
    if rule is FormatRule.THINK and not _one_pair(text, "<think>", "</think>"):
        return False
    if rule is FormatRule.THINK_OPENED and (text.count("</think>") != 1 or "<think>" in text):
        return False
    return bool(re.sub(r"<\|[a-z_]{1,40}\|>", "", text.rsplit("</think>", 1)[-1]).strip())


def _one_pair(text: str, opening: str, closing: str) -> bool:
    return text.count(opening) == text.count(closing) == 1 and text.index(opening) < text.index(
        closing
    )


def overlong(num_tokens: int, max_tokens: int, buffer_tokens: int) -> float:
    """DAPO's soft punishment in [−1, 0]: 0 up to max_tokens − buffer, −1 from max_tokens on, linear
    between.

    >>> overlong(16384, 20480, 4096), overlong(18432, 20480, 4096), overlong(20480, 20480, 4096)
    (0.0, -0.5, -1.0)
    """
    excess = num_tokens - (max_tokens - buffer_tokens)
    return -min(1.0, max(0.0, excess / buffer_tokens)) + 0.0


def repetition(token_ids: Sequence[int], ngram: int) -> float:
    """Share of n-grams that occurred before, in [0, 1): 1 − distinct / all; 0 for fewer tokens than
    one n-gram needs.

    >>> repetition([1, 2, 1, 2, 1, 2], 2)
    0.6
    """
    total = len(token_ids) - ngram + 1
    if total <= 0:
        return 0.0
    distinct = len(set(zip(*(token_ids[i : i + total] for i in range(ngram)), strict=True)))
    return 1.0 - distinct / total
