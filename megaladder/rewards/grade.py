r"""The only grader: RL and benchmarks call this one function.

`grade` is pure and runs in the process that calls it; model text is hostile, so callers that have a
choice go through `worker.GradePool`, which runs this same function in processes that can be killed.
Nothing here evaluates model text.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from megaladder import __version__
from megaladder.errors import DataError
from megaladder.rewards.compare.equal import equal, named
from megaladder.rewards.compare.evaluate import TooMuch
from megaladder.rewards.compare.normalize import Number, clean, same_number
from megaladder.rewards.compare.quantity import read_number
from megaladder.rewards.dialects import OWN_DIALECT
from megaladder.rewards.extract import (
    Candidate,
    answer_part,
    extract,
    last_box,
    last_number,
    yes_or_no,
)
from megaladder.rewards.letters import letter
from megaladder.types import DialectName, Graded, GradeReason

OWN = "megaladder"  # the name of our own grader
KINDS = ("math", "gsm8k", "choice", "exact")


def grader_label(grader: str = OWN, dialect: str = OWN_DIALECT, version: str = __version__) -> str:
    """Which grader it was, for rows, protocols and reports.

    A published grader brings its own way to find the answer; its rebuilt rules have our version.

    >>> grader_label("qwen").split()[0], grader_label("megaladder", "last-box").partition(", ")[2]
    ('qwen', 'answers by last-box')
    """
    named = f"{grader} {version}"
    return named if dialect == OWN_DIALECT else f"{named}, answers by {dialect}"


def grade(
    response: str,
    gold: str,
    kind: str = "math",
    grader: str = OWN,
    dialect: DialectName = OWN_DIALECT,
) -> Graded:
    r"""Whether a response answers with `gold`.

    How the answer is found: `extract`. What is equal, per kind:

    math    the same kind of answer and the same value: see `compare.equal` for the rule of each
            kind. What is too costly to decide is undecided (reason limit), never wrong.
    gsm8k   the same number, its unit aside; gold may be a whole GSM8K solution ending in `#### N`.
    choice  the same option letter; gold may be `B`, `(B)`, `\text{(B)}`.
    exact   the same string (Unicode NFC, white space collapsed, a final full stop aside); for gold
            yes/no, any case and the last whole word Yes or No (HaluEval's rule).

    `grader`: a name of `published.GRADERS` in place of our own rules for math and gsm8k.
    `dialect`: a name of `dialects.DIALECTS`, where our own rules look for the answer.

    Raises DataError if `gold` is empty or cannot be a gold of its kind, and ValueError for an
    unknown kind.

    >>> grade("so it is \\boxed{\\frac{1}{4}}", "0.25", "math").reason.value
    'numeric'
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
    check_gold(gold, kind)
    if kind == "exact" and gold.strip().casefold() in ("yes", "no"):
        return _grade_yes_no(response, gold.strip().casefold(), dialect)
    if grader != OWN and kind in ("math", "gsm8k"):
        from megaladder.rewards.published import published_grade

        return published_grade(response, gold.rsplit("####", 1)[-1].strip(), grader)
    candidate = extract(response, kind, dialect)
    if candidate.text is None:
        return Graded(False, None, GradeReason.NO_ANSWER, candidate.rule)
    if kind == "exact" and dialect == OWN_DIALECT:
        return _grade_exact(_whole_or(candidate, gold, response), gold)
    return {
        "math": _grade_math,
        "gsm8k": _grade_gsm8k,
        "choice": _grade_choice,
        "exact": _grade_exact,
    }[kind](candidate, gold)


@lru_cache(maxsize=4096)
def check_gold(gold: str, kind: str) -> None:
    """Raises DataError for a gold answer that no response could match."""
    if not isinstance(gold, str) or not gold.strip():
        raise DataError(f"gold answer {gold!r}: is empty; fix: give the answer, or drop the row")
    if kind == "gsm8k" and _gsm8k_gold(gold) is None:
        raise DataError(
            f"gold answer {gold[-80:]!r}: kind gsm8k expects a number or a solution ending in '####"
            " N'; fix: kind math"
        )
    if kind == "choice" and letter(gold) is None:
        raise DataError(
            f"gold answer {gold[:80]!r}: kind choice expects an option letter such as B; fix: kind"
            " exact or math"
        )
    if kind == "math" and "\\boxed" in gold and _math_gold(gold) is None:
        raise DataError(
            f"gold answer {gold[-80:]!r}: its \\boxed{{}} is empty or never closed; fix: give the"
            " answer alone"
        )


def _math_gold(gold: str) -> str | None:
    box = last_box(gold)
    return gold if box is None else (box.text or "").strip() or None


@lru_cache(maxsize=4096)
def _gsm8k_gold(gold: str) -> Number | None:
    return read_number(clean(gold.rsplit("####", 1)[-1]))


def _grade_math(candidate: Candidate, gold: str) -> Graded:
    answer = unicodedata.normalize("NFC", candidate.text or "")
    expected = _math_gold(gold) or ""
    try:
        reason = equal(expected, answer)
    except TooMuch as error:
        return Graded(None, answer, GradeReason.LIMIT, f"{candidate.rule}: {error}")
    return Graded(
        reason is not None,
        answer,
        reason or GradeReason.DIFFERENT,
        f"{candidate.rule}: {_short(answer)} against {_short(expected)}",
    )


def _grade_gsm8k(candidate: Candidate, gold: str) -> Graded:
    answer = unicodedata.normalize("NFC", candidate.text or "")
    said = gold.rsplit("####", 1)[-1].strip()
    try:
        correct = answer == said or _is_number(answer, _gsm8k_gold(gold))
    except TooMuch as error:
        return Graded(None, answer, GradeReason.LIMIT, f"{candidate.rule}: {error}")
    reason = GradeReason.NUMERIC if correct else GradeReason.DIFFERENT
    return Graded(
        correct, answer, reason, f"{candidate.rule}: {_short(answer)} against {_short(said)}"
    )


def _is_number(answer: str, expected: Number | None) -> bool:
    found = read_number(clean(answer))
    if found is None and "=" in answer:
        return any(_is_number(value, expected) for value in named(answer))
    if found is None:
        single = last_number(clean(answer))
        found = read_number(clean(single)) if single else None
    return found is not None and expected is not None and same_number(expected, found)


def _grade_choice(candidate: Candidate, gold: str) -> Graded:
    answer = letter(candidate.text or "") or candidate.text or ""
    correct = answer == letter(gold)
    reason = GradeReason.CHOICE if correct else GradeReason.DIFFERENT
    return Graded(
        correct, answer, reason, f"{candidate.rule}: {_short(answer)} against {letter(gold)}"
    )


def _grade_exact(candidate: Candidate, gold: str) -> Graded:
    expected = _collapse(gold)
    answer = _collapse(candidate.text or "")
    correct = answer == expected or (answer.endswith(".") and answer[:-1].strip() == expected)
    reason = GradeReason.EXACT if correct else GradeReason.DIFFERENT
    return Graded(
        correct, answer, reason, f"{candidate.rule}: {_short(answer)} against {_short(expected)}"
    )


def _whole_or(candidate: Candidate, gold: str, response: str) -> Candidate:
    """The whole answer part where that is the gold string, line breaks and all."""
    whole = answer_part(response) or ""
    return Candidate(whole, candidate.rule) if _collapse(whole) == _collapse(gold) else candidate


def _grade_yes_no(response: str, gold: str, dialect: DialectName) -> Graded:
    marked = extract(response, "exact", dialect)
    if marked.text is None and not marked.rule.startswith("last line"):
        return Graded(False, None, GradeReason.NO_ANSWER, marked.rule)
    said = (marked.text or "").strip("*. ").casefold()
    answer = said if said in ("yes", "no") else yes_or_no(response)
    if answer is None:
        return Graded(False, None, GradeReason.NO_ANSWER, "neither Yes nor No")
    return Graded(
        answer == gold,
        answer,
        GradeReason.EXACT if answer == gold else GradeReason.DIFFERENT,
        f"{answer} against {gold}",
    )


def _collapse(text: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}…"
