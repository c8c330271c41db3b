"""What adapters a run has: their sizes, and which projections of a model they sit on.

A projection is a linear layer as Hugging Face has it (`q_proj`); megatron-core fuses several into
one linear. Adapters are kept per projection, so that PEFT's files and vLLM's adapters hold exactly
ours. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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

    Its module in the model, `*` for the layer and `@` for an expert, and [rows, columns] of its
    weight."""

    module: str
    rows: int
    columns: int

    @property
    def name(self) -> str:
        """What targets call it: the last part of its module."""
        return self.module.rpartition(".")[2]

    def at(self, layer: int, expert: int | None = None) -> str:
        """Its module in one layer, of one expert."""
        return self.module.replace("*", str(layer)).replace("@", str(expert))

    def tensor(self, layer: int, matrix: Literal["A", "B"], expert: int | None = None) -> str:
        """PEFT's name of one of the adapter's tensors: A [rank, columns], B [rows, rank]."""
        return f"{PREFIX}{self.at(layer, expert)}.lora_{matrix}.weight"


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """A linear of megatron-core's layer: the projections that it holds, in order.

    module: its place in the layer, `@` for the expert's index on its rank. split: what tensor
    parallelism cuts, rows of the weight ("column") or columns ("row", as megatron-core calls its
    layers). groups: in how many groups over all ranks the projections' rows are interleaved; None:
    once a rank.
    """

    module: str
    split: Literal["column", "row"]
    projections: tuple[Projection, ...]
    groups: int | None = None

    @property
    def of_experts(self) -> bool:
        """Whether each expert of a layer has one."""
        return "@" in self.module


@dataclass(frozen=True, slots=True)
class Site:
    """Where one adapter sits. layer from 0; expert: its index over all ranks, None outside."""

    layer: int
    expert: int | None
    linear: FusedLinear
    projection: Projection

    @property
    def module(self) -> str:
        """The projection's module in the model."""
        return self.projection.at(self.layer, self.expert)

    @property
    def experts(self) -> str:
        """PEFT's name of the module that holds a layer's experts, for an adapter of one."""
        return PREFIX + self.projection.module.partition(".@.")[0].replace("*", str(self.layer))

    def tensor(self, matrix: Literal["A", "B"]) -> str:
        """PEFT's name of one of its tensors."""
        return self.projection.tensor(self.layer, matrix, self.expert)


# module, role in the family's names, its projections' rows, their columns
_Part = tuple[str, str, tuple[int, ...], int]


def fused_linears(shape: ModelShape, *, sparse: bool = False) -> list[FusedLinear]:
    """The linears of one layer, with experts or without, that can have adapters."""
    heads = shape.num_attention_heads * shape.head_dim
    keys, hidden = shape.num_query_groups * shape.head_dim, shape.hidden_size
    parts: list[_Part] = [
        ("self_attention.linear_qkv", "qkv", (heads, keys, keys), hidden),
        ("self_attention.linear_proj", "attention_out", (hidden,), heads),
    ]
    if not sparse or shape.moe is None:
        parts += _gated_mlp("mlp.", "", shape.ffn_hidden_size, hidden)
    else:
        if shape.moe.shared_ffn_size:
            parts += _gated_mlp("mlp.shared_experts.", "shared_", shape.moe.shared_ffn_size, hidden)
        local = "mlp.experts.local_experts.@."
        parts += _gated_mlp(local, "expert_", shape.moe.ffn_hidden_size, hidden)
    found = (_fused_linear(shape, part) for part in parts)
    return [linear for linear in found if linear is not None]


def _gated_mlp(module: str, role: str, wide: int, hidden: int) -> list[_Part]:
    return [
        (f"{module}linear_fc1", f"{role}gate_up", (wide, wide), hidden),
        (f"{module}linear_fc2", f"{role}down", (hidden,), wide),
    ]


def _fused_linear(shape: ModelShape, part: _Part) -> FusedLinear | None:
    """None where the model has one tensor for several projections."""
    module, role, rows, columns = part
    names = shape.family.names.get(role, ())
    if len(names) != len(rows):
        return None
    projections = tuple(
        Projection(name.removesuffix(".weight"), count, columns)
        for name, count in zip(names, rows, strict=True)
    )
    split: Literal["column", "row"] = "row" if len(rows) == 1 else "column"
    return FusedLinear(
        module, split, projections, shape.num_query_groups if role == "qkv" else None
    )


def adapted_linears(shape: ModelShape, spec: LoraSpec, layer: int) -> list[FusedLinear]:
    """The linears of a layer (from 0) of which some projection has an adapter."""
    return [
        linear
        for linear in fused_linears(shape, sparse=shape.is_sparse(layer))
        if any(projection.name in spec.targets for projection in linear.projections)
    ]


def sites(shape: ModelShape, spec: LoraSpec) -> Iterator[Site]:
    """All adapters of a model, layer after layer, the experts of each linear in order."""
    for layer in range(shape.num_layers):
        for linear in adapted_linears(shape, spec, layer):
            for projection in linear.projections:
                if projection.name in spec.targets:
                    yield from (
                        Site(layer, expert, linear, projection)
                        for expert in _experts(shape, linear)
                    )


def _experts(shape: ModelShape, linear: FusedLinear) -> Iterable[int | None]:
    """Of which a layer has this linear; (None,) for one outside of experts."""
    if not linear.of_experts or shape.moe is None:
        return (None,)
    return range(shape.moe.num_experts)


def adapts_experts(shape: ModelShape, spec: LoraSpec) -> bool:
    """Whether adapters sit on the experts' own matrices."""
    return any(site.expert is not None for site in sites(shape, spec))


def known_targets(shape: ModelShape) -> list[str]:
    """Names of the projections that an adapter can sit on, in the model's order."""
    kinds = sorted({shape.is_sparse(layer) for layer in range(shape.num_layers)})
    linears = (linear for sparse in kinds for linear in fused_linears(shape, sparse=sparse))
    return list(dict.fromkeys(p.name for linear in linears for p in linear.projections))


def check_targets(shape: ModelShape, spec: LoraSpec) -> None:
    """Raises ModelError for a target that the model lacks, or that cannot have an adapter."""
    known = known_targets(shape)
    unknown = [name for name in spec.targets if name not in known]
    if unknown or not spec.targets:
        raise ModelError(
            f"lora.targets {','.join(unknown) or '(none)'}: {shape.family.title} has no such"
            f" projection that an adapter can sit on; fix: some of {','.join(known)}"
        )


def num_adapter_parameters(shape: ModelShape, spec: LoraSpec) -> int:
    """Trained numbers of all layers."""
    found = (site.projection for site in sites(shape, spec))
    return sum(spec.rank * (one.rows + one.columns) for one in found)


def with_targets_of(shape: ModelShape, spec: LoraSpec) -> LoraSpec:
    """The same with its targets in the model's order, each once."""
    return replace(
        spec, targets=tuple(name for name in known_targets(shape) if name in spec.targets)
    )
