r"""Pairs (gold, answer, same?) made by rules, not by hand: rewrites that keep the meaning of a gold
answer and changes that do not. sympy, which the grader does not use, makes and prints expressions,
and numbers with 60 digits confirm that a change is one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import sympy
from rewards.grader_corpus import real_golds
from sympy import Integer, Rational, latex

SEED = 7
X, Y, A, N = sympy.symbols("x y a n", real=True)
SYMBOLS = (X, Y, A)


@dataclass(frozen=True)
class Pair:
    """Whether `answer` means what `gold` does; `kind` and `rule` are for the table of counts."""

    gold: str
    answer: str
    same: bool
    kind: str
    rule: str


def pairs(num_generated: int, num_real: int, seed: int = SEED) -> list[Pair]:
    """All pairs of so many generated golds and, where the data are there, so many real ones."""
    draw = random.Random(seed)
    found: list[Pair] = []
    makers = list(MAKERS.values())
    for i in range(num_generated):
        make = makers[i % len(makers)]
        found += [one for one in make(draw) if one.gold != one.answer]
    found += list(_real_pairs(draw, num_real))
    return list(dict.fromkeys(found))


# --- expressions


def dialects(text: str) -> Iterator[tuple[str, str]]:
    """The same formula as other people write it."""
    if "\\frac" in text:
        yield "dfrac", text.replace("\\frac", "\\dfrac")
        yield "tfrac", text.replace("\\frac", "\\tfrac")
    if "\\left(" in text:
        yield "no left/right", text.replace("\\left(", "(").replace("\\right)", ")")
    if " " in text:
        yield "thin spaces", re.sub(r" (?![a-zA-Z])", r" \\, ", text)
    yield "dollars", f"${text}$"
    yield "displaystyle", "\\displaystyle " + text


def _ascii(expression: sympy.Expr) -> str:
    """Plain text; sympy calls the constants I and E."""
    return re.sub(r"\b[IE]\b", lambda match: match.group().lower(), str(expression))


def equivalents(expression: sympy.Expr) -> Iterator[tuple[str, str]]:
    """Rewrites that keep the value."""
    for name, function in (
        ("expand", sympy.expand),
        ("factor", sympy.factor),
        ("together", sympy.together),
        ("apart terms", lambda e: sympy.expand(e, deep=True)),
        ("radsimp", sympy.radsimp),
        ("cancel", sympy.cancel),
    ):
        yield name, latex(function(expression))
    yield "reverse order", latex(expression, order="rev-lex")
    yield "dot product", latex(expression, mul_symbol="dot")
    yield "times", latex(expression, mul_symbol="times")
    yield "short fractions", latex(expression, fold_short_frac=True)
    yield "plain text", _ascii(expression)
    yield "negated twice", f"-\\left({latex(sympy.expand(-expression))}\\right)"
    yield "over two", f"\\frac{{{latex(sympy.expand(2 * expression))}}}{{2}}"
    yield "plus and minus", f"\\left({latex(sympy.expand(expression + 3))}\\right) - 3"
    yield from dialects(latex(expression))


def changes(expression: sympy.Expr, draw: random.Random) -> Iterator[tuple[str, sympy.Expr]]:
    """Other expressions that look alike."""
    yield "sign", -expression
    yield "neighbour", expression + 1
    yield "neighbour", expression - Rational(1, draw.randint(2, 99))
    yield "factor", expression * 2
    integers = [one for one in expression.atoms(Integer) if one not in (0, 1, -1)]
    for value in integers[:2]:
        yield "one number", expression.xreplace({value: value + 1})
    powers = list(expression.atoms(sympy.Pow))
    for power in powers[:2]:
        yield "exponent", expression.xreplace({power: power.base ** (power.exp + 1)})
    for term in expression.args[:2] if expression.is_Add else ():
        yield "dropped term", expression - term
        yield "sign of a term", expression - 2 * term
    for symbol in sorted(expression.free_symbols, key=str)[:1]:
        yield "index", expression.xreplace({symbol: sympy.Symbol(f"{symbol}_1", real=True)})
        yield "name", expression.xreplace({symbol: sympy.Symbol("b", real=True)})


def differs(left: sympy.Expr, right: sympy.Expr) -> bool:
    """Whether two expressions have other values at a fixed point, to 60 digits."""
    names = sorted(left.free_symbols | right.free_symbols, key=str)
    point = {name: Rational(37 + 11 * i, 29 + 4 * i) for i, name in enumerate(names)}
    values = [sympy.N(one.xreplace(point), 60) for one in (left, right)]
    if any(not value.is_number or value.has(sympy.nan, sympy.zoo, sympy.oo) for value in values):
        return False
    scale = max(abs(value) for value in values)
    return bool(scale > 0 and abs(values[0] - values[1]) > scale * Rational(1, 10**40))


def expression_pairs(kind: str, expression: sympy.Expr, draw: random.Random) -> Iterator[Pair]:
    gold = latex(expression)
    for rule, answer in draw.sample(found := list(equivalents(expression)), k=min(8, len(found))):
        yield Pair(gold, answer, True, kind, rule)
    others = [one for one in changes(expression, draw) if differs(expression, one[1])]
    for rule, other in draw.sample(others, k=min(5, len(others))):
        yield Pair(gold, latex(other), False, kind, rule)


def _coefficient(draw: random.Random) -> Integer:
    return Integer(draw.choice([-7, -5, -4, -3, -2, 1, 2, 3, 5, 8, 12]))


def polynomial(draw: random.Random) -> Iterator[Pair]:
    names = draw.sample(SYMBOLS, k=draw.randint(1, 2))
    factors = [
        sum((_coefficient(draw) * name for name in names), _coefficient(draw))
        for _ in range(draw.randint(1, 3))
    ]
    yield from expression_pairs("polynomial", sympy.Mul(*factors), draw)


def rational_function(draw: random.Random) -> Iterator[Pair]:
    top = _coefficient(draw) * X + draw.randint(1, 9)
    bottom = draw.choice([X + draw.randint(1, 9), X**2 + draw.randint(1, 9), Y + 3])
    yield from expression_pairs("rational function", top / bottom + draw.choice([0, 1, Y]), draw)


def radical(draw: random.Random) -> Iterator[Pair]:
    value = Rational(draw.randint(-9, 9), draw.randint(1, 6))
    root = sympy.sqrt(draw.choice([2, 3, 5, 6, 7, 12, 18, 50]))
    value += Rational(_coefficient(draw), draw.randint(1, 5)) * root
    yield from expression_pairs("radical", value / draw.choice([1, 1, 1 + sympy.sqrt(3)]), draw)


def with_pi(draw: random.Random) -> Iterator[Pair]:
    value = Rational(draw.randint(1, 40), draw.randint(1, 12)) * sympy.pi
    value += draw.choice([0, 0, draw.randint(-9, 9), sympy.sqrt(3)])
    yield from expression_pairs("pi", value, draw)


def complex_number(draw: random.Random) -> Iterator[Pair]:
    value = draw.randint(-9, 9) + _coefficient(draw) * sympy.I
    value = value * draw.choice([1, Rational(1, 2), sympy.sqrt(2)])
    yield from expression_pairs("complex", value, draw)


def function(draw: random.Random) -> Iterator[Pair]:
    inner = draw.choice([X, 2 * X, X / 3, X + 1])
    base = draw.choice([sympy.sin, sympy.cos, sympy.exp, sympy.tan, lambda e: sympy.sqrt(e**2 + 1)])
    yield from expression_pairs("function", _coefficient(draw) * base(inner) + Y, draw)


def with_logarithm(draw: random.Random) -> Iterator[Pair]:
    value = Rational(draw.randint(1, 9), draw.randint(1, 4)) * sympy.log(draw.choice([2, 3, 7, 10]))
    expression = value + draw.choice([0, 1, sympy.log(5), sympy.E])
    for pair in expression_pairs("logarithm", expression, draw):
        ln = {"gold": pair.gold.replace("\\log", "\\ln")}
        yield Pair(
            ln["gold"], pair.answer.replace("\\log", "\\ln"), pair.same, pair.kind, pair.rule
        )


def exponential(draw: random.Random) -> Iterator[Pair]:
    base = draw.randint(2, 7)
    expression = draw.choice([Integer(base) ** N, N * Integer(base) ** (N + 1)]) + draw.randint(
        1, 5
    )
    yield from expression_pairs("exponential", expression, draw)


# --- numbers


def _number_pairs(kind: str, gold: str, same: list[str], other: list[str]) -> Iterator[Pair]:
    for answer in same:
        yield Pair(gold, answer, True, kind, "spelling")
    for answer in other:
        yield Pair(gold, answer, False, kind, "neighbouring value")


def integer(draw: random.Random) -> Iterator[Pair]:
    n = draw.choice([draw.randint(2, 999), draw.randint(1_000, 10**7)])
    spelled = f"{n:,}"
    same = [f"{n}.0", f"{n}.00", spelled, spelled.replace(",", "{,}"), f"+{n}", f"{n}.", f"${n}$"]
    same += [f"\\frac{{{2 * n}}}{{2}}", f"{3 * n}/3", f"{n - 1}+1", f"\\text{{{n}}}"]
    other = [str(n + 1), str(n - 1), f"-{n}", f"{n}.1", f"{n}0", f"{n}!", f"{n}^2", f"{n}x"]
    yield from _number_pairs("integer", str(n), same, other)


def fraction(draw: random.Random) -> Iterator[Pair]:
    value = Fraction(draw.randint(1, 200), draw.choice([3, 7, 8, 9, 11, 13, 16, 20, 25]))
    if value.denominator == 1:
        value += Fraction(1, 3)
    p, q = value.numerator, value.denominator
    same = [
        f"{p}/{q}",
        f"\\dfrac{{{p}}}{{{q}}}",
        f"\\frac{{{2 * p}}}{{{2 * q}}}",
        f"{{{p}}}/{{{q}}}",
    ]
    same += [f"\\frac{{-{p}}}{{-{q}}}", f"{p} \\div {q}", f"\\frac{{1}}{{{q}}} \\cdot {p}"]
    if p > q:
        same += [f"{p // q}\\frac{{{p % q}}}{{{q}}}", f"{p // q} {p % q}/{q}"]
    other = [f"\\frac{{{p + 1}}}{{{q}}}", f"\\frac{{{p}}}{{{q + 1}}}", f"-\\frac{{{p}}}{{{q}}}"]
    other += [f"\\frac{{{q}}}{{{p}}}", f"{p}\\cdot{q}", f"{float(value):.2f}01"]
    yield from _number_pairs("fraction", f"\\frac{{{p}}}{{{q}}}", same, other)


def decimal(draw: random.Random) -> Iterator[Pair]:
    places = draw.randint(1, 7)
    units = draw.randint(10, 10**6) * 10 + draw.randint(1, 9)
    value = Fraction(units, 10**places)

    def spelled(number: int) -> str:
        digits = f"{abs(number):0{places + 1}d}"
        return f"{'-' if number < 0 else ''}{digits[:-places]}.{digits[-places:]}"

    gold = spelled(units)
    same = [
        gold + "0",
        f"\\frac{{{units}}}{{{10**places}}}",
        f"{value.numerator}/{value.denominator}",
    ]
    same += [f"{units} \\times 10^{{-{places}}}", f"{units}e-{places}", f"{gold}\\,"]
    other = [spelled(units + 1), spelled(units - 1), spelled(-units), spelled(units * 10)]
    yield from _number_pairs("decimal", gold, same, other)


def percentage(draw: random.Random) -> Iterator[Pair]:
    n = draw.randint(1, 99)
    same = [f"{n}", f"{n}%", f"{n}\\text{{ percent}}", f"\\frac{{{n}}}{{100}}", f"0.{n:02d}"]
    other = [f"{n + 1}\\%", f"-{n}\\%", f"{n}.5\\%", f"{n}\\text{{ per mille}}", f"0.00{n:02d}1"]
    yield from _number_pairs("percent", f"{n}\\%", same, other)


def huge(draw: random.Random) -> Iterator[Pair]:
    n, b = draw.randint(20, 400), draw.randint(2, 9)
    f, sign = f"\\frac{{1}}{{{n}!}}", f"{b}^{{-{n}}}"
    yield from _number_pairs(
        "huge and tiny",
        f,
        [f"1/{n}!", f"({n}!)^{{-1}}", f"\\frac{{{n + 1}}}{{{n + 1}!}}"],
        [f"\\frac{{1}}{{{n + 1}!}}", f"-{f}", "0", f"\\frac{{2}}{{{n}!}}", f"{n}!"],
    )
    yield from _number_pairs(
        "huge and tiny",
        sign,
        [f"\\frac{{1}}{{{b}^{{{n}}}}}", f"\\left(\\frac{{1}}{{{b}}}\\right)^{{{n}}}"],
        [f"{b}^{{-{n + 1}}}", f"-{sign}", f"{b + 1}^{{-{n}}}", f"{b}^{{{n}}}", "0"],
    )


# --- forms


def _values(draw: random.Random, count: int) -> list[str]:
    pool = [f"{n}" for n in range(-9, 30)] + [
        "\\frac{1}{2}",
        "\\sqrt{2}",
        "\\pi",
        "x+1",
        "2\\sqrt{3}",
    ]
    return draw.sample(pool, k=count)


def _respelled(value: str) -> str:
    table = {"\\frac{1}{2}": "0.5", "\\sqrt{2}": "\\frac{2}{\\sqrt{2}}", "x+1": "1+x"}
    table["2\\sqrt{3}"] = "\\sqrt{12}"
    return table.get(value, f"{value}.0" if re.fullmatch(r"-?\d+", value) else value)


def point(draw: random.Random) -> Iterator[Pair]:
    values = _values(draw, draw.randint(2, 4))
    text = ", ".join(values)
    respelled = ",".join(map(_respelled, values))
    same = [f"\\left({text}\\right)", f"({respelled})", f"( {text} )", f"(x,y)=({text})"]
    other = [f"({', '.join(reversed(values))})", f"({', '.join(values[:-1])}, 77)"]
    other += [f"[{text}]", f"({text}, 5)", f"({text}]"]
    yield from _number_pairs("tuple", f"({text})", same, other)


def collection(draw: random.Random) -> Iterator[Pair]:
    values = _values(draw, draw.randint(2, 5))
    shuffled = draw.sample(values, k=len(values))
    text = ", ".join(values)
    same = [
        ", ".join(shuffled),
        f"\\{{{', '.join(shuffled)}\\}}",
        ", ".join(map(_respelled, shuffled)),
    ]
    same += [f"{', '.join(values[:-1])} \\text{{ and }} {values[-1]}"]
    other = [", ".join(values[:-1]), f"{text}, 88", ", ".join([*values[:-1], "99"])]
    other += [", ".join([*values[:-1], values[0]])] if len(values) > 2 else []
    gold = draw.choice([text, f"\\{{{text}\\}}"])
    yield from _number_pairs("set or list", gold, same, other)


def interval(draw: random.Random) -> Iterator[Pair]:
    a = draw.randint(-9, 9)
    b = a + draw.randint(1, 9)
    closed = draw.choice(["[]", "()", "(]", "[)"])
    left, right = ("\\le" if c in "[]" else "<" for c in closed)
    gold = f"{closed[0]}{a},{b}{closed[1]}"
    same = [
        f"\\left{closed[0]} {a}, {b} \\right{closed[1]}",
        f"{closed[0]}{a}.0,{2 * b}/2{closed[1]}",
    ]
    same += [f"{a} {left} x {right} {b}", f"x \\in {gold}"]
    flipped = {"[": "(", "(": "[", "]": ")", ")": "]"}
    other = [f"{flipped[closed[0]]}{a},{b}{closed[1]}", f"{closed[0]}{a},{b}{flipped[closed[1]]}"]
    other += [f"{closed[0]}{a},{b + 1}{closed[1]}", f"{closed[0]}{a - 1},{b}{closed[1]}"]
    other += [f"{a} {left} x", f"{closed[0]}{b},{a}{closed[1]}"]
    yield from _number_pairs("interval", gold, same, other)


def union(draw: random.Random) -> Iterator[Pair]:
    a = draw.randint(-9, 5)
    b = a + draw.randint(1, 9)
    gold = f"(-\\infty,{a})\\cup({b},\\infty)"
    same = [f"({b},\\infty) \\cup (-\\infty,{a})", f"x<{a} \\text{{ or }} x>{b}"]
    same += [
        f"(-\\infty, {a}) ∪ ({b}, +\\infty)",
        f"\\left(-\\infty,{a}\\right)\\cup\\left({b},\\infty\\right)",
    ]
    other = [f"(-\\infty,{a}]\\cup({b},\\infty)", f"(-\\infty,{a})\\cup({b + 1},\\infty)"]
    other += [f"(-\\infty,{a})", f"({a},{b})", f"x<{a} \\text{{ or }} x\\ge {b}"]
    yield from _number_pairs("union", gold, same, other)


def matrix(draw: random.Random) -> Iterator[Pair]:
    cells = _values(draw, 4)
    rows = f"{cells[0]} & {cells[1]} \\\\ {cells[2]} & {cells[3]}"
    respelled = "{} & {} \\\\ {} & {}".format(*map(_respelled, cells))
    transposed = f"{cells[0]} & {cells[2]} \\\\ {cells[1]} & {cells[3]}"

    def wrapped(body: str, form: str = "pmatrix") -> str:
        return f"\\begin{{{form}}} {body} \\end{{{form}}}"

    same = [wrapped(rows, "bmatrix"), wrapped(respelled), wrapped(rows.replace(" ", ""))]
    other = [wrapped(transposed), wrapped(" & ".join(cells)), wrapped(rows.replace(cells[3], "77"))]
    yield from _number_pairs("matrix", wrapped(rows), same, other)


def equation(draw: random.Random) -> Iterator[Pair]:
    m, b = draw.randint(2, 9), draw.randint(1, 9)
    gold = f"y = {m}x + {b}"
    same = [f"{m}x + {b}", f"y={b}+{m}x", f"{m}x - y + {b} = 0", f"{2 * m}x - 2y = -{2 * b}"]
    same += [f"{m}x+{b}=y", f"0 = y - {m}x - {b}"]
    other = [f"y = {m}x - {b}", f"y = {m + 1}x + {b}", f"x = {m}y + {b}", f"{m}x + y + {b} = 0"]
    other += [f"y = -{m}x + {b}", f"y = {m}x", f"y = {m}x^2 + {b}"]
    yield from _number_pairs("equation", gold, same, other)


def inequality(draw: random.Random) -> Iterator[Pair]:
    n = draw.randint(-9, 9)
    gold = f"x \\ge {n}"
    same = [f"{n} \\le x", f"[{n},\\infty)", f"x \\geq {n}.0", f"x \\in [{n}, \\infty)", f"x>={n}"]
    other = [
        f"x > {n}",
        f"x \\le {n}",
        f"x \\ge {n + 1}",
        f"({n},\\infty)",
        f"x = {n}",
        f"y \\ge {n}",
    ]
    yield from _number_pairs("inequality", gold, same, other)


UNITS = (("cm", "centimeters"), ("km", "kilometers"), ("kg", "kilograms"), ("hours", "hr"))


def quantity(draw: random.Random) -> Iterator[Pair]:
    n = draw.randint(2, 400)
    short, long = draw.choice(UNITS)
    wrong = draw.choice([one for pair in UNITS for one in pair if one not in (short, long)])
    gold = f"{n} \\text{{ {short}}}"
    same = [
        f"{n}",
        f"{n}\\ \\mathrm{{{short}}}",
        f"{n} {short}",
        f"{n}\\text{{ {long}}}",
        f"{n}.0 {long}",
    ]
    other = [f"{n + 1} \\text{{ {short}}}", f"{n}\\text{{ {wrong}}}", f"-{n} {short}"]
    other += [f"{n} \\text{{ million}}", f"{n}\\text{{ {short}}}^2"]
    yield from _number_pairs("unit", gold, same, other)


WORDS = (
    ("odd", "even"),
    ("prime", "composite"),
    ("profit", "loss"),
    ("a.m.", "p.m."),
    ("March", "April"),
    ("gained", "lost"),
    ("east", "west"),
    ("million", "thousand"),
)


def meaningful_word(draw: random.Random) -> Iterator[Pair]:
    word, opposite = draw.choice(WORDS)
    n = draw.randint(2, 99)
    gold = f"{n} \\text{{ {word}}}"
    same = [f"{n}\\text{{ {word} }}", f"{n}\\;\\text{{{word}}}", f"${n}$ \\text{{ {word}}}"]
    other = [f"{n}", f"{n} \\text{{ {opposite}}}", f"{n + 1} \\text{{ {word}}}", f"{opposite}"]
    yield from _number_pairs("word with meaning", gold, same, other)


def based(draw: random.Random) -> Iterator[Pair]:
    base = draw.randint(5, 9)
    digits = "".join(str(draw.randint(1, base - 1)) for _ in range(draw.randint(2, 5)))
    gold = f"{digits}_{base}"
    same = [f"{digits}_{{{base}}}", digits, f"{digits} _ {{{base}}}".replace(" ", "")]
    bumped = digits[:-1] + str((int(digits[-1]) % (base - 1)) + 1 if base > 2 else 1)
    other = [f"{digits}_{{{base + 1}}}", f"{digits[::-1]}1_{base}", f"-{digits}_{base}"]
    other += [f"{bumped}_{base}"] if bumped != digits else []
    yield from _number_pairs("base", gold, same, other)


MAKERS: dict[str, Callable[[random.Random], Iterator[Pair]]] = {
    "polynomial": polynomial,
    "rational function": rational_function,
    "radical": radical,
    "pi": with_pi,
    "complex": complex_number,
    "function": function,
    "logarithm": with_logarithm,
    "exponential": exponential,
    "integer": integer,
    "fraction": fraction,
    "decimal": decimal,
    "percent": percentage,
    "huge": huge,
    "tuple": point,
    "collection": collection,
    "interval": interval,
    "union": union,
    "matrix": matrix,
    "equation": equation,
    "inequality": inequality,
    "unit": quantity,
    "word": meaningful_word,
    "base": based,
}


# --- golds of published data sets


def _real_pairs(draw: random.Random, count: int) -> Iterator[Pair]:
    """Spellings and small changes of the golds as the files have them."""
    golds = [
        (name, gold.rsplit("####", 1)[-1].strip())
        for name, (_, answers) in real_golds().items()
        for gold in answers
    ]
    for name, gold in draw.sample(golds, k=min(count, len(golds))):
        for rule, answer in dialects(gold):
            yield Pair(gold, answer, True, f"gold of {name}", rule)
        yield Pair(gold, f" {gold} ", True, f"gold of {name}", "spaces")
        for rule, answer in _changed(gold):
            yield Pair(gold, answer, False, f"gold of {name}", rule)


def _changed(gold: str) -> Iterator[tuple[str, str]]:
    """One number of the text one higher; one more term; another factor."""
    numbers = list(re.finditer(r"(?<![\d_.{,!])\d+(?![\d,.!])(?!\s*\\!)", gold))
    for match in numbers[:3]:
        value = int(match.group()) + 1
        yield "one number", gold[: match.start()] + str(value) + gold[match.end() :]
    if re.fullmatch(r"[-\d.]+|\\frac\{\d+\}\{\d+\}|[-\d]*\\sqrt\{\d+\}", gold) and gold != "0":
        yield "sign", gold[1:] if gold.startswith("-") else "-" + gold
        yield "more", gold + "+1"
        yield "variable", gold + "x"
