"""A text as its reader sees it: what is hidden in it does not count, look-alikes are what they show.

A count of words, a forbidden word or an empty paragraph must not depend on marks that nobody sees.
"""

from __future__ import annotations

import re
import unicodedata

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
# joiners inside words of scripts that are written with them
_JOINER = re.compile(r"(?<![\u0600-\u06ff\u0900-\u0dff])[\u200c\u200d]")
_BLANK = dict.fromkeys(map(ord, "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"))
_VARIANTS = dict.fromkeys([*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])
_LOOK_ALIKES = str.maketrans(
    "авеіјкмнорѕтухсԁɡһԛԝАВЕІЈКМНОРЅТУХСαβεικνορτυχγΑΒΕΖΗΙΚΜΝΟΡΤΥΧıɑ",
    "abeijkmhopstyxcdghqwABEIJKMHOPSTYXCabeiknoptuxyABEZHIKMNOPTYXia",
)


def visible(text: str) -> str:
    """The text without what nobody sees.

    HTML comments, format characters (zero-width spaces, soft hyphens, direction marks) and blank
    letters."""
    text = _COMMENT.sub(" ", text)
    if text.isascii():
        return text
    text = _JOINER.sub("", text).translate(_BLANK | _VARIANTS)
    kept = "\u200c\u200d"
    return "".join(c for c in text if c in kept or unicodedata.category(c) != "Cf")


def says_something(text: str) -> bool:
    """Whether there is a letter or a digit in it."""
    return re.search(r"[^\W_]", text) is not None


def folded(text: str) -> str:
    """Letters that look like Latin ones as those.

    Full-width, mathematical, circled, Cyrillic, Greek. Accents stay: `pâté` is not `pate`."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text).translate(_LOOK_ALIKES)


def has_comma(text: str) -> bool:
    """A comma of any script, or the low quotation mark that looks like one."""
    return any(char == "," or (not char.isascii() and _is_comma(char)) for char in text)


def _is_comma(char: str) -> bool:
    name = unicodedata.name(char, "")
    return char == "\u201a" or (unicodedata.category(char) == "Po" and "COMMA" in name.split())
