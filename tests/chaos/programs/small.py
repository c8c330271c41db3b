"""Small programs that write what our verbs write, in the order in which they do, without a model's
arithmetic: each goes on from whatever lies in its folder, as the same command started again does.

Each promises what it marks: see `base`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chaos.programs.base import Mark, Workload

from megaladder import run_dir
from megaladder.checkpoint import lineage, store
from megaladder.errors import MegaladderError
from megaladder.evaluation.store import Journal, Record
from megaladder.run_dir import JsonlFile, RunDir, drop_rows_after, read_jsonl

STEPS = 3


class Training(Workload):
    """A run folder whose steps are saved one by one, the newest kept."""

    resumes = True

    def __init__(self, name: str = "training", steps: int = STEPS, keep_last: int = 1) -> None:
        self.name, self._steps, self._keep = name, steps, store.Retention(keep_last=keep_last)

    def run(self, folder: Path, mark: Mark) -> None:
        with RunDir(folder / "run", writer=True) as run:
            run.write_config("optim:\n  lr: 1e-5\n")
            lineage.settle(run.path)
            store.remove_uncommitted(run.checkpoints)
            done = self._resumed(run)
            drop_rows_after(run.metrics, done)
            run.append_history(done, [], {})
            with JsonlFile(run.metrics) as rows:
                for step in range(done + 1, self._steps + 1):
                    rows.append({"step": step, "loss": 1 / step})
                    self._save(run, step, rows)
                    mark(f"saved {step}")
            run_dir.atomic_write(run.path / "finished.json", "{}\n")
            mark("finished")

    def _resumed(self, run: RunDir) -> int:
        for step in reversed(store.committed_steps(run.checkpoints)):
            store.verify(store.step_dir(run.checkpoints, step))
            assert store.read_trainer(store.step_dir(run.checkpoints, step)) == {"step": step}
            store.apply_retention(run.checkpoints, self._keep)
            return step
        return 0

    def _save(self, run: RunDir, step: int, rows: JsonlFile) -> None:
        path = store.step_dir(run.checkpoints, step)
        store.prepare_folder(path, 1000)
        with (path / "__0_0.distcp").open("wb") as file:
            file.write(bytes([step]) * 1000)
        source = run.path.parent / "model"
        source.mkdir(exist_ok=True)
        (source / "config.json").write_text("{}")
        store.copy_files([source / "config.json"], path / "hf")
        store.write_json(path / store.TRAINER, {"step": step})
        rows.sync()
        store.commit(path)
        store.apply_retention(run.checkpoints, self._keep)

    def result(self, folder: Path) -> Any:
        run = folder / "run"
        names = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
        rows = list(read_jsonl(run / "metrics.jsonl"))
        store.verify(run / "checkpoints" / f"step_{self._steps}")
        return [name for name in names if name != "last_word.json"], rows

    def broken_promise(self, folder: Path, marks: Sequence[str]) -> str | None:
        saved = max((int(mark.split()[1]) for mark in marks if mark.startswith("saved")), default=0)
        run = folder / "run"
        steps = store.committed_steps(run / "checkpoints")
        newest = steps[-1] if steps else 0
        if newest < saved:
            return f"step {saved} was saved, the newest is {newest}"
        if newest:
            try:
                store.verify(store.step_dir(run / "checkpoints", newest))
            except MegaladderError as error:
                return str(error)
        file = run / "metrics.jsonl"
        rows = [row["step"] for row in read_jsonl(file)] if newest and file.exists() else []
        if rows[:newest] != list(range(1, newest + 1)):
            return f"rows of {newest} steps are there: {rows}"
        if "finished" in marks and not (run / "finished.json").exists():
            return "it was finished, and does not know"
        return None


class Evaluation(Workload):
    """A journal of samples, and what is written from it."""

    name = "evaluation"
    resumes = True
    _RECORDS = tuple(
        Record(f"q{n}", s, "text " * (n + 1), [n, s], "stop", n == s, "5", "correct")
        for n in range(3)
        for s in range(2)
    )

    def run(self, folder: Path, mark: Mark) -> None:
        with Journal(folder / "out", {"model": "m"}) as journal:
            for record in self._RECORDS:
                if record.key not in journal.records:
                    journal.append(record)
                assert journal.stored[record.key] == record
        with Journal(folder / "out", {"model": "m"}) as journal:
            run_dir.atomic_write(folder / "out" / "summary.json", f"{len(journal.records)}\n")
            mark("finished")

    def result(self, folder: Path) -> Any:
        files = sorted(
            path.name for path in (folder / "out").iterdir() if path.suffix != ".damaged"
        )
        with Journal(folder / "out", {"model": "m"}) as journal:
            return files, dict(journal.stored), (folder / "out" / "summary.json").read_text()

    def broken_promise(self, folder: Path, marks: Sequence[str]) -> str | None:
        if "finished" in marks:
            if not (folder / "out" / "summary.json").exists():
                return "the summary was written, and is not there"
            try:
                with Journal(folder / "out", {"model": "m"}) as journal:
                    if len(journal.records) < len(self._RECORDS):
                        return f"{len(journal.records)} of {len(self._RECORDS)} samples are left"
            except MegaladderError as error:
                return str(error)
        return None


class Rewinding(Workload):
    """A finished run of four steps that is rewound to its second."""

    name = "rewinding"
    resumes = True
    reads_only = False

    def run(self, folder: Path, mark: Mark) -> None:
        with RunDir(folder / "run", writer=True) as held:
            run = held.path
            if not (run / "made").exists():
                self._make(run)
                run_dir.atomic_write(run / "made", "")
            if len(lineage.read_lineage(run).lines) == 1:
                lineage.begin_line(run, run / "checkpoints" / "step_2", 2)
            lineage.settle(run)
            mark("rewound")

    def _make(self, run: Path) -> None:
        for step in range(1, 5):
            path = store.step_dir(run / "checkpoints", step)
            store.prepare_folder(path, 10)
            store.write_json(path / store.TRAINER, {"step": step})
            store.commit(path)
            run_dir.atomic_write(run / "rollouts" / f"step_{step}.jsonl", f"{step}\n")
        lines = "".join(json.dumps({"step": step}) + "\n" for step in range(1, 5))
        run_dir.atomic_write(run / "metrics.jsonl", lines)

    def result(self, folder: Path) -> Any:
        files = sorted(path for path in (folder / "run").rglob("*") if path.is_file())
        timed = ("lineage.json", "last_word.json", ".lock")  # they hold the time, or a process
        told = [path for path in files if path.name not in timed]
        lines = [line.settled for line in lineage.read_lineage(folder / "run").lines]
        return [(str(path.relative_to(folder)), path.read_bytes()) for path in told], lines

    def broken_promise(self, folder: Path, marks: Sequence[str]) -> str | None:
        if "rewound" not in marks:
            return None
        self.run(folder, lambda name: None)
        steps = store.committed_steps(folder / "run" / "checkpoints")
        aside = store.committed_steps(folder / "run" / "set_aside" / "line_1" / "checkpoints")
        return None if (steps, aside) == ([1, 2], [3, 4]) else f"{steps}, set aside {aside}"


WORKLOADS: dict[str, Workload] = {one.name: one for one in (Training(), Evaluation(), Rewinding())}
