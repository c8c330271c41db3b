"""`megaladder grade`: rows in, graded rows out, through the pool that RL and the benchmarks use."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from megaladder.analysis.runs.choose import every_score
from megaladder.analysis.runs.read import look_for_runs
from megaladder.analysis.samples.files import SAMPLE_FILE, read_object
from megaladder.analysis.tables import Warnings
from megaladder.config.verbs.grade import GradeConfig
from megaladder.data.layouts.stored import lifted, stored_layout
from megaladder.data.read import BadRow
from megaladder.data.sources.source import open_source
from megaladder.errors import ConfigError, DataError
from megaladder.files.typed import typed
from megaladder.process.storage import fails_by_itself, fsync_folder, open_temporary
from megaladder.rewards.grade import grader_label
from megaladder.rewards.verifiers import VERIFIERS, check_row
from megaladder.rewards.verifiers.pool import VerifierPool
from megaladder.rewards.worker import GradeTask
from megaladder.run_dir import atomic_write, to_json
from megaladder.types import Graded, GradeReason

CHUNK_ROWS = 4096  # rows in memory at once
MAX_NAMED = 5  # undecided responses that the summary names


@dataclass(frozen=True, slots=True)
class _Row:
    """One input row: `responses` has one item for a row with `response`."""

    where: str
    fields: dict[str, Any]
    gold: str
    kind: str
    responses: tuple[str, ...]
    listed: bool
    plain: bool  # has the columns that `grade` itself asks for


def run_grade(config: GradeConfig) -> int:
    """Grades `config.input` into `config.output`.

    A file, or every stored sample file of a folder of runs or evaluations. Raises DataError (status
    2) before an output is touched."""
    started = time.monotonic()
    counts = _Counts()
    label = grader_label(config.grader, config.extract)
    places = _places(config)
    pool = VerifierPool(
        config.workers, config.timeout_s, config.memory_mib << 20, config.grader, config.extract
    )
    with pool:
        for source, target in places.items():
            _grade_file(source, target, config.kind, pool, label, counts)
    _summarise(config, counts, time.monotonic() - started)
    return 0


def _places(config: GradeConfig) -> dict[str, Path]:
    """Input file → output file.

    A folder with stored samples gives <output>/<model>/<benchmark>/samples_<benchmark>.jsonl of
    each."""
    found = {}
    if Path(config.input).is_dir():
        runs = look_for_runs((config.input,), Warnings())
        found = every_score(runs) if any(s.samples for r in runs for s in r.scores) else {}
    if found and Path(config.output).is_file():
        raise ConfigError(f"{config.output}: is a file; fix: --output needs a folder here")
    places = {
        str(score.samples): Path(config.output) / name / f"samples_{score.benchmark}.jsonl"
        for name, (_, score) in found.items()
    }
    return places or {config.input: Path(config.output)}


def _grade_file(
    source: str, target: Path, kind: str, pool: VerifierPool, label: str, counts: _Counts
) -> None:
    rows = _read_rows(source, kind)
    chunk = list(islice(rows, CHUNK_ROWS))
    if not chunk:
        raise DataError(
            f"{source}: no rows; fix: give a file with rows {{'id', 'gold', 'response' or"
            " 'responses'}"
        )
    with _replaced(str(target)) as output:
        while chunk:
            tasks = [task for row in chunk for task in _tasks(row)]
            graded = pool.grade_many(tasks)
            start = 0
            for row in chunk:
                verdicts = graded[start : start + len(row.responses)]
                start += len(row.responses)
                output.write((to_json(_graded_row(row, verdicts, label)) + "\n").encode("utf-8"))
            counts.add(len(chunk), tasks, graded)
            chunk = list(islice(rows, CHUNK_ROWS))
    if SAMPLE_FILE.fullmatch(target.name):
        _keep_origin(Path(source), target, label)


def _keep_origin(source: Path, target: Path, label: str) -> None:
    """What the results beside the source say of weights and protocol goes beside the target too.

    Without scores, for those are the new verdicts'."""
    task = SAMPLE_FILE.fullmatch(target.name)["task"]  # type: ignore[index]
    before = read_object(source.parent / f"results_{task}.json")
    if "protocol" in before:
        origin: dict[str, Any] = {
            "results": {task: {}},
            "protocol": {**before["protocol"], "grader": label},
            "model_name": before.get("model_name"),
        }
        atomic_write(target.parent / f"results_{task}.json", to_json(origin, indent=2) + "\n")


@dataclass(slots=True)
class _Counts:
    """What the summary says. `undecided`: one line a response without a verdict."""

    num_rows: int = 0
    num_correct: int = 0
    reasons: Counter[GradeReason] = field(default_factory=Counter)
    undecided: list[str] = field(default_factory=list)

    def add(self, num_rows: int, tasks: Sequence[GradeTask], graded: Sequence[Graded]) -> None:
        self.num_rows += num_rows
        self.num_correct += sum(verdict.correct is True for verdict in graded)
        self.reasons.update(verdict.reason for verdict in graded)
        self.undecided += [
            f"{task.id}: {verdict.reason.value}, {verdict.detail}"
            for task, verdict in zip(tasks, graded, strict=True)
            if verdict.correct is None
        ]


