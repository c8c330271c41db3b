"""One flipped byte in every file that is ever read: told, made again, or without any effect.

    PYTHONPATH=.:tests python -m chaos.flipped [--positions 2000] [--seed 0]

A real GRPO run with an evaluation, an export and a checkpoint, an SFT run's token cache, an
evaluation's journal, a teacher's and a study's records are made once. In each of their files every
byte (of large files: an even sample) is flipped in one bit, and whatever reads the file reads it:
an error or a warning that names the file is `told`, a reader that takes it for missing and has it
made again is `again`, the same value as before is `same`, and a last line that lost its end is
`torn`, as after a kill. Anything else is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from chaos.flipped_folders import make_all

from megaladder.errors import MegaladderError

FINE = ("told", "again", "same", "torn")
AGAIN = object()  # a reader's answer: nothing usable, it is made again
EDGE = 64  # bytes at each end of a large file: all are flipped
Reader = Callable[[Path], Any]
# written for people or for one start only; nothing that is kept depends on them
NEVER_READ = ("*/log.txt", "*/.lock", "*/.heartbeats/*", "*/engine/*", "*.lock")
# copied anew from the model at every start, before anything reads them
MADE_AT_EVERY_START = ("*/model_files/*",)


def _rows(path: Path) -> Any:
    from megaladder.run_dir import read_jsonl

    return list(read_jsonl(path))


def _object(path: Path) -> Any:
    from megaladder.run_dir import read_object

    return read_object(path, "nothing")


def _config(path: Path) -> Any:
    from megaladder.run_dir import RunDir

    return RunDir(path.parent, writer=False).read_config()


def _checkpoint(path: Path) -> Any:
    from megaladder.checkpoint import store

    folder = next(one for one in path.parents if one.name.startswith("step_"))
    store.verify(folder)
    return store.read_trainer(folder)


def _lineage(path: Path) -> Any:
    from megaladder.checkpoint.lineage import read_lineage

    return read_lineage(path.parent)


def _last_word(path: Path) -> Any:
    from megaladder.process import last_word

    if last_word.damaged(path.parent):  # RunLife says so at the next start
        print(f"{path}: damaged", file=sys.stderr)
    return last_word.read(path.parent)


def _finished(path: Path) -> Any:
    from megaladder.finished import _read

    return _read(path) or AGAIN


def _round(path: Path) -> Any:
    from megaladder.train.rl.records import read_round

    step = int(path.name.split(".")[0].removeprefix("step_"))
    return read_round(path.parent, step)


def _export(path: Path) -> Any:
    from megaladder.checkpoints_conv.reader import HFReader
    from megaladder.files.sums import refuse_damaged

    refuse_damaged(path.parent)
    with HFReader(path.parent) as reader:
        return sorted(reader.shapes.items())


def _journal(path: Path) -> Any:
    from megaladder.evaluation.store import Journal

    parts = json.loads(_MADE_WITH[str(path.parent)])
    with Journal(path.parent, parts) as journal:
        return dict(journal.stored)


def _teacher(path: Path) -> Any:
    from megaladder.curate.teacher.journal import TeacherJournal

    with TeacherJournal(path.parent, {"a": 1}) as journal:
        return dict(journal.records), _rows(path.parent / "journal.jsonl")


def _samples(path: Path) -> Any:
    from megaladder.analysis.samples.sets import read_samples
    from megaladder.analysis.tables import Warnings

    file = next(path.parent.glob("samples_*.jsonl"))
    found = read_samples(file, "m", "b", Warnings())
    return [(one.id, one.correct, one.answers, one.num_tokens) for one in found.problems]


def _scored(path: Path) -> Any:
    from megaladder.analysis.samples.files import read_object

    return read_object(path)


def _store(path: Path) -> Any:
    from megaladder.data.store import SampleStore

    store = SampleStore.open(path.parent)
    rows = [store[index] for index in range(len(store))]
    return [(row.id, row.input_ids.tolist(), row.loss_mask.tolist()) for row in rows], store.report


def _record(path: Path) -> Any:
    from megaladder.study.plan import Job, Plan
    from megaladder.study.record import Records

    out = path.parents[3]
    job = Job("stage", "label", out / "stage" / "label", (("data",),), (), ())
    records = Records(Plan(path.parent, out, (("stage", (job,)),)))
    return records.cost(job) if records.is_finished(job) else AGAIN


def _identity(path: Path) -> Any:
    from megaladder.trackers.tracker import run_identity

    return run_identity(path.parent, anew=False)


READERS: tuple[tuple[str, Reader], ...] = (
    ("*/checkpoints/step_*", _checkpoint),
    ("*/hf/step_*", _export),
    ("*/evaluations/*/SHA256SUMS", _samples),
    ("*/evaluations/*/samples_*.jsonl", _samples),
    ("*/evaluations/*/fingerprint.json", _journal),
    ("*/evaluations/*/journal.jsonl", _journal),
    ("*/evaluations/*/ledger.json", _object),
    ("*/evaluations/*.json", _scored),
    ("*/rollouts/*", _round),
    ("*/config.yaml", _config),
    ("*/fingerprint.json", _object),
    ("*/lineage.json", _lineage),
    ("*/last_word.json", _last_word),
    ("*/finished.json", _finished),
    ("*/best.json", _scored),
    ("*/tracker.json", _identity),
    ("*/teacher.samples/*", _teacher),
    ("*/.study/*", _record),
    ("*/study/stage/*", _record),
    ("*/cache/data-*/*", _store),
    ("*.jsonl", _rows),
)
_MADE_WITH: dict[str, str] = {}


@dataclass
class File:
    """What became of one file's flips."""

    name: str
    size: int
    counts: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)


