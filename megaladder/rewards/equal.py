r"""Whether two answers are the same: strings, exact numbers, lists, tuples, intervals, sets,
unions, matrices; then math-verify.

Structures are taken apart here and compared piece by piece, because that is exact and cheap; only a
piece that is neither the same string nor a number goes to math-verify 0.9.0, through its LaTeX
grammar alone (its expression grammar calls Python's `eval`, this one does not). sympy can hang or
eat memory on a hostile piece: callers run this inside `worker`. No timeouts here.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import lru_cache

from megaladder.rewards.extract import letter
from megaladder.rewards.normalize import (
    MAX_DIGITS,
    clean,
    number,
    plain_text,
    same_number,
    squash,
    strip_unit,
)
from megaladder.types import GradeReason

# braces and brackets that a piece may open inside each other before it is called different without
# parsing
MAX_NESTING = 64
# of a piece for math-verify; the longest gold answer of the usual benchmarks has about 200
MAX_SYMBOLIC_CHARS = 1_024
MAX_ITEMS = 256  # of a list; longer ones must be equal strings
_MATRIX = re.compile(
    r"^\\begin\{([pbBv]?)(?:small)?matrix\}(.*)\\end\{\1(?:small)?matrix\}$", re.DOTALL
)
_ARRAY = re.compile(
    r"^[(\[]?\s*\\begin\{array\}\s*\{[^{}]*\}(.*)\\end\{array\}\s*[)\]]?$", re.DOTALL
)
_OPEN, _CLOSE = "([{", ")]}"
_BASE = re.compile(r"^([0-9A-Fa-f ]+)_\{?(\d{1,2})\}?$")
_NAME = r"(?:\\?[a-zA-Z]+'?(?:_\{?[a-zA-Z0-9]+\}?)?(?:\([a-zA-Z0-9, ]{1,20}\))?)"
_LEFT_SIDE = re.compile(
    rf"^(?:{_NAME}|\(\s*{_NAME}(?:\s*,\s*{_NAME}){{1,5}}\s*\)|\\angle\s*[A-Z]{{1,3}}|[A-Za-z][A-Za-z"
    r" ]{2,40})$"
)
_WORDS = re.compile(r"^[A-Za-z][A-Za-z'’.-]*(?: [A-Za-z'’.-]+)*$")
_SHORT_WORDS = {"yes", "no", "odd", "true", "none", "all", "east", "west", "red", "blue"}
_FUNCTION_NAMES = re.compile(
    r"\b(?:pi|sin|cos|tan|cot|sec|csc|log|ln|exp|infty|sqrt|arcsin|arccos|arctan)\b"
)


@dataclass(frozen=True, slots=True)
class Parts:
    """A structured answer. `kind`: list (bare commas), pair (parentheses or brackets, ordered),
    set, union, matrix (items row by row)."""

    kind: str
    items: tuple[str, ...]
    brackets: str = ""
    columns: int = 0


def equal(gold: str, answer: str, depth: int = 0) -> GradeReason | None:
    """Why two answers are the same, or None if they are not. Follows the form of `gold` where the
    forms differ (`x=5` and `5`)."""
    gold, answer = clean(gold), clean(answer)
    if squash(gold) == squash(answer):
        return GradeReason.EXACT
    found = _equal_numbers(gold, answer)
    if found is not None and (found or not ("," in gold and "," in answer)):
        return GradeReason.NUMERIC if found else None
    gold, answer = _same_sides(gold, answer)
    structured = _equal_parts(gold, answer, depth)
    if structured is not None:
        return structured or None
    return _equal_atoms(gold, answer)


def _equal_numbers(gold: str, answer: str) -> bool | None:
    """Verdict on two plain numbers or numbers with a base; None if one of them is something
    else."""
    left, right = number(gold), number(answer)
    if left is not None and right is not None:
        return same_number(left, right)
    based = _BASE.match(gold), _BASE.match(answer)
    if based[0] and based[1]:
        return tuple(part.replace(" ", "").upper() for part in based[0].groups()) == tuple(
            p.replace(" ", "").upper() for p in based[1].groups()
        )
    # the base is part of the question: math-verify, too, compares the digits
    if based[0] and right is not None:
        return squash(based[0].group(1)) == squash(answer)
    if based[1] and left is not None:
        return _in_base(*based[1].groups()) == left.value
    return None


def _in_base(digits: str, base: str) -> int | None:
    try:
        return int(digits.replace(" ", ""), int(base)) if len(digits) <= MAX_DIGITS else None
    except ValueError:
        return None


def _same_sides(gold: str, answer: str) -> tuple[str, str]:
    r"""Without `x =` or `x \in` on one side if the other has none, or on both if it is the same
    there."""
    gold_left, gold_right = _split_left(gold)
    answer_left, answer_right = _split_left(answer)
    if gold_left is None and answer_left is None:
        return gold, answer
    if gold_left is None or answer_left is None:
        other = gold if gold_left is None else answer
        return (gold, answer) if _relations(other) else (gold_right, answer_right)
    return (
        (gold_right, answer_right) if squash(gold_left) == squash(answer_left) else (gold, answer)
    )


def _split_left(text: str) -> tuple[str | None, str]:
    for pattern in (r"(?<![<>!\\:])=(?!=)", r"\\in(?![a-zA-Z])"):
        pieces = re.split(pattern, text)
        if (
            len(pieces) == 2
            and pieces[1].strip()
            and _LEFT_SIDE.match(plain_text(pieces[0]).strip())
        ):
            return pieces[0].strip(), pieces[1].strip()
    return None, text


def _relations(text: str) -> bool:
    return bool(re.search(r"[=<>]|\\(?:le|ge|ne|lt|gt|in|approx|equiv)(?![a-zA-Z])", text))


def parts(text: str) -> Parts | None:
    r"""The structure of a cleaned answer; None for a single expression. `3 \pm 2` is the list `3+2,
    3-2`.

    >>> parts("(1,2]").brackets, parts("\\{2,1\\}").items, parts("2x+1")
    ('(]', ('2', '1'), None)
    """
    text = text.strip()
    if len(text) > 4 * 4096 or _nesting(text) > MAX_NESTING:
        return None
    matrix = _MATRIX.match(text) or _ARRAY.match(text)
    if matrix:
        return _matrix_parts(matrix)
    union = _split(text, ("\\cup", "\\bigcup"))
    if len(union) > 1 and all(union):
        return Parts("union", tuple(union))
    items = _split(text, (",", ";"))
    if len(items) > 1:
        return Parts("list", tuple(expanded for item in items for expanded in _plus_minus(item)))
    inner = _bracketed(text)
    if inner is not None:
        brackets, content = inner
        items = tuple(_split(content, (",", ";")))
        if brackets == "{}":
            return Parts(
                "set",
                (
                    tuple(expanded for item in items for expanded in _plus_minus(item))
                    if content.strip()
                    else ()
                ),
            )
        if len(items) > 1:
            return Parts("pair", items, brackets)
        return parts(content) if brackets == "()" else None
    signs = _plus_minus(text)
    return Parts("list", signs) if len(signs) == 2 else None


def _matrix_parts(match: re.Match[str]) -> Parts | None:
    if match.re is _MATRIX and match.group(1) == "v":
        return None  # a determinant is a number
    rows = [
        row
        for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr(?![a-zA-Z])", match.group(match.re.groups))
        if row.strip(" \\hline")
    ]
    cells = [[cell.strip() for cell in row.split("&")] for row in rows]
    if not cells or len({len(row) for row in cells}) > 1:
        return None
    return Parts("matrix", tuple(cell for row in cells for cell in row), columns=len(cells[0]))


def _nesting(text: str) -> int:
    depth = deepest = 0
    for char in text:
        if char in _OPEN:
            depth += 1
            deepest = max(deepest, depth)
        elif char in _CLOSE:
            depth -= 1
    return deepest


def _split(text: str, separators: tuple[str, ...]) -> list[str]:
    """The pieces between separators that stand outside all brackets."""
    pieces, depth, start, position = [], 0, 0, 0
    while position < len(text):
        char = text[position]
        if char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
        elif depth == 0:
            found = next((mark for mark in separators if text.startswith(mark, position)), None)
            if found:
                pieces.append(text[start:position].strip())
                position += len(found)
                start = position
                continue
        position += 1
    return [*pieces, text[start:].strip()]


def _bracketed(text: str) -> tuple[str, str] | None:
    r"""("(]", content) if one pair of brackets encloses the whole text; `\{…\}` gives "{}"; None
    otherwise."""
    body = text.replace("\\{", "{").replace("\\}", "}") if text.startswith("\\{") else text
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


def _plus_minus(text: str) -> tuple[str, ...]:
    found = re.findall(r"\\pm(?![a-zA-Z])|\+/-", text)
    if len(found) != 1:
        return (text,)
    mark = found[0]
    before = text.split(mark)[0].strip()
    return (text.replace(mark, "+" if before else ""), text.replace(mark, "-"))


def _equal_parts(gold: str, answer: str, depth: int) -> GradeReason | str | None:
    """A reason if the structures are equal, "" if they differ for certain, None if this cannot tell
    (math-verify then decides)."""
    left, right = parts(gold), parts(answer)
    if left is None and right is None:
        return None
    if left is None or right is None:
        single, other = (gold, right) if left is None else (answer, left)
        if other.kind == "set" and len(other.items) == 1:
            return equal(other.items[0], single, depth + 1) or ""
        return "" if number(single) is not None and other.kind != "matrix" else None
    if depth > 4 or max(len(left.items), len(right.items)) > MAX_ITEMS:
        return ""
    kinds = {left.kind, right.kind}
    if kinds <= {"list", "set"} or kinds == {"union"}:
        return _same_collection(left.items, right.items, depth)
    if kinds in ({"pair"}, {"matrix"}):
        same_shape = left.columns == right.columns and (
            left.brackets == right.brackets or kinds == {"matrix"}
        )
        return _same_sequence(left.items, right.items, depth) if same_shape else ""
    if kinds == {"pair", "list"} and "()" in (left.brackets, right.brackets):
        return _same_sequence(left.items, right.items, depth)
    return None if "matrix" in kinds else ""


def _same_sequence(left: tuple[str, ...], right: tuple[str, ...], depth: int) -> GradeReason | str:
    if len(left) != len(right):
        return ""
    reasons = []
    for gold, answer in zip(left, right, strict=True):
        reasons.append(equal(gold, answer, depth + 1))
        if reasons[-1] is None:
            return ""
    return _weakest(reasons)


def _same_collection(
    left: tuple[str, ...], right: tuple[str, ...], depth: int
) -> GradeReason | str:
    """Every item has its partner, in any order. Equal strings and numbers are paired first: they
    are cheap."""
    if len(left) != len(right):
        return ""
    rest, todo, reasons = list(right), [], []
    for gold in left:
        partner = next((item for item in rest if _cheap(gold, item)), None)
        if partner is None:
            todo.append(gold)
        else:
            rest.remove(partner)
            reasons.append(
                GradeReason.NUMERIC
                if squash(clean(gold)) != squash(clean(partner))
                else GradeReason.EXACT
            )
    for gold in todo:
        found = None
        for item in rest:
            found = equal(gold, item, depth + 1)
            if found is not None:
                rest.remove(item)
                break
        if found is None:
            return ""
        reasons.append(found)
    return _weakest(reasons)


def _cheap(gold: str, answer: str) -> bool:
    gold, answer = clean(gold), clean(answer)
    return squash(gold) == squash(answer) or bool(_equal_numbers(gold, answer))


def _weakest(reasons: list[GradeReason]) -> GradeReason:
    for reason in (GradeReason.SYMBOLIC, GradeReason.NUMERIC):
        if reason in reasons:
            return reason
    return GradeReason.EXACT


def _equal_atoms(gold: str, answer: str) -> GradeReason | None:
    found = _equal_numbers(gold, answer)  # again: `x =` is gone now
    if found is not None:
        return GradeReason.NUMERIC if found else None
    gold_text, answer_text = _text_key(gold), _text_key(answer)
    if gold_text is not None or answer_text is not None:
        if gold_text is not None and len(gold_text) == 1 and letter(answer) == gold_text.upper():
            return GradeReason.CHOICE
        same = gold_text == answer_text or squash(gold).casefold() == squash(answer).casefold()
        return GradeReason.EXACT if same else None
    gold, answer = strip_unit(gold), strip_unit(answer)
    if squash(gold) == squash(answer):
        return GradeReason.EXACT
    return GradeReason.SYMBOLIC if symbolic_equal(gold, answer) else None


def _text_key(cleaned: str) -> str | None:
    r"""Lower-case words if the answer is words (`\text{Evelyn}`, `even`, `\text{(C)}`); None if it
    is maths.

    Without a text command, words need four letters or a place in a short list: `xyz` is a product.
    """
    unwrapped = plain_text(cleaned)
    commanded = (
        bool(
            re.match(
                r"^\\(?:text|textbf|textit|mbox|mathrm|textrm|mathbf|hbox)\s*\{[^{}]*\}\s*$",
                cleaned,
            )
        )
        and "\\" not in unwrapped
    )
    words = unwrapped.strip("()[]{}\"' .")
    if not _WORDS.match(words) or _FUNCTION_NAMES.search(words):
        return None
    longest = max(re.findall(r"[A-Za-z]+", words), key=len)
    natural = (
        len(longest) >= 4 and re.search(r"[aeiouAEIOU]", longest)
    ) or words.casefold() in _SHORT_WORDS
    return re.sub(r"\s+", " ", words.casefold()) if commanded or natural else None


def symbolic_equal(gold: str, answer: str) -> bool:
    """math-verify's verdict on two LaTeX expressions. Over the caps it is False without parsing."""
    if (
        max(len(gold), len(answer)) > MAX_SYMBOLIC_CHARS
        or max(_nesting(gold), _nesting(answer)) > MAX_NESTING
    ):
        return False
    if re.search(rf"\d{{{MAX_DIGITS + 1}}}", f"{gold} {answer}"):
        return False
    from math_verify import verify

    parsed_gold, parsed_answer = _parse(gold), _parse(answer)
    if not parsed_gold or not parsed_answer:
        return False
    return verify(parsed_gold, parsed_answer, timeout_seconds=None, allow_set_relation_comp=True)


@lru_cache(maxsize=256)
def _parse(latex: str) -> list:
    """What math-verify reads; kept, because the samples of a group share their gold answer and
    often their own."""
    from math_verify import parse
    from math_verify.parser import LatexExtractionConfig

    for name in ("math_verify.parser", "math_verify.grader"):
        # it warns that timeouts are off: `worker` has the clock
        logging.getLogger(name).setLevel(logging.ERROR)
    return parse(
        f"${latex}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None
    )
