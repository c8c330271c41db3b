"""Tells callbacks what a run folder has that it had not before.

Files are the only way: so it works for any number of ranks and from any process, each row is told
once however often the run was resumed, and nobody who listens can slow the run or stop it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from megaladder.events.run import SCORE_KEYS, Run, score_of
from megaladder.files.growing import GrowingLines

MAX_STEP = 1 << 62


class Follower:
    """Tells callbacks what is new in a run folder since the last look.

    callbacks: by the name that a warning calls them; warn: gets a sentence for each that failed.
    """

    def __init__(
        self, folder: Path, callbacks: Mapping[str, object], warn: Callable[[str], None]
    ) -> None:
        self._run, self._warn = Run(folder), warn
        self._callbacks = dict(callbacks)
        self._metrics = NewRows(folder / "metrics.jsonl", ("step",), warn)
        self._held_out = NewRows(folder / "held_out.jsonl", (), warn)
        self._scores = NewRows(folder / "evaluations.jsonl", SCORE_KEYS, warn)
        self._checkpoints = set(self._run.checkpoints) if callbacks else set()
        self._begun = False

    def look(self) -> None:
        """Steps with their answers first, then held-out losses, scores, checkpoints."""
        if not self._callbacks or not (self._run.folder / "config.yaml").is_file():
            return
        if not self._begun:
            self._begun = True
            self._tell("on_start")
        # read against the order in which a run writes, so that what is told has its step before it
        checkpoints = self._run.checkpoints
        scores, held_out = self._scores.look(), self._held_out.look()
        for row in self._metrics.look():
            self._tell("on_step", row)
            # written before the step's row
            rollouts = self._run.folder / "rollouts" / f"step_{row['step']}.jsonl"
            if rollouts.is_file():
                self._tell("on_rollouts", row["step"], rollouts)
        for row in held_out:
            self._tell("on_held_out", row)
        for row in scores:
            self._tell("on_evaluation", score_of(row))
        for step, path in checkpoints.items():
            if step not in self._checkpoints:
                self._checkpoints.add(step)
                self._tell("on_checkpoint", step, path)

    def end(self, exit_status: int) -> None:
        """The last look, and the end."""
        self.look()
        self._tell("on_end", exit_status)

    def _tell(self, event: str, *what: object) -> None:
        for name, callback in list(self._callbacks.items()):
            try:
                if (told := getattr(callback, event, None)) is not None:
                    told(self._run, *what)
            # whoever listens must not end a run
            except Exception as error:  # noqa: BLE001
                del self._callbacks[name]
                self._warn(
                    f"{name} failed at {event} and is called no more: {type(error).__name__}:"
                    f" {error}"
                )


class NewRows:
    """Rows of a JSON-lines file that are new since the last look.

    needs: keys that a row has; of what is no row `warn` gets a sentence.

    A resumed run cuts the rows of lost work off before it writes on: what is told is every row
    that was not there, in this place, before.
    """

    def __init__(self, path: Path, needs: Iterable[str], warn: Callable[[str], None]) -> None:
        self._lines, self._needs, self._warn = GrowingLines(path), frozenset(needs), warn
        # of the line in each place
        self._hashes: list[int] = []
        for _ in self._new_lines():
            pass

    def look(self) -> list[dict[str, Any]]:
        """The new rows without the digests that end them."""
        rows: list[dict[str, Any]] = []
        for line in self._new_lines():
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or not self._needs <= row.keys():
                    raise ValueError(f"a row without {', '.join(sorted(self._needs))}")
                if not isinstance(row.get("step", 0), int) or abs(row.get("step", 0)) > MAX_STEP:
                    raise ValueError(f"step {str(row['step'])[:80]}")
            except (ValueError, RecursionError) as error:
                self._warn(f"{self._lines.path}:{self._lines.number}: passed over ({error})")
                continue
            row.pop("sha256", None)
            rows.append(row)
        return rows

    def _new_lines(self) -> Iterator[bytes]:
        yield from (line for line in self._lines.look()[1] if self._is_new(line))
        del self._hashes[self._lines.number :]

    def _is_new(self, line: bytes) -> bool:
        place, found = self._lines.number - 1, hash(line)
        if self._hashes[place : place + 1] == [found]:
            return False
        self._hashes[place:] = [found]
        return True
