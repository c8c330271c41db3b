"""Lines of a run: what belongs together when a run was rewound.

A run is a line of steps. `checkpoint.resume …/step_4` starts a new line after step 4: what the line
before has beyond that step (checkpoints, exports, rollouts, rows of metrics) moves to
`set_aside/<line>/` and is never deleted. So the folders of a run hold its current line only, and
there the largest number is the newest.

    run_dir/lineage.json     every line, oldest first; the last one is current

A new line is recorded before anything moves. A start that finds it unsettled finishes the moves, so
a kill at any moment leaves either the old line or the new one. No torch.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megaladder.errors import CheckpointError, DataError
from megaladder.process.storage import fsync_folder, make_folder
from megaladder.run_dir import (
    atomic_lines,
    drop_rows_after,
    read_object,
    sealed_line,
    split_rows,
    write_object,
)

FILE = "lineage.json"
SET_ASIDE = "set_aside"
_FIX = "restore the file, or start in a new run_dir with checkpoint.resume naming a step here"
NOTHING = -1  # as `fork`: the new line keeps no step of the one before
_STEP_NAME = re.compile(r"step_(\d+)(\.jsonl|\.summary\.json)?")
_STEP_FOLDERS = ("checkpoints", "hf", "rollouts", "evaluations", "eval")
_ROW_FILES = ("metrics.jsonl", "held_out.jsonl", "evaluations.jsonl")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a run that was started again from an earlier step.

    Its name, the step after which it left the line before, and the checkpoint that it began from
    (None: the run's first line, from the model)."""

    name: str = "line_1"
    fork: int = NOTHING
    origin: str | None = None
    began: str = ""
    settled: bool = True


@dataclass(frozen=True, slots=True)
class Lineage:
    """The lines of a run, oldest first."""

    lines: tuple[Line, ...] = (Line(),)

    @property
    def current(self) -> Line:
        """The line that a start continues."""
        return self.lines[-1]


def read_lineage(run_dir: Path) -> Lineage:
    """The lines of a run folder; a folder without the file has its first one.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = run_dir / FILE
    try:
        lines = tuple(Line(**row) for row in read_object(path, _FIX)["lines"])
        if not lines or not all(map(_is_line, lines)):
            raise ValueError("none, or with values of other kinds")
        return Lineage(lines)
    except FileNotFoundError:
        return Lineage()
    except DataError as error:
        raise CheckpointError(str(error)) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: expected the lines of this run, found {type(error).__name__}: {error}; fix:"
            f" {_FIX}"
        ) from None


def _is_line(line: Line) -> bool:
    whole = isinstance(line.fork, int) and isinstance(line.settled, bool)
    return whole and isinstance(line.name, str) and isinstance(line.origin, str | None)


def begin_line(run_dir: Path, origin: Path, step: int) -> Lineage:
    """Starts a line at the checkpoint `origin` of `step` and sets aside what it leaves behind."""
    lineage = read_lineage(run_dir)
    is_own = origin.resolve().parent == (run_dir / "checkpoints").resolve()
    line = Line(
        name=f"line_{len(lineage.lines) + 1}",
        fork=step if is_own else NOTHING,
        origin=str(origin.resolve()),
        began=time.strftime("%Y-%m-%d %H:%M:%S"),
        settled=False,
    )
    _write(run_dir, Lineage((*lineage.lines, line)))
    return settle(run_dir)


def settle(run_dir: Path) -> Lineage:
    """Finishes the moves of a line that was begun; does nothing where all is settled."""
    lineage = read_lineage(run_dir)
    if lineage.current.settled:
        return lineage
    set_aside(run_dir, lineage.lines[-2].name, after=lineage.current.fork)
    settled = Lineage((*lineage.lines[:-1], replace(lineage.current, settled=True)))
    _write(run_dir, settled)
    return settled


def set_aside(run_dir: Path, name: str, after: int) -> None:
    """Moves everything of steps above `after` to `set_aside/name/`. May be repeated after a kill."""
    target = run_dir / SET_ASIDE / name
    for folder in _STEP_FOLDERS:
        paths = [path for path, step in _steps(run_dir / folder) if step > after]
        move(paths, target / folder)
    for file in _ROW_FILES:
        _set_rows_aside(run_dir / file, target / file, after)


def move(paths: Sequence[Path], target: Path) -> None:
    """Renames `paths` into the folder `target`, durably. A link is moved as a link."""
    if not paths:
        return
    make_folder(target)
    for path in paths:
        os.replace(path, _free_name(target / path.name))
        fsync_folder(path.parent)
    fsync_folder(target)


def _free_name(path: Path) -> Path:
    """`path`, or with a number behind it where that name is taken."""
    names = (path, *(path.with_name(f"{path.name}.{number}") for number in range(2, 1000)))
    return next(name for name in names if not os.path.lexists(name))


def _steps(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _STEP_NAME.fullmatch(path.name)
        if match:
            yield path, int(match[1])


def _set_rows_aside(file: Path, target: Path, after: int) -> None:
    if not file.exists():
        return
    _, rows, _ = split_rows(file, after)
    if not rows:
        return
    if not target.exists():
        atomic_lines(target, map(sealed_line, rows))
    drop_rows_after(file, after)


def _write(run_dir: Path, lineage: Lineage) -> None:
    lines = [asdict(line) for line in lineage.lines]
    write_object(run_dir / FILE, {"lines": lines})
