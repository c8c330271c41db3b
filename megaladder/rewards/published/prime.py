r"""The grader of PRIME (arXiv 2502.01456), after PRM800K's (arXiv 2305.20050): the last box.

Equal after Hendrycks' normalisation; else words such as million spelled out and units removed,
tuples piece by piece, where fractions and integers must be equal as written and the rest goes to
sympy."""

from __future__ import annotations

import re

from megaladder.rewards.published.latex import last_boxed, strip_string, symbolically_equal

_SCALES = (("million", "*10^6"), ("billion", "*10^9"), ("trillion", "*10^12"))
_UNITS = """degree cm centimeter meter mile second minute hour day week month year foot feet inch
yard"""
_FRACTION = re.compile(r"^-?\d+\s*/\s*\d+$|^-?\\frac\{-?\d+\}\{\d+\}$")
_TOO_HARD = ("^{", "^(")
MAX_LETTERS = 2


def judge(response: str, gold: str) -> tuple[bool, str | None]:
    """(correct, extracted answer)."""
    answer = last_boxed(response)
    if answer is None:
        return False, None
    if strip_string(answer) == strip_string(gold):
        return True, answer
    left, right = normalize(answer), normalize(gold)
    return bool(left) and (left == right or _same_pieces(left, right)), answer


def normalize(text: str) -> str:
    """The published normalisation: no text commands, no units, numbers without commas."""
    enclosed = re.fullmatch(r"\\text\{(.+?)\}", text.strip())
    text = enclosed.group(1) if enclosed else text
    for mark in ("\\%", "\\$", "$", "%"):
        text = text.replace(mark, "")
    text = text.replace(" or ", " , ").replace(" and ", " , ")
    for word, power in _SCALES:
        text = text.replace(word, power)
    for unit in _UNITS.split():
        text = re.sub(rf"{unit}(es)?(s)? *(\^[0-9]+)?", "", text)
    text = re.sub(r"\^ *\\circ", "", text)
    if len(text) > 1 and text[0] == "{" and text[-1] == "}":
        text = text[1:-1]
    text = re.sub(r",\\! *", "", text)
    text = _whole(text)
    text = text.replace("\\tfrac", "\\frac").replace("\\dfrac", "\\frac").replace("- ", "-")
    text = re.sub(r"(\d) +(\d)", r"\1+\2", text).replace(" ", "")
    text = text.replace("{", "").replace("}", "") if "\\" not in text else text
    return _whole(text).lower()


def _whole(text: str) -> str:
    """`5.0` and `5,000` as integers."""
    plain = text.strip().replace(",", "") if _GROUPED.match(text.strip()) else text
    try:
        value = float(plain)
    except ValueError:
        return text
    return str(round(value)) if abs(value) < 1e15 and abs(value - round(value)) <= 1e-7 else text


_GROUPED = re.compile(r"^-?\d{1,3}(?:,\d{3})+(?:\.\d+)?$")


def _same_pieces(answer: str, gold: str) -> bool:
    left, right = _pieces(answer), _pieces(gold)
    brackets = [
        one[0] + one[-1] if len(p) > 1 else "" for one, p in ((answer, left), (gold, right))
    ]
    if len(left) != len(right) or brackets[0] != brackets[1]:
        return False
    return all(map(_same_piece, left, right))


def _pieces(text: str) -> list[str]:
    inside = len(text) > 2 and text[0] in "([" and text[-1] in ")]"
    return [piece.strip() for piece in text[1:-1].split(",")] if inside else [text]


def _same_piece(answer: str, gold: str) -> bool:
    if _FRACTION.match(answer) and _FRACTION.match(gold):
        return answer == gold
    if re.fullmatch(r"-?\d+", answer) is not None and re.fullmatch(r"-?\d+", gold) is not None:
        return int(answer) == int(gold)
    if re.fullmatch(r"-?\d+", gold) is not None and not re.search(r"[a-z\\]", answer):
        return False
    return not _is_too_hard(gold) and not _is_too_hard(answer) and symbolically_equal(answer, gold)


def _is_too_hard(text: str) -> bool:
    letters = set(re.sub(r"sqrt|frac|\\[a-z]+", "", text)) & set("abcdefghijklmnopqrstuvwxyz")
    return len(letters) > MAX_LETTERS or any(mark in text for mark in _TOO_HARD)
