r"""What kind of answer a cleaned string is.

A list, a set, a tuple or interval, a union, a matrix, a relation, or a single value. One level is
taken apart at a time; pieces stay strings.

    read("x \\in (1,2]")  → Relation, whose right side reads as Pair("(]", ("1", "2"))
    read("\\{2,1\\}")     → Listing(("2", "1"), is_set=True)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from flint import fmpq

from megaladder.rewards.compare.evaluate import Budget, NotRational, TooMuch, Undefined, rational
from megaladder.rewards.compare.identical import close_value, sign_choices
from megaladder.rewards.compare.normalize import clean, plain_text, squash
from megaladder.rewards.compare.quantity import Quantity, read_single
from megaladder.rewards.compare.syntax import Node, symbols
from megaladder.rewards.compare.syntax import number as number_node

MAX_CHARS = 16_384
MAX_NESTING = 64  # brackets inside each other; deeper text is a single value, and no formula either
_OPEN, _CLOSE = "([{", ")]}"
_MATRIX = re.compile(
    r"^\\begin\{([pbBv]?)(?:small)?matrix\}(.*)\\end\{\1(?:small)?matrix\}$", re.DOTALL
)
_ARRAY = re.compile(
    r"^[(\[]?\s*\\begin\{array\}\s*\{[^{}]*\}(.*)\\end\{array\}\s*[)\]]?$", re.DOTALL
)
# the comma of `\dollar 32,348`; digits and commas alone may be a list
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_OTHER = re.compile(r"[^\d,;\s+.-]")
_OPERATORS = {
    "=": "=",
    "<": "<",
    ">": ">",
    "\\lt": "<",
    "\\gt": ">",
    "\\le": "<=",
    "\\ge": ">=",
    "\\ne": "!=",
    "\\in": "in",
    "\\approx": "approx",
    "\\equiv": "mod",
}
_OPERATOR = re.compile(r"(?<![:\\])=|<|>|\\(?:le|ge|ne|lt|gt|in|approx|equiv)(?![a-zA-Z])")
_NAME = r"(?:\\?[a-zA-Z]+'*(?:_\{?[a-zA-Z0-9]+\}?)?(?:\([a-zA-Z0-9, ]{1,20}\))?)"
_LEFT_SIDE = re.compile(
    rf"^(?:{_NAME}|\(\s*{_NAME}(?:\s*,\s*{_NAME}){{1,5}}\s*\)|\\angle\s*[A-Z]{{1,3}}"
    r"|[A-Za-z][A-Za-z ]{2,40})$"
)
_DENIAL = re.compile(r"(?i)\b(?:not|no|never|either|neither|wrong|incorrect|false|isn't)\b")
_NEARLY_ONE = fmpq(999, 1000)  # of the last place
ALL_REALS = frozenset({"\\mathbb{R}", "\\mathbb R", "\\R", "\\Bbb{R}", "all real numbers"})


@dataclass(frozen=True, slots=True)
class Listing:
    """Pieces whose order says nothing: a bare list or a set. `one_of`: joined by "or"."""

    items: tuple[str, ...]
    is_set: bool = False
    one_of: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """Ordered pieces in brackets: a tuple, a point or an interval (the brackets tell ends)."""

    brackets: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Union:
    """Intervals or sets joined by a cup sign."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Cells row by row."""

    items: tuple[str, ...]
    columns: int


@dataclass(frozen=True, slots=True)
class Relation:
    """`sides[i] operators[i] sides[i+1]`, as written.

    Operators are = approx < <= > >= != in mod."""

    sides: tuple[str, ...]
    operators: tuple[str, ...]

    @property
    def is_equation(self) -> bool:
        return set(self.operators) <= {"=", "approx"}

    @property
    def is_inequality(self) -> bool:
        return set(self.operators) <= {"<", "<=", ">", ">="}


@dataclass(frozen=True, slots=True)
class Value:
    """Anything else: a number, a quantity, an expression, words."""

    text: str


Form = Listing | Pair | Union | Matrix | Relation | Value


@lru_cache(maxsize=4096)
def read(text: str) -> Form:
    """The outermost form of a cleaned answer."""
    text = text.strip()
    if len(text) > MAX_CHARS or nesting(text) > MAX_NESTING:
        return Value(text)
    matrix = _read_matrix(text)
    if matrix is not None:
        return matrix
    if squash(plain_text(text)).casefold() in {squash(name).casefold() for name in ALL_REALS}:
        return Pair("()", ("-\\infty", "\\infty"))
    listing = _read_listing(text)
    if listing is not None:
        return listing
    relation = _read_relation(text)
    if relation is not None:
        return relation
    union = [piece for piece, _ in split(text, ("\\cup", "\\bigcup"))]
    if len(union) > 1 and all(union):
        return Union(tuple(union))
    return _read_bracketed(text)


