"""What trackers are told, as numbers and tables; and the identity that a run has in them."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from megaladder.errors import DataError
from megaladder.events.callback import Callback
from megaladder.events.run import Run, Score
from megaladder.run_dir import read_jsonl, read_object, write_object

IDENTITY = "tracker.json"
# answers of a round that trackers get, and what of them
ROLLOUT_ROWS = 16
ROLLOUT_COLUMNS = (
    *("step", "group", "sample", "prompt", "completion", "gold", "answer", "correct", "reward"),
    *("advantage", "num_tokens", "finish_reason"),
)

Row = Mapping[str, Any]


class Tracker(Callback):
    """A callback that hands events on as numbers and tables.

    One of its own has `on_start`, `log`, `table` and `on_end`."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers after `step` updates; a resumed run may give the last ones again."""

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Rows with the same columns, to read: rollouts, scores."""

    def on_step(self, run: Run, row: Row) -> None:
        self.log(row["step"], numbers_of(row))

    def on_held_out(self, run: Run, row: Row) -> None:
        self.log(row["step"], {"held_out_loss": row["held_out_loss"]})

    def on_rollouts(self, run: Run, step: int, path: Path) -> None:
        shown = [
            {column: row.get(column) for column in ROLLOUT_COLUMNS}
            for row in islice(read_jsonl(path), ROLLOUT_ROWS)
        ]
        if shown:
            self.table(step, "rollouts", shown)

    def on_checkpoint(self, run: Run, step: int, path: Path) -> None:
        """Weights stay in the run folder."""

    def on_evaluation(self, run: Run, score: Score) -> None:
        """The table has all scores of the step so far."""
        parts = {"": score.value, "_low": score.low, "_high": score.high}
        named = {f"eval/{score.benchmark}{part}": value for part, value in parts.items()}
        step = score.step or 0
        self.log(step, {name: value for name, value in named.items() if value is not None})
        self.table(step, "scores", [asdict(s) for s in run.scores if s.step == score.step])


def numbers_of(row: Row) -> dict[str, float]:
    """What of a step's row is a number, but for how far the run is.

    >>> numbers_of({"step": 1, "loss": 0.5, "tokens": 8, "mfu": None, "table": "x"})
    {'loss': 0.5, 'tokens': 8.0}
    """
    return {
        key: float(value)
        for key, value in row.items()
        if isinstance(value, (int, float)) and key not in ("step", "total_steps")
    }


def run_identity(folder: Path, anew: bool) -> str:
    """16 hex digits kept in the run folder; drawn again where the run starts anew."""
    path = folder / IDENTITY
    if path.is_file() and not anew:
        try:
            return str(read_object(path, "nothing, the curve begins anew")["id"])
        except (DataError, KeyError) as error:  # it costs the old curve, not the run
            print(f"warning: {error}", file=sys.stderr)
    identity = uuid.uuid4().hex[:16]
    write_object(path, {"id": identity})
    return identity
