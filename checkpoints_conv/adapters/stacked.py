"""Experts' adapters as PEFT keeps them where transformers stacks the experts of a layer.

transformers 5 has two parameters a layer, gate_up_proj [E, 2F, H] and down_proj [E, H, F]. PEFT
(0.21, `target_parameters`) gives each one A and one B for all experts, rank r an expert:

    A [E·r, columns]    an expert's rows follow each other
    B [rows, r·E]       an expert's columns lie E apart

    …mlp.experts.lora_A.weight               of the parameter that was wrapped last
    …mlp.experts.base_layer.lora_A.weight    of the one inside, where both have adapters

gate and up share A there. Here each expert's projection has its own tensors, which compute the
same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from megaladder.checkpoints_conv.mapping import Shape
from megaladder.model.hf_config import ModelShape
from megaladder.model.lora.peft_config import STACKED
from megaladder.model.lora.spec import LoraSpec, Site, sites

_STACKED_TENSOR = re.compile(r"(?P<experts>.+\.experts)(\.base_layer)?\.lora_A\.weight$")


@dataclass(frozen=True, slots=True)
class StackedPart:
    """One projection of one expert in a stacked tensor.

    stored: the tensor's name. expert of num_experts; rows: of B, which are the projection's."""

    stored: str
    matrix: Literal["A", "B"]
    expert: int
    num_experts: int
    rows: slice

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """A [r, columns] or B [rows, r] out of the stacked one."""
        if self.matrix == "A":
            return whole.chunk(self.num_experts)[self.expert]
        return whole[self.rows, self.expert :: self.num_experts]


def stacked_parts(
    stored: Mapping[str, Shape], shape: ModelShape, spec: LoraSpec
) -> dict[str, StackedPart]:
    """PEFT's names of single experts' tensors → their place in the stacked ones that are stored.

    Empty for a folder that names each expert."""
    parents = _parents(stored, shape)
    found: dict[str, StackedPart] = {}
    for site in sites(shape, spec):
        if site.expert is None or not parents:
            continue
        parameter = next(one for one, names in STACKED.items() if site.projection.name in names)
        parent = parents.get((site.experts, parameter))
        if parent is not None:
            found |= _parts(parent, site, parameter, shape)
    return found


def _parts(parent: str, site: Site, parameter: str, shape: ModelShape) -> dict[str, StackedPart]:
    assert shape.moe is not None and site.expert is not None, "a site of an expert"
    first = STACKED[parameter].index(site.projection.name) * site.projection.rows
    place = site.expert, shape.moe.num_experts, slice(first, first + site.projection.rows)
    return {
        site.tensor("A"): StackedPart(f"{parent}.lora_A.weight", "A", *place),
        site.tensor("B"): StackedPart(f"{parent}.lora_B.weight", "B", *place),
    }


def _parents(stored: Mapping[str, Shape], shape: ModelShape) -> dict[tuple[str, str], str]:
    """(A layer's experts, parameter) → what stands before `.lora_A` in its tensors' names.

    Which of the two parameters a tensor belongs to is told by its sizes."""
    if shape.moe is None:
        return {}
    wide, hidden = shape.moe.ffn_hidden_size, shape.hidden_size
    sizes = {(hidden, 2 * wide): "gate_up_proj", (wide, hidden): "down_proj"}
    found = {}
    for name, size in stored.items():
        match = _STACKED_TENSOR.match(name)
        if match is None:
            continue
        parent = name.removesuffix(".lora_A.weight")
        rows = stored.get(f"{parent}.lora_B.weight", (0,))[0]
        parameter = sizes.get((size[-1], rows))
        if parameter is not None:
            found[match["experts"], parameter] = parent
    return found
