"""adapter_config.json of PEFT's folders, read and written, and what adapters a run trains.

Read strictly: what would make other numbers than plain LoRA (DoRA, biases, whole modules beside the
adapters, ranks by pattern) is refused by name. No torch here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megaladder.config.sections.shared import LoraSection
from megaladder.errors import ConfigError, ModelError
from megaladder.model.hf_config import ModelShape, read_json_object
from megaladder.model.lora.spec import LoraSpec, check_targets, with_targets_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# transformers' parameter with the matrices of all experts → the projections in it, rows in order
STACKED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
# field → the values with which it changes nothing
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    # others (pissa, olora, corda, loftq, lora_ga) take a part out of the model's own weights
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    "use_dora": (False, None),
    "use_bdlora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layers_to_transform": (None,),
    "trainable_token_indices": (None,),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
}


def peft_config(spec: LoraSpec, base: str) -> dict[str, Any]:
    """adapter_config.json. base: folder or hub id of the model that the adapters belong to."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(spec.targets),
        "use_rslora": spec.rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "inference_mode": True,
    }


def spec_from_config(raw: Mapping[str, Any], where: Path | str) -> LoraSpec:
    """What an adapter_config.json says.

    Raises:
        ModelError: it is no plain LoRA; names the field and its value.
    """
    for field, plain in _PLAIN.items():
        if field in raw and raw[field] not in plain:
            raise ModelError(
                f"{where}: {field} {raw[field]!r} is more than plain LoRA, which is all that is"
                " read here; fix: merge it with peft (merge_and_unload) and use the model"
            )
    rank, alpha, targets = raw.get("r"), raw.get("lora_alpha"), raw.get("target_modules")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ModelError(f"{where}: r should be a whole number from 1, found {rank!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise ModelError(f"{where}: lora_alpha should be a number above 0, found {alpha!r}")
    if not 0 < alpha <= sys.float_info.max:
        raise ModelError(f"{where}: lora_alpha should be a number above 0, found {alpha!r}")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise ModelError(
            f"{where}: target_modules should be a list of names such as q_proj, found {targets!r};"
            " fix: write the names out"
        )
    names = (*targets, *_stacked_targets(raw.get("target_parameters"), where))
    return LoraSpec(rank, float(alpha), names, raw.get("use_rslora") is True)


def _stacked_targets(parameters: Any, where: Path | str) -> list[str]:
    """The projections in the parameters that transformers stacks experts in."""
    if not isinstance(parameters or [], list):
        parameters = [parameters]
    found: list[str] = []
    for parameter in parameters or []:
        name = str(parameter).rpartition(".")[2]
        if name not in STACKED:
            raise ModelError(
                f"{where}: target_parameters {parameter!r} is none of the experts'"
                f" {' and '.join(STACKED)}; fix: merge it with peft (merge_and_unload) and use the"
                " model"
            )
        found += STACKED[name]
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """The raw adapter_config.json. Raises ModelError where there is none."""
    return read_json_object(folder / CONFIG, f"a folder with a PEFT adapter ({CONFIG}, {WEIGHTS})")


def read_spec(folder: Path) -> LoraSpec:
    """Sizes and places of a folder's adapters."""
    return spec_from_config(read_config(folder), folder / CONFIG)


def start_notes(section: LoraSection) -> list[str]:
    """What a run says of the folder that its adapters start from."""
    if section.start is None:
        return []
    dropout = read_config(Path(section.start)).get("lora_dropout")
    if not dropout:
        return []
    return [f"lora.start {section.start}: trained on without its lora_dropout {dropout}"]


def lora_spec(section: LoraSection, shape: ModelShape) -> LoraSpec:
    """What adapters a run trains: those of its keys, or of the folder that it starts from.

    Raises:
        ModelError: targets that the model does not have, or a folder that cannot be read.
    """
    if section.start is not None:
        spec = read_spec(Path(section.start))
    else:
        assert section.rank is not None, "asked of runs with adapters"
        spec = LoraSpec(section.rank, section.alpha, section.targets, section.rslora)
    check_targets(shape, spec)
    return with_targets_of(shape, spec)


def engine_adapters(
    section: LoraSection, shape: ModelShape, key: str, sync: str
) -> LoraSpec | None:
    """The adapters that engines can be given alone; None where none are, or the model has experts.

    With adapters vLLM (0.32) computes experts with Triton's kernels, whatever has adapters, which
    fail on a CPU and were not tried on a GPU. key, sync: how weights are to reach the engines.

    Raises:
        ConfigError: they are to be sent alone and cannot.
    """
    if not section.enabled:
        return None
    if shape.moe is None:
        return lora_spec(section, shape)
    if sync == "adapter":
        raise ConfigError(
            f"{key} adapter: engines take no adapters beside experts, which"
            f" {shape.family.title} has; fix: {key} auto, which sends the merged model"
        )
    return None
