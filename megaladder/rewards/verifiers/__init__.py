"""One verifier per kind of task, shared by rewards, `data sample`, `grade` and the benchmarks.

A row names its verifier in a column `verifier`, with the parameters in further columns; rows
without one are math or gsm8k. To add a verifier: a module here with `verify` and `check`, its
name in `types.Kind`, an entry in `VERIFIERS`, and its hacks in `tests/rewards/verifiers/hacks/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from megaladder.errors import DataError
from megaladder.rewards.dialects import OWN_DIALECT
from megaladder.rewards.grade import KINDS, OWN, check_gold, grade
from megaladder.rewards.verifiers import code, countdown, formats, ifeval
from megaladder.rewards.verifiers.base import Parameters, Verifier
from megaladder.types import DialectName, Graded

__all__ = ["VERIFIERS", "Verifier", "check_row", "parameters_of", "verify"]


def _answer(kind: str) -> Verifier:
    """A verifier that compares one answer with the gold one: the grader."""
    return Verifier(partial(_grade, kind), partial(_check_gold, kind))


def _grade(kind: str, response: str, gold: str, parameters: Parameters) -> Graded:
    return grade(response, gold, kind)


def _check_gold(kind: str, gold: str, parameters: Parameters) -> None:
    check_gold(gold, kind)


def _run_in_sandbox(response: str, gold: str, parameters: Parameters) -> Graded:
    raise AssertionError("programs are run by rewards.pool, never inside a grading worker")


VERIFIERS: dict[str, Verifier] = {
    "math": _answer("math"),
    "gsm8k": _answer("gsm8k"),
    "choice": _answer("choice"),
    "exact": _answer("exact"),
    "countdown": Verifier(
        countdown.verify,
        countdown.check,
        ("numbers", "target", "use", "operators"),
        needs_gold=False,
    ),
    "ifeval": Verifier(
        ifeval.verify, ifeval.check, ("instruction_id_list", "kwargs"), needs_gold=False
    ),
    "regex": Verifier(formats.verify_regex, formats.check_regex, ("pattern",), needs_gold=False),
    "json_schema": Verifier(
        formats.verify_schema, formats.check_schema, ("schema",), needs_gold=False
    ),
    "code": Verifier(
        _run_in_sandbox,
        code.check,
        ("hidden_tests", "func_name", "fn_name", "metadata"),
        needs_gold=False,
        runs_programs=True,
    ),
}


def verify(
    kind: str,
    response: str,
    gold: str,
    parameters: Parameters,
    grader: str = OWN,
    dialect: DialectName = OWN_DIALECT,
) -> Graded:
    """The verdict of a verifier that runs no programs.

    `grader`: a published study's, for math and gsm8k. `dialect`: where the answer stands, for the
    kinds that the grader compares. Raises ValueError for an unknown kind."""
    if kind in KINDS:
        return grade(response, gold, kind, grader, dialect)
    return _verifier(kind).verify(response, gold, parameters)


def check_row(kind: str, gold: str, parameters: Parameters) -> None:
    """Raises DataError for a row that no response could satisfy, ValueError for an unknown kind."""
    verifier = _verifier(kind)
    if not isinstance(gold, str):
        raise DataError(
            f"gold answer {gold!r}: is empty or no text; fix: give the answer, or drop the row"
        )
    verifier.check(gold, parameters)


def parameters_of(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that its verifier reads."""
    names = (*_verifier(kind).parameters, "extra_info")
    return {name: row[name] for name in names if row.get(name) is not None}


def _verifier(kind: str) -> Verifier:
    if kind not in VERIFIERS:
        raise ValueError(f"verifier {kind!r}: expected one of {', '.join(VERIFIERS)}")
    return VERIFIERS[kind]
