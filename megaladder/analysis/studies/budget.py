"""Accuracy under a token budget, from stored samples.

Each answer is cut after B tokens, decoded and graded again (Ren et al., arXiv 2604.06628,
`math_eval_budget`).

An answer of at most B tokens keeps its verdict, so only cut ones are graded again. Without a
tokenizer a cut answer counts as wrong: what remains is the share of problems answered within the
budget, a lower bound. Unit: shares in [0, 1], as in `analyze pass-at-k`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.analysis.runs.choose import every_score
from megaladder.analysis.runs.read import read_runs
from megaladder.analysis.runs.thinking import tokenizer_beside
from megaladder.analysis.samples.rows import (
    problem_id,
    response_ids,
    row_gold,
    row_verdicts,
    sample_rows,
)
from megaladder.analysis.stats import mean_intervals
from megaladder.analysis.tables import Warnings, format_columns, printable, write_result
from megaladder.config.verbs.analysis import BudgetConfig
from megaladder.errors import DataError, MissingDependencyError
from megaladder.evaluation.metrics import SHARE
from megaladder.rewards.worker import GradePool, GradeTask


@dataclass(frozen=True, slots=True)
class StoredProblem:
    """A problem's n graded answers as token ids."""

    id: str
    where: str
    gold: str | None
    correct: tuple[bool, ...]
    ids: tuple[tuple[int, ...], ...]


def read_problems(path: str) -> list[StoredProblem]:
    """Rows with a verdict and `response_ids` for each sample.

    Rows of one problem (one sample a row) are joined."""
    found: dict[str, StoredProblem] = {}
    for where, row in sample_rows(path):
        verdicts, _ = row_verdicts(row, where)
        ids = response_ids(row, where)
        if len(ids) != len(verdicts):
            raise DataError(
                f"{where}: {len(ids)} lists in 'response_ids' for {len(verdicts)} verdicts; fix:"
                " keep the token ids of each sample"
            )
        # an undecided answer has no accuracy at any budget: left out
        ids = [one for one, verdict in zip(ids, verdicts, strict=True) if verdict is not None]
        correct = [verdict for verdict in verdicts if verdict is not None]
        key, gold = problem_id(row, where), row_gold(row)
        before = found.get(key)
        if before is not None and before.gold != gold:
            raise DataError(
                f"{where}: problem {key!r} has gold {gold!r}, before {before.gold!r}"
                f" ({before.where}); fix: one of them"
            )
        old_correct, old_ids = (before.correct, before.ids) if before else ((), ())
        found[key] = StoredProblem(
            key,
            before.where if before else where,
            gold,
            (*old_correct, *correct),
            (*old_ids, *map(tuple, ids)),
        )
    return list(found.values())


