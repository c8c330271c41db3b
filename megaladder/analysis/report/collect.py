"""Folders → what the report shows. Reads training runs, eval results and the JSON files of the
analyze verbs; what is missing is a note.

A file that is there but broken is an error (`file:line`), as everywhere: a report that quietly left
it out would mislead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaladder.analysis.runs.folder import read_config
from megaladder.analysis.samples.files import SampleFile, find_sample_files, read_object
from megaladder.analysis.samples.rows import NoVerdictError, with_sample_lists
from megaladder.analysis.samples.sets import SampleSet, read_samples
from megaladder.analysis.tables import Warnings, read_growing, read_json_lines
from megaladder.errors import DataError
from megaladder.process import last_word

METRIC_FILES = ("metrics.jsonl", "held_out.jsonl")
ROLLOUT_FILE = re.compile(r"step_(\d+)\.jsonl")
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (  # result object → kind, by keys that only it has
    ("study", ("study", "findings")),
    ("trajectory", ("curves", "points")),
    ("scaling", ("methods", "points")),
    ("predict", ("metrics", "select", "runs")),
    ("shift", ("mean_rank_shift", "pca_shift")),
    ("compare", ("comparisons", "sentences")),
    ("budget", ("accuracy", "truncated")),
    ("transfer", ("models", "variant", "points")),
)


@dataclass(frozen=True)
class TrainRun:
    """A training run folder. `rows` are the objects of metrics.jsonl, by step; `rollouts` maps step
    → file; `last_word`: how its latest start ended, None where nothing says so."""

    name: str
    path: Path
    config: dict[str, Any]
    fingerprint: dict[str, Any]
    rows: list[dict[str, Any]]
    rollouts: dict[int, Path]
    last_word: dict[str, Any] | None = None


@dataclass(frozen=True)
class EvalResult:
    """One model on one benchmark, with what its results file says about the protocol."""

    samples: SampleSet
    protocol: dict[str, Any]


@dataclass(frozen=True)
class OtherResult:
    """Scores of a benchmark without right-or-wrong verdicts (judged, or with metrics of its own),
    as its results file has them."""

    model: str
    benchmark: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Analysis:
    """A JSON file of an analyze verb; `path` names it."""

    kind: str
    path: Path
    result: dict[str, Any]


@dataclass
class Inputs:
    """Everything that the page is made of."""

    folders: list[str] = field(default_factory=list)
    runs: list[TrainRun] = field(default_factory=list)
    evals: list[EvalResult] = field(default_factory=list)
    others: list[OtherResult] = field(default_factory=list)
    analyses: list[Analysis] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """How many things were found."""
        return len(self.runs) + len(self.evals) + len(self.others) + len(self.analyses)

    def of_kind(self, kind: str) -> list[Analysis]:
        return [analysis for analysis in self.analyses if analysis.kind == kind]

    @property
    def models(self) -> list[str]:
        """The base first (a model with "base" in its name, if there is one), then in the order of
        the command line."""
        names = list(dict.fromkeys(item.samples.model for item in self.evals))
        return sorted(names, key=lambda name: "base" not in name.lower())

    @property
    def benchmarks(self) -> list[str]:
        return list(dict.fromkeys(item.samples.benchmark for item in self.evals))

    def find(self, model: str, benchmark: str) -> SampleSet | None:
        return next(
            (
                e.samples
                for e in self.evals
                if (e.samples.model, e.samples.benchmark) == (model, benchmark)
            ),
            None,
        )


def collect(paths: tuple[str, ...]) -> Inputs:
    """Reads all folders (and single JSON files of the analyze verbs)."""
    inputs, warnings = Inputs(folders=list(paths)), Warnings()
    for text in paths:
        path = Path(text)
        if not path.exists():
            raise DataError(f"{text}: no such folder; fix: give run or eval folders")
        before = inputs.size
        if path.is_file():
            _add_analyses(inputs, [path])
        else:
            _add_run(inputs, path)
            _add_evals(inputs, path, warnings)
            _add_analyses(
                inputs, sorted([*path.glob("*.json"), *(path / "analysis").glob("*.json")])
            )
        if before == inputs.size:
            inputs.notes.append(
                f"{text}: holds no metrics.jsonl, no samples_*.jsonl and no analysis JSON, so"
                " nothing of it is shown."
            )
    if not inputs.size:
        raise DataError(
            f"{', '.join(paths)}: nothing to report (metrics.jsonl, samples_*.jsonl or analysis"
            " JSON); fix: give run or eval folders"
        )
    inputs.notes += warnings.list()
    _name_apart(inputs)
    order = inputs.models
    inputs.evals.sort(key=lambda item: order.index(item.samples.model))
    return inputs


def _add_run(inputs: Inputs, path: Path) -> None:
    """The folder itself, if a run wrote into it; also a folder of runs one level down."""
    folders = (
        [path]
        if (path / "metrics.jsonl").is_file()
        else [p for p in sorted(path.iterdir()) if (p / "metrics.jsonl").is_file()]
    )
    if (
        not folders
        and (path / "config.yaml").is_file()
        and not any(path.glob("**/samples_*.jsonl"))
    ):
        word = last_word.truth(path)
        inputs.notes.append(
            f"{path}: has a config.yaml but no metrics.jsonl yet (no step was finished)"
            + (f"; {last_word.how_it_ended(word)}." if word else ".")
        )
    for folder in folders:
        rows: dict[int, dict[str, Any]] = {}
        for name in METRIC_FILES:
            _add_rows(rows, folder / name, inputs)
        rollouts = {
            int(m[1]): file
            for file in (folder / "rollouts").glob("step_*.jsonl")
            if (m := ROLLOUT_FILE.fullmatch(file.name))
        }
        name = folder.resolve().name
        inputs.runs.append(
            TrainRun(
                name,
                folder,
                read_config(folder),
                read_object(folder / "fingerprint.json"),
                [rows[s] for s in sorted(rows)],
                rollouts,
                last_word.truth(folder),
            )
        )


def _add_rows(rows: dict[int, dict[str, Any]], path: Path, inputs: Inputs) -> None:
    """Merges a metrics file into `rows` by step."""
    if not path.is_file() or (path.name != METRIC_FILES[0] and path.stat().st_size == 0):
        return
    lines, note = read_growing(path)
    inputs.notes += [note] if note else []
    for where, row in lines:
        step = row.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            raise DataError(
                f"{where}: 'step' is {step!r}, expected a whole number; fix: delete that line"
            )
        rows.setdefault(step, {}).update(row)


def _add_evals(inputs: Inputs, path: Path, warnings: Warnings) -> None:
    for file in find_sample_files(path, warnings):
        model = f"{file.model}/{file.checkpoint}" if file.checkpoint else file.model
        try:
            samples = read_samples(file.path, model, file.task, warnings)
        except NoVerdictError:
            _add_other(inputs, model, file)
            continue
        inputs.evals.append(EvalResult(samples, samples.protocol))


def _add_other(inputs: Inputs, model: str, file: SampleFile) -> None:
    """A judged benchmark, or one with metrics of its own: its means come from the results file."""
    found: dict[str, float] = {}
    for path in sorted(file.path.parent.glob("results_*.json")):
        table = (read_object(path).get("results") or {}).get(file.task) or {}
        for key, value in table.items():
            name, comma, _ = key.partition(",")
            if comma and not name.endswith("_stderr") and isinstance(value, (int, float)):
                found[name] = float(value)
                spread = table.get(key.replace(name, f"{name}_stderr", 1))
                if isinstance(spread, (int, float)):
                    found[f"{name} ± standard error"] = float(spread)
    if found:
        inputs.others.append(OtherResult(model, file.task, found))
    else:
        inputs.notes.append(
            f"{file.path}: has no right-or-wrong verdicts and no results file with scores, so it is"
            " not shown."
        )


def _add_analyses(inputs: Inputs, paths: list[Path]) -> None:
    for path in paths:
        result = read_object(path)
        kind = next((kind for kind, keys in KINDS if all(key in result for key in keys)), None)
        if kind:
            inputs.analyses.append(Analysis(kind, path, result))


def _name_apart(inputs: Inputs) -> None:
    """Runs and models of one name get their parent folder in front; a doubled (model, benchmark)
    stays an error."""
    names = [run.name for run in inputs.runs]
    inputs.runs = [
        (
            TrainRun(
                f"{r.path.resolve().parent.name}/{r.name}",
                r.path,
                r.config,
                r.fingerprint,
                r.rows,
                r.rollouts,
                r.last_word,
            )
            if names.count(r.name) > 1
            else r
        )
        for r in inputs.runs
    ]
    seen: dict[tuple[str, str], str] = {}
    for item in inputs.evals:
        key = (item.samples.model, item.samples.benchmark)
        if key in seen:
            raise DataError(
                f"{item.samples.path} and {seen[key]}: both are {key[0]} on {key[1]}; fix: leave"
                " one folder out, or rename it"
            )
        seen[key] = item.samples.path


def rollout_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a rollout or sample file, as a stream."""
    for where, row in read_json_lines(path):
        yield where, with_sample_lists(row)
