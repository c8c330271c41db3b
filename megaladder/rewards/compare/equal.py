r"""Whether two answers are the same, by the kind of answer (`forms`, `quantity`).

One rule a kind:

list, set        any order; every piece has its partner; repeated pieces count
tuple, interval  piece by piece, and the same brackets; a bare list may stand for a tuple in ( )
union            any order; inequalities in one variable are read as intervals
matrix           the same shape, cell by cell; a single row or column is also a tuple
equation         a name on the left is dropped; else both sides' difference, up to a constant factor
inequality       as an interval where a variable stands alone; else as an equation, factor positive
quantity         equal values; units as `_same_quantity` says
number           exactly; written decimals to 1e-6 (`normalize.same_number`)
expression       certainly equal in value (`identical`)
words            the same words, whatever their case

Raises `TooMuch` where the operations that one comparison is given do not suffice.
"""

from __future__ import annotations

import re
from fractions import Fraction

from flint import fmpq

from megaladder.rewards.compare import forms
from megaladder.rewards.compare.evaluate import TooMuch, Undefined
from megaladder.rewards.compare.forms import Form, Listing, Matrix, Pair, Relation, Union, Value
from megaladder.rewards.compare.identical import close_value, ratio_is_constant, same_value
from megaladder.rewards.compare.library import library_equal
from megaladder.rewards.compare.normalize import Number, clean, number, same_number, squash
from megaladder.rewards.compare.quantity import Numeral, Quantity, Words, read_single
from megaladder.rewards.compare.syntax import Node, NotMath, parse, symbols, walk
from megaladder.rewards.letters import letter
from megaladder.types import GradeReason

MAX_ITEMS = 256  # of a list; longer ones must be equal strings
MAX_DEPTH = 6  # of forms inside forms
TOLERANCE = fmpq(1, 1_000_000)  # of an expression against a decimal of six digits or more

Reason = GradeReason | None


def equal(gold: str, answer: str, depth: int = 0) -> Reason:
    """Why two answers are the same, or None if they are not."""
    gold, answer = clean(gold), clean(answer)
    if gold == answer or squash(gold) == squash(answer):
        return GradeReason.EXACT
    if depth > MAX_DEPTH:
        return None
    left, right = number(gold), number(answer)
    if left is not None and right is not None:
        if same_number(left, right):
            return GradeReason.NUMERIC
        if not ("," in gold and "," in answer):
            return None
    return _same_form(_form(gold, answer), _form(answer, gold), depth)


def _form(text: str, other: str) -> Form:
    """`50,000` is a list of two only where the other side has a comma as well."""
    is_number = "," in text and "," not in other and number(text) is not None
    return Value(text) if is_number else forms.read(text)


def _same_form(gold: Form, answer: Form, depth: int) -> Reason:
    if isinstance(gold, Value) and isinstance(answer, Value):
        return _same_single(gold.text, answer.text)
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return _same_relation(gold, answer, depth)
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return _relation_and_other(gold, answer, depth)
    gold, answer = _inequalities_as_union(gold), _inequalities_as_union(answer)
    if isinstance(gold, Listing) and isinstance(answer, Listing):
        return _same_collection(gold.items, answer.items, depth)
    if isinstance(gold, Union) and isinstance(answer, Union):
        return _same_collection(gold.items, answer.items, depth)
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        same_shape = gold.columns == answer.columns
        return _same_sequence(gold.items, answer.items, depth) if same_shape else None
    if isinstance(gold, Pair) and isinstance(answer, Pair):
        same = gold.brackets == answer.brackets
        return _same_sequence(gold.items, answer.items, depth) if same else None
    return _mixed_forms(gold, answer, depth)


def _mixed_forms(gold: Form, answer: Form, depth: int) -> Reason:
    """Forms of two kinds that may say the same."""
    for one, other in ((gold, answer), (answer, gold)):
        if isinstance(one, Listing) and len(one.items) == 1 and isinstance(other, Value):
            pieces = (one.items[0], other.text)
            return equal(*(pieces if one is gold else pieces[::-1]), depth + 1)
        if isinstance(one, Pair) and one.brackets == "()" and _is_flat(other, len(one.items)):
            items = forms.by_coordinate(other.items)  # type: ignore[union-attr]
            left, right = (one.items, items) if one is gold else (items, one.items)
            return _same_sequence(left, right, depth)
    return None


