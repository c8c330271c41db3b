"""What the evaluations of a study say, problem by problem."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megaladder.analysis.samples.rows import problem_id, sample_rows
from megaladder.analysis.samples.sets import SampleSet, read_samples
from megaladder.analysis.tables import Warnings
from megaladder.errors import DataError
from megaladder.evaluation.metrics import pass_at_k
from megaladder.files.shapes import as_number, expected
from megaladder.run_dir import read_jsonl
from megaladder.study.finding import Only

PERCENT = 100.0


@dataclass(frozen=True)
class Scored:
    """One number a problem: `values` by problem id."""

    values: Mapping[str, float]


class Evaluations:
    """Reads evaluations below a study's output folder, each file once."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._read: dict[Path, SampleSet] = {}

    def scores(self, of: str, metric: str, only: Only | None = None) -> Scored:
        """Per problem, the mean over every evaluation that `of` names (STAGE/LABEL/BENCHMARK).

        Raises DataError where there is none, or where they have no problem in common."""
        found = [self._values(path, metric) for path in self.files(of)]
        ids = [name for name in found[0] if all(name in one for one in found)]
        if only is not None:
            wanted = self._ids(only)
            ids = [name for name in ids if name in wanted]
        if not ids:
            raise DataError(
                f"{of}: no problem is left; fix: `only`, or the same --limit everywhere"
            )
        return Scored({name: float(np.mean([one[name] for one in found])) for name in ids})

    def files(self, of: str) -> list[Path]:
        """The sample files that STAGE/LABEL/BENCHMARK names; * in a label stands for anything."""
        stage, label, benchmark = of.split("/")
        files = sorted((self._out / stage).glob(f"{label}/**/samples_{benchmark}.jsonl"))
        if not files:
            raise DataError(f"{self._out / of}: no samples_{benchmark}.jsonl; fix: run that stage")
        return files

    def thinking_tokens(self, of: str) -> dict[str, list[int]]:
        """Thinking tokens of every sample, by problem.

        Raises DataError where they were not counted (no budget)."""
        found: dict[str, list[int]] = {}
        for path in self.files(of):
            for where, row in sample_rows(path):
                tokens = row.get("num_thinking_tokens")
                if not isinstance(tokens, list):
                    raise DataError(
                        f"{where}: no num_thinking_tokens; fix: evaluate under a budget"
                    )
                found.setdefault(problem_id(row, where), []).extend(tokens)
        return found

    def last_held_out(self, of: str) -> float:
        """The last held-out loss of a run."""
        path = self._out / of / "held_out.jsonl"
        rows = list(read_jsonl(path)) if path.is_file() else []
        values = [value for row in rows for key, value in row.items() if key.endswith("loss")]
        losses = [loss for value in values if (loss := as_number(value)) is not None]
        if not losses:
            raise DataError(f"{path}: no held-out loss; fix: data.holdout in the run's file")
        return losses[-1]

    def shift_values(self, of: str, what: str) -> np.ndarray:
        """One number a text from a token file of `analyze shift`, float64 [T]."""
        path = self._out / of
        if not path.is_file():
            raise DataError(f"{path}: no such file; fix: run that stage")
        with expected(path, "tokens of `analyze shift`", "run that stage again"):
            rows = [json.loads(line) for line in path.read_bytes().splitlines()]
            return np.array([_of_tokens(row["tokens"], what) for row in rows])

    def _values(self, path: Path, metric: str) -> dict[str, float]:
        if path not in self._read:
            self._read[path] = read_samples(path, path.parent.name, path.stem, Warnings())
        samples = self._read[path]
        ids = [problem.id for problem in samples.problems]
        return dict(zip(ids, _metric(samples, metric), strict=True))

    def _ids(self, only: Only) -> set[str]:
        path = self._out / only.file
        wanted = only.value if isinstance(only.value, tuple) else (only.value,)
        if not path.is_file():
            raise DataError(f"{path}: no such file; fix: `only.file` of the finding")
        values = {str(value) for value in wanted}
        with expected(path, "rows with an id", "`only.file` of the finding"):
            rows = read_jsonl(path)
            return {str(row["id"]) for row in rows if str(row.get(only.column)) in values}


def _metric(samples: SampleSet, metric: str) -> Sequence[float]:
    if metric == "tokens":
        lengths = samples.mean_tokens_p
        if lengths is None:
            raise DataError(f"{samples.path}: has no token counts; fix: evaluate again")
        return [float(value) for value in lengths]
    if metric == "accuracy":
        return [PERCENT * float(value) for value in samples.accuracy_p]
    k = int(metric.removeprefix("pass@"))
    if k > samples.num_samples:
        raise DataError(f"{samples.path}: {metric} of {samples.num_samples} samples; fix: --n {k}")
    values = pass_at_k(samples.num_samples_p, samples.num_correct_p, k)
    return [PERCENT * float(value) for value in values]


def _of_tokens(tokens: Sequence[Mapping[str, float]], what: str) -> float:
    if what == "kl":
        return float(np.mean([token["logprob_tuned"] - token["logprob_base"] for token in tokens]))
    return float(np.mean([token["rank"] - 1 for token in tokens]))
