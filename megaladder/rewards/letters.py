r"""Which option of a multiple-choice question a text names: one, or none.

A letter is an option where its place shows it: alone in a box, after "the answer is", at the start
of the last line. `A` and `I` before another word are an article and a pronoun, `(B) is wrong` names
nothing. Two different options, however they are joined (`B or C`, `(B)(C)`, `A: 0.2, B: 0.5`), are
no answer; the text of one option may name others (`(D) both A and B`).
"""

from __future__ import annotations

import re

MAX_CHARS = 4_096
_LATEX_FONT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|bf|rm|bold|boldsymbol)\b\s*"
)
_IN_BOX = re.compile(
    r"^\s*(?:(?i:option|choice|answer)\s*)?[(\[]?\s*([A-Za-z])\s*[)\]]?\s*(?=[.:,)]|$|[(\[])"
)
_LINE = re.compile(
    r"^\W*(?:(?i:option|choice)\s*:?\s*)?(?:\(?([A-J])\)?(?:(?=\W*$)|[).:](?=\s|[(\[]))"
    r"|\(?([a-j])[).](?=\s*(?:\S|$))|\(?([a-j])\)?(?=\W*$))"
)
# a small letter counts where brackets or its place show that it is an option: `(c)`, `b.`
_OPTION = (
    r"(?:[\s*_$\[]|\\[(\[]|\\(?:text|textbf|mathbf|mathrm)\s*\{)*"
    r"(?:\(([A-Ja-j])\)|\(?([A-J])(?![A-Za-z0-9'’]))"
)
_PHRASE = re.compile(
    r"(?i:\banswer\s*(?:is|:|=|-|–|—)|\b(?:choose|select|pick|choice\s+is|option\s+is|answer\s+choice\s+is"
    r"|choice\s*:|option\s*:)|\b(?:correct|right|best)\s+(?:option|choice)\s*(?:is|:))"
    r"[\s:*_$]*(?i:the\s+)?(?i:option\s+|choice\s+|letter\s+)?" + _OPTION
)
_CALLED_CORRECT = re.compile(
    r"(?i:\b(?:option|choice|answer))\s+[*_$(]*([A-J])[*_$)]*\s+(?i:is\s+(?:the\s+)?(?:correct|right|best|answer))"
)
# `A` or `I` that is followed by any other word is an article or a pronoun
_AFTER_AN_OPTION = (
    r"because|since|as|and|or|which|is|with|due|for|from|given|by|in|that|so|where|when|not|if|but"
    r"|after|although|while|based|according"
)
_GOES_ON = re.compile(rf"\s+(?!(?:{_AFTER_AN_OPTION})\b)[a-z]")
_MARKS = r"\s*_$()\[\]{}.:?!"
_JOINED = re.compile(
    rf"[{_MARKS}]*(?:(?:[,;/&|+=-]|\\&|(?:and/or|and|or|nor|but|unless|then)\b)[{_MARKS}]*)+"
    r"(?:(?:also|either|it\s+is|maybe|perhaps|possibly|(?i:option|choice|answer))\s+)*"
    rf"[(\[{{]?([A-J])(?=[)\]}}*_$]*\s*(?:$|[.,;:/)(!?|&+\n-]|(?:and|or|through|to)\b))"
)
_THROUGH = re.compile(rf"[{_MARKS}]*(?:through|to|[-–—]|\.\.+)[{_MARKS}]*([A-J])(?![A-Za-z])")
# "I" may be a Roman number: the text of an option
_BESIDE = re.compile(rf"((?:[{_MARKS}]*[A-HJ](?![A-Za-z]))+)[*_$()\[\]{{}}.:?! \t]*(?:\n|\Z)")
_LABEL = re.compile(r"(?<![^\s,;|])\(?([A-J])(?:\)|:\s|\.\s+\S)")
_SAYS_WHY = re.compile(
    r"(?i)\b(?:not|since|because|as|while|unlike|than|rather|both|neither|either|all|none|only|wrong"
    r"|incorrect|whereas)\b"
)
_DENIED = re.compile(
    r"[)\].:*_$\s]*(?:isn't|(?:is|was|seems|looks)\s+(?:not|wrong|incorrect|false)\b)"
)


def letter(text: str) -> str | None:
    r"""The option letter that a box or a gold answer holds.

    `B`, `(B)`, `\text{(B)}`, `B. 42`, `Option b`; None if it is something else, or several."""
    return option(text) or None


def option(text: str) -> str | None:
    """Like `letter`, but an empty string for several options."""
    plain = re.sub(r"[{}$*]", "", _LATEX_FONT.sub("", text[:MAX_CHARS])).replace("\\", "")
    match = _IN_BOX.match(plain)
    if match is None:
        return "" if _num_labels(plain) > 1 else None
    found, rest = match.group(1).upper(), plain[match.end() :]
    return "" if names_another(found, rest) else found


def letter_in_text(tail: str) -> str | None:
    """The last phrase that names an option, else a last line that is one (`(B)`, `b) Paris`)."""
    matches = [match for match in _PHRASE.finditer(tail) if not _is_word(match, tail)]
    matches += _CALLED_CORRECT.finditer(tail)
    if matches:
        last = max(matches, key=lambda match: match.end())
        return _only(last, tail[last.end() :])
    line = [line for line in tail.split("\n") if line.strip()][-1].strip()
    match = _LINE.match(line)
    return _only(match, line[match.end() :]) if match else None


def _only(match: re.Match[str], rest: str) -> str | None:
    """The letter that was found, if nothing behind it takes it back or names another."""
    found = next(group for group in match.groups() if group).upper()
    return None if _DENIED.match(rest) or names_another(found, rest) else found


def names_another(found: str, rest: str) -> bool:
    """Whether what follows an option on its line offers a different one as well."""
    joined = _JOINED.match(rest) or _THROUGH.match(rest)
    if joined is not None and joined.group(1) != found:
        return True
    beside = _BESIDE.match(rest)
    if beside is not None and set(re.findall("[A-J]", beside.group(1))) != {found}:
        return True
    line = rest.split("\n", 1)[0]
    others = {label.group(1) for label in _LABEL.finditer(line)} - {found}
    return bool(others) and not _SAYS_WHY.search(line)


def _num_labels(text: str) -> int:
    return len({label.group(1) for label in _LABEL.finditer(text)})


def _is_word(match: re.Match[str], text: str) -> bool:
    """Whether the letter is the article or the pronoun of a sentence."""
    return match.group(2) in ("A", "I") and _GOES_ON.match(text, match.end()) is not None