def _is_flat(form: Form, length: int) -> bool:
    """A bare list, or a vector, of that many pieces: what may stand for a tuple."""
    if isinstance(form, Listing):
        return not form.is_set and len(form.items) == length
    vector = isinstance(form, Matrix) and form.columns in (1, len(form.items))
    return vector and len(form.items) == length  # type: ignore[union-attr]


def _inequalities_as_union(form: Form) -> Form:
    """`x < -1 or x > 3` as the union of its intervals, `x \\ne 2` and the like left alone."""
    if not isinstance(form, Listing) or len(form.items) < 2 or not form.one_of:
        return form
    found = [_interval(item) for item in form.items]
    names = {one[0] for one in found if one is not None}
    if None in found or len(names) != 1:
        return form
    return Union(tuple(_as_text(one[1]) for one in found if one is not None))


def _interval(text: str) -> tuple[str, Pair] | None:
    relation = forms.read(text)
    return forms.as_interval(relation) if isinstance(relation, Relation) else None


def _as_text(pair: Pair) -> str:
    return pair.brackets[0] + ",".join(pair.items) + pair.brackets[1]


def _same_sequence(gold: tuple[str, ...], answer: tuple[str, ...], depth: int) -> Reason:
    if len(gold) != len(answer) or len(gold) > MAX_ITEMS:
        return None
    reasons: list[GradeReason] = []
    for left, right in zip(gold, answer, strict=True):
        found = equal(left, right, depth + 1)
        if found is None:
            return None
        reasons.append(found)
    return _weakest(reasons)


def _same_collection(gold: tuple[str, ...], answer: tuple[str, ...], depth: int) -> Reason:
    """Every piece has its partner, in any order.

    Equal strings and numbers are paired first: they are cheap."""
    if len(gold) != len(answer) or len(gold) > MAX_ITEMS:
        return None
    rest, todo, reasons = list(answer), [], []
    for piece in gold:
        partner = next((one for one in rest if _cheaply_equal(piece, one)), None)
        if partner is None:
            todo.append(piece)
            continue
        rest.remove(partner)
        reasons.append(_cheaply_equal(piece, partner) or GradeReason.EXACT)
    for piece in todo:
        found = None
        for one in rest:
            found = equal(piece, one, depth + 1)
            if found is not None:
                rest.remove(one)
                break
        if found is None:
            return None
        reasons.append(found)
    return _weakest(reasons)


def _cheaply_equal(gold: str, answer: str) -> Reason:
    gold, answer = clean(gold), clean(answer)
    if squash(gold) == squash(answer):
        return GradeReason.EXACT
    left, right = number(gold), number(answer)
    same = left is not None and right is not None and same_number(left, right)
    return GradeReason.NUMERIC if same else None


def _weakest(reasons: list[GradeReason]) -> GradeReason:
    for reason in (GradeReason.SYMBOLIC, GradeReason.NUMERIC):
        if reason in reasons:
            return reason
    return GradeReason.EXACT


# --- relations


def _relation_and_other(gold: Form, answer: Form, depth: int) -> Reason:
    relation = gold if isinstance(gold, Relation) else answer
    assert isinstance(relation, Relation)
    other = answer if relation is gold else gold
    for value in _named(relation, depth):
        found = forms.read(clean(value))
        pair = (found, other) if relation is gold else (other, found)
        reason = _same_form(*pair, depth)
        if reason is not None:
            return reason
    if isinstance(other, Listing) and len(other.items) == 1:
        other = forms.read(other.items[0])
    interval = forms.as_interval(relation)
    if interval is not None and isinstance(other, Pair):
        same = interval[1].brackets == other.brackets
        return _same_sequence(interval[1].items, other.items, depth) if same else None
    if (
        relation.operators == ("!=",)
        and isinstance(other, Union)
        and forms.is_name(relation.sides[0])
    ):
        value = relation.sides[1]
        both = (f"(-\\infty,{value})", f"({value},\\infty)")
        return _same_collection(both, other.items, depth)
    return None


def named(text: str) -> tuple[str, ...]:
    """What a text names that is a relation: `x = 2 \\cdot 9 = 18` names 18; else nothing."""
    form = forms.read(clean(text))
    return _named(form, 0) if isinstance(form, Relation) else ()


def _named(relation: Relation, depth: int) -> tuple[str, ...]:
    return forms.named_values(relation, lambda left, right: equal(left, right, depth + 1))


