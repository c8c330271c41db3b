r"""The built-in terms. Pure: one sample in, one number out, before its weight.

correctness   1 for a correct answer, else 0
format        1 if the response has the asked form, see `has_format`
length        −min(1, tokens / limit), of correct answers only unless asked otherwise
overlong      0 up to max_tokens − tokens, falling linearly to −1 at max_tokens (DAPO, arXiv
              2503.14476, eq. 13)
repetition    −share of repeated n-grams of tokens (open-r1's repetition penalty, over tokens
              instead of words)
language      share of the text that is in the asked language
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megaladder.config.sections.reward import (
    CorrectnessTerm,
    FormatTerm,
    LanguageTerm,
    LengthTerm,
    OverlongTerm,
    RepetitionTerm,
    Term,
)
from megaladder.rewards.extract import answer_part, last_box
from megaladder.rewards.letters import letter
from megaladder.rewards.verifiers.code import last_program
from megaladder.rewards.verifiers.language import share_in
from megaladder.types import Completion, FinishReason, Graded, Problem

NEEDS_VERDICT = (CorrectnessTerm, LengthTerm)
"""Terms without a value where the verdict is undecided."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion of a problem with its verdict. max_tokens: the rollout's limit."""

    id: str
    problem: Problem
    completion: Completion
    graded: Graded
    max_tokens: int

    def __post_init__(self) -> None:
        if self.completion.finish_reason is FinishReason.ABORT:
            raise ValueError(f"{self.id}: an aborted completion is never scored: sample it again")


def value_of(term: Term, sample: Sample) -> float:
    """A built-in term's value for one sample."""
    return _VALUES[type(term)](term, sample)


def _correctness(term: CorrectnessTerm, sample: Sample) -> float:
    return float(bool(sample.graded.correct))


def _format(term: FormatTerm, sample: Sample) -> float:
    rule = _RULE_OF_KIND.get(sample.problem.kind, "any") if term.rule == "auto" else term.rule
    return float(has_format(sample.completion.text, rule))


def _length(term: LengthTerm, sample: Sample) -> float:
    if term.correct_only and not sample.graded.correct:
        return 0.0
    return -min(1.0, len(sample.completion.token_ids) / term.tokens)


def _overlong(term: OverlongTerm, sample: Sample) -> float:
    return overlong(len(sample.completion.token_ids), sample.max_tokens, term.tokens)


def _repetition(term: RepetitionTerm, sample: Sample) -> float:
    return 0.0 - repetition(sample.completion.token_ids, term.ngram)


def _language(term: LanguageTerm, sample: Sample) -> float:
    return share_in(sample.completion.text, term.language)


_VALUES: dict[type[Term], Callable[[Any, Sample], float]] = {
    CorrectnessTerm: _correctness,
    FormatTerm: _format,
    LengthTerm: _length,
    OverlongTerm: _overlong,
    RepetitionTerm: _repetition,
    LanguageTerm: _language,
}
_RULE_OF_KIND = {
    "math": "boxed",
    "gsm8k": "hashes",
    "choice": "letter",
    "exact": "boxed",
    "countdown": "boxed",
    "code": "code",
}


def has_format(text: str, rule: str) -> bool:
    r"""Whether a response has the asked form.

    boxed: the last \boxed{} closes and is not empty; hashes: `#### N` or boxed; letter: boxed, with
    an option's letter; think: exactly one <think>…</think> pair and text after it; think-opened:
    the template opened it, so exactly one </think>; answer-tag: one <answer>…</answer> pair;
    code: a fenced program; any: text after the reasoning.
    """
    return _RULES[rule](text)


def _boxed(text: str) -> bool:
    box = last_box(text)
    return box is not None and bool(box.text and box.text.strip())


def _hashes(text: str) -> bool:
    last = (answer_part(text) or "").strip().rsplit("\n", 1)[-1]
    return _boxed(text) or re.fullmatch(r"####\s*[-+$]?[\d,]*\.?\d+%?", last.strip()) is not None


def _letter(text: str) -> bool:
    box = last_box(text)
    return box is not None and box.text is not None and letter(box.text) is not None


def _think(text: str) -> bool:
    return _one_pair(text, "<think>", "</think>") and _says_something(text)


def _think_opened(text: str) -> bool:
    return text.count("</think>") == 1 and "<think>" not in text and _says_something(text)


def _says_something(text: str) -> bool:
    return bool(re.sub(r"<\|[a-z_]{1,40}\|>", "", text.rsplit("</think>", 1)[-1]).strip())


def _one_pair(text: str, opening: str, closing: str) -> bool:
    return text.count(opening) == text.count(closing) == 1 and text.index(opening) < text.index(
        closing
    )


_RULES: dict[str, Callable[[str], bool]] = {
    "boxed": _boxed,
    "hashes": _hashes,
    "letter": _letter,
    "think": _think,
    "think-opened": _think_opened,
    "answer-tag": lambda text: _one_pair(text, "<answer>", "</answer>"),
    "code": lambda text: last_program(text) is not None,
    "any": lambda text: bool((answer_part(text) or "").strip()),
}


def overlong(num_tokens: int, max_tokens: int, buffer_tokens: int) -> float:
    """DAPO's soft punishment in [−1, 0].

    0 up to max_tokens − buffer, −1 from max_tokens on, linear between.

    >>> overlong(16384, 20480, 4096), overlong(18432, 20480, 4096), overlong(20480, 20480, 4096)
    (0.0, -0.5, -1.0)
    """
    excess = num_tokens - (max_tokens - buffer_tokens)
    return -min(1.0, max(0.0, excess / buffer_tokens)) + 0.0


def repetition(token_ids: Sequence[int], ngram: int) -> float:
    """Share of n-grams that occurred before, in [0, 1).

    1 − distinct / all; 0 for fewer tokens than one n-gram needs.

    >>> repetition([1, 2, 1, 2, 1, 2], 2)
    0.6
    """
    total = len(token_ids) - ngram + 1
    if total <= 0:
        return 0.0
    distinct = len(set(zip(*(token_ids[i : i + total] for i in range(ngram)), strict=True)))
    return 1.0 - distinct / total