def _read_matrix(text: str) -> Matrix | None:
    match = _MATRIX.match(text) or _ARRAY.match(text)
    if match is None or (match.re is _MATRIX and match.group(1) == "v"):
        return None  # a determinant is a number
    rows = [
        row
        for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr(?![a-zA-Z])", match.group(match.re.groups))
        if row.strip(" \\hline")
    ]
    cells = [[cell.strip() for cell in row.split("&")] for row in rows]
    if not cells or len({len(row) for row in cells}) > 1:
        return None
    return Matrix(tuple(cell for row in cells for cell in row), len(cells[0]))


def _read_listing(text: str) -> Listing | None:
    pieces = split(text, (",", ";", "\\lor", "\\land"))
    items = [(piece, mark) for piece, mark in pieces if piece]
    if len(items) < 2:
        return None
    texts = _without_common_name([piece for piece, _ in items])
    expanded = tuple(choice for one in texts for choice in sign_choices(one))
    one_of = {mark for _, mark in pieces[:-1]} == {"\\lor"}
    return Listing(expanded, one_of=one_of)


def _without_common_name(items: list[str]) -> list[str]:
    """`n = 2, 3, 4` lists values of n."""
    first = _read_relation(items[0])
    if first is None or first.operators not in (("=",), ("in",)) or not is_name(first.sides[0]):
        return items
    if any(_OPERATOR.search(item) for item in items[1:]):
        return items
    return [first.sides[1], *items[1:]]


def _read_relation(text: str) -> Relation | None:
    marks = [(m.start(), m.end()) for m in _OPERATOR.finditer(text) if _depth(text, m.start()) == 0]
    if not marks or len(marks) > 8:
        return None
    bounds = [0, *(place for mark in marks for place in mark), len(text)]
    sides = [text[a:b].strip() for a, b in zip(bounds[::2], bounds[1::2], strict=True)]
    operators = [_OPERATORS[text[start:end].strip()] for start, end in marks]
    if not all(sides):
        return None
    return Relation(tuple(sides), tuple(operators))


def _depth(text: str, end: int) -> int:
    head = text[:end]
    return sum(head.count(char) for char in _OPEN) - sum(head.count(char) for char in _CLOSE)


def _read_bracketed(text: str) -> Form:
    inner = bracketed(text)
    if inner is not None:
        brackets, content = inner
        items = [piece for piece, _ in split(content, (",", ";"))]
        if brackets == "{}":
            expanded = [choice for item in items if item for choice in sign_choices(item)]
            return Listing(tuple(expanded), is_set=True)
        if len(items) > 1:
            return Pair(brackets, tuple(items))
        if brackets == "()" and content.strip():
            found = read(content)
            return Value(text) if isinstance(found, Value) else found
    if text in ("\\emptyset", "\\emptyset "):
        return Listing((), is_set=True)
    signs = sign_choices(text)
    return (
        Listing(tuple(sign.strip().removeprefix("+") for sign in signs))
        if signs[1:]
        else Value(text)
    )


def nesting(text: str) -> int:
    """How deep brackets stand inside each other."""
    depth = deepest = 0
    for char in text:
        if char in _OPEN:
            depth += 1
            deepest = max(deepest, depth)
        elif char in _CLOSE:
            depth -= 1
    return deepest


def split(text: str, separators: tuple[str, ...]) -> list[tuple[str, str]]:
    """(piece, the separator after it) for separators that stand outside all brackets."""
    pieces, depth, start, position = [], 0, 0, 0
    thousands = {m.start() for m in _THOUSANDS.finditer(text)} if _OTHER.search(text) else set()
    while position < len(text):
        char = text[position]
        if char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
        elif depth == 0:
            mark = next((one for one in separators if text.startswith(one, position)), None)
            if mark and position not in thousands:
                pieces.append((text[start:position].strip(), mark))
                position += len(mark)
                start = position
                continue
        position += 1
    return [*pieces, (text[start:].strip(), "")]


def bracketed(text: str) -> tuple[str, str] | None:
    r"""("(]", content) if one pair of brackets encloses the whole text; `\{…\}` gives "{}"."""
    is_set = text.startswith("\\{")
    body = text.replace("\\{", "{").replace("\\}", "}") if is_set else text
    if len(body) < 2 or body[0] not in _OPEN or body[-1] not in _CLOSE:
        return None
    depth = 0
    for position, char in enumerate(body):
        depth += (char in _OPEN) - (char in _CLOSE)
        if depth == 0 and position < len(body) - 1:
            return None
    if depth != 0 or (body[0] == "{") != (body[-1] == "}"):
        return None
    return body[0] + body[-1], body[1:-1]


