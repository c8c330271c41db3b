"""Programming tasks: the last fenced program is run against the row's tests in the sandbox.

The gold answer holds the tests (`programs.judge` lists the forms), `hidden_tests` more of them, in
the same forms or LiveCodeBench's encoded one; `func_name` (or `metadata.func_name`, as published)
names the function that functional tests call. All tests have to pass.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from megaladder.rewards.extract import answer_part
from megaladder.rewards.programs.judge import Test, read_tests
from megaladder.rewards.programs.runner import ProgramLimits, judge
from megaladder.rewards.verifiers.base import (
    Parameters,
    failed,
    no_answer,
    parameter,
    passed,
    refuse,
    undecided,
)
from megaladder.types import Graded

_BLOCK = re.compile(r"```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
MAX_CODE_CHARS = 200_000


def run(response: str, gold: str, parameters: Parameters, limits: ProgramLimits) -> Graded:
    """The verdict on a response's program; starts processes, see `programs.runner`."""
    code = last_program(response)
    if code is None:
        return no_answer("no ``` block")
    outcome = judge(code, all_tests(gold, parameters), limits, _function(gold, parameters))
    if outcome.passed is None:
        return undecided(outcome.detail)
    return passed(code, outcome.detail) if outcome.passed else failed(code, outcome.detail)


def last_program(response: str) -> str | None:
    """The last fenced block of the answer part; None without one, or where it is absurdly long."""
    blocks = _BLOCK.findall(answer_part(response) or "")
    return blocks[-1] if blocks and len(blocks[-1]) <= MAX_CODE_CHARS else None


def check(gold: str, parameters: Parameters) -> None:
    """Raises DataError for a row without tests, or with ones that nobody can read."""
    calls = any(test.functional for test in all_tests(gold, parameters))
    if calls and not _function(gold, parameters):
        raise refuse("func_name", None, "the function that the tests call")


def all_tests(gold: str, parameters: Parameters) -> list[Test]:
    """The row's tests, the public ones first."""
    found: list[Test] = []
    for name, value in (("gold", gold), ("hidden_tests", parameter(parameters, "hidden_tests"))):
        if value in (None, "", []):
            continue
        try:
            found += read_tests(value)
        except (ValueError, KeyError, TypeError) as error:
            raise refuse(name, value, f"test cases ({error})") from None
    if not found:
        raise refuse("gold", gold, "at least one test case")
    return found


def _function(gold: str, parameters: Parameters) -> str | None:
    name = parameter(parameters, "func_name") or parameter(parameters, "fn_name")
    details = parameter(parameters, "metadata")
    if name is None and details is not None:
        details = _object(details)
        name = details.get("func_name")
    return name or _object(gold).get("fn_name")


def _object(value: object) -> Mapping[str, str]:
    """A mapping, or the one that a JSON text holds; else an empty one."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}