def _tasks(row: _Row) -> list[GradeTask]:
    name = str(row.fields.get("id", row.where))
    names = (
        [f"{name}, response {i + 1}" for i in range(len(row.responses))] if row.listed else [name]
    )
    return [
        GradeTask(each, response, row.gold, row.kind, row.fields)
        for each, response in zip(names, row.responses, strict=True)
    ]


def _graded_row(row: _Row, verdicts: Sequence[Graded], label: str) -> dict[str, Any]:
    # a row's own `answer` is often its gold
    answer = "answer" if row.plain and "answer" not in row.fields else "extracted_answer"
    columns: dict[str, list[Any]] = {
        answer: [verdict.answer for verdict in verdicts],
        "correct": [verdict.correct for verdict in verdicts],
        "reason": [verdict.reason.value for verdict in verdicts],
    }
    return {
        **row.fields,
        "grader": label,
        **(columns if row.listed else {name: values[0] for name, values in columns.items()}),
    }


def _read_rows(path: str, kind: str) -> Iterator[_Row]:
    """Rows of the input, checked. Raises DataError with `file:line:`."""
    for row in open_source(path).rows():
        if isinstance(row, BadRow):
            if row.reason == "blank line":
                continue
            raise row
        yield _parse_row(row.whole, row.where, kind)


def _parse_row(fields: dict[str, Any], where: str, kind: str) -> _Row:
    layout = stored_layout(fields, where)
    stored = layout.stored if layout is not None else None
    row = lifted(fields, stored) if stored is not None else fields
    plain = layout is None or layout.name == "samples"
    responses, listed = _responses(fields if plain else row, where)
    kind = str(row.get("verifier") or "math") if kind == "auto" else kind
    return _Row(where, fields, _gold(row, where, kind), kind, responses, listed, plain)


def _gold(fields: dict[str, Any], where: str, kind: str) -> str:
    if kind not in VERIFIERS:
        raise DataError(
            f"{where}: verifier {kind!r}; fix: one of {', '.join(VERIFIERS)}, or --kind"
        )
    if "gold" not in fields and not VERIFIERS[kind].needs_gold:
        fields = {**fields, "gold": ""}
    if "gold" not in fields:
        raise DataError(
            f"{where}: no field 'gold'; it has"
            f" {', '.join(map(repr, list(fields)[:10])) or 'no fields'}; fix: name it so"
        )
    gold = fields["gold"]
    if isinstance(gold, (int, float)) and not isinstance(gold, bool):
        gold = str(gold)
    try:
        check_row(kind, gold, fields)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return gold


def _responses(fields: dict[str, Any], where: str) -> tuple[tuple[str, ...], bool]:
    present = [name for name in ("response", "responses") if name in fields]
    if len(present) != 1:
        found = (
            "both 'response' and 'responses'" if present else "neither 'response' nor 'responses'"
        )
        raise DataError(f"{where}: {found}; fix: exactly one of them")
    value = fields[present[0]]
    listed = present[0] == "responses"
    if listed and (not isinstance(value, list) or not value):
        raise DataError(
            f"{where}: 'responses' must be a list of one or more texts, found"
            f" {json.dumps(value)[:60]}; fix: correct the row"
        )
    texts = value if listed else [value]
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise DataError(
            f"{where}: '{present[0]}' must hold text, found {json.dumps(wrong[0])[:60]}; fix:"
            " correct the row"
        )
    return tuple(texts), listed


@contextmanager
def _replaced(path: str) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well, and vanishes otherwise."""
    target = Path(path)
    if target.is_dir():
        raise ConfigError(f"{path}: is a folder; fix: --output needs a file name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary, file = open_temporary(target)
    except OSError as error:
        if fails_by_itself(error):
            raise
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); fix: another --output"
        ) from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)
        fsync_folder(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _summarise(config: GradeConfig, counts: _Counts, seconds: float) -> None:
    """Totals, reasons, the responses that stayed undecided, and the next command."""
    total, num_undecided = counts.reasons.total(), len(counts.undecided)
    num_decided = max(1, total - num_undecided)
    parts = ", ".join(f"{reason.value} {count}" for reason, count in counts.reasons.most_common())
    print(
        f"grader {grader_label(config.grader, config.extract)}: graded {total} responses of {counts.num_rows} rows in {seconds:.1f} s"
        f" ({total / max(seconds, 1e-9):.0f}/s): {counts.num_correct} correct,"
        f" {total - num_undecided - counts.num_correct} wrong, {num_undecided} undecided;"
        f" {100 * counts.num_correct / num_decided:.2f} % of the decided"
    )
    print(f"by reason: {parts}")
    for line in counts.undecided[:MAX_NAMED]:
        print(f"undecided: {line}")
    if num_undecided > MAX_NAMED:
        print(f"… and {num_undecided - MAX_NAMED} more; `correct` is null in their rows")
    print(f"written: {config.output}")
    print(f"next: megaladder analyze pass-at-k {typed(config.output)} --k 1 --json pass_at_k.json")
