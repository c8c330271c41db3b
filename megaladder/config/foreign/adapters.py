"""Adapters of another trainer's file as our section `lora`.

The defaults are PEFT's and the tools' own: TRL's ModelConfig, LLaMA-Factory's LoraArguments, verl's
model configuration.
"""

from __future__ import annotations

from typing import Any

from megaladder.config.foreign.work import Conversion, Verdict, shown
from megaladder.config.sections.shared import LoraSection
from megaladder.errors import ConfigError

PROJECTIONS = LoraSection().targets
ALL = ("all", "all-linear")
OFF = (None, False, "full", "none")
NAMES = ("adapter", "lora_rank", "lora_alpha", "lora_targets", "lora_all", "lora_rslora")
KINDS = (True, "lora", "qlora")  # qlora says by load_in_4bit what is refused
# tool → rank, alpha (None = twice the rank) and targets where its file names none
DEFAULTS: dict[str, tuple[int, float | None, Any]] = {
    "transformers": (16, 32.0, ["q_proj", "v_proj"]),
    "trl": (16, 32.0, ["q_proj", "v_proj"]),
    "llamafactory": (8, None, "all"),
    "axolotl": (8, 8.0, []),
    "verl": (0, 16.0, "all"),
}


def adapters(work: Conversion) -> None:
    """The keys of `lora`, where the file trains adapters. Raises ConfigError for other kinds."""
    kind = work.take("adapter", _usual_kind(work))
    if kind not in (*OFF, *KINDS):
        raise ConfigError(
            f"{shown(kind)}: of adapters LoRA is built; fix: lora, or none of its keys"
        )
    usual_rank, usual_alpha, _ = DEFAULTS[work.trainer.name]
    rank = 0 if kind in OFF else work.whole("lora_rank", usual_rank, least=0)
    start = work.take("lora_start")
    if kind not in OFF and start:
        work.put("lora.start", start, "folder of adapters")
        _pass(work, "rank, alpha and targets are those of the folder")
    elif rank == 0:
        _pass(work, "none are trained, all weights are")
    else:
        work.put("lora.rank", rank, "rank of adapters", _verdict(work, "lora_rank"))
        alpha = work.number("lora_alpha", usual_alpha or 2.0 * rank)
        work.put("lora.alpha", alpha, "alpha of adapters", _verdict(work, "lora_alpha"))
        _targets(work)
        if work.take("lora_rslora") is True:
            work.put("lora.rslora", True, "rslora")


def _usual_kind(work: Conversion) -> str | None:
    """What a file that does not say trains: LLaMA-Factory adapters, verl those of a rank."""
    return "lora" if work.trainer.name == "verl" or "lf_dataset" in work.parts else None


def _pass(work: Conversion, why: str) -> None:
    """One line for the keys of adapters that decide nothing."""
    if any(name in work.parts for name in NAMES):
        work.say("no effect", "adapters", why)


def _targets(work: Conversion) -> None:
    """Names of projections; a word for all of them is our default."""
    found = work.take("lora_targets", DEFAULTS[work.trainer.name][2])
    if found in ALL or work.take("lora_all") is True:
        work.say("no effect", "targets of adapters", "all linear layers, as lora.targets has them")
        return
    listed = found if isinstance(found, list) else str(found).split(",")
    asked = [str(name).strip() for name in listed]
    names = [name for name in PROJECTIONS if name in asked]
    if not names:
        raise ConfigError(
            f"targets of adapters {shown(found)}: none of lora.targets is among them; fix: some of"
            f" {', '.join(PROJECTIONS)}"
        )
    if others := set(asked) - set(names):
        work.say(
            "refused", "targets of adapters", f"{', '.join(sorted(others))}: not in lora.targets"
        )
    work.put("lora.targets", names, "targets of adapters", _verdict(work, "lora_targets"))


def _verdict(work: Conversion, part: str) -> Verdict:
    return "mapped" if part in work.parts else "default"
