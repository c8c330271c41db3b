"""More programs for power cuts: what an evaluation writes beside its journal, a token cache, a
study's record, a teacher's journal, a round of rollouts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from chaos.programs.base import Mark, Workload
from chaos.programs.small import Training

from megaladder.curate.teacher.journal import TeacherJournal, TeacherSample
from megaladder.data.store import DamagedStoreError, DataReport, SampleStore, StoreWriter, commit
from megaladder.errors import MegaladderError
from megaladder.files.sums import forget_sums, refuse_changed, write_sums
from megaladder.process.storage import make_folder, remove_temporaries
from megaladder.run_dir import (
    JsonlFile,
    atomic_lines,
    drop_rows_after,
    read_jsonl,
    read_object,
    split_rows,
    to_json,
    write_object,
)
from megaladder.study.plan import Job, Plan
from megaladder.study.record import Cost, Records
from megaladder.types import Completion, FinishReason, Graded, GradeReason, TokenSample


class Results(Workload):
    """Samples of a benchmark, written again with more of them, as `write_results` does."""

    name = "results"

    def run(self, folder: Path, mark: Mark) -> None:
        out = folder / "out"
        for n in (1, 2):
            forget_sums(out)
            rows = (to_json({"id": f"q{i}", "n": n}).encode() + b"\n" for i in range(3))
            atomic_lines(out / "samples_a.jsonl", rows)
            write_sums(out, ["samples_a.jsonl"])
            write_object(out / "results_a.json", {"n": n})
            write_object(out / "summary.json", {"n": n})
            mark(f"written {n}")

    def result(self, folder: Path) -> Any:
        refuse_changed(folder / "out" / "samples_a.jsonl")
        remove_temporaries(folder / "out")
        return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}

    def broken_promise(self, folder: Path, marks: Sequence[str]) -> str | None:
        out = folder / "out"
        if not marks:
            return None
        try:
            refuse_changed(out / "samples_a.jsonl")
            rows = [json.loads(line) for line in (out / "samples_a.jsonl").read_text().splitlines()]
            found = {
                read_object(out / name, "x")["n"] for name in ("results_a.json", "summary.json")
            }
        except (MegaladderError, OSError) as error:
            return str(error)
        least = len(marks)
        whole = len(rows) == 3 and min(found | {row["n"] for row in rows}) >= least
        return None if whole else f"{marks[-1]}; the files say {rows} and {found}"


class TokenCache(Workload):
    """Tokenised samples, opened by whoever comes first and used by all."""

    name = "token cache"

    def run(self, folder: Path, mark: Mark) -> None:
        cache, new = folder / "data-1", folder / "data-1.tmp"
        try:
            SampleStore.open(cache)
        except DamagedStoreError:
            new.mkdir(parents=True, exist_ok=True)
            writer = StoreWriter(new)
            for index in range(3):
                ids = np.arange(index + 2, dtype=np.int32)
                writer.add(TokenSample(f"s{index}", ids, np.ones(index + 2, bool), None, None))
            commit(writer, new, cache, "f", DataReport(path="a"))
        mark("cached")

    def result(self, folder: Path) -> Any:
        store = SampleStore.open(folder / "data-1")
        return [(store[i].id, store[i].input_ids.tolist()) for i in range(len(store))]

    def broken_promise(self, folder: Path, marks: Sequence[str]) -> str | None:
        try:
            found = self.result(folder)
        except DamagedStoreError as error:  # made again; only after the promise is that a loss
            return str(error) if marks else None
        return None if len(found) == 3 else f"opens with {found}"


class StudyRecord(Workload):
    """A job that is finished, and one that was not at first."""

    name = "study record"

    def _records(self, folder: Path) -> tuple[Records, Job]:
        job = Job("stage", "label", folder / "stage" / "label", (("data",),), (), ())
        return Records(Plan(folder, folder, (("stage", (job,)),))), job

    def run(self, folder: Path, mark: Mark) -> None:
        records, job = self._records(folder)
        if not records.is_finished(job):
            make_folder(records.notes(job))
            make_folder(job.folder)
            records.add_cost(job, Cost(1.0, 1.0))
            atomic_lines(job.folder / "rows.jsonl", [b'{"id": 1}\n'])
            records.write(job, Cost(1.0, 1.0))
        mark("finished")

    def result(self, folder: Path) -> Any:
        records, job = self._records(folder)
        return records.is_finished(job), (job.folder / "rows.jsonl").read_bytes()

    def broken_promise(self, folder: Path, marks: Sequence[str]) -> str | None:
        records, job = self._records(folder)
        finished = records.is_finished(job)
        if finished and not (job.folder / "rows.jsonl").read_bytes():
            return "counts as finished without its rows"
        return "it was finished, and does not know" if marks and not finished else None


class Teacher(Workload):
    """A teacher's samples, promised when the journal is closed."""

    name = "teacher"

    def run(self, folder: Path, mark: Mark) -> None:
        with TeacherJournal(folder / "out", {"a": 1}) as journal:
            for sample in journal.missing("q", 4):
                ids = tuple(range(sample, sample + 5))
                done = Completion(ids, "text", FinishReason.STOP, (-0.5,) * 5, 0)
                graded = Graded(True, "5", GradeReason.EXACT)
                journal.append(TeacherSample("q", sample, done, graded))
        mark("closed")

    def result(self, folder: Path) -> Any:
        with TeacherJournal(folder / "out", {"a": 1}) as journal:
            return {key: found.num_tokens for key, found in journal.records.items()}

    def broken_promise(self, folder: Path, marks: Sequence[str]) -> str | None:
        if not marks:
            return None
        try:
            found = self.result(folder)
        except MegaladderError as error:
            return str(error)
        return None if len(found) == 4 else f"{len(found)} of 4 samples are left"


