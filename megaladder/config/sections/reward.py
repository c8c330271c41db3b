"""The section `reward`: how answers are verified, and the weighted terms.

The reward of a completion is the sum of its terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from megaladder.config.base import StrictModel, yaml_flag
from megaladder.types import DialectName, Kind

Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0)]
Tokens = Annotated[int, Field(ge=1)]


Language = Literal[
    "ar",
    "bg",
    "bn",
    "de",
    "el",
    "en",
    "es",
    "fa",
    "fi",
    "fr",
    "gu",
    "he",
    "hi",
    "it",
    "ja",
    "kn",
    "ko",
    "ml",
    "mr",
    "ne",
    "nl",
    "pa",
    "pl",
    "pt",
    "ru",
    "sw",
    "ta",
    "te",
    "th",
    "uk",
    "ur",
    "vi",
    "zh",
]


class Term(StrictModel):
    """One summand of the reward: weight × value."""

    weight: Finite = 1.0
    """Factor on the term's value."""

    @property
    def label(self) -> str:
        """Its name in logs and rollouts."""
        # every term but a function has a name, and a function has a label of its own
        return str(getattr(self, "name", ""))


class CorrectnessTerm(Term):
    """1 for a correct answer, else 0; undecided answers are never trained on."""

    name: Literal["correctness"]


class FormatTerm(Term):
    """1 if the response has the asked form, whatever it answers; else 0."""

    name: Literal["format"]
    rule: Literal[
        "auto", "boxed", "think", "think-opened", "answer-tag", "hashes", "code", "letter"
    ] = "auto"
    """auto = the form of the row's verifier; think = one <think>…</think> pair and text after it;
    think-opened = the same where the template opened it."""


class LengthTerm(Term):
    """−1 to 0: length over `tokens`, linear from 0 tokens on, −1 from there.

    Only for correct answers unless `correct_only` is false.
    """

    name: Literal["length"]
    tokens: Tokens
    """Length that costs the whole weight."""
    correct_only: bool = True
    """Shorter wrong answers are not better than longer ones."""


class OverlongTerm(Term):
    """A punishment of overlong answers, from 0 down to −1.

    0 up to rollout.max_tokens − tokens, falling linearly to −1 at rollout.max_tokens (DAPO, arXiv
    2503.14476)."""

    name: Literal["overlong"]
    tokens: Tokens
    """Size of the zone before rollout.max_tokens."""


class RepetitionTerm(Term):
    """−(share of n-grams of tokens that occurred before)."""

    name: Literal["repetition"]
    ngram: Tokens = 20
    """Tokens of an n-gram."""


class LanguageTerm(Term):
    """Share of the response's text that is in the asked language, 0 to 1."""

    name: Literal["language"]
    language: Language
    """ISO 639-1 code."""


class FunctionTerm(Term):
    """A number from your own function."""

    function: str
    """path.py:function. Signatures: arguments by name (prompt, completion, gold, …, any column);
    TRL's (completions, **columns); verl's (data_source, solution_str, ground_truth, extra_info).
    It runs with your rights and your environment: it must not execute what a model wrote."""
    timeout_s: Seconds = 60.0
    """Seconds that one call may take; its samples are then left out of training and counted."""
    name: str | None = None
    """Its name in logs. null = the function's."""

    @property
    def label(self) -> str:
        return self.name or self.function.rpartition(":")[2]


AnyTerm = (
    CorrectnessTerm
    | FormatTerm
    | LengthTerm
    | OverlongTerm
    | RepetitionTerm
    | LanguageTerm
    | FunctionTerm
)
BUILT_IN: dict[str, type[Term]] = {
    "correctness": CorrectnessTerm,
    "format": FormatTerm,
    "length": LengthTerm,
    "overlong": OverlongTerm,
    "repetition": RepetitionTerm,
    "language": LanguageTerm,
}


def read_term(value: Any) -> Any:
    """A term from what stands in YAML: a mapping, or only a name or `path.py:function`.

    >>> read_term("correctness"), read_term("mine.py:score").function
    (CorrectnessTerm(weight=1.0, name='correctness'), 'mine.py:score')
    """
    if isinstance(value, Term):
        return value
    if isinstance(value, str):
        value = {"function": value} if ".py:" in value else {"name": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"a term should be a name or a mapping, found {value!r}")
    if "function" in value:
        return FunctionTerm.model_validate(value)
    if value.get("name") not in BUILT_IN:
        raise ValueError(_unknown_term(str(value.get("name"))))
    return BUILT_IN[value["name"]].model_validate(value)


def _unknown_term(name: str) -> str:
    """What to write instead of a name that no built-in term has."""
    if ".py" in name:
        return f"unknown term {name!r}; fix: {{function: path.py:function, weight: …}}"
    known = ", ".join(BUILT_IN)
    return f"unknown term {name!r}; fix: one of {known}; or a function of yours: path.py:function"


RewardTerm = Annotated[AnyTerm, BeforeValidator(read_term), yaml_flag("TERM", Term)]


class RewardSection(StrictModel):
    """What a completion earns: Σ weight × value over `terms`.

    Whether it is correct is kept beside it, whatever the terms."""

    DEFAULT_TERMS: ClassVar[tuple[AnyTerm, ...]] = (CorrectnessTerm(name="correctness"),)

    kind: Literal["auto"] | Kind = "auto"
    """Verifier of all rows, the same as in evaluation. auto = by the row: its column `verifier`,
    else gsm8k for `#### N`, else math."""
    extract: DialectName = "megaladder"
    """Where the answer stands, for kinds math, gsm8k, choice and exact (`megaladder grade --help`)."""
    terms: tuple[RewardTerm, ...] = DEFAULT_TERMS
    """Terms: correctness, format, length, overlong, repetition, language, or path.py:function; as a
    name, or a mapping with weight and settings, e.g. {name: overlong, tokens: 4096}."""
    workers: Annotated[int, Field(ge=1)] = 2
    """Grading processes, and sandboxes for programs."""
    timeout_s: Seconds = 10.0
    """CPU seconds that a completion may take to grade; without a verdict by then it is left out of
    training and counted."""

    def terms_of(self, kind: type[Term]) -> list[Any]:
        """The terms of one class, in order."""
        return [term for term in self.terms if isinstance(term, kind)]
