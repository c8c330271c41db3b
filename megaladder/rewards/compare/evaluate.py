"""Exact and certified values of expression trees.

Rationals, and complex balls that contain the true value for certain (Arb's arithmetic, through
python-flint).

Every evaluation spends from a `Budget` of operations, so that what is too much does not depend on
how fast or busy the machine is. Numbers beyond the limits raise `TooMuch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd, lcm

from flint import acb, arb, ctx, fmpq, fmpz

from megaladder.rewards.compare.syntax import Node, rational_of

MAX_BITS = 200_000  # of an exact rational
MAX_FACTORIAL = 5_000  # computed exactly
MAX_OPERATIONS = 2_000_000  # of one comparison; one is an operation on 64 bits or fewer
MAX_PRECISION = 65_536  # bits of a ball

Point = Mapping[str, fmpq]


class TooMuch(Exception):
    """Deciding would take more operations than one comparison is given."""


class NotRational(Exception):
    """The value is no rational number, or is not found to be one by rational arithmetic."""


class Undefined(Exception):
    """The expression has no value there: a division by zero, the logarithm of zero, infinity."""


@dataclass(slots=True)
class Budget:
    """Operations that one comparison may still spend."""

    left: int = MAX_OPERATIONS

    def spend(self, bits: int) -> None:
        """Counts one operation on numbers of so many bits. Raises TooMuch when none is left."""
        self.left -= 1 + bits // 64
        if self.left < 0:
            raise TooMuch(f"more than {MAX_OPERATIONS} operations")


def _bits(value: fmpq) -> int:
    return int(value.height_bits())


def rational(node: Node, point: Point, budget: Budget) -> fmpq:
    """The exact value at a rational point. Raises NotRational, Undefined or TooMuch."""
    if node.op == "number":
        return rational_of(node)
    if node.op == "symbol":
        return point[str(node.value)]
    if node.op == "constant":
        raise NotRational(node.value)
    if node.op == "pow":
        return _rational_power(node, point, budget)
    values = [rational(arg, point, budget) for arg in node.args]
    size = sum(map(_bits, values))
    if size > MAX_BITS:
        raise NotRational("too large for exact arithmetic")
    budget.spend(size)
    return _RATIONAL[node.op](*values) if node.op in _RATIONAL else _not_rational(node.op)


def _not_rational(name: str) -> fmpq:
    raise NotRational(name)


def _rational_power(node: Node, point: Point, budget: Budget) -> fmpq:
    base = rational(node.args[0], point, budget)
    exponent = rational(node.args[1], point, budget)
    if exponent.q != 1:
        return _rational_root(base ** int(exponent.p) if abs(exponent.p) < 64 else base, exponent)
    times = int(exponent.p)
    size = _bits(base) * abs(times)
    if base in (0, 1, -1):
        size = 1
    if size > MAX_BITS:
        raise NotRational("too large for exact arithmetic")
    budget.spend(size)
    if base == 0:
        if times <= 0:
            raise Undefined("zero to a power that is not positive")
        return fmpq(0)
    if base in (1, -1):
        return base if times % 2 else fmpq(1)
    return base**times


def _rational_root(power: fmpq, exponent: fmpq) -> fmpq:
    if abs(exponent.p) >= 64:
        raise NotRational("a large power under a root")
    return _root(power, fmpq(exponent.q))


def _root(value: fmpq, degree: fmpq) -> fmpq:
    """The real root where it is rational."""
    if degree.q != 1 or not 0 < degree.p <= 64:
        raise NotRational("root")
    n = int(degree.p)
    if value < 0 and n % 2 == 0:
        raise NotRational("an even root of a negative number")
    parts = []
    for part in (abs(int(value.p)), int(value.q)):
        found = int(fmpz(part).root(n))
        if found**n != part:
            raise NotRational("irrational root")
        parts.append(found)
    return fmpq(-parts[0] if value < 0 else parts[0], parts[1])


def _divide(top: fmpq, bottom: fmpq) -> fmpq:
    if bottom == 0:
        raise Undefined("division by zero")
    return top / bottom


def _factorial(value: fmpq) -> fmpq:
    if value.q != 1 or value < 0:
        raise NotRational("factorial")
    if value > MAX_FACTORIAL:
        raise NotRational("factorial too large for exact arithmetic")
    return fmpq(fmpz(math.factorial(int(value.p))))


def _binomial(n: fmpq, k: fmpq) -> fmpq:
    if n.q != 1 or k.q != 1 or k < 0 or n < 0 or n > MAX_FACTORIAL:
        raise NotRational("binomial")
    return fmpq(fmpz(math.comb(int(n.p), int(k.p))))


def _whole(function: Callable[..., int]) -> Callable[..., fmpq]:
    def apply(*values: fmpq) -> fmpq:
        if any(value.q != 1 for value in values):
            raise NotRational("needs whole numbers")
        return fmpq(function(*(int(value.p) for value in values)))

    return apply


def _zero_only(value_at_zero: int) -> Callable[[fmpq], fmpq]:
    """Functions that are rational at zero (nearly) alone, such as the sine."""

    def apply(value: fmpq) -> fmpq:
        if value != 0:
            raise NotRational("transcendental")
        return fmpq(value_at_zero)

    return apply


def _logarithm_of_one(value: fmpq) -> fmpq:
    if value != 1:
        raise NotRational("transcendental")
    return fmpq(0)


_RATIONAL: dict[str, Callable[..., fmpq]] = {
    "add": lambda *values: sum(values, fmpq(0)),
    "mul": lambda *values: math.prod(values, start=fmpq(1)),
    "neg": lambda value: -value,
    "div": _divide,
    "abs": abs,
    "root": _root,
    "factorial": _factorial,
    "binom": _binomial,
    "lfloor": lambda value: fmpq(value.floor()),
    "lceil": lambda value: fmpq(value.ceil()),
    "max": max,
    "min": min,
    "gcd": _whole(gcd),
    "lcm": _whole(lcm),
    "sin": _zero_only(0),
    "tan": _zero_only(0),
    "cos": _zero_only(1),
    "ln": _logarithm_of_one,
    "log": _logarithm_of_one,
}


def ball(node: Node, point: Point, precision: int, budget: Budget) -> acb:
    """A ball that contains the value, computed with `precision` bits. Raises Undefined, TooMuch."""
    before = ctx.prec
    ctx.prec = precision
    try:
        return _ball(node, point, precision, budget)
    finally:
        ctx.prec = before


def _ball(node: Node, point: Point, precision: int, budget: Budget) -> acb:
    budget.spend(precision)
    if node.op == "number":
        return acb(arb(rational_of(node)))
    if node.op == "symbol":
        return acb(arb(point[str(node.value)]))
    if node.op == "constant":
        return _constant(str(node.value))
    values = [_ball(arg, point, precision, budget) for arg in node.args]
    if node.op == "pow":
        found = _power(node.args[1], *values)
    elif node.op in _BALL:
        budget.spend(20 * precision)
        found = _BALL[node.op](*values)
    else:
        raise Undefined(f"no rule for {node.op}")
    if not found.is_finite():
        raise TooMuch("an overflow") if _overflows(node.op, values) else Undefined(node.op)
    return found


def _overflows(op: str, values: list[acb]) -> bool:
    """Whether an infinite result only says that the value is too large to compute."""
    if op in ("factorial", "binom"):
        return all(value.real > 0 for value in values)
    return op in ("pow", "mul", "sinh", "cosh") and not values[0].contains(0)


def _constant(name: str) -> acb:
    if name == "pi":
        return acb(arb.pi())
    if name == "e":
        return acb(arb.const_e())
    if name == "i":
        return acb(0, 1)
    raise Undefined("infinity")


def _is_real(value: acb) -> bool:
    return bool(value.imag.is_zero())


def _power(exponent_node: Node, base: acb, exponent: acb) -> acb:
    """Real roots of negative numbers where the root's degree is odd, else the principal value."""
    whole = exponent.real.unique_fmpz() if _is_real(exponent) else None
    if whole is not None and exponent.real.is_exact():
        if whole == 0 and base.contains(0):
            raise Undefined("zero to the power zero")
        return base ** int(whole) if abs(whole) < 1 << 62 else base.pow(exponent)
    degree = _odd_root(exponent_node)
    if degree and _is_real(base) and base.real < 0:
        top, bottom = degree
        return acb((-base.real).root(bottom)) ** top * (-1) ** (top % 2)
    if base.contains(0):
        raise Undefined("zero to a power that is not whole")
    return base.pow(exponent)


