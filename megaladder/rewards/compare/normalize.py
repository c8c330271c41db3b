r"""One spelling for answers that mean the same, and exact numbers out of strings.

Pure, bounded, no sympy, nothing is evaluated.

`clean` keeps the meaning (Unicode → LaTeX, layout commands away, `\dfrac` → `\frac`, ASCII maths →
LaTeX); `number` reads what is a plain number in any usual spelling as an exact fraction. Not here:
expressions, sets, equality (`equal`).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

MAX_DIGITS = 256  # longest run of digits that is read as a number
MAX_EXPONENT = 300  # of scientific notation
RELATIVE_TOLERANCE = Fraction(1, 1_000_000)  # of decimals, with six significant digits or more

_FRACTIONS = {
    "½": "1/2",
    "⅓": "1/3",
    "⅔": "2/3",
    "¼": "1/4",
    "¾": "3/4",
    "⅕": "1/5",
    "⅖": "2/5",
    "⅗": "3/5",
    "⅘": "4/5",
    "⅙": "1/6",
    "⅚": "5/6",
    "⅛": "1/8",
    "⅜": "3/8",
    "⅝": "5/8",
    "⅞": "7/8",
    "⅐": "1/7",
    "⅑": "1/9",
    "⅒": "1/10",
}
_SYMBOLS = {
    "−": "-",
    "–": "-",
    "—": "-",
    "‐": "-",
    "‑": "-",
    "﹣": "-",
    "×": "\\times ",
    "·": "\\cdot ",
    "⋅": "\\cdot ",
    "∙": "\\cdot ",
    "÷": "/",
    "⁄": "/",
    "∕": "/",
    "π": "\\pi ",
    "∞": "\\infty ",
    "∪": "\\cup ",
    "∩": "\\cap ",
    "∈": "\\in ",
    "≤": "\\le ",
    "≥": "\\ge ",
    "≠": "\\ne ",
    "±": "\\pm ",
    "°": "^\\circ ",
    "º": "^\\circ ",
    "θ": "\\theta ",
    "α": "\\alpha ",
    "β": "\\beta ",
    "λ": "\\lambda ",
    "∅": "\\emptyset ",
    "′": "'",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "。": ".",
    "、": ",",
    "\u200b": "",
    "\u200c": "",
    "\u200d": "",
    "\u2060": "",
    "\ufeff": "",
    "\u2061": "",
    "\u2062": "",
}
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_LAYOUT = re.compile(
    r"\\left(?![a-zA-Z])\.?|\\right(?![a-zA-Z])\.?|(?<!\\)\\[!,;:>"
    r" ]|\\(?:quad|qquad|displaystyle|textstyle|limits|big|Big|bigg|Bigg|bigl"
    r"|bigr|Bigl|Bigr|thinspace|enspace|nobreak|hspace\{[^{}]*\})(?![a-zA-Z])|~"
)
_RENAMES = [
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:leqslant|leq)(?![a-zA-Z])"), r"\\le "),
    (re.compile(r"\\(?:geqslant|geq)(?![a-zA-Z])"), r"\\ge "),
    (re.compile(r"\\neq(?![a-zA-Z])"), r"\\ne "),
    (re.compile(r"\\varnothing(?![a-zA-Z])"), r"\\emptyset "),
    (re.compile(r"^\s*="), ""),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\(?:lparen|lbrack|langle)(?![a-zA-Z])"), r"("),
    (re.compile(r"\\(?:rparen|rbrack|rangle)(?![a-zA-Z])"), r")"),
    (
        re.compile(r"\^\s*\{\s*\\circ\s*\}|\\degree(?![a-zA-Z])|\\textdegree(?![a-zA-Z])"),
        r"^\\circ ",
    ),
    (re.compile(r"\\(?:text|mbox|mathrm|textbf|textrm)\s*\{\s*,?\s*and\s*\}"), r"\\land "),
    (re.compile(r"\\(?:text|mbox|mathrm|textbf|textrm)\s*\{\s*,?\s*or\s*\}"), r"\\lor "),
    (re.compile(r"(?<=[\d)}\]$])\s*,?\s+and\s+(?=[-\d(\\[$]|[a-z](?![a-zA-Z]))"), r" \\land "),
    (re.compile(r"(?<=[\d)}\]$])\s*,?\s+or\s+(?=[-\d(\\[$]|[a-z](?![a-zA-Z]))"), r" \\lor "),
    (re.compile(r"\\(?:vee|lor)(?![a-zA-Z])"), r"\\lor "),
    (re.compile(r"\\(?:wedge|land)(?![a-zA-Z])"), r"\\land "),
    (re.compile(r"\\(?:ldots|cdots|dotsc|dotsb)(?![a-zA-Z])|\.\.\."), r"\\dots "),
    (re.compile(r"\{:\}|\\colon(?![a-zA-Z])"), ":"),
    (re.compile(r"\\(?:text|mbox|mathrm)\s*\{\s*\\?(?:%|percent|percentage)\s*\}"), "%"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[$]"), r"\\dollar "),
    (re.compile(r"[$]"), ""),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (
        re.compile(
            r"(?<![\\a-zA-Z])(sin|cos|tan|cot|sec|csc|log|ln|exp|arcsin|arccos|arctan)(?=\s*[\d(\\^_]|\s+[a-z]\b)"
        ),
        r"\\\1",
    ),
    (re.compile(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])"), r"\\pi "),
    (re.compile(r"(?<![\\a-zA-Z])(?:infinity|infty|inf|oo)(?![a-zA-Z])"), r"\\infty "),
    (re.compile(r"\\(frac|sqrt|binom)\s+(?=[\d{\\])"), r"\\\1"),
    (re.compile(r"\\frac(\d)(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac(\d)\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac\{[^{}]*\})\s*(\d)"), r"\1{\2}"),
    (re.compile(r"\\sqrt(\d)"), r"\\sqrt{\1}"),
]
_FONT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname|boldsymbol)\s*\{([^{}]*)\}"
)


@dataclass(frozen=True, slots=True)
class Number:
    """An exact number as it was written.

    `percent`: it carried a % sign (`value` is what stands before it); `places`: digits after the
    point, None where it has no point (then it is exact)."""

    value: Fraction
    percent: bool = False
    places: int | None = None


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    r"""Canonical spelling of an answer; the same string twice changes nothing more than once.

    >>> clean("$\\dfrac12$."), clean("2½"), clean("x²−1"), clean("10,\\!080")
    ('\\frac{1}{2}', '2 1/2', 'x^2-1', '10,080')
    """
    text = _unicode(text)
    text = _strip_delimiters(text)
    text = _LAYOUT.sub(" ", text.replace("\\!", ""))
    for pattern, replacement in _RENAMES:
        text = pattern.sub(replacement, text)
    text = _ascii_calls(text)
    text = re.sub(r"([\^_])\s*\{\s*([A-Za-z0-9])\s*\}", r"\1\2", text)
    return re.sub(r"\s+", " ", text).strip()


def _unicode(text: str) -> str:
    r"""NFKC, but with exponents and vulgar fractions kept apart from their base.

    `x²` is `x^{2}`, `2½` is `2 1/2`."""
    if text.isascii():
        return text
    text = re.sub(
        r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda match: "^{" + match.group().translate(_SUPERSCRIPT) + "}", text
    )
    text = re.sub(r"[₀-₉]+", lambda match: "_{" + match.group().translate(_SUBSCRIPT) + "}", text)
    text = re.sub("|".join(_FRACTIONS), lambda match: " " + _FRACTIONS[match.group()] + " ", text)
    text = re.sub(
        r"√\s*\(([^()]*)\)|√\s*(\d+|[a-zA-Z])",
        lambda match: "\\sqrt{" + (match.group(1) or match.group(2)) + "}",
        text,
    )
    text = "".join(_SYMBOLS.get(char, char) for char in text)
    return "".join(_SYMBOLS.get(char, char) for char in unicodedata.normalize("NFKC", text))


def _strip_delimiters(text: str) -> str:
    r"""Without surrounding `$…$`, `\(…\)`, `\[…\]`, Markdown stars, a final full stop or comma."""
    text = text.strip()
    for _ in range(4):
        before = text
        text = text.strip("*`").strip()
        for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
            if (
                len(text) > len(opening + closing)
                and text.startswith(opening)
                and text.endswith(closing)
            ):
                text = text[len(opening) : -len(closing)].strip()
        text = _unwrap_font(text)
        text = re.sub(r"(?<=[^.\\])[.,;:]$", "", text).strip()
        if text == before:
            break
    return text


def _unwrap_font(text: str) -> str:
    r"""`\text{\frac{1}{2}}` → `\frac{1}{2}`.

    A font command that encloses plain words stays, because it says that they are words."""
    match = re.match(r"\\(?:text|textbf|mathrm|mathbf|boldsymbol|mbox)\s*\{", text)
    if match is None or not text.endswith("}") or "\\" not in text[1:]:
        return text
    depth = 0
    for position in range(match.end() - 1, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0 and position < len(text) - 1:
            return text
    return text[match.end() : -1].strip()


def _ascii_calls(text: str) -> str:
    r"""`sqrt(x)` → `\sqrt{x}`, `x^(1/2)` → `x^{1/2}`: only where the parentheses hold no others."""
    text = re.sub(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    return re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", text)


@lru_cache(maxsize=4096)
def squash(cleaned: str) -> str:
    """For string equality.

    No fonts, no spaces but between two word characters (`1 2` is not `12`), no outer braces."""
    text = _FONT.sub(r"\1", cleaned)
    text = re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])", "", re.sub(r"\s+", " ", text).strip())
    text = re.sub(r"(\\[a-zA-Z]+) (?=[0-9A-Za-z])", r"\1 ", text)
    while text.startswith("{") and text.endswith("}") and "}" not in text[1:-1]:
        text = text[1:-1]
    return text


def plain_text(text: str) -> str:
    """Without font commands: `\\text{(B)}` → `(B)`."""
    for _ in range(4):
        text, num_replaced = _FONT.subn(r"\1", text)
        if not num_replaced:
            break
    return text.strip()


@lru_cache(maxsize=4096)
def number(cleaned: str) -> Number | None:
    r"""The exact number that a cleaned answer spells; None if it is no plain number.

    Reads integers, decimals, thousands (`1,000`), fractions, mixed numbers, scientific notation,
    percentages, repeating decimals.

    >>> number("1\\frac{4}{5}").value, number("25%").percent, number("2x")
    (Fraction(9, 5), True, None)
    """
    if len(cleaned) > 2 * MAX_DIGITS + 64 or not re.search(r"\d", cleaned):
        return None
    if re.match(r"\\(?:text|textbf|mathrm|mathbf|mbox|boldsymbol)\s*\{[^{}]*\}$", cleaned):
        cleaned = plain_text(cleaned)
    return _percent(cleaned.strip())


def _percent(text: str) -> Number | None:
    match = re.search(r"\s*(?:%|(?:percent|percentage|pct)\.?)\s*$", text)
    if match and match.start() > 0:
        found = _plain_number(text[: match.start()].strip())
        return Number(found.value, percent=True, places=found.places) if found else None
    return _plain_number(text)


def _plain_number(text: str) -> Number | None:
    text = text.strip()
    for _ in range(3):
        if (text.startswith("(") and text.endswith(")")) or (
            text.startswith("{") and text.endswith("}")
        ):
            text = text[1:-1].strip()
    text = re.sub(r"^([-+])\s+", r"\1", text)
    if re.search(rf"\d{{{MAX_DIGITS + 1}}}", text):
        return None
    for reader in (_read_decimal, _read_fraction, _read_scientific, _read_repeating):
        found = reader(text)
        if found is not None:
            return found
    return None


def _read_decimal(text: str) -> Number | None:
    if re.fullmatch(
        r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|[-+]?\d{1,3}(?:, \d{3})+|[-+]?[1-9]\d{0,2}(?:"
        r" \d{3})+(?:\.\d+)?",
        text,
    ):
        text = re.sub(r"[, ]", "", text)
    if not re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)", text):
        return None
    _, point, decimals = text.rstrip(".").partition(".")
    return Number(Fraction(text.rstrip(".")), places=len(decimals) if point else None)


def _read_fraction(text: str) -> Number | None:
    part = r"\s*([-+]?(?:\d[\d,]*\.?\d*|\.\d+))\s*"
    match = re.fullmatch(rf"([-+]?)\s*(\d+)?\s*\\frac\s*\{{{part}\}}\s*\{{{part}\}}", text)
    if match is None:
        match = re.fullmatch(rf"([-+]?)(?:(\d+)\s+)?\(?{part}\)?\s*/\s*\(?{part}\)?", text)
    if match is None:
        return None
    sign, whole, top, bottom = match.groups()
    divisor = Fraction(bottom.replace(",", "").rstrip("."))
    if divisor == 0:
        return None
    value = Fraction(top.replace(",", "").rstrip(".")) / divisor + (int(whole) if whole else 0)
    return Number(-value if sign == "-" else value)


def _read_scientific(text: str) -> Number | None:
    match = re.fullmatch(
        r"([-+]?)(?:([\d,]*\.?\d+)\s*(?:\\times|\\cdot|\*|x)\s*)?10\s*\^\s*\{?\s*([-+]?\d{1,4})\s*\}?",
        text,
    )
    if match is None:
        match = re.fullmatch(r"([-+]?)(\d*\.?\d+)[eE]([-+]?\d{1,4})", text)
    if match is None or abs(int(match.group(3))) > MAX_EXPONENT:
        return None
    sign, factor, exponent = match.groups()
    value = Fraction((factor or "1").replace(",", "")) * Fraction(10) ** int(exponent)
    return Number(-value if sign == "-" else value)


def _read_repeating(text: str) -> Number | None:
    match = re.fullmatch(r"([-+]?)(\d*)\.(\d*)\\(?:overline|bar)\s*\{?(\d{1,64})\}?", text)
    if match is None:
        return None
    sign, whole, fixed, repeated = match.groups()
    scale = 10 ** len(fixed)
    value = (
        int(whole or 0)
        + Fraction(int(fixed or 0), scale)
        + Fraction(int(repeated), scale * (10 ** len(repeated) - 1))
    )
    return Number(-value if sign == "-" else value)


def same_number(gold: Number, answer: Number) -> bool:
    """Exact but for decimals that were written as approximations (`_close`).

    `25` and `25%` are the same."""
    if gold.percent == answer.percent:
        return _close(gold, answer, Fraction(1))
    percent, plain = (gold, answer) if gold.percent else (answer, gold)
    return _close(plain, percent, Fraction(1)) or _close(plain, percent, Fraction(1, 100))


def _close(left: Number, right: Number, factor: Fraction) -> bool:
    """Left = right · factor.

    Where one of them is a decimal, to a relative 1e-6 and to less than one unit of the last place
    that was written, so that 0.333333 is 1/3 and 12.345678 is not 12.345679."""
    value = right.value if factor == 1 else right.value * factor
    if left.value == value:
        return True
    places = [one.places for one in (left, right) if one.places is not None]
    if not places or (len(places) == 2 and places[0] == places[1]):
        return False
    gap = abs(left.value - value)
    last_place = Fraction(1, 10 ** min(places))
    return gap <= abs(left.value) * RELATIVE_TOLERANCE and gap < last_place
