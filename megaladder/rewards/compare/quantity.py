r"""A single value: an expression, perhaps with a percent sign, a unit or a scale word; or words.

A unit is taken off only where `units` knows every word of it. A letter alone is a variable, unless
a text command says that it is a word (`12\,\mathrm{m}`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from flint import fmpq

from megaladder.rewards.compare.evaluate import Budget, NotRational, TooMuch, Undefined, rational
from megaladder.rewards.compare.normalize import Number, plain_text, squash
from megaladder.rewards.compare.normalize import number as plain_number
from megaladder.rewards.compare.syntax import Node, NotMath, number, parse, symbols, walk
from megaladder.rewards.compare.units import SCALES, Unit, read_unit

_TEXT = r"\\(?:text|textrm|textbf|textit|textnormal|mathrm|mbox|hbox|mathbf)\s*"
_FIRST_TEXT = re.compile(_TEXT + r"\{[^{}]*[A-Za-z°%][^{}]*\}")
_CURRENCY = re.compile(r"^([-+]?)\s*(\\dollar|USD|US\\dollar|US|Rs\.?|[€£¥₹])\s*(?=[-\d.(\\])")
_CURRENCY_UNITS = {
    "\\dollar": "dollar",
    "USD": "dollar",
    "US\\dollar": "dollar",
    "US": "dollar",
    "€": "euro",
    "₹": "rupee",
    "Rs": "rupee",
    "Rs.": "rupee",
}
_DEGREES = re.compile(r"\s*(?:\^\s*\\circ|\\circ)\s*([CFcf]?)\s*$")
_PERCENT = re.compile(r"\s*(?:%|(?:percent|percentage|pct)\.?)\s*$")
_WORDS_AFTER = re.compile(r"^(.*?[\d)}.!])\s*([A-Za-z°][A-Za-z°\s/^0-9.{}·-]*)$", re.DOTALL)
_ALL_WORDS = re.compile(r"^[A-Za-z][A-Za-z'’.-]*(?: [A-Za-z'’.-]+)*$")
_SHORT_WORDS = frozenset({"yes", "no", "odd", "true", "none", "all", "east", "west", "red", "blue"})
_FUNCTION_NAMES = re.compile(
    r"\b(?:pi|sin|cos|tan|cot|sec|csc|log|ln|exp|infty|sqrt|arcsin|arccos|arctan)\b"
)
_OF_ANGLES = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
_BASE = re.compile(r"^([0-9A-Fa-f ]+)_\{?(\d{1,2})\}?$")


@dataclass(frozen=True, slots=True)
class Quantity:
    """`value` in units of `unit` (None: it has none); `percent`: a % sign stood behind it.

    `places`: digits after the point of a plain decimal, None for anything else."""

    value: Node
    unit: Unit | None = None
    percent: bool = False
    places: int | None = None


@dataclass(frozen=True, slots=True)
class Words:
    """Text: equal as text only. `key` ignores case, spaces and full stops of words."""

    key: str


@dataclass(frozen=True, slots=True)
class Numeral:
    """Digits with a base, such as `52_8`."""

    digits: str
    base: str

    @property
    def value(self) -> int | None:
        """As a number; None where the digits do not belong to the base."""
        try:
            return int(self.digits, int(self.base)) if len(self.digits) <= 256 else None
        except ValueError:
            return None


Single = Quantity | Words | Numeral


@lru_cache(maxsize=4096)
def read_single(text: str, letters_are_units: bool = False) -> Single:
    """What a cleaned string that is no list or relation says.

    `letters_are_units`: a lone letter after a space may be a unit (`12 m`)."""
    based = _BASE.match(text)
    if based:
        return Numeral(based.group(1).replace(" ", "").upper(), based.group(2))
    unwrapped = _unwrapped(text)
    words = _words(text)
    if words is not None:
        return words
    found = _quantity(unwrapped, letters_are_units)
    return found if found is not None else Words(_key(text))


def read_number(text: str) -> Number | None:
    """The number of a cleaned text, its unit aside (`18 dollars`, `3 million people`).

    None for anything else."""
    exact = plain_number(text)
    if exact is not None:
        return exact
    found = read_single(text)
    if not isinstance(found, Quantity) or symbols(found.value):
        return None
    try:
        value = rational(found.value, {}, Budget())
    except (NotRational, Undefined, TooMuch):
        return None
    return Number(Fraction(int(value.p), int(value.q)), found.percent, found.places)


def _unwrapped(text: str) -> str:
    """Without a text command around everything: `\\text{12 dollars}`."""
    inside = re.fullmatch(_TEXT + r"\{([^{}]*)\}", text.strip())
    return inside.group(1).strip() if inside else text


def _words(text: str) -> Words | None:
    r"""Plain words of a text.

    In a text command, or with a word of four letters or of a short list (`xyz` is a product)."""
    unwrapped = plain_text(text)
    commanded = bool(re.fullmatch(_TEXT + r"\{[^{}]*\}", text.strip())) and "\\" not in unwrapped
    bare = unwrapped.strip("()[]{}\"' .")
    if not _ALL_WORDS.match(bare) or _FUNCTION_NAMES.search(bare):
        return None
    longest = max(re.findall(r"[A-Za-z]+", bare), key=len)
    natural = len(longest) >= 4 and re.search(r"[aeiouAEIOU]", longest)
    if commanded or natural or bare.casefold() in _SHORT_WORDS:
        return Words(_key(bare))
    return None


def _key(text: str) -> str:
    plain = plain_text(text).casefold()
    plain = re.sub(r"(?<=[a-z])\.|['\"’]", "", plain)
    return re.sub(r"\s+|\\ ", "", squash(plain)).strip(".")


def _quantity(text: str, letters_are_units: bool) -> Quantity | None:
    text = text.strip()
    found = _with_plain_unit(text, letters_are_units)  # first: `12cm` is no product of letters
    if found is not None:
        return found
    for reader in (_with_degrees, _with_text_unit, _plain, _with_currency, _with_percent):
        found = reader(text)
        if found is not None:
            return found
    return None


def _plain(text: str) -> Quantity | None:
    """A number or an expression alone."""
    exact = plain_number(text)
    if exact is not None and not exact.percent:
        value = fmpq(exact.value.numerator, exact.value.denominator)
        return Quantity(number(value), places=exact.places)
    if not text or "%" in text:
        return None
    try:
        return Quantity(parse(text))
    except NotMath:
        return None


def _with_currency(text: str) -> Quantity | None:
    match = _CURRENCY.match(text)
    if match is None:
        return None
    rest = _quantity(match.group(1) + text[match.end() :], False)
    if rest is None or rest.percent or (rest.unit is not None and rest.unit.dimensions):
        return rest
    return replace(rest, unit=read_unit(_CURRENCY_UNITS.get(match.group(2), "dollar")))


def _with_degrees(text: str) -> Quantity | None:
    r"""`90^\circ`, `30^\circ C`; degrees inside an expression are the parser's."""
    match = _DEGREES.search(text)
    if match is None:
        return None
    rest = _plain(text[: match.start()].strip())
    if rest is not None and any(one.op in _OF_ANGLES for one in walk(rest.value)):
        return None  # `\sin 30^\circ` is no angle
    name = {"": "degree", "C": "celsius", "F": "fahrenheit"}[match.group(1).upper()]
    return replace(rest, unit=read_unit(name)) if rest else None