def _odd_root(node: Node) -> tuple[int, int] | None:
    """(p, q) of an exponent p/q with odd q below 64."""
    try:
        value = rational(node, {}, Budget(1_000))
    except (NotRational, Undefined, TooMuch, KeyError):
        return None
    small = abs(value.p) < 64 and 1 < value.q < 64
    return (int(value.p), int(value.q)) if small and value.q % 2 else None


def _ball_root(value: acb, degree: acb) -> acb:
    n = degree.real.unique_fmpz()
    if n is None or not 0 < n < 1_000:
        raise Undefined("root of a degree that is no small whole number")
    if _is_real(value):
        if value.real > 0 or value.real.is_zero():
            return acb(value.real.root(int(n)))
        if value.real < 0 and n % 2:
            return acb(-(-value.real).root(int(n)))
    return value.root(int(n)) if not value.contains(0) else _root_at_zero(value, int(n))


def _root_at_zero(value: acb, n: int) -> acb:
    """A ball around zero: its root lies in the disc of the root of its radius."""
    bound = value.abs_upper().root(n)
    return acb(arb(0, bound), arb(0, bound))


def _real(function: Callable[[arb], arb]) -> Callable[[acb], acb]:
    def apply(value: acb) -> acb:
        if not _is_real(value):
            raise Undefined("a real function of a complex number")
        return acb(function(value.real))

    return apply


