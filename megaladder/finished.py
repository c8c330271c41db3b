"""What is finished says so at once: no rank and no engine starts for it again.

A training run leaves `finished.json` in its folder, an evaluation, a conversion and a teacher's
sampling `.finished/<settings>.json` beside their output: the lines it ended with and what they
depend on (settings, size and time of the input files, what was written). Written last of all; a
start that goes on removes it. Small outputs are compared by sha256; of large ones size and time
count, and where the time differs (a copied folder) the sha256. No torch: the command line asks
before it starts or imports anything heavy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaladder.config.resume import compare_for_resume
from megaladder.config.sections.evaluate import EvaluateSection
from megaladder.errors import DataError
from megaladder.files.sums import read_sums
from megaladder.process import last_word
from megaladder.run_dir import RunDir, read_object, to_json, write_object

if TYPE_CHECKING:
    from megaladder.config.base import StrictModel
    from megaladder.config.sections.run import RunConfig
    from megaladder.config.verbs.convert import HfToMegatronConfig, MegatronToHfConfig
    from megaladder.config.verbs.data import SampleConfig
    from megaladder.config.verbs.evaluation import EvalConfig

FILE = "finished.json"
MARKS = ".finished"
HASHED_BYTES = 1 << 28  # larger files are not read for an answer within two seconds
_NOT_OF_THE_RESULT = {"progress_s", "grade_workers", "force"}  # settings that change no number
# what says which steps of a run are there
_STEP_FILES = ("checkpoints/step_*/COMMITTED", "hf/step_*/*")
_Stamps = dict[str, list[int] | None]


def write_finished(config: RunConfig, run: RunDir, lines: Sequence[str]) -> None:
    """Marks a training run as finished. Main rank only, after everything else is on disk."""
    record = {
        "lines": list(lines),
        "settings": config.model_dump(mode="json"),
        "inputs": _training_inputs(config),
        "outputs": _training_outputs(run),
        "exports": {str(path.relative_to(run.path)): as_written(path) for path in _exports(run)},
    }
    write_object(run.path / FILE, record)


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
    if record is None or "exports" not in record or config.checkpoint.resume == "never":
        return False
    errors, changes = compare_for_resume(record.get("settings", {}), config.model_dump(mode="json"))
    same = not errors and not changes and record["inputs"] == _training_inputs(config)
    same = same and record["outputs"] == _training_outputs(run)
    whole = same and all(
        is_as_written(run.path / name, written) for name, written in record["exports"].items()
    )
    if whole:
        last_word.forget_unwritten(run.path)
    return whole and _say(record)


def write_evaluated(config: EvalConfig, lines: Sequence[str], outputs: Iterable[Path]) -> None:
    """Marks an evaluation as finished; `outputs` are the files that it wrote."""
    _write_mark(_evaluation_mark(config), lines, _evaluation_inputs(config), outputs)


def answer_evaluation(config: EvalConfig) -> bool:
    """Prints the scores of an evaluation that is finished with these very settings and inputs."""
    return _answer_mark(_evaluation_mark(config), _evaluation_inputs(config))


def write_sampled(config: SampleConfig, lines: Sequence[str], outputs: Iterable[Path]) -> None:
    """Marks a teacher's sampling as finished; `outputs` are the files that it wrote."""
    _write_mark(_sampling_mark(config), lines, _sampling_inputs(config), outputs)


def answer_sampling(config: SampleConfig) -> bool:
    """Prints the end of a sampling that is finished with these very settings and inputs."""
    return _answer_mark(_sampling_mark(config), _sampling_inputs(config))


def write_converted(config: HfToMegatronConfig | MegatronToHfConfig, lines: Sequence[str]) -> None:
    """Marks a conversion as finished."""
    mark = _conversion_mark(config)
    _write_mark(mark, lines, _conversion_inputs(config), _files(config.out))


def answer_conversion(config: HfToMegatronConfig | MegatronToHfConfig) -> bool:
    """Prints the end of a conversion that is finished; never with `--force`, which wants it anew."""
    return not config.force and _answer_mark(_conversion_mark(config), _conversion_inputs(config))


def _write_mark(mark: Path, lines: Sequence[str], inputs: _Stamps, outputs: Iterable[Path]) -> None:
    written = {str(path): as_written(path) for path in outputs}
    record = {"lines": list(lines), "inputs": inputs, "outputs": written}
    write_object(mark, record)


def _answer_mark(mark: Path, inputs: _Stamps) -> bool:
    record = _read(mark)
    if record is None or record["inputs"] != inputs:
        return False
    written = record["outputs"].items()
    return all(is_as_written(Path(path), found) for path, found in written) and _say(record)


def as_written(path: Path) -> dict[str, Any]:
    """Size, time and sha256 of a file that was just written, for `is_as_written` later."""
    stat = path.stat()
    digest = read_sums(path.parent).get(path.name) or _sha256(path)
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest}