def _same_relation(gold: Relation, answer: Relation, depth: int) -> Reason:
    if gold.is_equation and answer.is_equation:
        return _same_equation(gold, answer, depth)
    if gold.operators[-1] == answer.operators[-1] == "in":
        same = squash(gold.sides[-2]) == squash(answer.sides[-2])
        return equal(gold.sides[-1], answer.sides[-1], depth + 1) if same else None
    first, second = _relation_interval(gold), _relation_interval(answer)
    if first is not None and second is not None:
        (name, left), (other_name, right) = first, second
        if name != other_name or left.brackets != right.brackets:
            return None
        return _same_sequence(left.items, right.items, depth)
    if gold.is_inequality and answer.is_inequality:
        return _same_inequality(gold, answer)
    if gold.operators == answer.operators and gold.operators[0] in ("!=", "mod"):
        return _same_sequence(gold.sides, answer.sides, depth)
    return None


def _relation_interval(relation: Relation) -> tuple[str, Pair] | None:
    """An inequality, or membership in one interval, as (variable, interval)."""
    if relation.operators == ("in",) and forms.is_name(relation.sides[0]):
        inside = forms.read(relation.sides[1])
        return (squash(relation.sides[0]), inside) if isinstance(inside, Pair) else None
    return forms.as_interval(relation)


def _same_equation(gold: Relation, answer: Relation, depth: int) -> Reason:
    if squash(gold.sides[0]) == squash(answer.sides[0]) and forms.is_name(gold.sides[0]):
        for value in _named(answer, depth):
            found = equal(gold.sides[-1], value, depth + 1)
            if found is not None:
                return found
    if len(gold.sides) != len(answer.sides) or len(gold.sides) != 2:
        return _same_sequence(gold.sides, answer.sides, depth)
    differences = _difference(gold), _difference(answer)
    if differences[0] is None or differences[1] is None:
        return _same_sequence(gold.sides, answer.sides, depth)
    return _if(ratio_is_constant(differences[0], differences[1], positive=False))


def _same_inequality(gold: Relation, answer: Relation) -> Reason:
    """`l < r` with r − l up to a positive factor; chains must be written alike."""
    left, right = _oriented(gold), _oriented(answer)
    if len(left.sides) != 2 or left.operators != right.operators:
        return None
    differences = _difference(left), _difference(right)
    if differences[0] is None or differences[1] is None:
        return None
    return _if(ratio_is_constant(differences[0], differences[1], positive=True))


def _oriented(relation: Relation) -> Relation:
    """With < or <= in place of > and >=."""
    if relation.operators[0] not in (">", ">="):
        return relation
    turned = {">": "<", ">=": "<=", "<": ">", "<=": ">="}
    return Relation(
        relation.sides[::-1], tuple(turned[one] for one in reversed(relation.operators))
    )


def _difference(relation: Relation) -> Node | None:
    try:
        left, right = (parse(side) for side in relation.sides)
    except NotMath:
        return None
    difference = Node("add", (left, Node("neg", (right,))))
    return difference if symbols(difference) else None


def _if(same: bool) -> Reason:
    return GradeReason.SYMBOLIC if same else None


# --- single values


def _same_single(gold: str, answer: str) -> Reason:
    left, right = read_single(gold), read_single(answer)
    if isinstance(left, Numeral) or isinstance(right, Numeral):
        return _same_numeral(left, right)
    if isinstance(left, Words) or isinstance(right, Words):
        return _same_words(gold, answer, left, right)
    found = _same_quantity(left, right)
    if found is None and left.unit is None and not symbols(left.value) and symbols(right.value):
        # `12 m` is a length only where the gold answer has no variables at all
        again = read_single(answer, True)
        found = _same_quantity(left, again) if isinstance(again, Quantity) else None
    return found


def _same_numeral(gold: object, answer: object) -> Reason:
    """The base belongs to the question, so its digits alone are right.

    A numeral that was not asked for counts by its value."""
    if isinstance(gold, Numeral) and isinstance(answer, Numeral):
        return GradeReason.EXACT if gold == answer else None
    if isinstance(gold, Numeral) and isinstance(answer, Quantity):
        value = _plain_rational(answer)
        return GradeReason.NUMERIC if value is not None and str(value) == gold.digits else None
    if isinstance(answer, Numeral) and isinstance(gold, Quantity):
        value = _plain_rational(gold)
        same = value is not None and answer.value is not None and value == answer.value
        return GradeReason.NUMERIC if same else None
    return None


def _plain_rational(quantity: Quantity) -> fmpq | None:
    value = quantity.value.value
    return value if isinstance(value, fmpq) else None


