"""Whether two expressions have the same value, for certain.

Numbers: rational arithmetic; else complex balls of growing precision. Balls that do not meet prove
a difference. For algebraic numbers a root separation bound (Burnikel, Funke, Mehlhorn, Schirra and
Schmitt 2009) says how close to zero a nonzero difference can come, so that a smaller ball proves
equality; numbers with pi, e or logarithms count as equal when they agree to 4,096 bits.

Expressions with variables: both are evaluated at points drawn with a fixed seed, exactly where they
are rational (an identity that holds at several points with large random coordinates holds: Schwartz
and Zippel), else by balls as above. Nothing is compared in floating point.
"""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import product as cartesian

from flint import acb, fmpq

from megaladder.rewards.compare.evaluate import (
    MAX_PRECISION,
    Budget,
    NotRational,
    Point,
    TooMuch,
    Undefined,
    ball,
    rational,
)
from megaladder.rewards.compare.syntax import Node, number, rational_of, symbols, walk

PRECISIONS = (128, 512, 2_048, 4_096, 16_384, MAX_PRECISION)
TRANSCENDENTAL_BITS = 3_800  # agreement that counts as equality where no bound is known
POINT_BITS = 512  # agreement at a random point
NUM_POINTS = 4
MAX_TRIES = 40
SEED = 20_240_229
_ALGEBRAIC = frozenset({"number", "add", "mul", "div", "neg", "root", "pow"})


def same_value(left: Node, right: Node) -> bool:
    """Whether two expressions are equal wherever both are defined.

    Raises:
        TooMuch: it cannot be decided within the operations that a comparison is given.
    """
    left, right = _without_common_terms(left, right)
    if canonical(left) == canonical(right):
        return True
    names = sorted(symbols(left) | symbols(right))
    if symbols(left) != symbols(right) and not names:
        return False
    return _same_at_points(left, right, names) if names else _same_number(left, right, {})


@lru_cache(maxsize=4096)
def canonical(node: Node) -> tuple[object, ...]:
    """Equal for expressions that differ in the order of terms and factors alone."""
    if node.op in ("number", "symbol", "constant"):
        return (node.op, str(node.value))
    parts = [canonical(arg) for arg in _flat(node)]
    if node.op in ("add", "mul", "max", "min", "gcd", "lcm"):
        parts.sort(key=repr)
    return (node.op, *parts)


def _without_common_terms(left: Node, right: Node) -> tuple[Node, Node]:
    """Both sides without the terms that they share or that cancel.

    These may be too large to compute, as in 10^(10^9) + 1."""
    terms: dict[tuple[object, ...], list[Node]] = {}
    for sign, side in ((1, left), (-1, right)):
        for one, term in _terms(side, sign):
            terms.setdefault(canonical(term), []).append(term if one > 0 else Node("neg", (term,)))
    rest: list[Node] = []
    for found in terms.values():
        signs = [-1 if one.op == "neg" else 1 for one in found]
        rest += [one for one in found if (one.op == "neg") == (sum(signs) < 0)][: abs(sum(signs))]
    if sum(map(len, terms.values())) == len(rest):
        return left, right
    return Node("add", (number(0), *rest)), number(0)


def _terms(node: Node, sign: int) -> list[tuple[int, Node]]:
    """(sign, term) of a sum; a term itself is no negation."""
    if node.op == "add":
        return [one for arg in node.args for one in _terms(arg, sign)]
    return _terms(node.args[0], -sign) if node.op == "neg" else [(sign, node)]


def _flat(node: Node) -> list[Node]:
    if node.op not in ("add", "mul"):
        return list(node.args)
    found: list[Node] = []
    for arg in node.args:
        found += _flat(arg) if arg.op == node.op else [arg]
    return found


def _same_number(left: Node, right: Node, point: Point, cap: int | None = None) -> bool:
    """Two numbers, or two expressions at a point. Raises Undefined where one has no value."""
    budget = Budget()
    try:
        return rational(left, point, budget) == rational(right, point, budget)
    except NotRational:
        pass
    difference = Node("add", (left, Node("neg", (right,))))
    needed = separation_bits(difference) if cap is None and not point else None
    for precision in PRECISIONS:
        verdict = _by_balls(left, right, point, precision, budget, needed, cap)
        if verdict is not None:
            return verdict
    raise TooMuch(f"the values agree to {MAX_PRECISION} bits")


