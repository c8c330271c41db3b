"""Paths, as they are typed → training runs and files of scores.

A path is a run folder, an evaluation's output folder, a parent of such folders, a glob, or one file
of samples. Looked for in a folder, at most six levels down: folders that a run wrote
(`config.yaml` and `fingerprint.json` or `metrics.jsonl`), `samples_*.jsonl`, and the outputs of the
published studies by their names. What a run keeps for itself (checkpoints, exports,
rollouts) is not looked into.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megaladder.analysis.samples.files import SAMPLE_FILE
from megaladder.analysis.samples.rows import CORRECT_KEYS, sample_rows
from megaladder.analysis.tables import Warnings
from megaladder.errors import DataError

DEPTH = 6
OF_THE_RUN = {
    *("checkpoints", "hf", "rollouts", "model_files", "logs", "set_aside", "analysis", "data")
}
STEP = re.compile(r"(?:(?:global_)?step|checkpoint|ckpt)[_-]?(\d+)")
# LIMO: {model}/{data}/{split}_{prompt}_t{T}_k{n}_s{start}_e{end}.jsonl
LIMO = re.compile(r"(?P<split>\w+?)_(?P<prompt>.+)_t[\d.]+_k\d+_s-?\d+_e-?\d+\.jsonl")
# Rethinking SFT: {model}/{data}_budget{B}/{types}_{tok}.json
BUDGET_FOLDER = re.compile(r"(?P<task>.+)_budget(?P<budget>\d+)")
# lm-eval and evalchemy: results_{time}.json, with or without samples beside it
RESULTS_FILE = re.compile(r"results_.*\.json")
# rows beside the scores that are none themselves
NO_SCORES = {"journal.jsonl", "generations.jsonl", "judgements.jsonl", "metrics.jsonl"}


@dataclass(frozen=True, slots=True)
class ScoreFile:
    """A file of samples or results.

    `model`, `checkpoint`: by the folders between `root` and it. `run`: the run folder that it lies
    in. `budget`: tokens after which answers were cut."""

    path: Path
    root: Path
    model: str
    checkpoint: str | None
    benchmark: str | None  # None: the file names its benchmarks itself
    run: Path | None = None
    budget: int | None = None


@dataclass
class Found:
    """Everything that lies under the paths."""

    warnings: Warnings
    runs: list[Path] = field(default_factory=list)
    files: list[ScoreFile] = field(default_factory=list)


def find(paths: Sequence[str], warnings: Warnings) -> Found:
    """Looks through all paths. Raises DataError for a path that is not there."""
    found = Found(warnings)
    for path in (path for text in paths for path in expand(text)):
        if path.is_file():
            found.files.append(_single_file(path))
        else:
            _look_into(path, _Place(path), found)
    return found


def expand(text: str) -> list[Path]:
    """The path, or what a glob stands for, sorted."""
    if Path(text).exists():
        return [Path(text)]
    matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
    if not matches:
        raise DataError(
            f"{text}: no such file or folder; fix: run folders, evaluation folders, a parent of"
            " them, or a glob"
        )
    return matches


def there(path: str | Path) -> bool:
    """Whether it exists; a name that no file can have does not."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def is_run(folder: Path) -> bool:
    """Whether a training run wrote into it."""
    marks = ("fingerprint.json", "metrics.jsonl")
    return there(folder / "config.yaml") and any((folder / m).is_file() for m in marks)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the search stands: the folder that names are relative to, and the run around it."""

    root: Path
    run: Path | None = None
    depth: int = 0


def _look_into(folder: Path, place: _Place, found: Found) -> None:
    if is_run(folder):
        found.runs.append(folder)
        place = _Place(folder, folder, 0)
    elif place.depth == 0 and (around := _run_around(folder)) is not None:
        # a folder inside a run was named: the run is known by it
        found.runs.append(around)
        place = _Place(around, around, 1)
    entries = sorted(folder.iterdir())
    files = [entry for entry in entries if entry.is_file()]
    found.files += _score_files(folder, files, place, found.warnings)
    if place.depth >= DEPTH:
        return
    below = _Place(place.root, place.run, place.depth + 1)
    for entry in entries:
        if entry.is_dir() and not _is_private(entry, place):
            _look_into(entry, below, found)


def _run_around(path: Path) -> Path | None:
    """The run folder that a path lies in."""
    return next((folder for folder in path.absolute().parents if is_run(folder)), None)


def _is_private(folder: Path, place: _Place) -> bool:
    own = place.run is not None and folder.name in OF_THE_RUN
    return own or folder.name.startswith(".") or folder.is_symlink()


def _score_files(
    folder: Path, files: list[Path], place: _Place, warnings: Warnings
) -> Iterator[ScoreFile]:
    samples: dict[str, Path] = {}
    for path in files:
        if match := SAMPLE_FILE.fullmatch(path.name):
            if match["task"] in samples:
                warnings.add(
                    f"{folder}: several files of {match['task']}; the last, {path.name}, is used"
                )
            samples[match["task"]] = path
    for task, path in samples.items():
        model, checkpoint = _names(path, place.root, task)
        yield ScoreFile(path, place.root, model, checkpoint, task, place.run)
    if not samples:
        yield from _published_files(folder, files, place)


def _published_files(folder: Path, files: list[Path], place: _Place) -> Iterator[ScoreFile]:
    budget = BUDGET_FOLDER.fullmatch(folder.name)
    for path in files:
        if budget and path.suffix == ".json":
            model, checkpoint = _names(path, place.root, folder.name)
            yield ScoreFile(
                path,
                place.root,
                model,
                checkpoint,
                budget["task"],
                place.run,
                int(budget["budget"]),
            )
        elif LIMO.fullmatch(path.name):
            model, checkpoint = _names(path, place.root, folder.name)
            yield ScoreFile(path, place.root, model, checkpoint, folder.name, place.run)
        elif RESULTS_FILE.fullmatch(path.name):
            model, checkpoint = _names(path, place.root, "")
            yield ScoreFile(path, place.root, model, checkpoint, None, place.run)
        elif place.run is None and _is_graded(path):
            yield ScoreFile(path, path, path.stem, None, "")


def _is_graded(path: Path) -> bool:
    """Whether a file of another name holds graded samples: its first row says so."""
    if path.suffix != ".jsonl" or path.name in NO_SCORES:
        return False
    try:
        _, row = next(sample_rows(path))
    except DataError:
        return False
    return any(name in row for name in CORRECT_KEYS)


def _names(path: Path, root: Path, task: str) -> tuple[str, str | None]:
    """Model and checkpoint by the folders between `root` and the file.

    The last one may be the benchmark's."""
    parts = path.relative_to(root).parts[:-1]
    if parts and parts[-1] == task:
        parts = parts[:-1]
    if not parts:
        folder = path.parent.resolve()
        return (folder.parent if folder.name == task else folder).name, None
    return parts[0], "/".join(parts[1:]) or None


def _single_file(path: Path) -> ScoreFile:
    match = SAMPLE_FILE.fullmatch(path.name)
    folder = path.resolve().parent
    run = _run_around(path)
    if match is None:
        return ScoreFile(path, path, path.name.split(".")[0], None, "", run)
    model = folder.parent.name if folder.name == match["task"] else folder.name
    return ScoreFile(path, folder, model, None, match["task"], run)