def _same_words(gold: str, answer: str, left: object, right: object) -> Reason:
    if isinstance(left, Words) and isinstance(right, Words):
        if left.key == right.key:
            return GradeReason.EXACT
        if re.search(r"\\(?:sum|prod|int|lim)(?![a-z])", gold + answer):
            return _if(library_equal(gold, answer))
    option = re.fullmatch(r"\(?([a-j])\)?", left.key) if isinstance(left, Words) else None
    if option and letter(answer) == option.group(1).upper():
        return GradeReason.CHOICE
    return None


def _same_quantity(gold: Quantity, answer: Quantity) -> Reason:
    """Values with the units that both, one or none of them name.

    * A unit on one side only may be left out: the question named it.
    * Units of one dimension convert; others differ, and so do two kinds of counted things.
    * `25`, `25\\%` and 0.25 are the same where one of them carries the sign.
    """
    if gold.percent or answer.percent:
        return _same_percent(gold, answer)
    if gold.unit is None or answer.unit is None:
        found = _same_values(gold, answer)
        return found if found is not None else _as_radians(gold, answer)
    left, right = gold.unit, answer.unit
    if left.dimensions != right.dimensions:
        plain = not left.dimensions or not right.dimensions
        return (
            _same_values(gold, answer)
            if plain and "unit" in (left.counted, right.counted)
            else None
        )
    if left.counted != right.counted and left.counted and right.counted:
        return None
    if left.factor == right.factor:
        return _same_values(gold, answer)
    return _same_values(_in_base(gold), _in_base(answer))


def _in_base(quantity: Quantity) -> Quantity:
    assert quantity.unit is not None
    factor = Node("number", (), quantity.unit.factor)
    return Quantity(Node("mul", (quantity.value, factor)))


def _as_radians(gold: Quantity, answer: Quantity) -> Reason:
    """`90^\\circ` and pi/2 are one angle."""
    for one, other in ((gold, answer), (answer, gold)):
        if one.unit is not None and one.unit.dimensions == (("angle", 1),) and _has_pi(other.value):
            return _same_values(Quantity(Node("degree", (one.value,))), Quantity(other.value))
    return None


def _has_pi(node: Node) -> bool:
    return any(one.op == "constant" and one.value == "pi" for one in walk(node))


def _same_percent(gold: Quantity, answer: Quantity) -> Reason:
    if gold.percent and answer.percent:
        return _same_values(gold, answer)
    if gold.unit is not None or answer.unit is not None:
        return None
    percent, plain = (gold, answer) if gold.percent else (answer, gold)
    hundredth = Quantity(Node("div", (percent.value, Node("number", (), fmpq(100)))))
    return _same_values(plain, percent) or _same_values(plain, hundredth)


def _same_values(gold: Quantity, answer: Quantity) -> Reason:
    left, right = _as_number(gold), _as_number(answer)
    if left is not None and right is not None:
        return GradeReason.NUMERIC if same_number(left, right) else None
    try:
        if same_value(gold.value, answer.value):
            return GradeReason.SYMBOLIC
        if _either_base_of_log(gold.value, answer.value):
            return GradeReason.SYMBOLIC
        return _if(_is_close_decimal(gold, answer))
    except Undefined:
        return None


def _as_number(quantity: Quantity) -> Number | None:
    value = _plain_rational(quantity)
    if value is None:
        return None
    return Number(Fraction(int(value.p), int(value.q)), places=quantity.places)


def _is_close_decimal(gold: Quantity, answer: Quantity) -> bool:
    """A decimal of six digits or more against an irrational number, rounded or cut."""
    if symbols(gold.value) or symbols(answer.value):
        return False
    places = gold.places if gold.places is not None else answer.places
    if places is None:
        return False
    return close_value(gold.value, answer.value, TOLERANCE) and _within_last_place(
        gold.value, answer.value, places
    )


def _within_last_place(left: Node, right: Node, places: int) -> bool:
    gap = Node("add", (left, Node("neg", (right,))))
    unit = Node("number", (), fmpq(1, 10**places))
    return close_value(unit, Node("add", (unit, gap)), fmpq(1))


def _either_base_of_log(left: Node, right: Node) -> bool:
    """`\\log` without a base is natural or decimal; both readings are accepted."""
    nodes = [_decimal_log(left), _decimal_log(right)]
    return nodes != [left, right] and same_value(*nodes)


def _decimal_log(node: Node) -> Node:
    args = tuple(_decimal_log(arg) for arg in node.args)
    if node.op == "log":
        ten = Node("ln", (Node("number", (), fmpq(10)),))
        return Node("div", (Node("ln", args), ten))
    return Node(node.op, args, node.value)


__all__ = ["TooMuch", "equal", "named"]
