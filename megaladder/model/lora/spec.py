"""What adapters a run has: their sizes, and which projections of a model they sit on.

A projection is a linear layer as Hugging Face has it (`q_proj`); megatron-core fuses several into
one linear. Adapters are kept per projection, so that PEFT's files and vLLM's adapters hold exactly
ours. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from megaladder.errors import ModelError
from megaladder.model.hf_config import ModelShape

PREFIX = "base_model.model."  # PEFT's name for the model that it wraps


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """Sizes and places of a model's adapters.

    The product B·A of an adapter counts `alpha / rank` times, or alpha / √rank with rslora (arXiv
    2312.03732). targets: names of projections, such as q_proj.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    rslora: bool = False

    @property
    def scaling(self) -> float:
        """What the product of an adapter's matrices is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclass(frozen=True, slots=True)
class Projection:
    """One linear of a layer as Hugging Face has it.

    Its module in the model, `*` for the layer, and [rows, columns] of its weight."""

    module: str
    rows: int
    columns: int

    @property
    def name(self) -> str:
        """What targets call it: the last part of its module."""
        return self.module.rpartition(".")[2]

    def tensor(self, layer: int, matrix: Literal["A", "B"]) -> str:
        """PEFT's name of one of the adapter's tensors: A [rank, columns], B [rows, rank]."""
        return f"{PREFIX}{self.module.replace('*', str(layer))}.lora_{matrix}.weight"


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """A linear of megatron-core's layer: the projections that it holds, in order.

    split: what tensor parallelism cuts, rows of the weight ("column") or columns ("row", as
    megatron-core calls its layers). groups: in how many groups over all ranks the projections'
    rows are interleaved; None: once a rank.
    """

    module: str
    split: Literal["column", "row"]
    projections: tuple[Projection, ...]
    groups: int | None = None


def fused_linears(shape: ModelShape) -> list[FusedLinear]:
    """The linears of one layer that can have adapters."""
    heads = shape.num_attention_heads * shape.head_dim
    keys = shape.num_query_groups * shape.head_dim
    hidden, wide = shape.hidden_size, shape.ffn_hidden_size
    parts = (
        ("self_attention.linear_qkv", "qkv", (heads, keys, keys), hidden),
        ("self_attention.linear_proj", "attention_out", (hidden,), heads),
        ("mlp.linear_fc1", "gate_up", (wide, wide), hidden),
        ("mlp.linear_fc2", "down", (hidden,), wide),
    )
    found = []
    for module, role, rows, columns in parts:
        names = shape.family.names.get(role, ())
        if len(names) != len(rows):
            continue  # one tensor for several projections
        projections = tuple(
            Projection(name.removesuffix(".weight"), count, columns)
            for name, count in zip(names, rows, strict=True)
        )
        split: Literal["column", "row"] = "row" if len(rows) == 1 else "column"
        groups = shape.num_query_groups if role == "qkv" else None
        found.append(FusedLinear(module, split, projections, groups))
    return found


def projections(shape: ModelShape, spec: LoraSpec) -> Iterator[tuple[FusedLinear, Projection]]:
    """The projections of one layer that have adapters, each with the linear that holds it."""
    for linear in fused_linears(shape):
        for projection in linear.projections:
            if projection.name in spec.targets:
                yield linear, projection


def check_targets(shape: ModelShape, spec: LoraSpec) -> None:
    """Raises ModelError for a target that the model lacks, or that cannot have an adapter."""
    if shape.moe is not None:
        raise ModelError(
            f"lora with {shape.family.title}, which has experts: adapters on such models are not"
            " built; fix: a dense model, or lora off"
        )
    known = [p.name for linear in fused_linears(shape) for p in linear.projections]
    unknown = [name for name in spec.targets if name not in known]
    if unknown or not spec.targets:
        raise ModelError(
            f"lora.targets {','.join(unknown) or '(none)'}: {shape.family.title} has no such"
            f" projection that an adapter can sit on; fix: some of {','.join(known)}"
        )


def num_adapter_parameters(shape: ModelShape, spec: LoraSpec) -> int:
    """Trained numbers of all layers."""
    sizes = (spec.rank * (p.rows + p.columns) for _, p in projections(shape, spec))
    return shape.num_layers * sum(sizes)


def with_targets_of(shape: ModelShape, spec: LoraSpec) -> LoraSpec:
    """The same with its targets in the model's order, each once."""
    named = tuple(projection.name for _, projection in projections(shape, spec))
    return replace(spec, targets=named)