def reader_of(path: Path) -> Reader | str:
    """What reads a file; a word for one that is not read, or not kept."""
    name = str(path)
    for patterns, word in (
        (NEVER_READ, "never read"),
        (MADE_AT_EVERY_START, "made at every start"),
    ):
        if any(fnmatch(name, pattern) for pattern in patterns):
            return word
    for pattern, reader in READERS:
        if fnmatch(name, pattern):
            return reader
    return "no reader is known"


def flips(size: int, most: int, rng: random.Random) -> Iterator[tuple[int, int]]:
    """(position, bit): every byte of a small file; of a large one its ends and one byte of each of
    `most` equal parts."""
    if size <= max(most, 2 * EDGE):
        places = list(range(size))
    else:
        edges = [*range(EDGE), *range(size - EDGE, size)]
        places = [
            *edges,
            *(rng.randrange(i * size // most, (i + 1) * size // most) for i in range(most)),
        ]
    for place in places:
        yield place, 1 << rng.randrange(8)


def flip_all(path: Path, reader: Reader, most: int, rng: random.Random) -> File:
    """Flips and reads; the file is as it was afterwards."""
    good = path.read_bytes()
    folder, kept = path.parent, None
    if reader in (_journal, _teacher, _identity, _record):  # they write too
        kept = Path(tempfile.mkdtemp(prefix="kept-"))
        shutil.copytree(folder, kept / "at", dirs_exist_ok=True)
    expected, _ = _read(reader, path)
    found = File(str(path), len(good))
    for place, bit in flips(len(good), most, rng):
        raw = bytearray(good)
        raw[place] ^= bit
        path.write_bytes(raw)
        how = _outcome(reader, path, expected)
        how = (
            "torn" if how == "lost" and place == len(good) - 1 and path.suffix == ".jsonl" else how
        )
        found.counts[how] += 1
        if how not in FINE:
            found.lost.append(f"{place} ^ {bit}: {how}")
        if kept is not None:
            shutil.copytree(kept / "at", folder, dirs_exist_ok=True)
    path.write_bytes(good)
    if kept is not None:
        shutil.rmtree(kept)
    return found


def _outcome(reader: Reader, path: Path, expected: Any) -> str:
    try:
        value, said = _read(reader, path)
    except MegaladderError as error:
        return "told" if path.name in str(error) or path.parent.name in str(error) else "unnamed"
    except Exception as error:
        return f"uncaught {type(error).__name__}: {str(error)[:100]}"
    if value is AGAIN:
        return "again"
    if path.name in said:
        return "told"
    return "same" if value == expected else "lost"


def _read(reader: Reader, path: Path) -> tuple[Any, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        value = reader(path)
    return value, said.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, default=2000, help="at most, of each file")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="flipped-"))
    try:
        return _all(root, given.positions, given.seed)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _all(root: Path, most: int, seed: int) -> int:
    _MADE_WITH.update(make_all(root))
    total, kinds, bad = Counter[str](), Counter[str](), 0
    for path in sorted(one for one in root.rglob("*") if one.is_file()):
        if "inputs" in path.relative_to(root).parts:
            continue
        reader = reader_of(path)
        name = path.relative_to(root)
        if isinstance(reader, str):
            kinds[reader] += 1
            if reader == "no reader is known":
                print(f"{name}: {reader}", flush=True)
                bad += 1
            continue
        found = flip_all(path, reader, most, random.Random(f"{seed}/{name}"))
        kinds["read"] += 1
        total += found.counts
        if found.lost:
            bad += len(found.lost)
            print(f"{name} ({found.size:,} bytes): {dict(found.counts)}", flush=True)
            print("\n".join(f"    {one}" for one in found.lost[:6]), flush=True)
    fine = sum(total[word] for word in FINE)
    print(
        f"files: {dict(kinds)}; flips: {total.total():,}: {dict(total)}; {fine / total.total():.3%}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
