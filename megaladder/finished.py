"""What is finished says so at once: no rank and no engine starts for it again.

A training run leaves `finished.json` in its folder, an evaluation `.finished/<settings>.json` in
its output folder: the lines it ended with and what they depend on (settings, size and time of the
input files, what was written). Written last of all; a start that goes on removes it. No torch: the
command line asks before it starts or imports anything heavy.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaladder.config.resume import compare_for_resume
from megaladder.run_dir import RunDir, atomic_write, to_json

if TYPE_CHECKING:
    from megaladder.config.sections.run import RunConfig
    from megaladder.config.verbs.evaluation import EvalConfig

FILE = "finished.json"
EVALUATIONS = ".finished"
_NOT_OF_THE_SCORE = {"progress_s", "grade_workers"}  # settings that change no number


def write_finished(config: RunConfig, run: RunDir, lines: Sequence[str]) -> None:
    """Marks a training run as finished. Main rank only, after everything else is on disk."""
    record = {
        "lines": list(lines),
        "settings": config.model_dump(mode="json"),
        "inputs": _training_inputs(config),
        "outputs": _training_outputs(run),
    }
    atomic_write(run.path / FILE, to_json(record, indent=1) + "\n")


def forget_finished(run: RunDir) -> None:
    """The run goes on: what was finished is so no longer. Main rank only."""
    (run.path / FILE).unlink(missing_ok=True)


def answer_training(config: RunConfig) -> bool:
    """Prints the end of a run that is finished with these very settings and inputs.

    False where anything differs, or is missing: then the run starts as usual and says what is the
    matter.
    """
    run = RunDir(config.run_dir, writer=False)
    record = _read(run.path / FILE)
    if record is None or config.checkpoint.resume == "never":
        return False
    errors, changes = compare_for_resume(record["settings"], config.model_dump(mode="json"))
    same = not errors and not changes and record["inputs"] == _training_inputs(config)
    return same and record["outputs"] == _training_outputs(run) and _say(record)


def write_evaluated(config: EvalConfig, lines: Sequence[str], outputs: Iterable[Path]) -> None:
    """Marks an evaluation as finished; `outputs` are the files that it wrote."""
    record = {
        "lines": list(lines),
        "inputs": _evaluation_inputs(config),
        "outputs": {str(path): _sha256(path) for path in outputs},
    }
    path = _evaluation_mark(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, to_json(record, indent=1) + "\n")


def answer_evaluation(config: EvalConfig) -> bool:
    """Prints the scores of an evaluation that is finished with these very settings and inputs."""
    record = _read(_evaluation_mark(config))
    if record is None or record["inputs"] != _evaluation_inputs(config):
        return False
    written = record["outputs"].items()
    return all(_sha256(Path(path)) == digest for path, digest in written) and _say(record)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    complete = isinstance(record, dict) and {"lines", "inputs", "outputs"} <= record.keys()
    return record if complete else None


def _say(record: dict[str, Any]) -> bool:
    if os.environ.get("RANK", "0") == "0":
        print("finished by an earlier start; nothing to do", *record["lines"], sep="\n")
    return True


def _stamps(paths: Iterable[Path]) -> dict[str, list[int] | None]:
    """Size and modification time of each file; None: not a local file."""
    found: dict[str, list[int] | None] = {}
    for path in paths:
        stat = path.stat() if path.is_file() else None
        found[str(path)] = [stat.st_size, stat.st_mtime_ns] if stat else None
    return found


def _model_files(folder: str | None) -> list[Path]:
    return sorted(Path(folder).glob("*.*")) if folder and Path(folder).is_dir() else []


def _training_inputs(config: RunConfig) -> dict[str, list[int] | None]:
    model = config.model
    named = [Path(name) for name in (*config.data.paths, model.chat_template) if name]
    named += [file for path in named if path.is_dir() for file in sorted(path.rglob("*"))]
    return _stamps([*named, *_model_files(model.path), *_model_files(model.tokenizer)])


def _training_outputs(run: RunDir) -> list[str]:
    """The committed checkpoints and complete exports that lie in the run folder."""
    marks = [*run.path.glob("checkpoints/step_*/COMMITTED"), *run.path.glob("hf/*/config.json")]
    return sorted(str(mark.relative_to(run.path)) for mark in marks)


def _evaluation_inputs(config: EvalConfig) -> dict[str, list[int] | None]:
    model, data = config.model, config.data_dir or os.environ.get("MEGALADDER_DATA")
    names = [name for name in config.benchmark if name]
    files = [path for name in names for path in Path(data or "").glob(f"{name}*/*") if data]
    return _stamps([*files, *_model_files(model.path), *_model_files(model.tokenizer)])


def _evaluation_mark(config: EvalConfig) -> Path:
    settings = config.model_dump(mode="json", exclude=_NOT_OF_THE_SCORE)
    key = hashlib.sha256(to_json(settings, sort_keys=True).encode()).hexdigest()[:16]
    return Path(config.out) / EVALUATIONS / f"{key}.json"


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