def is_name(side: str) -> bool:
    r"""Whether a left side only names what follows: `x`, `f(x)`, `(x,y)`, `\angle ABC`, `Area`."""
    plain = plain_text(side).strip()
    return bool(_LEFT_SIDE.match(plain)) and not _DENIAL.search(plain)


def by_coordinate(items: tuple[str, ...]) -> tuple[str, ...]:
    """`y = 2, x = 1` in the order x, y, z; pieces of other names as they stand."""
    names = [item.split("=")[0].strip() for item in items]
    if len(set(names)) < len(items) or not set(names) <= {"x", "y", "z"}:
        return items
    return tuple(item for _, item in sorted(zip(names, items, strict=True)))


def named_values(relation: Relation, same: Callable[[str, str], object]) -> tuple[str, ...]:
    r"""What a relation names: the right side of `x = 5`, `x \in A`, `a + b = 12 + 25 = 37`.

    Of `x = \frac{10}{3} \approx 3.33` both values. Empty where its numbers contradict each other
    (by `same`): `x = 5 = 6` names nothing, and neither does `5 + 6 = 12`."""
    *before, last = relation.sides
    if relation.operators[-1] == "in" and set(relation.operators) <= {"=", "in"}:
        return (last,) if all(map(is_name, before)) else ()
    if not relation.is_equation or _DENIAL.search(plain_text(before[0])):
        return ()
    # what has a digit outside indices and exponents is a value itself, and no name of one
    has_digit = re.search(r"(?<![_^{\d])\d", before[0]) or _number(before[0])
    is_value = not is_name(before[0]) and has_digit
    skipped = 0 if is_value else 1
    values, operators = relation.sides[skipped:], relation.operators[skipped:]
    if is_value and not (_number(values[0]) and _number(last)):
        return ()
    for (one, other), operator in zip(pairwise(values), operators, strict=True):
        left, right = _number(one), _number(other)
        if left and right and not (same(one, other) or _rounds(left, right, operator)):
            return ()
    return values[-2:] if operators[-1:] == ("approx",) else (last,)


def _number(side: str) -> Quantity | None:
    """A side as a value without variables."""
    found = read_single(clean(side))
    return found if isinstance(found, Quantity) and not symbols(found.value) else None


def _rounds(exact: Quantity, decimal: Quantity, operator: str) -> bool:
    """Whether a decimal is a value that was rounded or cut at its last place.

    To a whole number only where a sign for "about" says so. A whole number is none that is rounded.
    """
    units = {one.unit for one in (exact, decimal) if one.unit is not None}
    if (decimal.places is None and operator != "approx") or len(units) > 1:
        return False
    if exact.places is None and _is_whole(exact):
        return False
    last_place = number_node(fmpq(1, 10 ** (decimal.places or 0)))
    beside = Node("add", (last_place, exact.value, Node("neg", (decimal.value,))))
    try:
        return close_value(last_place, beside, _NEARLY_ONE)
    except (Undefined, TooMuch):
        return False


def _is_whole(quantity: Quantity) -> bool:
    try:
        return rational(quantity.value, {}, Budget()).q == 1
    except (NotRational, Undefined, TooMuch):
        return False


def as_interval(relation: Relation) -> tuple[str, Pair] | None:
    r"""(variable, interval) of `x < 2` or `0 \le x < 1`; None for other inequalities."""
    if not relation.is_inequality or len(relation.sides) > 3:
        return None
    sides, operators = relation.sides, relation.operators
    if operators[0] in (">", ">="):
        sides = sides[::-1]
        operators = tuple({">": "<", ">=": "<="}.get(one, "?") for one in reversed(operators))
    if not set(operators) <= {"<", "<="}:
        return None
    if len(sides) == 2:
        sides, operators = _open_ended(sides, operators)
    if len(sides) != 3 or not is_name(sides[1]):
        return None
    opening, closing = "[" if operators[0] == "<=" else "(", "]" if operators[1] == "<=" else ")"
    return squash(sides[1]), Pair(opening + closing, (sides[0], sides[2]))


def _open_ended(
    sides: tuple[str, ...], operators: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if is_name(sides[0]):
        return ("-\\infty", *sides), ("<", *operators)
    return (*sides, "\\infty"), (*operators, "<")
