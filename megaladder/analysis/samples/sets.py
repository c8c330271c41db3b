"""All graded samples of one model on one benchmark.

Not here: pass@k and friends (`evaluation.metrics`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.analysis.samples.files import protocol_of
from megaladder.analysis.samples.rows import (
    ANSWER_KEYS,
    aligned,
    problem_id,
    row_gold,
    row_verdicts,
    sample_rows,
    token_counts,
)
from megaladder.analysis.tables import Warnings
from megaladder.errors import DataError


@dataclass(slots=True)
class ProblemSamples:
    """The n samples of one problem that have a verdict.

    `answers` and `num_tokens` have length n, or are empty where the file has none.
    """

    id: str
    where: str  # file:line of its first row
    correct: list[bool]
    answers: list[str | None] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    gold: str | None = None
    num_undecided: int = 0  # further samples, whose verdict the grader could not find
    has_list: bool = False  # its row held a list of samples, so a second row would be a duplicate


@dataclass(frozen=True)
class SampleSet:
    """One model on one benchmark: P problems in file order, problem p with n_p samples."""

    model: str
    benchmark: str
    path: str
    problems: tuple[ProblemSamples, ...]
    # flat: what the results file beside it says about how it was made; `grader`: who graded it
    protocol: dict[str, Any] = field(default_factory=dict)
    num_undecided: int = 0  # samples without a verdict, left out of all numbers

    @property
    def grader(self) -> str:
        """Name, version and dialect of the grader, as its rows or its protocol name it."""
        return str(self.protocol.get("grader", "not recorded"))

    @cached_property
    def num_samples_p(self) -> np.ndarray:
        """Samples of each problem, int64 [P]."""
        return np.array([len(problem.correct) for problem in self.problems])

    @cached_property
    def num_correct_p(self) -> np.ndarray:
        """Right ones of each problem, int64 [P]."""
        return np.array([sum(problem.correct) for problem in self.problems])

    @cached_property
    def accuracy_p(self) -> np.ndarray:
        """Mean over each problem's samples, float64 [P] in [0, 1]."""
        return self.num_correct_p / self.num_samples_p

    @cached_property
    def covered_p(self) -> np.ndarray:
        """1.0 where any sample is correct, float64 [P] (prefix cov@n over all n samples)."""
        return (self.num_correct_p > 0).astype(np.float64)

    @cached_property
    def mean_tokens_p(self) -> np.ndarray | None:
        """Mean response length per problem, tokens, float64 [P].

        None unless every sample has one."""
        if not all(len(problem.num_tokens) == len(problem.correct) for problem in self.problems):
            return None
        return np.array([np.mean(problem.num_tokens) for problem in self.problems])

    @property
    def num_samples(self) -> int:
        """n: samples of the problem that has the fewest."""
        return int(self.num_samples_p.min())

    def by_id(self) -> dict[str, int]:
        """Problem id → index in `problems`."""
        return {problem.id: index for index, problem in enumerate(self.problems)}


def read_samples(path: str | Path, model: str, benchmark: str, warnings: Warnings) -> SampleSet:
    """Reads one file.

    A row without a verdict, a doubled problem, mixed fingerprints or lists of unequal length are
    DataErrors."""
    problems: dict[str, ProblemSamples] = {}
    fingerprint: tuple[str, str] | None = None  # value, where
    first_filter: str | None = None
    other_filters = 0
    graders: dict[str, None] = {}
    for where, row in sample_rows(path):
        if (name := row.get("filter")) is not None:
            first_filter = first_filter or str(name)
            if str(name) != first_filter:
                other_filters += 1
                continue
        found = row.get("fingerprint")
        if found is not None:
            fingerprint = fingerprint or (str(found), where)
            if str(found) != fingerprint[0]:
                raise DataError(
                    f"{where}: fingerprint {found} after {fingerprint[0]} ({fingerprint[1]}):"
                    " samples of two protocols in one file must not be averaged; fix: evaluate"
                    " into two folders"
                )
        if isinstance(name := row.get("grader"), str):
            graders[name] = None
        _add_row(problems, row, where)
    if other_filters:
        warnings.add(
            f"{path}: {other_filters} rows of other lm-eval filters ignored, '{first_filter}' used"
        )
    num_undecided = sum(problem.num_undecided for problem in problems.values())
    if num_undecided:
        warnings.add(f"{path}: {num_undecided} undecided samples left out")
    sizes = {len(problem.correct) for problem in problems.values() if problem.correct}
    if len(sizes) > 1:
        warnings.add(
            f"{path}: problems have {min(sizes)} to {max(sizes)} samples (a run that is not"
            " finished?)"
        )
    kept = tuple(problem for problem in problems.values() if problem.correct)
    protocol = protocol_of(Path(path)) | ({"grader": "; ".join(graders)} if graders else {})
    return SampleSet(model, benchmark, str(path), kept, protocol, num_undecided)


def _add_row(problems: dict[str, ProblemSamples], row: dict[str, Any], where: str) -> None:
    key = problem_id(row, where)
    verdicts, is_list = row_verdicts(row, where)
    decided = [i for i, verdict in enumerate(verdicts) if verdict is not None]
    problem = problems.get(key)
    if problem is None:
        problem = problems[key] = ProblemSamples(
            key, where, [], gold=row_gold(row), has_list=is_list
        )
    elif is_list or problem.has_list:
        raise DataError(
            f"{where}: problem {key!r} stands there already ({problem.where}); fix: keep one of the"
            " rows"
        )
    problem.correct += [bool(verdicts[i]) for i in decided]
    answers = aligned(row, ANSWER_KEYS, len(verdicts), where)
    problem.answers += [answers[i] for i in decided] if answers else []
    lengths = token_counts(row, len(verdicts), where)
    problem.num_tokens += [lengths[i] for i in decided] if lengths else []
    problem.num_undecided += len(verdicts) - len(decided)
