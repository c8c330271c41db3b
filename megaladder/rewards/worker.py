"""Grading in processes that can be killed.

A hang or a crash costs exactly one sample, which is counted and named.

    with GradePool(num_workers=2, timeout_s=5.0) as pool:
        graded = pool.grade_many([GradeTask("q1", response, gold="42")])

The pool's processes (`child`) start once, import sympy once, and are fed batches; which sample each
is at stands in memory that it shares with us, so that the one that hangs is known. What they may
not do: `sandbox`. The verdict itself: `verifiers.verify`, nothing else. Generated programs run
elsewhere: `verifiers.pool`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from json import loads
from pathlib import Path
from typing import Any

import megaladder
from megaladder.errors import ConfigError, DataError
from megaladder.process.ranks import is_stopped
from megaladder.rewards import child
from megaladder.rewards.answers import Nonsense, checked_answers, is_beginning
from megaladder.rewards.cpu_time import Activity, CpuMeter
from megaladder.rewards.dialects import OWN_DIALECT
from megaladder.rewards.extract import MAX_RESPONSE_CHARS
from megaladder.rewards.grade import OWN
from megaladder.rewards.sandbox import Limits
from megaladder.rewards.verifiers import VERIFIERS, check_row, parameters_of
from megaladder.types import DialectName, Graded, GradeReason

MAX_BATCH_TASKS = 128
MAX_BATCH_CHARS = 2_000_000
# of one frame of answers; more means that the process is not ours any more
MAX_ANSWER_BYTES = 16 << 20
START_TIMEOUT_S = 120.0
# between two looks at processes that owe answers
LOOK_S = 1.0
MAX_LOST_IDLE = 20  # of one call
_TIME_SIGNALS = (-signal.SIGALRM, -signal.SIGPROF, -signal.SIGXCPU)


@dataclass(frozen=True, slots=True)
class GradeTask:
    """One response to grade.

    `id` names it in messages; `metadata` (JSON values) holds the verifier's parameters.

    >>> GradeTask("gsm8k/7/sample 3", response="… #### 18", gold="18", kind="gsm8k")    # doctest:
    +SKIP
    """

    id: str
    response: str
    gold: str
    kind: str = "math"
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """One sample that cost a process."""

    id: str
    reason: GradeReason
    detail: str


class GradePool:
    """`num_workers` reusable processes.

    Not for use from two threads at once (a lock makes the second wait).

    `timeout_s`: CPU seconds one sample may take before its process ends, and seconds for which a
    process that owes answers may do nothing at all (it is stopped, or does not read its tasks); the
    sample is tried once more, alone, and then undecided. `memory_bytes`: what a process may allocate on top of its imports.
    `grader`: ours, or a name of `published.GRADERS`. `dialect`: a name of `dialects.DIALECTS`, where
    ours looks for the answer. After use: `counts` (verdicts by reason),
    `failures` (every timeout and crash by sample id), `protections` (what the sandbox could apply
    on this machine).
    """

    def __init__(
        self,
        num_workers: int = 2,
        timeout_s: float = 5.0,
        memory_bytes: int = 1 << 30,
        grader: str = OWN,
        dialect: DialectName = OWN_DIALECT,
    ):
        if num_workers < 1 or timeout_s <= 0 or memory_bytes < 1 << 20:
            raise ConfigError(
                f"grading pool: num_workers {num_workers}, timeout_s {timeout_s}, memory_bytes"
                f" {memory_bytes}; fix: at least 1 worker, a positive timeout, at least 1 MiB"
            )
        self._setup = {
            "sys_path": _import_paths(),
            "grader": grader,
            "dialect": dialect,
            "timeout_s": timeout_s,
            "memory_bytes": memory_bytes,
        }
        self.num_workers = num_workers
        self.limits = Limits(timeout_s, memory_bytes)
        self.counts: Counter[GradeReason] = Counter()
        self.failures: list[Failure] = []
        self.protections: tuple[str, ...] = ()
        self._cpu = CpuMeter()
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()

    def grade_many(self, tasks: Sequence[GradeTask]) -> list[Graded]:
        """Verdicts in the order of `tasks`.

        Raises DataError for a gold answer that cannot be one, before anything is graded."""
        for task in tasks:
            _check_task(task)
        answers = self._run(tasks)
        graded = [_as_graded(answer) for answer in answers]
        self.counts.update(verdict.reason for verdict in graded)
        return graded

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the processes so far."""
        return self._cpu.seconds

    def close(self) -> None:
        """Ends every process; the pool may be used again and then starts new ones."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def __enter__(self) -> GradePool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, tasks: Sequence[GradeTask]) -> list[list[Any]]:
        with self._lock:
            run = _Run(self, tasks)
            try:
                return run.answers()
            except BaseException:
                # whatever is under way belongs to this call; late answers must not reach the next
                self.close()
                raise
            finally:
                self._cpu.look(worker.process.pid for worker in self._workers)


class _Run:
    """One call of `_run`: hands out batches, takes answers, kills what is late.

    Samples are named by their index in `tasks`."""

    def __init__(self, pool: GradePool, tasks: Sequence[GradeTask]):
        self.pool, self.tasks = pool, tasks
        self.todo: deque[int] = deque(range(len(tasks)))
        self.found: dict[int, list[Any]] = {}
        self.num_missing = len(tasks)
        self.tried_once: set[int] = set()
        self.num_lost = Counter[bool]()  # without work; by whether they had become ready
        self.selector = selectors.DefaultSelector()

    def answers(self) -> list[list[Any]]:
        with self.selector:
            self.pool._workers = [
                worker for worker in self.pool._workers if worker.process.poll() is None
            ]
            for worker in self.pool._workers:
                self._watch(worker)
            while self.num_missing:
                self._add_workers()
                for worker in self.pool._workers:
                    if worker.ready and not worker.pending and self.todo:
                        self._send_batch(worker)
                self._receive()
        return [self.found[index] for index in range(len(self.tasks))]

    def _add_workers(self) -> None:
        wanted = min(self.pool.num_workers, self.num_missing)
        while len(self.pool._workers) < wanted and (self.todo or not self.pool._workers):
            worker = _Worker(self.pool._setup)
            self.pool._workers.append(worker)
            self._watch(worker)

    def _watch(self, worker: _Worker) -> None:
        """Its answers, and while it has not taken all of its tasks, its readiness for more."""
        self.selector.register(worker.output, selectors.EVENT_READ, worker)
        self._hand_over(worker)

    def _hand_over(self, worker: _Worker) -> None:
        watched = worker.input in self.selector.get_map()
        if worker.write() == watched:
            return
        if watched:
            self.selector.unregister(worker.input)
        else:
            self.selector.register(worker.input, selectors.EVENT_WRITE, worker)

    def _send_batch(self, worker: _Worker) -> None:
        num_tasks = max(1, min(MAX_BATCH_TASKS, len(self.todo) // (4 * self.pool.num_workers)))
        batch: list[int] = []
        num_chars = 0
        while self.todo and len(batch) < num_tasks and (not batch or num_chars < MAX_BATCH_CHARS):
            index = self.todo.popleft()
            if index in self.tried_once and batch:  # alone, so that nothing else can be to blame
                self.todo.appendleft(index)
                break
            batch.append(index)
            num_chars += len(self.tasks[index].response)
            if index in self.tried_once:
                break
        worker.send(batch, [_as_message(self.tasks[index]) for index in batch])
        self._hand_over(worker)

    def _receive(self) -> None:
        now = time.monotonic()
        wait_s = min((worker.deadline for worker in self.pool._workers), default=now) - now
        for key, events in self.selector.select(max(0.0, min(wait_s, LOOK_S))):
            worker: _Worker = key.data
            if worker not in self.pool._workers:  # lost a moment ago
                continue
            if events & selectors.EVENT_WRITE:
                self._hand_over(worker)
            else:
                self._hear(worker)
        now, limits = time.monotonic(), self.pool.limits
        for worker in list(self.pool._workers):
            if now > worker.deadline:
                self._lost(worker, (GradeReason.TIMEOUT, f"killed after {limits.wall_s:g} s"))
            elif worker.idle_s() > max(limits.timeout_s, 2 * LOOK_S):
                how = f"the process {worker.idles} for {limits.timeout_s:g} s and owed answers"
                self._lost(worker, (GradeReason.TIMEOUT, how))

    def _hear(self, worker: _Worker) -> None:
        alive = worker.read()
        try:
            for message in worker.messages():
                if worker.ready:
                    self._take(worker, checked_answers(message, len(worker.pending)))
                else:
                    self._begin(worker, message)
        except Nonsense as error:
            self._lost(worker, (GradeReason.CRASH, f"the process {error}"))
            return
        if not alive:
            self._lost(worker, worker.died())

    def _begin(self, worker: _Worker, message: Any) -> None:
        if not is_beginning(message):
            raise Nonsense("began with something that is no beginning")
        if "error" in message:
            raise ConfigError(_start_message(message["error"]))
        worker.started(self.pool.limits.wall_s)
        self.pool.protections = tuple(message["ready"])

    def _take(self, worker: _Worker, answers: list[list[Any]]) -> None:
        for index, answer in zip(worker.answered(len(answers)), answers, strict=True):
            if len(answer) == 1:
                if self._goes_again(index):
                    continue
                answer = self._failure(index, GradeReason.CRASH, answer[0])
            self._store(index, answer)

    def _lost(self, worker: _Worker, cause: tuple[GradeReason, str]) -> None:
        """A process is gone or must go.

        The sample that it was at is to blame, the others go back in the queue."""
        reason, detail = cause
        self.selector.unregister(worker.output)
        if worker.input in self.selector.get_map():
            self.selector.unregister(worker.input)
        self.pool._workers.remove(worker)
        self.pool._cpu.look([worker.process.pid])
        worker.kill()
        if not worker.pending:  # by somebody else, perhaps: another takes its place
            self.num_lost[worker.ready] += 1
            if self.num_lost[worker.ready] > (MAX_LOST_IDLE if worker.ready else 1):
                raise ConfigError(
                    _start_message(f"the process ended before it had work ({detail})")
                )
            return
        culprit = worker.current()
        self.todo.extendleft(index for index in reversed(worker.pending) if index != culprit)
        if self._goes_again(culprit):
            return
        self._store(culprit, self._failure(culprit, reason, detail))

    def _goes_again(self, index: int) -> bool:
        """Puts a sample back once, alone: what others left behind must not count against it."""
        if index in self.tried_once:
            return False
        self.tried_once.add(index)
        self.todo.append(index)
        return True

    def _failure(self, index: int, reason: GradeReason, detail: str) -> list[Any]:
        self.pool.failures.append(Failure(self.tasks[index].id, reason, detail))
        return [None, None, reason.value, f"sample {self.tasks[index].id}: {detail}"]

    def _store(self, index: int, answer: list[Any]) -> None:
        self.found[index] = answer
        self.num_missing -= 1


class _Worker:
    """One process with its pipes.

    `pending`: indices of the samples it has and has not answered, in order."""

    def __init__(self, setup: Mapping[str, Any]):
        page = os.memfd_create("progress")
        os.truncate(page, mmap.PAGESIZE)
        self._progress = mmap.mmap(page, mmap.PAGESIZE)
        command = [sys.executable, "-I", "-B", "-X", "utf8", child.__file__, str(page)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
            bufsize=0,
            pass_fds=[page],
        )
        os.close(page)
        # both are pipes
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        # one that does not read must not hold us up
        os.set_blocking(self.input.fileno(), False)
        self._unsent = bytearray()
        self.pending: deque[int] = deque()
        self._num_answered = 0
        self.ready = False
        self.deadline = time.monotonic() + START_TIMEOUT_S
        self._timeout_s = 0.0
        self._activity = Activity(self.process.pid)
        self._buffer = bytearray()
        self._unsent += child.frame(setup)

    def started(self, timeout_s: float) -> None:
        self.ready, self._timeout_s = True, timeout_s
        self.restart_clock()

    def restart_clock(self) -> None:
        self._activity.forget()
        self.deadline = time.monotonic() + self._timeout_s if self.pending else float("inf")

    @property
    def idles(self) -> str:
        """How it does nothing, in words."""
        return "was stopped" if is_stopped(self.process.pid) else "slept"

    def idle_s(self) -> float:
        """Seconds for which it has done nothing though it owes answers, by regular looks."""
        if not self.ready or not self.pending:
            self._activity.forget()
            return 0.0
        return self._activity.idle_s()

    def answered(self, count: int) -> list[int]:
        """The samples that the next `count` answers are for."""
        self._num_answered += count
        self.restart_clock()
        return [self.pending.popleft() for _ in range(count)]

    def current(self) -> int:
        """The sample that the process is at, by its own account."""
        (place,) = child.PROGRESS.unpack_from(self._progress)
        return self.pending[min(max(0, place - self._num_answered), len(self.pending) - 1)]

    def send(self, batch: list[int], messages: list[list[Any]]) -> None:
        self.pending.extend(batch)
        self._num_answered = 0
        child.PROGRESS.pack_into(self._progress, 0, 0)
        self._unsent += child.frame(messages)
        self.restart_clock()

    def write(self) -> bool:
        """Hands over what the pipe takes; True while there is more."""
        try:
            while self._unsent:
                taken = os.write(self.input.fileno(), self._unsent)
                del self._unsent[:taken]
        except BlockingIOError:
            return True
        except BrokenPipeError:  # it died: reading finds that out, and knows what to do
            self._unsent.clear()
        return False

    def read(self) -> bool:
        """Takes what is there; False at the end of the stream."""
        data = os.read(self.output.fileno(), 1 << 18)
        self._buffer += data
        return bool(data)

    def messages(self) -> list[Any]:
        """Whole frames that have come.

        Raises:
            Nonsense: a frame is too large, or no JSON.
        """
        found, start = [], 0
        while len(self._buffer) - start >= 4:
            (size,) = struct.unpack_from(">I", self._buffer, start)
            if size > MAX_ANSWER_BYTES:
                raise Nonsense(f"answered with a frame of {size:,} bytes")
            if len(self._buffer) - start - 4 < size:
                break
            try:
                found.append(loads(bytes(self._buffer[start + 4 : start + 4 + size])))
            except (ValueError, RecursionError) as error:
                raise Nonsense(f"answered with a frame that is no JSON ({error})") from None
            start += 4 + size
        del self._buffer[:start]
        return found

    def died(self) -> tuple[GradeReason, str]:
        """Why it ended, once its output has."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        code = self.process.poll()
        if code in _TIME_SIGNALS:
            return (
                GradeReason.TIMEOUT,
                f"ended itself at its time limit ({signal.Signals(-code).name})",
            )
        how = (
            "did not end"
            if code is None
            else f"signal {signal.Signals(-code).name}"
            if code < 0
            else f"exit status {code}"
        )
        return GradeReason.CRASH, f"the process ended: {how}"

    def kill(self) -> None:
        """Ends it and everything in its process group, and waits until it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.input.close()
        self.output.close()


def _check_task(task: GradeTask) -> None:
    if task.kind not in VERIFIERS:
        raise DataError(f"sample {task.id}: kind {task.kind!r}; fix: one of {', '.join(VERIFIERS)}")
    if not isinstance(task.response, str):
        raise DataError(
            f"sample {task.id}: response is {type(task.response).__name__}, expected a string"
        )
    try:
        check_row(task.kind, task.gold, task.metadata)
    except DataError as error:
        raise DataError(f"sample {task.id}: {error}") from None


def _as_message(task: GradeTask) -> list[Any]:
    parameters = parameters_of(task.kind, task.metadata)
    return [task.kind, task.response[-MAX_RESPONSE_CHARS:], task.gold, parameters]


def _as_graded(answer: list[Any]) -> Graded:
    correct, text, reason, detail = answer
    return Graded(correct, text, GradeReason(reason), detail)


def _import_paths() -> list[str]:
    """Where this package is, then where this process imports from.

    Absolute, so that a worker's other working directory does not matter."""
    root = str(Path(megaladder.__file__).resolve().parent.parent)
    return [root, *(os.path.abspath(path) for path in sys.path if path)]


def _start_message(why: str) -> str:
    return (
        f"grading process cannot start: {why}; fix: pip install 'math-verify[antlr4_13_2]==0.9.0',"
        " and more memory_bytes if it is low"
    )
