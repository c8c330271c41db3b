"""Tests of a programming task: read from a row, and what output counts as equal.

Forms: a list of {"input", "output", "testtype": "stdin" | "functional"}, {"inputs": [...],
"outputs": [...], "fn_name"}, either as JSON text; and LiveCodeBench's hidden tests, which are
base64 of zlib of a pickled JSON text. That pickle is never loaded: it is read opcode by opcode, and
anything but one text is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

MAX_TESTS_BYTES = 512 << 20
"""Decoded size of one row's hidden tests."""
_TEXT_OPCODES = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_OTHER_OPCODES = ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP")
MAX_NUMERAL_CHARS = 400
_NUMERAL = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?")


@dataclass(frozen=True, slots=True)
class Test:
    """One test: what the program reads, and what it must print (or its function return)."""

    __test__: ClassVar[bool] = False  # pytest takes every class of this name for one of its own

    input: str
    output: str
    functional: bool = False


def read_tests(found: Any) -> list[Test]:
    """The tests that a field of a row holds.

    Raises:
        ValueError: none of the known forms, or no test in it.
    """
    if isinstance(found, str):
        found = _from_text(found)
    if isinstance(found, Mapping) and {"inputs", "outputs"} <= set(found):
        functional = bool(found.get("fn_name"))
        pairs = zip(_list(found, "inputs"), _list(found, "outputs"), strict=True)
        return [Test(_text(i, functional), _text(o, functional), functional) for i, o in pairs]
    if not isinstance(found, Sequence) or not all(_is_case(case) for case in found):
        raise ValueError("expected a list of {input, output}, or {inputs, outputs}")
    return [
        Test(
            _text(case["input"], False),
            _text(case["output"], False),
            case.get("testtype") == "functional",
        )
        for case in found
    ]


def _list(found: Mapping[str, Any], key: str) -> Sequence[Any]:
    """A text would be taken apart into its letters, an object into its keys."""
    value = found[key]
    if isinstance(value, (list, tuple)):
        return value
    raise ValueError(f"{key}: expected a list, a value for each test, not {str(value)[:40]!r}")


def _is_case(case: Any) -> bool:
    return isinstance(case, Mapping) and {"input", "output"} <= set(case)


def _text(value: Any, functional: bool) -> str:
    """A test's side as text: arguments of a function stand one JSON value a line."""
    if functional and isinstance(value, list):
        return "\n".join(json.dumps(each) for each in value)
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _from_text(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None
    except ValueError:
        pass
    try:
        return json.loads(pickled_text(unpacked(text)))
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None


def unpacked(text: str) -> bytes:
    """base64 → zlib, at most MAX_TESTS_BYTES of it. Raises ValueError."""
    try:
        packed = base64.b64decode(text, validate=True)
        stream = zlib.decompressobj()
        data = stream.decompress(packed, MAX_TESTS_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"neither JSON nor base64 of zlib ({error})") from None
    if not stream.eof:
        raise ValueError(f"tests cut short, or of more than {MAX_TESTS_BYTES >> 20} MiB")
    return data


def pickled_text(data: bytes) -> str:
    """The text in a pickle that holds nothing else; no opcode is executed. Raises ValueError."""
    if data[:1] in (b"[", b"{"):
        return data.decode("utf-8")
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _TEXT_OPCODES:
            texts.append(str(argument))
        elif opcode.name not in _OTHER_OPCODES:
            raise ValueError(f"a pickle with {opcode.name}: only one text is read")
    if len(texts) != 1:
        raise ValueError(f"a pickle of {len(texts)} texts: expected one")
    return texts[0]


def same_output(expected: str, printed: str) -> bool:
    """Whether a program printed what was asked: line by line, white space at the ends aside.

    Numbers compare as exact decimals (`1.0` is `1`), but digits behind a leading zero are no number
    (`0101` is not `101`)."""
    wanted, found = _lines(expected), _lines(printed)
    return len(wanted) == len(found) and all(map(_same_line, wanted, found))


def same_value(expected: str, returned: str) -> bool:
    """Whether a function returned what was asked; both as JSON."""
    try:
        return json.loads(expected) == json.loads(returned)
    except (ValueError, RecursionError):
        return False


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_line(expected: str, found: str) -> bool:
    if expected == found:
        return True
    wanted, given = expected.split(), found.split()
    return len(wanted) == len(given) and all(map(_same_word, wanted, given))


def _same_word(expected: str, found: str) -> bool:
    if expected == found:
        return True
    words = (expected, found)
    if max(map(len, words)) > MAX_NUMERAL_CHARS or not all(map(_NUMERAL.fullmatch, words)):
        return False
    return Decimal(expected) == Decimal(found)
