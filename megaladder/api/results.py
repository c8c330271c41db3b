"""What a call gives back beside a run: an evaluation; and the run of a folder that is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megaladder.errors import ConfigError
from megaladder.events.run import Run, Score


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of one model, or of the steps of a run, and the folder with samples and protocol."""

    folder: Path
    scores: tuple[Score, ...]

    def __getitem__(self, benchmark: str) -> Score:
        """The last score on a benchmark. Raises KeyError for one that was not asked."""
        for score in reversed(self.scores):
            if score.benchmark == benchmark:
                return score
        asked = ", ".join(dict.fromkeys(score.benchmark for score in self.scores))
        raise KeyError(f"{benchmark}: not among the benchmarks of {self.folder} ({asked})")


def load(folder: str | Path) -> Run:
    """The run in a folder that `sft` or `grpo` wrote, finished or not.

    Raises:
        ConfigError: no such folder, or no run in it.
    """
    path = Path(folder)
    if not (path / "config.yaml").is_file():
        raise ConfigError(
            f"{path}: expected a run folder with config.yaml, found none; fix: the run_dir of an"
            " sft or grpo run"
        )
    return Run(path)
