"""The verb `analyze pass-at-k`.

Graded rows → avg@n, pass@k, cov@n, maj@n, each with a 95 % interval over problems. Values in [0,
1].

Input rows are samples with verdicts in any layout that is known: of `grade`, of `eval`, of lm-eval,
of a study, or bare `{"id", "correct": [bool, …]}`; without answers there is no maj@n. The estimators: `evaluation.metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from megaladder.analysis.runs.choose import sample_paths
from megaladder.analysis.runs.read import read_runs
from megaladder.analysis.samples.rows import problem_id, question_of, sample_rows
from megaladder.analysis.tables import Warnings, printable, write_result
from megaladder.config.verbs.grade import PassAtKConfig
from megaladder.errors import DataError
from megaladder.evaluation.metrics import (
    SHARE,
    Interval,
    bootstrap_intervals,
    cov_at_n,
    maj_at_n,
    pass_at_k,
)


@dataclass(frozen=True, slots=True)
class GradedProblem:
    """One row. `answers` is None where the file has none."""

    id: str
    where: str
    correct: tuple[bool, ...]
    answers: tuple[str | None, ...] | None
    num_undecided: int = 0  # further samples of the row, which have no verdict


def run_pass_at_k(config: PassAtKConfig) -> int:
    """Prints the table, writes `config.json_path`.

    Raises DataError (status 2) for rows that cannot be used.

    One file gives one result; of several, the JSON holds each under `runs`, by model and benchmark.
    """
    warnings = Warnings()
    named = sample_paths(read_runs(config.runs, warnings), config.benchmark)
    results = {}
    for name, path in named.items():
        own = warnings if len(named) == 1 else Warnings()
        results[name] = analyse(read_problems(path), path, config, own)
        if len(named) > 1:
            print(printable(name))
        _print(results[name])
    one = next(iter(results.values()))
    write_result(config.json_path, one if len(results) == 1 else {"runs": results})
    return 0


def analyse(
    problems: list[GradedProblem], path: str, config: PassAtKConfig, warnings: Warnings
) -> dict[str, Any]:
    """What `--json` writes: estimators, interval, number of problems, warnings."""
    num_undecided = sum(problem.num_undecided for problem in problems)
    if num_undecided:
        warnings.add(f"{num_undecided} undecided samples left out (`correct` is null)")
    problems = [problem for problem in problems if problem.correct]
    if not problems:
        raise DataError(f"{path}: every sample is undecided; fix: grade the file again")
    counts = np.array([len(problem.correct) for problem in problems])
    n = int(counts.min())
    if counts.max() != n:
        warnings.add(
            f"problems have {n} to {counts.max()} samples: cov@n and maj@n use the first {n} of"
            " each, avg@n and pass@k all"
        )
    values = {"avg@n": np.array([np.mean(problem.correct) for problem in problems])}
    prefix_pn = np.array([problem.correct[:n] for problem in problems])
    values["cov@n"] = cov_at_n(prefix_pn)
    answers = [problem.answers[:n] for problem in problems if problem.answers is not None]
    if len(answers) == len(problems):
        values["maj@n"] = maj_at_n(answers, prefix_pn)
    else:
        warnings.add(
            "no field 'answer' in some rows: maj@n is null; it needs the answers that `megaladder"
            " grade` writes"
        )
    num_correct = np.array([sum(problem.correct) for problem in problems])
    ks = sorted(set(config.k))
    for k in ks:
        if k <= n:
            values[f"pass@{k}"] = pass_at_k(counts, num_correct, k)
        else:
            warnings.add(
                f"pass@{k}: k is above the {n} samples of a problem, so it is null; it needs at"
                f" least {k} samples of every problem"
            )
    if len(problems) < 2:
        warnings.add("one problem: no interval, it would resample problems")
    shares = dict.fromkeys(values, SHARE)
    intervals = bootstrap_intervals(values, config.draws, config.seed, bounds=shares)
    return _result((n, len(problems), ks), values, intervals, warnings)


def _result(
    sizes: tuple[int, int, list[int]],
    values: dict[str, np.ndarray],
    intervals: dict[str, Interval | None],
    warnings: Warnings,
) -> dict[str, Any]:
    n, num_problems, ks = sizes

    def mean(name: str) -> float | None:
        return float(values[name].mean()) if name in values else None

    def bounds(name: str) -> list[float] | None:
        interval = intervals.get(name)
        return None if interval is None else [interval.low, interval.high]

    scalars = ("avg@n", "cov@n", "maj@n")
    return {
        **{name: mean(name) for name in scalars},
        "pass@k": {str(k): mean(f"pass@{k}") for k in ks},
        "n": n,
        "problems": num_problems,
        "ci95": {
            **{name: bounds(name) for name in scalars},
            "pass@k": {str(k): bounds(f"pass@{k}") for k in ks},
        },
        "warnings": warnings.list(),
    }


def read_problems(path: str) -> list[GradedProblem]:
    """Rows in order.

    Ids are required to be unique as text (`1` and `"1"` are one id); a row without one is known by
    its line."""
    seen: dict[str, str] = {}
    problems = []
    for where, row in sample_rows(path):
        problem = _problem(row, where)
        if problem.id in seen:
            raise DataError(
                f"{where}: id {problem.id!r} is also in {seen[problem.id]}; fix: one row a problem,"
                " its samples in the list 'correct'"
            )
        seen[problem.id] = where
        problems.append(problem)
    return problems


def _problem(row: dict[str, Any], where: str) -> GradedProblem:
    if "correct" not in row:
        raise DataError(
            f"{where}: no field 'correct'; fix: grade the file first (megaladder grade --input …"
            " --output …)"
        )
    listed = isinstance(row["correct"], list)
    correct = row["correct"] if listed else [row["correct"]]
    if not correct or not all(value in (0, 1, None) for value in correct):
        raise DataError(
            f"{where}: 'correct' must be true or false, or a list of one or more of them, found"
            f" {str(row['correct'])[:60]}"
        )
    answers = None
    name = "extracted_answers"
    if name in row:
        found = row[name]
        answers = found if listed or isinstance(found, list) else [found]
        if not isinstance(answers, list) or len(answers) != len(correct):
            raise DataError(
                f"{where}: {name!r} must have one item for each of the {len(correct)} in 'correct';"
                " fix: grade the file again"
            )
        answers = tuple(None if answer is None else str(answer) for answer in answers)
    decided = [i for i, value in enumerate(correct) if value is not None]
    return GradedProblem(
        _id(row, where),
        where,
        tuple(bool(correct[i]) for i in decided),
        tuple(answers[i] for i in decided) if answers is not None else None,
        len(correct) - len(decided),
    )


def _id(row: dict[str, Any], where: str) -> str:
    """The row's id, else its question's digest, else its line."""
    named = row.get("id") is not None or question_of(row) is not None
    return problem_id(row, where) if named else where


def _print(result: dict[str, Any]) -> None:
    rows = [(name, result[name], result["ci95"][name]) for name in ("avg@n", "cov@n", "maj@n")]
    rows += [
        (f"pass@{k}", value, result["ci95"]["pass@k"][k]) for k, value in result["pass@k"].items()
    ]
    print(
        f"{result['problems']} problems, n = {result['n']} samples each; 95 % intervals resample"
        " problems"
    )
    for name, value, interval in rows:
        if value is None:
            print(f"{name:>9}  –")
        else:
            shown = (
                f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
                if interval
                else "(no interval: one problem)"
            )
            print(f"{name:>9}  {100 * value:6.2f} %  {shown}")
