r"""A small parser for expressions over whole numbers: exact values, and the numbers that were used.

    expression := term (("+" | "-") term)*
    term       := factor (("*" | "/") factor)*
    factor     := number | "(" expression ")" | "\frac{" expression "}{" expression "}"
               |  "-" factor, at the start of an expression only

Nothing is evaluated by Python, a power or a factorial is no operator here, digits are ASCII.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction

MAX_CHARS = 1_000
MAX_DEPTH = 40
MAX_DIGITS = 30

_TOKEN = re.compile(r"\s*(?:([0-9]+)|(\\[dt]?frac)|([-+*/(){}]))")
_SPELLINGS = (
    (re.compile(r"\\(?:left|right|,|;|!|:| )(?![A-Za-z])"), " "),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])|[×·⋅∗]"), "*"),
    (re.compile(r"\\div(?![A-Za-z])|÷"), "/"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\$"), ""),
)


@dataclass(frozen=True, slots=True)
class Parsed:
    """An expression's exact value, the numbers it is made of, in order, and its operators."""

    value: Fraction
    numbers: tuple[int, ...]
    operators: frozenset[str]


def parse(text: str) -> Parsed:
    """The expression that `text` is, all of it.

    Raises:
        ValueError: anything else; says what stands where.
    """
    if len(text) > MAX_CHARS:
        raise ValueError(f"{len(text)} characters, more than {MAX_CHARS}")
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    parser = _Parser(_tokens(text))
    value = parser.expression(0)
    if parser.position < len(parser.tokens):
        raise ValueError(f"{parser.tokens[parser.position]!r} where the expression should end")
    return Parsed(value, tuple(parser.numbers), frozenset(parser.operators))


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"{text[position : position + 20].strip()!r} is no part of it")
        tokens.append("\\frac" if match[2] else match[match.lastindex or 0].strip())
        position = match.end()
    return tokens


@dataclass
class _Parser:
    tokens: list[str]
    position: int = 0
    numbers: list[int] = field(default_factory=list)
    operators: set[str] = field(default_factory=set)

    def next(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self, expected: str) -> None:
        if self.next() != expected:
            raise ValueError(f"{self.next() or 'the end'!r} where {expected!r} should stand")
        self.position += 1

    def expression(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise ValueError(f"brackets deeper than {MAX_DEPTH}")
        negative = self.next() == "-"
        if negative:
            self._operator()
        value = self.term(depth)
        value = -value if negative else value
        while self.next() in ("+", "-"):
            operator = self._operator()
            right = self.term(depth)
            value = value + right if operator == "+" else value - right
        return value

    def term(self, depth: int) -> Fraction:
        value = self.factor(depth)
        while self.next() in ("*", "/"):
            operator = self._operator()
            right = self.factor(depth)
            value = value * right if operator == "*" else _divide(value, right)
        return value

    def factor(self, depth: int) -> Fraction:
        token = self.next()
        if token == "\\frac":
            self.position += 1
            self.operators.add("/")
            return _divide(self._group("{", "}", depth), self._group("{", "}", depth))
        if token == "(":
            return self._group("(", ")", depth)
        if not token.isdigit():
            raise ValueError(f"{token or 'the end'!r} where a number should stand")
        if len(token) > MAX_DIGITS:
            raise ValueError(f"a number of {len(token)} digits")
        self.position += 1
        self.numbers.append(int(token))
        return Fraction(int(token))

    def _group(self, opening: str, closing: str, depth: int) -> Fraction:
        self.take(opening)
        value = self.expression(depth + 1)
        self.take(closing)
        return value

    def _operator(self) -> str:
        operator = self.next()
        self.operators.add(operator)
        self.position += 1
        return operator


def _divide(left: Fraction, right: Fraction) -> Fraction:
    if right == 0:
        raise ValueError("division by zero")
    return left / right
