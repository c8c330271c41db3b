"""Which Hugging Face folder a name means: itself, or the newest export of a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megaladder.errors import ConfigError
from megaladder.files.steps import committed, exported
from megaladder.files.sums import refuse_damaged


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """`hf`: configuration, weights, tokenizer.

    `run`: the run folder that it came from, if it was named or is the folder's home."""

    hf: Path
    run: Path | None = None

    @property
    def name(self) -> str:
        """A word for it: the run's name and step, else the folder's name."""
        return f"{self.run.name}-{self.hf.name}" if self.run else self.hf.name


def find_model(name: str) -> ModelFolder:
    """The folder that `name` means, its files compared with their digests where it has them.

    Raises:
        ConfigError: no such folder, a run without exports, a folder without a model.
    """
    path = Path(name)
    if not path.is_dir():
        raise ConfigError(
            f"model {name}: no such folder; fix: a Hugging Face folder or a run folder (a hub model:"
            f" hf download {name} --local-dir DIR)"
        )
    found = _newest_export(path) if _is_run(path) else ModelFolder(path, _home(path))
    if not (found.hf / "config.json").is_file():
        raise ConfigError(
            f"model {name}: expected config.json and weights, found neither a model nor a run there;"
            " fix: a Hugging Face folder, or a folder that sft or grpo wrote"
        )
    refuse_damaged(found.hf)
    return found


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() or (path / "hf").is_dir()


def _home(path: Path) -> Path | None:
    run = path.absolute().parent.parent
    return run if path.absolute().parent.name == "hf" and _is_run(run) else None


def _newest_export(run: Path) -> ModelFolder:
    if exports := list(exported(run).values()):
        return ModelFolder(exports[-1], run)
    newest = next(reversed(committed(run).values()), run)
    made = f"megaladder convert megatron-to-hf --megatron {newest} --out DIR"
    raise ConfigError(
        f"model {run}: a run without an export (hf/step_N); fix: {made}, then that folder; or"
        " checkpoint.export_hf: true in its run.yaml"
    )
