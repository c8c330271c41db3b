"""The events of a run, each a method of whoever wants to hear of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from megaladder.events.run import Run, Score


class Callback(Protocol):
    """What one may want to hear of. A class needs only the methods that it cares for.

    One that raises is reported once as a warning and called no more. `run` is a view of the run
    folder, which has what an event says already.
    """

    def on_start(self, run: Run) -> None:
        """The run begins, or goes on from a checkpoint; `run.config` is there."""

    def on_step(self, run: Run, row: Mapping[str, Any]) -> None:
        """A step is finished; `row` as in metrics.jsonl: step, loss, lr, tokens, step_s."""

    def on_held_out(self, run: Run, row: Mapping[str, Any]) -> None:
        """The loss on held-out rows was measured; `row` has step and held_out_loss (nats)."""

    def on_rollouts(self, run: Run, step: int, path: Path) -> None:
        """The answers that a step learned from are in `path`, a JSON-lines file (GRPO)."""

    def on_evaluation(self, run: Run, score: Score) -> None:
        """A benchmark was scored between two steps."""

    def on_checkpoint(self, run: Run, step: int, path: Path) -> None:
        """A checkpoint is committed: complete, and safe from a kill."""

    def on_end(self, run: Run, exit_status: int) -> None:
        """This start has ended: 0 = finished, 3 = the same command goes on, else refused or a bug.

        `run.ending` says how in a word, where the caller's process is not the run's own."""
