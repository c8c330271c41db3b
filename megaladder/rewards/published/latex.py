r"""What several published graders share.

The last box, Hendrycks' normalisation of LaTeX answers (MATH, arXiv 2103.03874), and equality of
two formulas by sympy.

Where the originals call sympy's `parse_expr`, which evaluates Python, only the LaTeX parser is used.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

MAX_CHARS = 1_024


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}` or `\fbox{}`, braces matched; None without one."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    opening = text.find("{", start)
    if opening < 0 or text[start:opening].strip() not in ("\\boxed", "\\fbox"):
        return text[start:].split("$")[0].removeprefix("\\boxed").strip() or None
    depth = 0
    for position in range(opening, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return text[opening + 1 : position]
    return None


def strip_string(text: str) -> str:
    """The answer under Hendrycks' rules.

    Layout, units and degrees away, fractions and roots braced, `0.5` is a half, `k = 5` is `5`, no
    spaces."""
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    text = text.replace("\\left", "").replace("\\right", "")
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    pieces = text.split("\\text{ ")
    text = pieces[0] if len(pieces) == 2 else text
    text = text.replace("\\%", "").replace("%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0].strip()) <= 2:
        text = sides[1]
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text).replace(" ", "")
    text = _braced_fractions(text)
    text = "\\frac{1}{2}" if text == "0.5" else text
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)


def _braced_fractions(text: str) -> str:
    text = re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac(\w)\{", r"\\frac{\1}{", text)
    return re.sub(r"(\\frac\{[^{}]*\})(\w)", r"\1{\2}", text)


def as_float(text: str, percent: bool = True) -> float | None:
    """A number as the graders read it: commas away, `25%` as 0.25 where asked for."""
    text = text.replace(",", "").strip()
    divisor = 1.0
    if percent and text.endswith("%"):
        text, divisor = text[:-1].rstrip("\\"), 100.0
    try:
        return float(text) / divisor
    except ValueError:
        return None


@lru_cache(maxsize=512)
def to_sympy(text: str) -> Any:
    """sympy's object for a LaTeX formula; None where it cannot be read."""
    if not text or len(text) > MAX_CHARS:
        return None
    from latex2sympy2_extended import latex2sympy

    try:
        return latex2sympy(text)
    except Exception:  # noqa: BLE001  whatever the parser raises on model text: not readable
        return None


def symbolically_equal(left: str, right: str) -> bool:
    """Whether sympy simplifies the difference to zero."""
    from sympy import simplify

    first, second = to_sympy(left), to_sympy(right)
    if first is None or second is None:
        return False
    try:
        return bool(first == second or simplify(first - second) == 0)
    except Exception:  # noqa: BLE001  sympy's many ways to refuse an object are all "not equal" there
        return False


def numerically_equal(left: str, right: str, relative: float) -> bool:
    """Whether both formulas are numbers that agree in floating point."""
    from math import isclose

    first, second = to_sympy(left), to_sympy(right)
    try:
        return isclose(float(first.evalf()), float(second.evalf()), rel_tol=relative)
    except Exception:  # noqa: BLE001  no number
        return False


def choice_letter(text: str) -> str:
    """The last stand-alone letter from A to E, else the text without its punctuation."""
    text = text.strip("\n").rstrip("./").strip(" ").lstrip(":")
    letters = re.findall(r"\b([A-E])\b", text.upper())
    return letters[-1] if letters else text.strip().strip(".")
