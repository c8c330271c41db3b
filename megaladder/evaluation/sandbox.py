"""Generated programs (LiveCodeBench) are run by a command of the user's, never by us: without
--sandbox nothing is executed.

The command gets one JSON object on stdin, `{"code": str, "tests": …}` (the benchmark's test cases
as they stand in its data; on the hub those are the public ones), and prints one: `{"passed": bool,
"detail": str}`. Isolation (container, network, limits) is its business; we bound its wall time. A
command that fails or prints anything else stops the run: that is no wrong answer.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from megaladder.errors import ConfigError, RewardError
from megaladder.rewards.extract import answer_part
from megaladder.rewards.worker import Failure, GradeTask
from megaladder.types import Graded, GradeReason

_BLOCK = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
MAX_CODE_CHARS = 200_000


class SandboxPool:
    """Stands where `GradePool` stands in `run_task`: the same call, verdicts from the user's
    command."""

    def __init__(self, command: str, num_workers: int, timeout_s: float):
        self._command = shlex.split(command)
        if not self._command:
            raise ConfigError("sandbox is empty; fix: --sandbox 'command with arguments'")
        self._num_workers, self._timeout_s = num_workers, timeout_s
        self.failures: list[Failure] = []

    def grade_many(self, tasks: Sequence[GradeTask]) -> list[Graded]:
        """Verdicts in order; a command that outlives the timeout counts as a wrong answer by
        timeout."""
        with ThreadPoolExecutor(self._num_workers) as threads:
            return list(threads.map(self._grade, tasks))

    def __enter__(self) -> SandboxPool:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def _grade(self, task: GradeTask) -> Graded:
        code = last_program(task.response)
        if code is None:
            return Graded(False, None, GradeReason.NO_ANSWER, "no ``` block")
        try:
            tests = json.loads(task.gold)
        except ValueError:
            tests = task.gold
        try:
            done = subprocess.run(
                self._command,
                input=json.dumps({"code": code, "tests": tests}),
                capture_output=True,
                text=True,
                timeout=self._timeout_s,
            )
        except subprocess.TimeoutExpired:
            self.failures.append(
                Failure(task.id, GradeReason.TIMEOUT, f"no verdict within {self._timeout_s} s")
            )
            return Graded(
                False, None, GradeReason.TIMEOUT, f"no verdict within {self._timeout_s} s"
            )
        except OSError as error:
            raise ConfigError(
                f"sandbox {self._command[0]}: cannot be started ({error}); fix: --sandbox"
            ) from None
        return _verdict(task, done)


def last_program(response: str) -> str | None:
    """The last fenced block of the answer part; None without one, or where it is absurdly long."""
    blocks = _BLOCK.findall(answer_part(response) or "")
    return blocks[-1] if blocks and len(blocks[-1]) <= MAX_CODE_CHARS else None


def _verdict(task: GradeTask, done: subprocess.CompletedProcess[str]) -> Graded:
    try:
        reply = json.loads(done.stdout)
        passed, detail = reply["passed"], str(reply.get("detail", ""))[:500]
    except (ValueError, KeyError, TypeError, AttributeError):
        passed, detail = None, ""
    if done.returncode != 0 or not isinstance(passed, bool):
        said = (done.stderr or done.stdout).strip()[-300:]
        raise RewardError(
            f'sandbox: sample {task.id}: expected exit status 0 and {{"passed": true or false}},'
            f" found status {done.returncode}: {said}; fix: the sandbox command"
        )
    return Graded(passed, None, GradeReason.EXACT if passed else GradeReason.DIFFERENT, detail)
