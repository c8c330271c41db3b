"""Generated programs (LiveCodeBench) run by a command of the user's.

`--sandbox` names it; it stands in the place of our own sandbox.

The command gets one JSON object on stdin, `{"code": str, "tests": …}` (the benchmark's test cases
as they stand in its data; on the hub those are the public ones), and prints one: `{"passed": bool,
"detail": str}`. Isolation (container, network, limits) is its business; we bound its wall time, and
end every process that it left behind. A command that fails or prints anything else stops the run:
that is no wrong answer.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from megaladder.errors import ConfigError, RewardError
from megaladder.rewards.cpu_time import CpuMeter
from megaladder.rewards.programs import reap
from megaladder.rewards.verifiers.code import last_program
from megaladder.rewards.worker import Failure, GradeTask
from megaladder.types import Graded, GradeReason

REAPER = str(reap.__file__)
CANNOT_START = 127
MAX_SAID_BYTES = 1 << 20  # of each stream, its end: a verdict takes less


class SandboxPool:
    """Stands where `GradePool` stands in `run_task`.

    The same call, verdicts from the user's command."""

    def __init__(self, command: str, num_workers: int, timeout_s: float):
        self._command = shlex.split(command)
        if not self._command:
            raise ConfigError("sandbox is empty; fix: --sandbox 'command with arguments'")
        self._num_workers, self._timeout_s = num_workers, timeout_s
        self.failures: list[Failure] = []
        self._cpu = CpuMeter()

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the commands so far."""
        return self._cpu.seconds

    def grade_many(self, tasks: Sequence[GradeTask]) -> list[Graded]:
        """Verdicts in order.

        A command that outlives the timeout counts as a wrong answer by timeout."""
        with ThreadPoolExecutor(self._num_workers) as threads, self._cpu.of_ended_children():
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
        except (ValueError, RecursionError):
            tests = task.gold
        try:
            done = _run(self._command, json.dumps({"code": code, "tests": tests}), self._timeout_s)
        except subprocess.TimeoutExpired:
            self.failures.append(
                Failure(task.id, GradeReason.TIMEOUT, f"no verdict within {self._timeout_s} s")
            )
            return Graded(
                False, None, GradeReason.TIMEOUT, f"no verdict within {self._timeout_s} s"
            )
        if done.returncode == CANNOT_START:
            raise ConfigError(
                f"sandbox {self._command[0]}: cannot be started ({done.stderr.strip()[-200:]});"
                " fix: --sandbox"
            )
        return _verdict(task, done)


class _Said(threading.Thread):
    """The end of what a stream says until it closes: it may be much, and no text."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._stream, self.raw = stream, b""
        self.start()

    def run(self) -> None:
        with self._stream:
            while piece := self._stream.read1(1 << 16):  # type: ignore[attr-defined]
                self.raw = (self.raw + piece)[-MAX_SAID_BYTES:]


def _tell(stream: IO[bytes], job: bytes) -> None:
    """Hands the job over; a command that does not read it is no fault."""
    with contextlib.suppress(OSError):
        stream.write(job)
    with contextlib.suppress(OSError):
        stream.close()


def _run(command: list[str], job: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """The command's end. It runs under `reap`, which leaves none of its processes behind.

    Raises:
        subprocess.TimeoutExpired: no end within `timeout_s`.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", REAPER, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin and process.stdout and process.stderr
    ends_at = time.monotonic() + timeout_s
    said = _Said(process.stdout), _Said(process.stderr)
    teller = threading.Thread(target=_tell, args=(process.stdin, job.encode()), daemon=True)
    teller.start()
    try:
        for one in said:  # both close once the command and all that it started have ended
            one.join(max(0.0, ends_at - time.monotonic()))
        process.wait(max(0.0, ends_at - time.monotonic()))
    finally:
        if process.poll() is None:
            process.terminate()  # the reaper ends what it watches, then itself
            process.wait()
        for thread in (*said, teller):
            thread.join()
    out, err = (one.raw.decode("utf-8", "replace") for one in said)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _verdict(task: GradeTask, done: subprocess.CompletedProcess[str]) -> Graded:
    try:
        reply = json.loads(done.stdout)
        passed, detail = reply["passed"], str(reply.get("detail", ""))[:500]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        passed, detail = None, ""
    if done.returncode != 0 or not isinstance(passed, bool):
        said = (done.stderr or done.stdout).strip()[-300:]
        raise RewardError(
            f'sandbox: sample {task.id}: expected exit status 0 and {{"passed": true or false}},'
            f" found status {done.returncode}: {said}; fix: the sandbox command"
        )
    return Graded(passed, None, GradeReason.EXACT if passed else GradeReason.DIFFERENT, detail)
