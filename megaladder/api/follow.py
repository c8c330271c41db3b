"""Callbacks: what happens to a run while the caller waits for it.

They are told from the run folder's own files, in the calling process. So they work for any number
of ranks, see each step once however often the run was resumed, and can neither slow nor stop it.
Places that metrics go to from inside a run (W&B, MLflow …) are `trackers`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from megaladder.api.results import Run, Score, score_of
from megaladder.files.growing import GrowingLines


class Callback(Protocol):
    """What a caller may want to hear of. A class needs only the methods that it cares for.

    One that raises is reported once as a warning and called no more.
    """

    def on_step(self, run: Run, row: Mapping[str, Any]) -> None:
        """A step is finished; `row` as in metrics.jsonl."""

    def on_evaluation(self, run: Run, score: Score) -> None:
        """A benchmark was scored between two steps."""

    def on_checkpoint(self, run: Run, step: int, path: Path) -> None:
        """A checkpoint is committed: complete, and safe from a kill."""

    def on_end(self, run: Run) -> None:
        """The run has ended; `run.ending` says how."""


class Follower:
    """Tells callbacks what is new in a run folder since the last look."""

    def __init__(self, folder: Path, callbacks: Sequence[object]) -> None:
        self._run = Run(folder)
        self._callbacks = list(callbacks)
        self._metrics = NewRows(folder / "metrics.jsonl")
        self._scores = NewRows(folder / "evaluations.jsonl")
        self._checkpoints = set(self._run.checkpoints) if callbacks else set()

    def look(self) -> None:
        """Steps first, then scores, then checkpoints."""
        if not self._callbacks:
            return
        for row in self._metrics.look():
            self._tell("on_step", row)
        for row in self._scores.look():
            self._tell("on_evaluation", score_of(row))
        for step, path in self._run.checkpoints.items():
            if step not in self._checkpoints:
                self._checkpoints.add(step)
                self._tell("on_checkpoint", step, path)

    def end(self) -> None:
        """The last look, and the end."""
        self.look()
        self._tell("on_end")

    def _tell(self, method: str, *what: object) -> None:
        """Broad on purpose: a callback must not end a run."""
        for callback in list(self._callbacks):
            try:
                if (told := getattr(callback, method, None)) is not None:
                    told(self._run, *what)
            except Exception as error:  # noqa: BLE001
                self._callbacks.remove(callback)
                warnings.warn(
                    f"callback {type(callback).__name__}.{method} failed and is called no more:"
                    f" {type(error).__name__}: {error}",
                    stacklevel=2,
                )


class NewRows:
    """Rows of a JSON-lines file that are new since the last look.

    A resumed run cuts the rows of lost work off before it writes on: what is told is every row
    that was not there, in this place, before.
    """

    def __init__(self, path: Path) -> None:
        self._lines = GrowingLines(path)
        # of the line in each place
        self._hashes: list[int] = []
        self.look()

    def look(self) -> list[dict[str, Any]]:
        new = [json.loads(line) for line in self._lines.look()[1] if self._is_new(line)]
        del self._hashes[self._lines.number :]
        return new

    def _is_new(self, line: bytes) -> bool:
        place, found = self._lines.number - 1, hash(line)
        if self._hashes[place : place + 1] == [found]:
            return False
        self._hashes[place:] = [found]
        return True