def _by_balls(
    left: Node,
    right: Node,
    point: Point,
    precision: int,
    budget: Budget,
    needed: int | None,
    cap: int | None,
) -> bool | None:
    """False: the balls are apart. True: they meet and are small enough. None: not yet known."""
    first = ball(left, point, precision, budget)
    second = ball(right, point, precision, budget)
    if not first.overlaps(second):
        return False
    gap = first - second
    if gap.is_zero():
        return True
    if needed is not None:
        return True if _log2_upper(gap) < -needed else None
    largest = max(_log2_upper(first), _log2_upper(second), 0)
    enough = TRANSCENDENTAL_BITS if cap is None else cap
    return True if _log2_upper(gap) - largest < -enough + 64 else None


def _log2_upper(value: acb) -> int:
    """An integer that is no smaller than log2 |value|; very small for zero."""
    bound = value.abs_upper()
    if bound.is_zero():
        return -(10**9)
    mantissa, exponent = bound.mid().man_exp()
    return int(exponent) + abs(mantissa).bit_length() + 1


def separation_bits(node: Node) -> int | None:
    """B such that the value is zero or at least 2^−b in size.

    None for what is not algebraic or has a bound beyond the largest precision."""
    bounds = _bounds(node)
    if bounds is None:
        return None
    upper, lower, degree = bounds
    bits = int(upper * (degree - 1) + lower) + 2
    return bits if bits < MAX_PRECISION - 64 else None


def _bounds(node: Node) -> tuple[float, float, int] | None:
    """(log2 u, log2 l, degree) of the cited bound.

    The value is a quotient of algebraic integers whose conjugates are at most u and l."""
    if node.op == "number":
        value = rational_of(node)
        return float(max(1, abs(value.p).bit_length())), float(value.q.bit_length()), 1
    if node.op == "constant":
        return (0.0, 0.0, 2) if node.value == "i" else None
    if node.op not in _ALGEBRAIC:
        return None
    if node.op == "pow":
        return _power_bounds(node)
    found = [_bounds(arg) for arg in node.args]
    if any(one is None for one in found):
        return None
    known = [one for one in found if one is not None]
    if node.op == "neg":
        return known[0]
    if node.op == "root":
        return _root_bounds(known[0], node.args[1])
    total = known[0]
    for one in known[1:]:
        total = _combined(node.op, total, one)
    return total


def _combined(
    op: str, left: tuple[float, float, int], right: tuple[float, float, int]
) -> tuple[float, float, int]:
    degree = left[2] * right[2]
    if op == "mul":
        return left[0] + right[0], left[1] + right[1], degree
    if op == "div":
        return left[0] + right[1], left[1] + right[0], degree
    return max(left[0] + right[1], left[1] + right[0]) + 1, left[1] + right[1], degree


def _root_bounds(inner: tuple[float, float, int], degree: Node) -> tuple[float, float, int] | None:
    k = _small_whole(degree)
    if k is None or k < 1:
        return None
    upper, lower, num_conjugates = inner
    if upper >= lower:
        return (upper + (k - 1) * lower) / k, lower, num_conjugates * k
    return upper, ((k - 1) * upper + lower) / k, num_conjugates * k


def _power_bounds(node: Node) -> tuple[float, float, int] | None:
    inner = _bounds(node.args[0])
    try:
        exponent = rational(node.args[1], {}, Budget(10_000))
    except (NotRational, Undefined, TooMuch, KeyError):
        return None
    if inner is None or abs(exponent.p) > 100_000 or exponent.q > 1_000:
        return None
    if exponent.p < 0:
        inner = (inner[1], inner[0], inner[2])
    times = int(abs(exponent.p))
    raised = (inner[0] * times, inner[1] * times, inner[2])
    return raised if exponent.q == 1 else _root_bounds(raised, number(exponent.q))


def _small_whole(node: Node) -> int | None:
    value = node.value
    return (
        int(value.p) if isinstance(value, fmpq) and value.q == 1 and abs(value.p) < 1_000 else None
    )


def _same_at_points(left: Node, right: Node, names: list[str]) -> bool:
    """Equality at NUM_POINTS points where both are defined (and real, unless i stands in them)."""
    whole = _whole_names(left) | _whole_names(right)
    is_complex = any(
        one.op == "constant" and one.value == "i" for tree in (left, right) for one in walk(tree)
    )
    draw = random.Random(SEED)
    found: list[Point] = []
    for attempt in range(MAX_TRIES):
        point = _point(draw, names, whole, attempt)
        try:
            same = _same_at(left, right, point, is_complex)
        except (Undefined, TooMuch):
            continue  # another point may do
        if same is None:
            continue
        if not same:
            return False
        found += [point] if point not in found else []
        if len(found) == NUM_POINTS:
            return True
    if len(found) > 1:
        return True
    raise TooMuch("no two points were found where both expressions are defined")