def _with_percent(text: str) -> Quantity | None:
    match = _PERCENT.search(text)
    if match is None or match.start() == 0:
        return None
    rest = _plain(text[: match.start()].strip())
    return replace(rest, percent=True) if rest else None


def _with_text_unit(text: str) -> Quantity | None:
    match = _FIRST_TEXT.search(text)
    if match is None or match.start() == 0:
        return None
    head, tail = text[: match.start()].strip(), plain_text(text[match.start() :])
    tail = re.sub(r"\\(?:cdot|times)\b", "·", tail)
    if re.search(r"\^\s*\\circ$", head):
        head, tail = (
            re.sub(r"\^\s*\\circ$", "", head),
            {"C": "celsius", "F": "fahrenheit"}.get(tail.strip(), "degrees " + tail),
        )
    return _scaled(head.strip(), tail.strip())


def _with_plain_unit(text: str, letters_are_units: bool) -> Quantity | None:
    match = _WORDS_AFTER.match(text)
    if match is None:
        return None
    head, tail = match.group(1).strip(), match.group(2).strip()
    shortest = min(map(len, re.findall(r"[A-Za-z]+", tail)))
    spaced = text[len(match.group(1)) :].startswith(" ")
    if shortest < 2 and not (letters_are_units and spaced):
        return None
    found = _scaled(head, tail)
    # words after an expression with variables would be read too freely: `2ab` is a product
    return found if found and not symbols(found.value) else None


def _scaled(head: str, tail: str) -> Quantity | None:
    """A value with a unit, or with a scale word and perhaps a unit: `3 million people`."""
    value = _plain(head) or _with_percent(head) or _with_currency(head)
    if value is None:
        return None
    if re.fullmatch(r"%|percent|percentage", tail):
        return replace(value, percent=True)
    words = tail.split(None, 1)
    scale = SCALES.get(words[0].lower().rstrip(".")) if words else None
    if scale is not None:
        value = Quantity(Node("mul", (value.value, number(scale))), value.unit)
        tail = words[1] if len(words) > 1 else ""
        if not tail:
            return value
    unit = read_unit(tail)
    return replace(value, unit=unit) if unit is not None else None
