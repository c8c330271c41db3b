"""A run and its scores as typed views of the run folder.

Nothing is copied or cached: every property reads its file anew, so a view of a run that is still
going on moves with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder.files.models import find_model
from megaladder.files.shapes import expected
from megaladder.files.steps import committed, exported
from megaladder.process import last_word
from megaladder.run_dir import RunDir, read_jsonl


@dataclass(frozen=True, slots=True)
class Score:
    """A benchmark's headline with its 95 % interval over problems, all three shares in [0, 1].

    step: of the training whose weights were asked, None for a model of no run. low, high: None for
    a single problem. n: samples a problem.
    """

    benchmark: str
    metric: str
    value: float
    low: float | None
    high: float | None
    num_problems: int
    n: int
    step: int | None = None

    def __str__(self) -> str:
        around = (
            "" if self.low is None else f" [{100 * self.low:.1f}, {100 * (self.high or 0):.1f}]"
        )
        asked = f"{self.num_problems} problems × {self.n}"
        return f"{self.benchmark} {self.metric} {100 * self.value:.1f} %{around}, {asked}"


# what a row of evaluations.jsonl has
SCORE_KEYS = ("benchmark", "metric", "score", "low", "high", "num_problems", "n", "step")


@dataclass(frozen=True, slots=True)
class Run:
    """A training run, by its folder."""

    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, as in config.yaml."""
        return RunDir(self.folder, writer=False).read_config() or {}

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row a finished step, as in metrics.jsonl: step, loss, lr, tokens, step_s."""
        return _rows(self.folder / "metrics.jsonl")

    @property
    def scores(self) -> tuple[Score, ...]:
        """Scores between the steps (`evaluate.benchmarks`), in the order they were measured."""
        path = self.folder / "evaluations.jsonl"
        with expected(path, "scores between the steps", "restore the file"):
            return tuple(score_of(row) for row in _rows(path))

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Step → committed checkpoint, by rising step."""
        return committed(self.folder)

    @property
    def exports(self) -> dict[int, Path]:
        """Step → Hugging Face folder, by rising step."""
        return exported(self.folder)

    @property
    def model(self) -> Path:
        """The newest Hugging Face folder. Raises ConfigError where there is none."""
        return find_model(str(self.folder)).hf

    @property
    def ending(self) -> str:
        """How the latest start ended, in one word: `finished`, `signal`, `running`, `bug`."""
        word = last_word.truth(self.folder)
        return str(word["reason"]) if word else "unknown"


def score_of(row: Mapping[str, Any]) -> Score:
    """A row of evaluations.jsonl as a score."""
    return Score(
        benchmark=row["benchmark"],
        metric=row["metric"],
        value=row["score"],
        low=row["low"],
        high=row["high"],
        num_problems=row["num_problems"],
        n=row["n"],
        step=row["step"],
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(path)) if path.is_file() else []