def is_as_written(path: Path, written: Mapping[str, Any]) -> bool:
    """Whether the file is still what `as_written` saw; a large one that nobody touched is."""
    if not path.is_file() or path.stat().st_size != written["bytes"]:
        return False
    untouched = path.stat().st_mtime_ns == written["mtime_ns"]
    if untouched and written["bytes"] > HASHED_BYTES:
        return True
    return _sha256(path) == written["sha256"]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = read_object(path, "nothing: the next start does it again")
    except (OSError, DataError):
        return None
    return record if _is_record(record) else None


def _is_record(record: Mapping[str, Any]) -> bool:
    kinds = {"lines": list, "inputs": dict, "settings": dict, "exports": dict}
    whole = {"lines", "inputs", "outputs"} <= record.keys()
    whole = whole and all(isinstance(record.get(key, kind()), kind) for key, kind in kinds.items())
    return whole and is_stamped(record.get("exports", record["outputs"]))


def is_stamped(outputs: Any) -> bool:
    """Whether these are names of files with what `as_written` says of each."""
    return isinstance(outputs, dict) and all(map(_is_stamp, outputs.values()))


def _is_stamp(written: Any) -> bool:
    return isinstance(written, dict) and {"bytes", "mtime_ns", "sha256"} <= written.keys()


def _say(record: dict[str, Any]) -> bool:
    if os.environ.get("RANK", "0") == "0":
        print("finished by an earlier start; nothing to do", *record["lines"], sep="\n")
    return True


def _stamps(paths: Iterable[Path]) -> _Stamps:
    """Size and modification time of each file; None: not a local file."""
    found: _Stamps = {}
    for path in paths:
        stat = path.stat() if path.is_file() else None
        found[str(path)] = [stat.st_size, stat.st_mtime_ns] if stat else None
    return found


def _model_files(folder: str | None) -> list[Path]:
    return sorted(Path(folder).glob("*.*")) if folder and Path(folder).is_dir() else []


def _training_inputs(config: RunConfig) -> _Stamps:
    model = config.model
    named = [Path(name) for name in (*config.data.paths, model.chat_template) if name]
    named += [file for path in named if path.is_dir() for file in sorted(path.rglob("*"))]
    named += _benchmark_files(config.evaluate) if config.evaluate.benchmarks else []
    folders = (model.path, model.tokenizer, config.lora.start)
    return _stamps([*named, *(file for folder in folders for file in _model_files(folder))])


def _benchmark_files(asked: EvalConfig | EvaluateSection) -> list[Path]:
    """The files on this machine that decide what the benchmarks are."""
    from megaladder.evaluation.benchmarks.spec import local_files

    names = asked.benchmarks if isinstance(asked, EvaluateSection) else asked.benchmark
    data = asked.data_dir or os.environ.get("MEGALADDER_DATA")
    return local_files(names, asked.registry, data)


def _training_outputs(run: RunDir) -> list[str]:
    """The committed checkpoints and complete exports that lie in the run folder."""
    marks = [*run.path.glob("checkpoints/step_*/COMMITTED"), *run.path.glob("hf/*/config.json")]
    return sorted(str(mark.relative_to(run.path)) for mark in marks)


def _exports(run: RunDir) -> list[Path]:
    return sorted(path for path in run.path.glob("hf/*/*") if path.is_file())


def _evaluation_inputs(config: EvalConfig) -> _Stamps:
    if config.cases:
        each = (_evaluation_inputs(config.case(name)) for name in config.cases)
        return {name: stamp for stamps in each for name, stamp in stamps.items()}
    model = config.model
    run = Path(config.run_dir) if config.run_dir else None
    steps = [path for pattern in _STEP_FILES for path in sorted(run.glob(pattern))] if run else []
    files = _benchmark_files(config)
    return _stamps([*files, *steps, *_model_files(model.path), *_model_files(model.tokenizer)])


def _sampling_inputs(config: SampleConfig) -> _Stamps:
    model = config.model
    named = [Path(name) for name in (config.path, model.chat_template) if name]
    return _stamps([*named, *_model_files(model.path), *_model_files(model.tokenizer)])


def _conversion_inputs(config: HfToMegatronConfig | MegatronToHfConfig) -> _Stamps:
    source = getattr(config, "hf", None) or getattr(config, "megatron", None)
    return _stamps(_files(Path(str(source))))


def _files(folder: Path) -> list[Path]:
    """Every file in it, our own marks apart."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if MARKS not in path.parts)


def _evaluation_mark(config: EvalConfig) -> Path:
    return config.results / MARKS / f"{_key(config)}.json"


def _sampling_mark(config: SampleConfig) -> Path:
    return Path(f"{config.out}.samples") / MARKS / f"{_key(config)}.json"


def _conversion_mark(config: HfToMegatronConfig | MegatronToHfConfig) -> Path:
    return config.out / MARKS / f"{_key(config)}.json"


def _key(config: StrictModel) -> str:
    settings = config.model_dump(mode="json", exclude=_NOT_OF_THE_RESULT)
    return hashlib.sha256(to_json(settings, sort_keys=True).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
