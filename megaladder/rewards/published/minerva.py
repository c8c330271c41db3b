r"""Minerva's grader (arXiv 2206.14858, appendix D) as lm-eval's `minerva_math` has it.

The phrase "Final Answer: The final answer is … I hope it is correct.", a fixed list of
substitutions and of words that are removed, then equal strings or a difference that sympy
simplifies to zero."""

from __future__ import annotations

import re

from megaladder.rewards.published.latex import symbolically_equal

_PHRASE = re.compile(r"Final Answer: The final answer is(.*?). I hope it is correct.")
_REPLACED = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)
_UNITS = """square ways integers dollars mph inches ft hours km units sue points feet minutes digits
cents degrees cm gm pounds meters meals edges students childrentickets multiples"""
_TEXTS = ("s", ".", "\ns", "}^2", "}^3", "\n", "}")
_MARKS = ("\\ldots", "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots")


def judge(response: str, gold: str) -> tuple[bool, str | None]:
    """(correct, extracted answer)."""
    match = _PHRASE.search(response + "I hope it is correct.")
    if match is None:
        return False, None
    answer, expected = normalize(match.group(1).strip()), normalize(gold)
    return answer == expected or symbolically_equal(answer, expected), answer


def normalize(text: str) -> str:
    """The published normalisation of a final answer."""
    text = text.split("=")[-1]
    for before, after in _REPLACED:
        text = text.replace(before, after)
    for word in _UNITS.split():
        text = text.replace(word, "")
    for inside in _TEXTS:
        text = text.replace("\\text{" + inside, "")
    for mark in _MARKS:
        text = text.replace(mark, "")
    text = re.sub(r"(.*?)(\$)(.*?)(\$)(.*)", r"$\3$", text)
    for command in ("text", "textbf", "overline"):
        text = re.sub(r"(\\" + command + r"\{)(.*?)(\})", r"\2", text)
    text = re.sub(r"(\\boxed\{)(.*)(\})", r"\2", text)
    text = re.sub(r"(frac)([^{])(.)", r"frac{\2}{\3}", text)
    text = re.sub(r"(sqrt)([^{])", r"sqrt{\2}", text).replace("$", "")
    return text.replace(",", "") if text.replace(",", "").isdigit() else text