def load_decoder(folder: str) -> Any:
    """ids → text, by the folder's tokenizer.json (the `tokenizers` library: no torch)."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError(
            f"--tokenizer needs the tokenizers package ({error}); fix: pip install tokenizers"
        ) from None
    path = Path(folder) / "tokenizer.json" if Path(folder).is_dir() else Path(folder)
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; fix: --tokenizer with a folder that holds tokenizer.json"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  (the library raises bare Exception for a broken file)
        raise DataError(
            f"{path}: cannot be read ({str(error)[:200]}); fix: the tokenizer's own tokenizer.json"
        ) from None
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)


def verdicts_at(
    problems: list[StoredProblem], budgets: list[int], decode: Any, config: BudgetConfig
) -> dict[int, list[list[bool]]]:
    """Budget → verdicts [P][n].

    Cut answers are graded again in one pool; without `decode` they are wrong."""
    out = {
        budget: [
            [ok and len(ids) <= budget for ok, ids in zip(p.correct, p.ids, strict=True)]
            for p in problems
        ]
        for budget in budgets
    }
    if decode is None:
        return out
    places, tasks = [], []
    for budget in budgets:
        for p, problem in enumerate(problems):
            for sample, ids in enumerate(problem.ids):
                if len(ids) > budget:
                    places.append((budget, p, sample))
                    name = f"{problem.where} sample {sample} at {budget}"
                    tasks.append(
                        GradeTask(
                            name, decode(ids[:budget]), gold=problem.gold or "", kind=config.kind
                        )
                    )
    with GradePool(num_workers=config.workers) as pool:
        for (budget, p, sample), graded in zip(places, pool.grade_many(tasks), strict=True):
            out[budget][p][sample] = graded.correct is True
    return out


def analyse(
    problems: list[StoredProblem], decode: Any, config: BudgetConfig, warnings: Warnings
) -> dict[str, Any]:
    """What `--json` holds for one model on one benchmark."""
    budgets = sorted(set(config.budgets))
    missing = next((p for p in problems if not (p.gold or "").strip()), None)
    if decode is not None and missing is not None:
        raise DataError(
            f"{missing.where}: no 'gold' to grade a cut answer with; fix: add it, or leave"
            " --tokenizer out"
        )
    lengths = np.array([len(ids) for p in problems for ids in p.ids])
    if decode is None and lengths.max() > budgets[0]:
        warnings.add(
            "no --tokenizer: an answer above the budget counts as wrong, so accuracies are lower"
            " bounds"
        )
    verdicts = verdicts_at(problems, budgets, decode, config)
    means = {
        str(budget): np.array([np.mean(row) for row in rows]) for budget, rows in verdicts.items()
    }
    first = {
        str(budget): np.array([float(row[0]) for row in rows]) for budget, rows in verdicts.items()
    }
    native = np.array([np.mean(p.correct) for p in problems])
    return {
        "accuracy": {budget: float(values.mean()) for budget, values in means.items()},
        "first_sample": {budget: float(values.mean()) for budget, values in first.items()},
        "truncated": {str(budget): float((lengths > budget).mean()) for budget in budgets},
        "mean_tokens": {
            str(budget): float(np.minimum(lengths, budget).mean()) for budget in budgets
        },
        "native": {
            "accuracy": float(native.mean()),
            "mean_tokens": float(lengths.mean()),
            "max_tokens": int(lengths.max()),
        },
        "ci95": mean_intervals({**means, "native": native}, seed=config.seed, bounds=SHARE),
        "n": min(len(p.correct) for p in problems),
        "num_problems": len(problems),
        "regraded": decode is not None,
        "warnings": warnings.list(),
    }


def run_budget(config: BudgetConfig) -> None:
    """The verb `analyze budget`.

    One file gives one result; of several, the JSON holds each under `runs`, by model and benchmark.
    """
    warnings = Warnings()
    named = every_score(read_runs(config.runs, warnings), config.benchmark)
    results: dict[str, dict[str, Any]] = {}
    for name, (record, score) in named.items():
        own = warnings if len(named) == 1 else Warnings()
        folder = config.tokenizer or tokenizer_beside(record)
        decode = load_decoder(str(folder)) if folder else None
        results[name] = analyse(read_problems(str(score.samples)), decode, config, own)
        if len(named) > 1:
            print(printable(name))
        print(_table(results[name]))
    one = next(iter(results.values()))
    write_result(config.json_path, one if len(results) == 1 else {"runs": results})


def _table(out: dict[str, Any]) -> str:
    rows = [
        [
            budget,
            100 * accuracy,
            _bounds(out["ci95"][budget]),
            100 * out["truncated"][budget],
            out["mean_tokens"][budget],
        ]
        for budget, accuracy in out["accuracy"].items()
    ]
    native = out["native"]
    bounds = _bounds(out["ci95"]["native"])
    rows.append(["none", 100 * native["accuracy"], bounds, 0.0, native["mean_tokens"]])
    columns = ("budget (tokens)", "accuracy %", "95 %", "truncated %", "mean tokens")
    return format_columns(columns, rows)


def _bounds(ci95: list[float] | None) -> str:
    return f"[{100 * ci95[0]:.1f}, {100 * ci95[1]:.1f}]" if ci95 else "–"
