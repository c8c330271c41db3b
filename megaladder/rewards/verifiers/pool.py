"""Every verifier behind one call: answers go to the grading workers, programs to the sandbox.

with VerifierPool(num_workers=2) as pool:
    graded = pool.grade_many(tasks)
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from megaladder.rewards.cpu_time import CpuMeter
from megaladder.rewards.dialects import OWN_DIALECT
from megaladder.rewards.grade import OWN
from megaladder.rewards.programs.runner import ProgramLimits
from megaladder.rewards.verifiers import VERIFIERS, code
from megaladder.rewards.worker import Failure, GradePool, GradeTask
from megaladder.types import DialectName, Graded


class VerifierPool:
    """What RL, `data sample`, `grade` and the benchmarks verify with.

    num_workers: grading processes, and programs that run at once. timeout_s: CPU seconds of one
    answer. memory_bytes: what one answer, or one program, may allocate. grader: ours, or that of a
    published study, for math and gsm8k. dialect: where ours looks for the answer.
    """

    def __init__(
        self,
        num_workers: int = 2,
        timeout_s: float = 5.0,
        memory_bytes: int = 1 << 30,
        grader: str = OWN,
        dialect: DialectName = OWN_DIALECT,
    ):
        self._answers = GradePool(num_workers, timeout_s, memory_bytes, grader, dialect)
        self._limits = ProgramLimits(memory_bytes=memory_bytes)
        self._num_workers = num_workers
        self._programs = CpuMeter()

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the processes that have graded so far, and of programs."""
        return self._answers.cpu_s + self._programs.seconds

    @property
    def failures(self) -> list[Failure]:
        """Answers that cost a worker, by sample."""
        return self._answers.failures

    def grade_many(self, tasks: Sequence[GradeTask]) -> list[Graded]:
        """Verdicts in the order of `tasks`.

        Raises:
            DataError: a row that no response could satisfy; before anything is graded.
            ConfigError: a program is to be run and this machine cannot isolate it.
        """
        is_program = [VERIFIERS[task.kind].runs_programs for task in tasks]
        answers = [task for task, program in zip(tasks, is_program, strict=True) if not program]
        programs = [task for task, program in zip(tasks, is_program, strict=True) if program]
        graded = iter(self._answers.grade_many(answers))
        ran = iter(self._run(programs))
        return [next(ran) if program else next(graded) for program in is_program]

    def close(self) -> None:
        self._answers.close()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, tasks: Sequence[GradeTask]) -> list[Graded]:
        if not tasks:
            return []
        with ThreadPoolExecutor(self._num_workers) as threads, self._programs.of_ended_children():
            return list(threads.map(self._run_one, tasks))

    def _run_one(self, task: GradeTask) -> Graded:
        return code.run(task.response, task.gold, task.metadata, self._limits)
