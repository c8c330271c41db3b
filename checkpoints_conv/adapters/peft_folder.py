"""PEFT's adapter folders: adapter_config.json and adapter_model.safetensors, read and written.

Names and fields are those of the library `peft` (tests compare with it). Read strictly: what would
make other numbers than plain LoRA (DoRA, biases, whole modules beside the adapters, ranks by
pattern) is refused by name, and so is a tensor that is missing, unknown or of another shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from megaladder.checkpoints_conv.adapters.tensors import AdapterTable
from megaladder.checkpoints_conv.families import listed
from megaladder.checkpoints_conv.writer import room_needed
from megaladder.errors import ModelError
from megaladder.model.hf_config import ModelShape
from megaladder.model.lora.spec import PREFIX, LoraSpec
from megaladder.run_dir import atomic_write, to_json, write_sums

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# field → the values with which it changes nothing
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layers_to_transform": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
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
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not alpha > 0:
        raise ModelError(f"{where}: lora_alpha should be a number above 0, found {alpha!r}")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise ModelError(
            f"{where}: target_modules should be a list of names such as q_proj, found {targets!r};"
            " fix: write the names out"
        )
    return LoraSpec(rank, float(alpha), tuple(targets), raw.get("use_rslora") is True)


def read_config(folder: Path) -> dict[str, Any]:
    """The raw adapter_config.json. Raises ModelError where there is none."""
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path}: no such file; fix: a folder with a PEFT adapter ({CONFIG}, {WEIGHTS})"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: expected a JSON object, found {error}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(raw).__name__}")
    return raw


def read_spec(folder: Path) -> LoraSpec:
    """Sizes and places of a folder's adapters."""
    return spec_from_config(read_config(folder), folder / CONFIG)


class PeftReader:
    """The tensors of a folder by PEFT's names; a `families.TensorSource`.

    Raises:
        ModelError: no or damaged weights, or other tensors than `table` names.
    """

    def __init__(self, folder: Path, table: AdapterTable) -> None:
        self.folder = folder
        try:
            self._file = safe_open(folder / WEIGHTS, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{folder / WEIGHTS}: missing or damaged ({error}); fix: copy the folder again"
            ) from None
        # an adapter that was saved under a name of its own has it between: lora_A.default.weight
        self._stored = {_plain_name(name): name for name in self._file.keys()}  # noqa: SIM118
        self.shapes = {
            name: tuple(self._file.get_slice(stored).get_shape())
            for name, stored in self._stored.items()
        }
        self._check(table)

    def _check(self, table: AdapterTable) -> None:
        want = table.shapes
        missing = [name for name in want if name not in self.shapes]
        unknown = [name for name in self.shapes if name not in want]
        wrong = [
            f"{name}: {self.shapes[name]}, expected {size}"
            for name, size in want.items()
            if name in self.shapes and self.shapes[name] != size
        ]
        if missing or unknown or wrong:
            raise ModelError(
                f"{self.folder} does not hold the adapters that its {CONFIG} says, for this"
                f" {table.family.title} model"
                + listed("missing", missing)
                + listed("unknown", unknown)
                + listed("wrong shape", wrong)
            )

    def read(
        self, name: str, dim: int = 0, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        """Rows (dim 0) or columns (dim 1) `start:stop`."""
        window = self._file.get_slice(self._stored[name])
        stop = self.shapes[name][dim] if stop is None else stop
        return window[start:stop] if dim == 0 else window[:, start:stop]


def _plain_name(name: str) -> str:
    """PEFT's name of a tensor without the adapter's own: …lora_A.default.weight → …lora_A.weight."""
    front, _, rest = name.rpartition(".lora_")
    return f"{front}.lora_{rest[:1]}.weight" if name.startswith(PREFIX) and front else name


def open_peft(folder: Path, shape: ModelShape) -> tuple[AdapterTable, PeftReader]:
    """A folder's adapters for a model of this shape."""
    table = AdapterTable(shape, read_spec(folder))
    return table, PeftReader(folder, table)


def write_peft(
    out: Path, tensors: dict[str, torch.Tensor], config: Mapping[str, Any], *, digests: bool = True
) -> None:
    """Writes a folder; adapter_config.json, which makes it look complete, comes last."""
    with room_needed(out):
        (out / CONFIG).unlink(missing_ok=True)
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        atomic_write(out / WEIGHTS, save(plain, metadata={"format": "pt"}))
        atomic_write(out / CONFIG, to_json(dict(config), indent=2) + "\n")
        if digests:
            write_sums(out, (WEIGHTS, CONFIG))
