"""Folders → what the report shows.

Reads training runs, eval results and the JSON files of the analyze verbs; what is missing is a
note.

A file that is there but broken is an error (`file:line`), as everywhere: a report that quietly left
it out would mislead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megaladder.analysis.report.metrics import Metrics
from megaladder.analysis.runs.choose import budget_words
from megaladder.analysis.runs.find import find
from megaladder.analysis.runs.folder import read_config
from megaladder.analysis.runs.read import look_for_runs
from megaladder.analysis.runs.record import RunRecord, Runs, Score
from megaladder.analysis.samples.files import read_object
from megaladder.analysis.samples.rows import NoVerdictError, with_sample_lists
from megaladder.analysis.samples.sets import SampleSet
from megaladder.analysis.shift.published import published_shift
from megaladder.analysis.studies.compare import ladder_pairs
from megaladder.analysis.tables import Warnings, read_json_lines
from megaladder.errors import DataError
from megaladder.process import last_word

WHILE_TRAINING = " while training"
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
    """A training run folder.

    `rollouts` maps step → file; `last_word`: how its latest start ended, None where nothing says
    so."""

    name: str
    path: Path
    config: dict[str, Any]
    fingerprint: dict[str, Any]
    metrics: Metrics
    rollouts: dict[int, Path]
    last_word: dict[str, Any] | None = None
    best: dict[str, Any] = field(default_factory=dict)  # its best.json

    @property
    def stage(self) -> str:
        """SFT or GRPO."""
        return "GRPO" if "grpo" in self.config or self.rollouts else "SFT"

    @property
    def device(self) -> str:
        """What the run's hours are hours of: the device that its fingerprint names."""
        found = self.fingerprint.get("device")
        return found if isinstance(found, str) and found else "device"


@dataclass(frozen=True)
class EvalResult:
    """One model (and step) on one benchmark, with what its results file says about the protocol.

    `last`: of the model's last step on that benchmark."""

    samples: SampleSet
    protocol: dict[str, Any]
    run: str = ""
    step: int = 0
    last: bool = True


@dataclass(frozen=True)
class OtherResult:
    """Scores of a benchmark without right-or-wrong verdicts, as its results file has them.

    Judged ones, or with metrics of its own."""

    model: str
    benchmark: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Analysis:
    """A result of an analyze verb, and the JSON file that holds it. `name`: which of several."""

    kind: str
    path: Path
    result: dict[str, Any]
    name: str = ""

    @property
    def title(self) -> str:
        return self.name or self.path.stem


@dataclass
class Inputs:
    """Everything that the page is made of."""

    folders: list[str] = field(default_factory=list)
    runs: list[TrainRun] = field(default_factory=list)
    evals: list[EvalResult] = field(default_factory=list)
    others: list[OtherResult] = field(default_factory=list)
    analyses: list[Analysis] = field(default_factory=list)
    data: list[Path] = field(default_factory=list)  # *.stages.json, *.difficulty.jsonl
    pairs: list[tuple[str, str]] = field(default_factory=list)  # models to compare first: A, B
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """How many things were found."""
        results = len(self.runs) + len(self.evals) + len(self.others)
        return results + len(self.analyses) + len(self.data)

    def of_kind(self, kind: str) -> list[Analysis]:
        """The results of one analyze verb."""
        return [analysis for analysis in self.analyses if analysis.kind == kind]

    @property
    def shown(self) -> list[EvalResult]:
        """Of each model its last step; the steps before are curves."""
        return [item for item in self.evals if item.last]

    @property
    def models(self) -> list[str]:
        """In the order of the ladder.

        Base models (or one with "base" in its name) first, then what was trained from them, then
        what was trained from that."""
        return list(dict.fromkeys(item.samples.model for item in self.shown))

    @property
    def benchmarks(self) -> list[str]:
        return list(dict.fromkeys(item.samples.benchmark for item in self.shown))

    def find(self, model: str, benchmark: str) -> SampleSet | None:
        return next(
            (
                e.samples
                for e in self.shown
                if (e.samples.model, e.samples.benchmark) == (model, benchmark)
            ),
            None,
        )


def collect(paths: tuple[str, ...]) -> Inputs:
    """Reads all folders (and single JSON files of the analyze verbs)."""
    inputs, warnings = Inputs(folders=list(paths)), Warnings(said=False)
    for text in paths:
        path = Path(text)
        if not path.exists():
            raise DataError(f"{text}: no such folder; fix: give run or eval folders")
        before = inputs.size
        if path.is_file():
            _add_analyses(inputs, [path])
        else:
            _add_run(inputs, path)
            inputs.data += data_files(path)
            _add_analyses(
                inputs, sorted([*path.glob("*.json"), *(path / "analysis").glob("*.json")])
            )
        if before == inputs.size and (path.is_file() or not find([text], warnings).files):
            inputs.notes.append(
                f"{text}: holds no metrics.jsonl, no samples_*.jsonl and no analysis JSON, so"
                " nothing of it is shown."
            )
    folders = [text for text in paths if Path(text).is_dir()]
    runs = look_for_runs(folders, warnings)
    for record in runs:
        _add_scores(inputs, runs, record)
    for run in inputs.runs:
        inputs.data += [file for file in data_of_run(run.config) if file not in inputs.data]
    inputs.pairs = _ladder_labels(inputs, runs)
    inputs.notes += warnings.list()
    _name_apart(inputs)
    inputs.runs.sort(key=lambda run: run.stage != "SFT")
    return inputs


