"""One benchmark, one model: generate what is missing, grade it, append it.

The loop that every benchmark of ours goes through.

Grading and appending run in a thread of their own, so that they overlap with generation; the
engine, the grader and the journal are given. What the numbers mean is `report`'s business; the verb
is in `verb`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

from megaladder import console
from megaladder.evaluation.store import Journal, Record
from megaladder.rewards.worker import GradeTask
from megaladder.rollout.engine import Engine, SampleRequest, SamplingParams, expand
from megaladder.types import Completion, FinishReason, Graded, Problem

MAX_GRADE_BATCH = 256


@dataclass(frozen=True, slots=True)
class Drawn:
    """A completion and what budget forcing has to say about it (nothing, in a plain run)."""

    completion: Completion
    num_thinking_tokens: int | None = None
    tries: int = 1
    answer_text: str | None = None  # what is graded, where it is not the whole text


# as `Engine.stream`
Sampler = Callable[[Engine, Sequence[SampleRequest]], Iterator[tuple[int, Drawn]]]


def plain_sampler(engine: Engine, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, Drawn]]:
    """One phase: what the engine says is the answer."""
    for index, completion in engine.stream(requests):
        yield index, Drawn(completion)


@dataclass(frozen=True, slots=True)
class Task:
    """What to run: problems with their prompts, how samples are drawn, n of them each."""

    benchmark: str
    problems: tuple[Problem, ...]
    prompts: tuple[str, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    params: SamplingParams
    sampler: Sampler = plain_sampler
    graded: bool = True  # False: judged benchmarks, whose samples are judged later

    @property
    def num_samples(self) -> int:
        return len(self.problems) * self.params.n


@dataclass
class Timing:
    """Seconds of one run.

    Outside generation = start to first request, and last completion to the end."""

    wall_s: float = 0.0
    generate_s: float = 0.0
    grade_s: float = 0.0  # inside the grading thread; overlaps generation
    grade_cpu_s: float = 0.0  # of the grading processes
    num_tokens: int = 0
    num_new: int = 0
    restarts: int = 0

    def add(self, more: Timing) -> None:
        """Counts a further wave of the same benchmark."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(more, one.name))

    @property
    def tokens_per_s(self) -> float | None:
        return self.num_tokens / self.generate_s if self.generate_s and self.num_new else None

    @property
    def share_outside(self) -> float | None:
        """Share of wall time that was not generation."""
        return 1.0 - self.generate_s / self.wall_s if self.num_new else None


@dataclass
class Progress:
    """Prints a line every `every_s` seconds: what is done, tokens per second, time left.

    A bar shows it where there is one."""

    every_s: float
    say: Callable[[str], None] = console.tell

    def start(self, task: Task, num_done: int) -> None:
        self._task, self._num_done, self._num_new, self._tokens = task, num_done, 0, 0
        self._begun = self._last = time.monotonic()

    def add(self, num_tokens: int) -> None:
        self._num_new += 1
        self._tokens += num_tokens
        now = time.monotonic()
        if now - self._last >= self.every_s:
            self._last = now
            self.say(self.line(now - self._begun))

    def line(self, elapsed_s: float) -> str:
        done, total = self._num_done + self._num_new, self._task.num_samples
        left_s = elapsed_s / self._num_new * (total - done) if self._num_new else 0.0
        rate = self._tokens / elapsed_s if elapsed_s else 0.0
        return (
            f"{self._task.benchmark}  {done}/{total} samples ({done / total:.0%})  {rate:,.0f}"
            f" tokens/s  ETA {console.clock(left_s)}"
        )


class Grader(Protocol):
    """`rewards.verifiers.pool.VerifierPool`, or `sandbox.SandboxPool` for a command of the user's.

    cpu_s: CPU seconds of its processes so far."""

    @property
    def cpu_s(self) -> float: ...

    def grade_many(self, tasks: Sequence[GradeTask]) -> list[Graded]: ...