def _same_at(left: Node, right: Node, point: Point, is_complex: bool) -> bool | None:
    """Equality at a point; None where real expressions have no real value."""
    budget = Budget()
    try:
        return rational(left, point, budget) == rational(right, point, budget)
    except NotRational:
        pass
    if not is_complex and not (_is_real_at(left, point) and _is_real_at(right, point)):
        return None
    return _same_number(left, right, point, POINT_BITS)


def _whole_names(node: Node) -> frozenset[str]:
    """Variables in exponents, factorials and binomials: they stand for whole numbers."""
    found: frozenset[str] = frozenset()
    for one in walk(node):
        if one.op == "pow":
            found |= symbols(one.args[1])
        elif one.op in ("factorial", "binom", "gcd", "lcm"):
            found |= symbols(one)
    return found


def _point(draw: random.Random, names: list[str], whole: frozenset[str], attempt: int) -> Point:
    """Random coordinates.

    All positive, all negative (a root of x² is not x), in (0, 1) for domains such as that of the
    inverse sine, of mixed signs, and so on."""
    point = {}
    for name in names:
        if name in whole:
            point[name] = fmpq(draw.randint(1, 11 + attempt))
        elif attempt % 4 == 2:
            point[name] = fmpq(draw.randint(1, 9_999), 10_000)
        else:
            sign = -1 if attempt % 4 == 1 else draw.choice((1, -1)) if attempt % 4 == 3 else 1
            point[name] = fmpq(sign * draw.randint(1, 1 << 12), draw.randint(1, 1 << 8))
    return point


def _is_real_at(node: Node, point: Point) -> bool:
    """Whether no part of the expression leaves the real numbers at a point.

    At x = y = -1 the product of the roots of x and y has no real value, and so says nothing about
    sqrt(xy)."""
    budget = Budget()
    return all(ball(one, point, 128, budget).imag.contains(0) for one in walk(node))


def ratio_is_constant(left: Node, right: Node, positive: bool) -> bool:
    """Whether left = c · right with one number c ≠ 0 (c > 0 if `positive`) at every point.

    What makes `2x − 2y = 0` and `x = y` one equation.

    Raises:
        TooMuch: it cannot be decided.
    """
    names = sorted(symbols(left) | symbols(right))
    draw = random.Random(SEED)
    whole = _whole_names(left) | _whole_names(right)
    first: tuple[Node, Node] | None = None
    for attempt in range(6):
        point = _point(draw, names, whole, attempt)
        values = (_at(left, point), _at(right, point))
        try:
            if any(_same_number(value, number(0), {}) for value in values):
                continue
            first = first or values
            if not _same_number(
                Node("mul", (values[0], first[1])), Node("mul", (values[1], first[0])), {}
            ):
                return False
            if positive and not _same_sign(*values):
                return False
        except Undefined:
            continue
    return first is not None


def _at(node: Node, point: Point) -> Node:
    """The tree with numbers in place of its variables."""
    if node.op == "symbol":
        return number(point[str(node.value)])
    return Node(node.op, tuple(_at(arg, point) for arg in node.args), node.value)


def _same_sign(left: Node, right: Node) -> bool:
    ratio = ball(Node("div", (left, right)), {}, 256, Budget())
    return bool(ratio.real > 0)


def close_value(left: Node, right: Node, tolerance: fmpq) -> bool:
    """Whether two numbers differ by at most `tolerance` of the left one. Raises TooMuch."""
    budget = Budget()
    for precision in (128, 1_024):
        try:
            first, second = (ball(one, {}, precision, budget) for one in (left, right))
        except Undefined:
            return False
        gap, room = abs(first - second), abs(first) * tolerance
        if gap <= room:
            return True
        if gap > room:
            return False
    raise TooMuch("on the edge of the tolerance")


def sign_choices(text: str) -> list[str]:
    r"""`a \pm b` as its two readings; `\mp` takes the other sign of every `\pm`."""
    text = text.replace("+/-", "\\pm ")
    count = text.count("\\pm")
    if not count or count > 4:
        return [text]
    if "\\mp" in text:
        pairs = [("+", "-"), ("-", "+")]
        return [text.replace("\\pm", plus).replace("\\mp", minus) for plus, minus in pairs]
    pieces = text.split("\\pm")
    out = []
    for signs in cartesian("+-", repeat=count):
        whole = pieces[0]
        for sign, piece in zip(signs, pieces[1:], strict=True):
            whole += sign + piece
        out.append(whole)
    return out
