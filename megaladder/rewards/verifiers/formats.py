"""Answers that must have a form: a regular expression, or JSON that fits a schema.

Parameters of a row: `pattern` (regex; Python's syntax, the whole answer must match) or `schema` (a
JSON Schema, draft 2020-12 unless it names another; an object or its text). The answer is what
follows the reasoning; for a schema it may stand in one fenced block, with nothing beside it. A
pattern that backtracks without end costs its sample, not the run: verifiers run in workers with a
CPU limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from megaladder.rewards.extract import answer_part
from megaladder.rewards.verifiers.base import (
    Parameters,
    failed,
    no_answer,
    parameter,
    passed,
    refuse,
)
from megaladder.types import Graded

_FENCE = re.compile(r"\A```(?:json|JSON)?[ \t]*\n(.*)\n[ \t]*```\Z", re.DOTALL)
MAX_DETAIL = 200


def verify_regex(response: str, gold: str, parameters: Parameters) -> Graded:
    """Whether the whole answer part matches the row's pattern."""
    text = (answer_part(response) or "").strip()
    if not text:
        return no_answer("nothing after the reasoning")
    matches = _pattern(parameters).fullmatch(text) is not None
    return passed(text) if matches else failed(text[:MAX_DETAIL], "the pattern does not match")


def check_regex(gold: str, parameters: Parameters) -> None:
    """Raises DataError for a row without a pattern, or with one that does not compile."""
    _pattern(parameters)


def verify_schema(response: str, gold: str, parameters: Parameters) -> Graded:
    """Whether the answer part is one JSON value that fits the row's schema."""
    text = (answer_part(response) or "").strip()
    if not text:
        return no_answer("nothing after the reasoning")
    fenced = _FENCE.match(text)
    try:
        value = strict_json(fenced[1] if fenced else text)
    except (ValueError, RecursionError) as error:
        return failed(text[:MAX_DETAIL], f"no JSON: {str(error)[:MAX_DETAIL]}")
    broken = next(_validator(parameters).iter_errors(value), None)
    if broken is None:
        return passed(text)
    return failed(text[:MAX_DETAIL], f"{broken.json_path}: {broken.message[:MAX_DETAIL]}")


def check_schema(gold: str, parameters: Parameters) -> None:
    """Raises DataError for a row without a schema, or with one that is none."""
    _validator(parameters)


def strict_json(text: str) -> Any:
    """One JSON value; NaN, infinities and a key that stands twice are ValueErrors."""
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_twins)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _pattern(parameters: Parameters) -> re.Pattern[str]:
    pattern = parameter(parameters, "pattern")
    if not isinstance(pattern, str) or not pattern:
        raise refuse("pattern", pattern, "a regular expression")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise refuse("pattern", pattern, f"a regular expression ({error})") from None


def _validator(parameters: Parameters) -> Any:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    schema = parameter(parameters, "schema")
    try:
        schema = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(schema, Mapping) or not schema:
            raise ValueError("no object")
        kind = validator_for(schema)
        kind.check_schema(schema)
    except (ValueError, SchemaError) as error:
        raise refuse("schema", schema, f"a JSON Schema ({str(error)[:80]})") from None
    # an empty registry: a schema that names another document must not fetch it
    return kind(schema, registry=Registry(), format_checker=kind.FORMAT_CHECKER)
