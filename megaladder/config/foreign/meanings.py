"""The table of meanings (`meanings.yaml`).

What the keys of TRL, LLaMA-Factory, axolotl and verl are here. `import-config` reads it, and so
does the hint at an unknown key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from megaladder.config.strict_yaml import load_yaml
from megaladder.errors import ConfigError

Method = Literal["sft", "grpo"]
TITLES = {
    "trl": "TRL",
    "llamafactory": "LLaMA-Factory",
    "axolotl": "axolotl",
    "verl": "verl",
    "transformers": "transformers",
}
MANY = 3  # foreign keys from which on a file counts as another trainer's
# keys by which a file is one of a tool that is not in the table
STRANGERS = {
    "tuner_type": "ms-swift",
    "train_type": "ms-swift",
    "split_dataset_ratio": "ms-swift",
    "policy.model_name": "NeMo-RL",
    "policy.train_global_batch_size": "NeMo-RL",
    "merge_method": "mergekit",
    "distributed_type": "accelerate",
}


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one key is here; exactly one of to, part, neutral, refuse and stop says it."""

    to: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    part: str | None = None
    neutral: str | None = None
    refuse: str | None = None
    stop: str | None = None
    unless: tuple[Any, ...] = ()
    hint: str | None = None

    @property
    def fix(self) -> str:
        """What to do with the key in a file of ours."""
        if self.hint or self.to:
            return f"here it is {self.hint or self.to}"
        return f"leave it out: {self.neutral or self.refuse or self.stop}"


@dataclass(frozen=True, slots=True)
class Trainer:
    """One tool: its keys, and the values that it takes where a file says nothing."""

    name: str
    keys: Mapping[str, Meaning]
    defaults: Mapping[Method, Mapping[str, Any]]

    def find(self, key: str) -> Meaning | None:
        """The meaning of a dotted key: its own, else that of the nearest section above it."""
        parts = key.split(".")
        for end in range(len(parts), 0, -1):
            if meaning := self.keys.get(".".join(parts[:end])):
                return meaning
        return None


@cache
def trainers() -> dict[str, Trainer]:
    """Every tool of the table by name."""
    table = load_yaml(Path(__file__).with_name("meanings.yaml")).values
    found: dict[str, Trainer] = {}
    for name, entry in table.items():
        base = found.get(entry.get("base", ""), Trainer("", {}, {"sft": {}, "grpo": {}}))
        keys = {key: _meaning(value) for key, value in entry["keys"].items()}
        for why, names in entry.get("neutral", {}).items():
            keys |= {key: Meaning(neutral=why) for key in names}
        defaults: dict[Method, Mapping[str, Any]] = {
            method: {
                **base.defaults[method],
                **entry.get("defaults", {}),
                **entry.get(f"{method}_defaults", {}),
            }
            for method in ("sft", "grpo")
        }
        found[name] = Trainer(name, {**base.keys, **keys}, defaults)
    return found


def _meaning(value: Any) -> Meaning:
    if isinstance(value, str):
        return Meaning(to=value)
    return Meaning(**{**value, "unless": tuple(value.get("unless", ()))})


def find_key(key: str) -> tuple[Trainer, Meaning] | None:
    """The first tool that knows a key by exactly this name, and what it means."""
    for trainer in trainers().values():
        if meaning := trainer.keys.get(key):
            return trainer, meaning
    return None


def recognise(keys: Iterable[str]) -> str | None:
    """The tool whose file has these dotted keys; None for none of them.

    Raises ConfigError for a file of a tool whose keys are not known here.
    """
    names = set(keys)
    tops = {key.split(".")[0] for key in names}
    if stranger := next((STRANGERS[key] for key in names if key in STRANGERS), None):
        titles = ", ".join(title for tool, title in TITLES.items() if tool != "transformers")
        raise ConfigError(
            f"a file of {stranger}, whose keys are not known here: {titles} are; fix: `megaladder"
            " examples` lists run files to begin with"
        )
    of_verl = {"data.train_files", "data.output_path", "data.n_samples", "model.partial_pretrain"}
    if "actor_rollout_ref" in tops or of_verl & names:
        return "verl"
    if {"stage", "finetuning_type", "cutoff_len", "train_dataset", "export_dir"} & tops:
        return "llamafactory"
    if {"base_model", "sequence_len", "micro_batch_size"} & tops:
        return "axolotl"
    known = [key for key in names if key in trainers()["trl"].keys]
    if {"template", "infer_backend"} <= tops:
        return "llamafactory"
    return "trl" if len(known) >= MANY or "model_name_or_path" in tops else None
