"""Which Hugging Face folder a name means: itself, or the newest export of a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megaladder.errors import ConfigError
from megaladder.files.steps import committed, exported
from megaladder.files.sums import refuse_damaged
from megaladder.files.typed import typed


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


def no_model(name: str | Path) -> str | None:
    """What lies where a model's folder is expected, and the way on, as `WHAT; fix: …`.

    None for what may be one, or may be a hub id: a folder with a config.json, nothing at all."""
    path = Path(name)
    if path.is_file():
        whole = (path.parent / "config.json").is_file()
        way = f"its folder {path.parent}" if whole else "the Hugging Face folder that it belongs to"
        return f"is a file, expected a Hugging Face folder; fix: {way}"
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    if (path / "adapter_config.json").is_file():
        merge = f"megaladder convert merge --hf MODEL --adapter {typed(path)} --out DIR"
        return (
            f"is an adapter, no model; fix: {merge}, then DIR (to train it on: lora.start {path})"
        )
    if (path / "COMMITTED").is_file():
        return _in_megatrons_layout(path)
    # hf/, checkpoints/ and rollouts/ are parts of a run
    for run, what in ((path, "is a run folder"), (path.parent, "is a part of a run")):
        if exports := list(exported(run).values()):
            return f"{what}; fix: its export {exports[-1]}"
        if steps := list(committed(run).values()):
            return _in_megatrons_layout(steps[-1])
    if any(path.glob("*.gguf")):
        return "has a GGUF file, which is not read; fix: the Hugging Face folder it was made from"
    return "has no config.json; fix: a Hugging Face folder (config.json, *.safetensors, tokenizer)"


def _in_megatrons_layout(checkpoint: Path) -> str:
    made = f"megaladder convert megatron-to-hf --megatron {typed(checkpoint)} --out DIR"
    return f"holds checkpoints in Megatron's layout; fix: {made}, then DIR"


def find_model(name: str) -> ModelFolder:
    """The folder that `name` means, its files compared with their digests where it has them.

    Raises:
        ConfigError: no such folder, a run without exports, a folder without a model.
    """
    path = Path(name)
    if path.is_file():
        raise ConfigError(f"model {name}: {no_model(name)}")
    if not path.is_dir():
        raise ConfigError(
            f"model {name}: no such folder; fix: a Hugging Face folder or a run folder (a hub model:"
            f" hf download {name} --local-dir DIR)"
        )
    found = _newest_export(path) if _is_run(path) else ModelFolder(path, _home(path))
    if other := no_model(found.hf):
        raise ConfigError(f"model {name}: {other}, or a folder that sft or grpo wrote")
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
    made = f"megaladder convert megatron-to-hf --megatron {typed(newest)} --out DIR"
    raise ConfigError(
        f"model {run}: a run without an export (hf/step_N); fix: {made}, then that folder; or"
        " checkpoint.export_hf: true in its run.yaml"
    )
