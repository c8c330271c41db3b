"""What a job left behind, so that the next start need not do it again.

    OUT/.study/STAGE/LABEL/record.json    digests of what it was made from and of what it wrote
    OUT/.study/STAGE/LABEL/begun.json     the digest of what it was last begun with
    OUT/.study/STAGE/LABEL/log.txt        what its commands said

A job is finished when its commands, the run files that they name and the records of the stages that
it reads are as recorded, and every file that it wrote is still as it was written.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder.config.resolve.overlay import load_layered
from megaladder.errors import DataError
from megaladder.finished import as_written, is_as_written, is_stamped
from megaladder.process.storage import make_folder
from megaladder.run_dir import read_object, to_json, write_object
from megaladder.study.plan import Job, Plan, recipes_folder

NOTES = ".study"
# of a run: what later stages never read, and what changes without the result
NO_RESULTS = {"checkpoints", "logs", "log.txt", "last_word.json"}


@dataclass(frozen=True)
class Cost:
    """What a job took, over all its starts."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


class Records:
    """The records of a study's output folder."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._inputs: dict[str, str] = {}

    def notes(self, job: Job) -> Path:
        """The folder of a job's record and log."""
        return self._plan.out / NOTES / job.stage / job.label

    def is_finished(self, job: Job) -> bool:
        """Whether its record says so and is still true.

        Then what it took stands there, and a note that a start which was killed just then left goes.
        """
        record = self._read(job)
        if record.get("inputs") != self._inputs_of(job):
            return False
        written = record["outputs"].items()
        finished = all(is_as_written(job.folder / name, found) for name, found in written)
        if finished:
            (self.notes(job) / "cost.json").unlink(missing_ok=True)
        return finished

    def begin(self, job: Job) -> None:
        """Makes the job's folder; what was made there from something else is removed.

        No verb would go on from it.
        """
        notes, inputs = self.notes(job), self._inputs_of(job)
        make_folder(notes)
        begun = notes / "begun.json"
        if begun.is_file() and _read(begun).get("inputs") != inputs:
            shutil.rmtree(job.folder, ignore_errors=True)
            (notes / "cost.json").unlink(missing_ok=True)
        make_folder(job.folder)
        write_object(begun, {"inputs": inputs})

    def write(self, job: Job, cost: Cost) -> None:
        """Marks a job as finished; the last thing that is done for it."""
        outputs = {
            str(path.relative_to(job.folder)): as_written(path) for path in _results(job.folder)
        }
        if not outputs:
            raise DataError(
                f"{job.name}: its commands ended well and wrote nothing into {job.folder}; fix:"
                " ${here} in its commands"
            )
        record = {
            "inputs": self._inputs_of(job),
            "outputs": outputs,
            "digest": _digest({name: found["sha256"] for name, found in outputs.items()}),
            "wall_s": cost.wall_s,
            "cpu_s": cost.cpu_s,
        }
        write_object(self.notes(job) / "record.json", record)
        (self.notes(job) / "cost.json").unlink(missing_ok=True)

    def add_cost(self, job: Job, cost: Cost) -> Cost:
        """Notes what a start took that did not finish the job; the sum over all such starts."""
        path = self.notes(job) / "cost.json"
        total = _cost_of(_read(path)) + cost
        write_object(path, {"wall_s": total.wall_s, "cpu_s": total.cpu_s})
        return total

    def cost(self, job: Job) -> Cost:
        """What a finished job took."""
        return _cost_of(self._read(job))

    def _inputs_of(self, job: Job) -> str:
        """Digest of everything that the job is made from.

        Where the study's folders lie is not part of it: they may be moved."""
        if job.name not in self._inputs:
            self._inputs[job.name] = _digest(
                {
                    "commands": [[self._unplaced(w) for w in c] for c in job.commands],
                    "files": {path.name: _digest(_content(path)) for path in job.files},
                    "needs": {
                        other.name: self._read(other).get("digest")
                        for stage in job.needs
                        for other in self._plan.jobs_of(stage)
                    },
                }
            )
        return self._inputs[job.name]

    def _unplaced(self, word: str) -> str:
        """The word without the places of the study's folders."""
        plan = self._plan
        placed = word.replace(str(plan.out), "${out}").replace(str(plan.folder), "${study}")
        return placed.replace(recipes_folder(), "${recipes}")

    def _read(self, job: Job) -> dict[str, Any]:
        record = _read(self.notes(job) / "record.json")
        return record if is_stamped(record.get("outputs")) else {}


def _read(path: Path) -> dict[str, Any]:
    """What a file here says; nothing where there is none, or not what was written."""
    try:
        return read_object(path, "nothing, the job counts as not done")
    except FileNotFoundError:
        return {}
    except (OSError, DataError) as error:
        print(f"warning: {error}", file=sys.stderr)
        return {}


def _cost_of(record: Mapping[str, Any]) -> Cost:
    values = (record.get("wall_s", 0.0), record.get("cpu_s", 0.0))
    return Cost(
        *(float(v) if isinstance(v, (int, float)) and abs(v) < 1e12 else 0.0 for v in values)
    )


def _content(path: Path) -> Any:
    """What a run file says, its `base:` included; another file's text."""
    if path.suffix == ".yaml":
        return load_layered(path).values
    return path.read_text("utf-8")


def _results(folder: Path) -> list[Path]:
    """The files of a job that count as its results."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if _is_result(path.relative_to(folder).parts))


def _is_result(parts: tuple[str, ...]) -> bool:
    return not any(part in NO_RESULTS or part.startswith(".") for part in parts)


def _digest(value: Any) -> str:
    return hashlib.sha256(to_json(value, sort_keys=True).encode("utf-8")).hexdigest()