def run_task(
    task: Task,
    engine: Engine,
    pool: Grader | None,
    journal: Journal,
    progress: Progress | None = None,
) -> Timing:
    """Brings the journal to n samples per problem.

    `pool` may be None for a task that is not graded.

    Raises EngineError (status 3) when the engine is lost: start again to resume.
    """
    begun = time.monotonic()
    requests, keys = missing_requests(task, journal)
    timing = Timing()
    restarts_before, cpu_s_before = engine.restarts, pool.cpu_s if pool else 0.0
    num_done = task.num_samples - len(requests)
    if progress is not None:
        progress.start(task, num_done)
    with (
        _Writer(task, pool, journal, timing) as writer,
        console.doing(task.benchmark, task.num_samples, "samples", num_done) as shown,
    ):
        generating = time.monotonic()
        for index, drawn in task.sampler(engine, requests):
            writer.put(keys[index], drawn)
            timing.num_new += 1
            timing.num_tokens += len(drawn.completion.token_ids)
            timing.generate_s = time.monotonic() - generating
            shown.add()
            if progress is not None:
                progress.add(len(drawn.completion.token_ids))
    timing.wall_s = time.monotonic() - begun
    timing.restarts = engine.restarts - restarts_before
    timing.grade_cpu_s = (pool.cpu_s if pool else 0.0) - cpu_s_before
    return timing


def missing_requests(
    task: Task, journal: Journal
) -> tuple[list[SampleRequest], list[tuple[int, int]]]:
    """The samples that are not there yet, and for each its (problem index, sample index)."""
    requests: list[SampleRequest] = []
    keys: list[tuple[int, int]] = []
    for index, (problem, ids) in enumerate(zip(task.problems, task.prompt_ids, strict=True)):
        samples = journal.missing(problem.id, task.params.n)
        requests += expand(ids, task.params, samples)
        keys += [(index, sample) for sample in samples]
    return requests, keys


class _Writer:
    """Takes completions, grades them in batches, appends them.

    An exception in its thread surfaces at the next `put` or at the end."""

    def __init__(self, task: Task, pool: Grader | None, journal: Journal, timing: Timing):
        self._task, self._pool, self._journal, self._timing = task, pool, journal, timing
        self._queue: queue.Queue[tuple[tuple[int, int], Drawn] | None] = queue.Queue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="grade-and-append")

    def put(self, key: tuple[int, int], drawn: Drawn) -> None:
        if self._failure is not None:
            raise self._failure
        self._queue.put((key, drawn))

    def __enter__(self) -> _Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Also after an error: what the engine finished is kept."""
        self._queue.put(None)
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _work(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                begun = time.monotonic()
                for record in self._graded(batch):
                    self._journal.append(record)
                self._timing.grade_s += time.monotonic() - begun
        except BaseException as failure:  # noqa: BLE001  (handed to the caller's thread)
            self._failure = failure

    def _next_batch(self) -> list[tuple[tuple[int, int], Drawn]] | None:
        """Everything that waits, at least one; None at the end."""
        first = self._queue.get()
        if first is None:
            return None
        batch = [first]
        while len(batch) < MAX_GRADE_BATCH:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                self._queue.put(None)
                break
            batch.append(item)
        return batch

    def _graded(self, batch: Sequence[tuple[tuple[int, int], Drawn]]) -> Iterator[Record]:
        problems = self._task.problems
        if not self._task.graded or self._pool is None:
            assert not self._task.graded, "a graded task needs a grader"
            for (index, sample), drawn in batch:
                yield _record(problems[index], sample, drawn)
            return
        tasks = [
            GradeTask(
                f"{problems[index].id}/{sample}",
                _gradable(drawn),
                problems[index].gold,
                problems[index].kind,
                problems[index].metadata,
            )
            for (index, sample), drawn in batch
        ]
        for ((index, sample), drawn), graded in zip(
            batch, self._pool.grade_many(tasks), strict=True
        ):
            yield replace(
                _record(problems[index], sample, drawn),
                correct=graded.correct,
                answer=graded.answer,
                reason=graded.reason.value,
                detail=graded.detail,
            )


def _gradable(drawn: Drawn) -> str:
    """What the grader sees: the text or its answer part.

    Nothing for a completion that the engine gave up on."""
    if drawn.completion.finish_reason is FinishReason.ABORT:
        return ""
    return drawn.completion.text if drawn.answer_text is None else drawn.answer_text


def _record(problem: Problem, sample: int, drawn: Drawn) -> Record:
    completion = drawn.completion
    return Record(
        id=problem.id,
        sample=sample,
        response=completion.text,
        response_ids=list(completion.token_ids),
        finish_reason=completion.finish_reason.value,
        correct=None,
        answer=None,
        reason="not_judged",
        num_thinking_tokens=drawn.num_thinking_tokens,
        tries=drawn.tries,
    )