DATA_FILES = ("*.stages.json", "*.difficulty.jsonl")


def data_files(folder: Path) -> list[Path]:
    """What data stages left in a folder or one below it."""
    found = (folder.glob(f"{place}{name}") for name in DATA_FILES for place in ("", "*/"))
    return sorted(path for files in found for path in files)


def data_of_run(config: dict[str, Any]) -> list[Path]:
    """What data stages left beside the files that a run trained on."""
    given = (config.get("data") or {}).get("path")
    names = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    beside = (
        Path(f"{name}{suffix.removeprefix('*')}")
        for name in names
        if isinstance(name, str)
        for suffix in DATA_FILES
    )
    return [path for path in beside if path.is_file()]


def _add_scores(inputs: Inputs, runs: Runs, record: RunRecord) -> None:
    """Every score of a record: its samples, or its means where there are no verdicts."""
    within = [score for score in record.scores if _is_of_the_training(record, score)]
    others = [score for score in record.scores if score not in within]
    asked = {score.benchmark for score in others}
    for score in (*others, *within):
        beside = score in within and score.benchmark in asked
        label = "/".join([runs.label(record, score.step), *budget_words(score)])
        label += WHILE_TRAINING if beside else ""
        try:
            samples = runs.samples(record, score, label)
        except DataError as error:
            if score.samples is not None and not isinstance(error, NoVerdictError):
                raise
            _add_other(inputs, label, score)
            continue
        alike = [s.step for s in record.scores if s.benchmark == score.benchmark]
        run = record.name + (WHILE_TRAINING if beside else "")
        last = score.step == max(alike) and not beside
        inputs.evals.append(EvalResult(samples, samples.protocol, run, score.step, last))


def _is_of_the_training(record: RunRecord, score: Score) -> bool:
    """Whether a step was evaluated inside the training.

    On fewer problems, as a rule, and so shown as a curve of its own where `eval` asked too."""
    inside = Path(record.path, "evaluations").resolve()
    return score.samples is not None and inside in score.samples.resolve().parents


def _add_other(inputs: Inputs, model: str, score: Score) -> None:
    """A judged benchmark, or one with metrics of its own: its means come from the results file."""
    if score.means:
        inputs.others.append(OtherResult(model, score.benchmark, dict(score.means)))
        return
    inputs.notes.append(
        f"{score.where}: has no right-or-wrong verdicts and no results file with scores, so it is"
        " not shown."
    )


def _ladder_labels(inputs: Inputs, runs: Runs) -> list[tuple[str, str]]:
    """(A, B) of `compare.ladder_pairs`, by the names of their last steps."""
    last = {item.run: item.samples.model for item in inputs.evals if item.last}
    return [
        (last[a.name], last[b.name])
        for a, b in ladder_pairs(runs)
        if a.name in last and b.name in last
    ]


def _add_run(inputs: Inputs, path: Path) -> None:
    """The folder itself, if a run wrote into it; also a folder of runs one level down."""
    folders = run_folders(path)
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
        metrics = Metrics.of(folder)
        metrics.read()
        inputs.notes += metrics.notes
        inputs.runs.append(train_run(folder, metrics))


def run_folders(path: Path) -> list[Path]:
    """The folder itself, if a run wrote into it; else those of runs one level down."""
    if (path / "metrics.jsonl").is_file():
        return [path]
    return [below for below in sorted(path.iterdir()) if (below / "metrics.jsonl").is_file()]


def train_run(folder: Path, metrics: Metrics) -> TrainRun:
    """What a run folder says besides its metrics."""
    rollouts = {
        int(match[1]): file
        for file in (folder / "rollouts").glob("step_*.jsonl")
        if (match := ROLLOUT_FILE.fullmatch(file.name))
    }
    return TrainRun(
        folder.resolve().name,
        folder,
        read_config(folder),
        read_object(folder / "fingerprint.json"),
        metrics,
        rollouts,
        last_word.truth(folder),
        read_object(folder / "best.json"),
    )


def _add_analyses(inputs: Inputs, paths: list[Path]) -> None:
    for path in paths:
        result = published_shift(path) or read_object(path)
        # of several models, each under `runs`
        several = result["runs"] if list(result) == ["runs"] else {}
        named = several if isinstance(several, dict) and several else {"": result}
        for name, one in named.items():
            if not isinstance(one, dict):
                continue
            kind = next((kind for kind, keys in KINDS if all(key in one for key in keys)), None)
            if kind:
                inputs.analyses.append(Analysis(kind, path, one, name))


def _name_apart(inputs: Inputs) -> None:
    """Runs and models of one name get their parent folder in front.

    A doubled (model, benchmark) stays an error."""
    inputs.runs = named_apart(inputs.runs)
    seen: dict[tuple[str, str], str] = {}
    for item in inputs.evals:
        key = (item.samples.model, item.samples.benchmark)
        if key in seen:
            raise DataError(
                f"{item.samples.path} and {seen[key]}: both are {key[0]} on {key[1]}; fix: leave"
                " one folder out, or rename it"
            )
        seen[key] = item.samples.path


def named_apart(runs: list[TrainRun]) -> list[TrainRun]:
    """Runs of one name get their parent folder in front."""
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.path.resolve().parent.name}/{run.name}")
        if names.count(run.name) > 1
        else run
        for run in runs
    ]


def rollout_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a rollout or sample file, as a stream."""
    for where, row in read_json_lines(path):
        yield where, with_sample_lists(row)
