"""Runs a generated program against tests, and compares outside its process what came out.

    runner = ProgramRunner(num_workers=2)
    verdict = runner.judge("print(int(input()) + 1)", [Test("1", "2")])

What isolates it: `lock`. Each program gets a supervising process (`inside`) that ends with us, and
each test a fresh child of it that can make no other process, so nothing can be left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder.errors import ConfigError
from megaladder.rewards.programs import lock
from megaladder.rewards.programs.judge import Test, same_output, same_value

SCRIPT = str(Path(__file__).with_name("inside.py"))
OUTPUT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program did. passed None: no verdict, because the machine never let it run."""

    passed: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class ProgramLimits:
    """Of one test.

    cpu_s: CPU seconds, so a busy machine changes nothing; memory beyond Python's own."""

    cpu_s: int = 6
    memory_bytes: int = 1 << 30


def judge(
    code: str, tests: Sequence[Test], limits: ProgramLimits, function: str | None = None
) -> Outcome:
    """Whether the program passes every test. `function`: of tests that call one.

    Raises:
        ConfigError: this machine cannot isolate a program, so none is run.
    """
    if any(test.functional for test in tests) and not function:
        return Outcome(False, "the tests call a function that the row does not name")
    number = 0
    outcomes = _outcomes(code, tests, limits, function)
    # the outcomes end with the first test that did not end well
    for number, (test, outcome) in enumerate(zip(tests, outcomes, strict=False), 1):
        if outcome["status"] == "unlocked":
            raise ConfigError(
                f"a program cannot be isolated here: {outcome['detail'].strip()[-200:]}; fix:"
                " another machine, or --sandbox COMMAND"
            )
        if outcome["status"] == "unfair":
            return Outcome(None, f"test {number}: the machine was too busy")
        fault = _fault(test, outcome)
        if fault:
            return Outcome(False, f"test {number} of {len(tests)}: {fault}")
    if number < len(tests):
        return Outcome(None, f"the supervising process ended before test {number + 1}")
    return Outcome(True, f"{len(tests)} tests")


def _fault(test: Test, outcome: Mapping[str, Any]) -> str:
    if outcome["status"] == "cpu":
        return "out of CPU time"
    if outcome["status"] != "done":
        return f"{outcome['status']}: {outcome['detail']}"
    said = outcome.get("result" if test.functional else "output")
    if said is None:  # the program was called as the other tests ask
        return "an answer of another kind"
    same = same_value if test.functional else same_output
    return "" if same(test.output, said) else "another answer"


def _outcomes(
    code: str, tests: Sequence[Test], limits: ProgramLimits, function: str | None
) -> Iterator[dict[str, Any]]:
    """What `inside` reports, test by test; its whole process group is gone afterwards."""
    job = {
        "code": code,
        "inputs": [test.input for test in tests],
        "function": function if any(test.functional for test in tests) else None,
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_bytes,
        "output_bytes": OUTPUT_BYTES,
        "readable": _readable(),
        "paths": [sysconfig.get_paths()["purelib"]],
    }
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-X", "utf8", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
        cwd="/",
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job).encode())
            process.stdin.close()
        for line in process.stdout:
            outcome = _outcome(line)
            if outcome is None:  # it was killed in the middle of a line
                return
            yield outcome
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def _outcome(line: bytes) -> dict[str, str] | None:
    """One line of `inside`; None where it is none of its lines."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        return None
    done = found.get("status") == "done"
    needed = {"output", "result"} if done else {"detail"}
    return found if "status" in found and needed & found.keys() else None


def _readable() -> list[str]:
    """Folders that a program may read: the interpreter's, and the system's libraries."""
    paths = sysconfig.get_paths()
    folders = {paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"]}
    folders |= {str(Path(sys.base_prefix) / "lib"), "/usr/lib", "/lib", "/lib64", "/usr/lib64"}
    return sorted(folders)


def isolation() -> str:
    """One line: what a program cannot reach here, and what this machine lacks."""
    holds = "no network, no files but Python's own, no processes, limits on CPU and memory"
    lacks = lock.missing()
    return f"programs run with {holds}" + (f"; missing: {'; '.join(lacks)}" if lacks else "")