def _floor(value: arb, name: str) -> arb:
    found = value.floor() if name == "lfloor" else value.ceil()
    if not found.is_exact():
        raise TooMuch("a rounding at a whole number cannot be decided")
    return found


def _log(value: acb) -> acb:
    if value.contains(0):
        raise Undefined("logarithm of zero")
    return value.log()


def _inverse_sine(value: acb) -> acb:
    inside = _is_real(value) and abs(value.real) < 1
    return acb(value.real.asin()) if inside else value.asin()


def _inverse_cosine(value: acb) -> acb:
    inside = _is_real(value) and abs(value.real) < 1
    return acb(value.real.acos()) if inside else value.acos()


def _sum(*values: acb) -> acb:
    return sum(values[1:], values[0])


_BALL: dict[str, Callable[..., acb]] = {
    "add": _sum,
    "mul": lambda *values: math.prod(values[1:], start=values[0]),
    "neg": lambda value: -value,
    "div": lambda top, bottom: top / bottom,
    "abs": lambda value: acb(abs(value)),
    "root": _ball_root,
    "factorial": lambda value: (value + 1).gamma(),
    "binom": lambda n, k: (n + 1).gamma() / ((k + 1).gamma() * (n - k + 1).gamma()),
    "lfloor": _real(lambda value: _floor(value, "lfloor")),
    "lceil": _real(lambda value: _floor(value, "lceil")),
    "degree": lambda value: value * acb(arb.pi()) / 180,
    "sin": lambda value: value.sin(),
    "cos": lambda value: value.cos(),
    "tan": lambda value: value.tan(),
    "cot": lambda value: value.cot(),
    "sec": lambda value: value.sec(),
    "csc": lambda value: value.csc(),
    "sinh": lambda value: value.sinh(),
    "cosh": lambda value: value.cosh(),
    "tanh": lambda value: value.tanh(),
    "coth": lambda value: value.coth(),
    "arcsin": _inverse_sine,
    "arccos": _inverse_cosine,
    "arctan": lambda value: value.atan(),
    "ln": _log,
    "log": _log,
    "max": lambda *values: acb(_extreme(values, 1)),
    "min": lambda *values: acb(_extreme(values, -1)),
    "Re": lambda value: acb(value.real),
    "Im": lambda value: acb(value.imag),
}


def _extreme(values: tuple[acb, ...], sign: int) -> arb:
    found = values[0].real
    for value in values[1:]:
        found = found.max(value.real) if sign > 0 else found.min(value.real)
    return found