class Objects(Workload):
    """A small file that is replaced again and again: lineage, record, last word."""

    name = "objects"

    def run(self, folder: Path, mark: Mark) -> None:
        for n in range(1, 6):
            write_object(folder / "a" / "lineage.json", {"n": n, "more": "x" * 50 * n})
            mark(f"written {n}")

    def result(self, folder: Path) -> Any:
        return read_object(folder / "a" / "lineage.json", "x")

    def broken_promise(self, folder: Path, marks: Sequence[str]) -> str | None:
        path = folder / "a" / "lineage.json"
        if not path.exists():
            return f"{marks[-1]}, and there is none" if marks else None
        found = read_object(path, "x")["n"]
        return None if found >= len(marks) else f"{marks[-1]}, and it says {found}"


class Rows(Workload):
    """Rows of steps between two saves: those of the saved step are promised, no later ones."""

    name = "rows"

    def run(self, folder: Path, mark: Mark) -> None:
        saved, rows = folder / "saved.json", folder / "metrics.jsonl"
        step = read_object(saved, "x")["step"] if saved.exists() else 0
        drop_rows_after(rows, step)
        with JsonlFile(rows) as file:
            while step < 7:
                step += 1
                file.append({"step": step, "loss": 1 / step})
                if step % 3 == 0:
                    file.sync()
                    write_object(saved, {"step": step})
                    mark(f"saved {step}")
            file.sync()

    def result(self, folder: Path) -> Any:
        return list(read_jsonl(folder / "metrics.jsonl"))

    def broken_promise(self, folder: Path, marks: Sequence[str]) -> str | None:
        saved = folder / "saved.json"
        step = read_object(saved, "x")["step"] if saved.exists() else 0
        if step < 3 * len(marks):
            return f"{marks[-1]}, and it says {step}"
        kept = split_rows(folder / "metrics.jsonl", step)[0] if step else []
        there = [row["step"] for row in kept]
        return None if there == list(range(1, step + 1)) else f"rows {there} of step {step}"


_TWO_KEPT = Training("two kept", steps=5, keep_last=2)
_ALL = (Results(), TokenCache(), StudyRecord(), Teacher(), Objects(), Rows(), _TWO_KEPT)
WORKLOADS: dict[str, Workload] = {one.name: one for one in _ALL}
