"""Adapters on the linears of a model chunk: y = W·x + s·B·(A·x), W frozen.

Which matrix lies where over tensor-parallel ranks:

    column-parallel (qkv, gate and up)    A [rank, in] whole on every rank, B [out / tp, rank] cut
    row-parallel (o, down)                A [rank, in / tp] cut, B [out, rank] whole on every rank

Only the `rank` numbers of a token cross ranks. Column: A·x is the same on all ranks, and its
gradient, of which each rank has its rows' share, is summed (under sequence parallelism: gathered,
and reduce-scattered). Row: the partial A·x are summed (reduce-scattered). Under sequence parallelism
the whole matrix has seen a rank's own tokens only: it is marked, and megatron-core sums its
gradient over the ranks.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import mappings
from megatron.core.transformer import TransformerConfig

from megaladder.model.hf_config import ModelShape
from megaladder.model.lora.spec import (
    FusedLinear,
    LoraSpec,
    Projection,
    check_targets,
    fused_linears,
)

ADAPTER = ".adapter."  # in the names of the parameters that `attach` adds


class ProjectionAdapter(torch.nn.Module):
    """The two matrices of one projection, this rank's part. Filled by `adapters.tensors`."""

    def __init__(
        self,
        projection: Projection,
        a_shape: tuple[int, int],
        b_shape: tuple[int, int],
        **like: Any,
    ) -> None:
        """like: device and dtype of the matrices."""
        super().__init__()
        self.projection = projection
        self.lora_A = torch.nn.Parameter(torch.empty(a_shape, **like))
        self.lora_B = torch.nn.Parameter(torch.empty(b_shape, **like))


class LinearAdapter(torch.nn.Module):
    """The adapters of one megatron-core linear."""

    def __init__(
        self, linear: FusedLinear, spec: LoraSpec, config: TransformerConfig, weight: torch.Tensor
    ) -> None:
        super().__init__()
        self.linear, self.scaling, self.enabled = linear, spec.scaling, True
        self.tp_size = config.tensor_model_parallel_size
        self.sequence_parallel = config.sequence_parallel and self.tp_size > 1
        self.rank = spec.rank
        like = {"device": weight.device, "dtype": config.params_dtype}
        self.projections = torch.nn.ModuleDict()
        for projection in linear.projections:
            if projection.name in spec.targets:
                self.projections[projection.name] = self._adapter(projection, like)

    @property
    def parts(self) -> list[ProjectionAdapter]:
        """The projections that have an adapter, in the linear's order."""
        return [part for part in self.projections.values() if isinstance(part, ProjectionAdapter)]

    def _adapter(self, projection: Projection, like: dict[str, Any]) -> ProjectionAdapter:
        column = self.linear.split == "column"
        rows = projection.rows // (self.tp_size if column else 1)
        columns = projection.columns // (1 if column else self.tp_size)
        shapes = (self.rank, columns), (rows, self.rank)
        adapter = ProjectionAdapter(projection, *shapes, **like)
        cut, whole = adapter.lora_A, adapter.lora_B
        if column:
            cut, whole = whole, cut
        # megatron-core's gradient norm counts what is not marked on one rank only
        marks = {"tensor_model_parallel": True, "partition_dim": int(not column)}
        for mark, value in {**marks, "partition_stride": 1}.items():
            setattr(cut, mark, value)
        setattr(whole, "sequence_parallel", self.sequence_parallel)  # noqa: B010
        return adapter

    def tensors(self, layer: int) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """(PEFT's name in that layer of the whole model, this rank's part)."""
        for part in self.parts:
            yield part.projection.tensor(layer, "A"), part.lora_A
            yield part.projection.tensor(layer, "B"), part.lora_B

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[T, 1, in] as the linear takes it → what is added to its output, [T, 1, out]."""
        parts = self.parts
        matrix = torch.cat([part.lora_A for part in parts]) if len(parts) > 1 else parts[0].lora_A
        low = self._across_ranks(F.linear(hidden_states, matrix) * self.scaling)
        lows = low.split(self.rank, dim=-1)
        return self._fused(
            {
                part.projection.name: F.linear(values, part.lora_B)
                for part, values in zip(parts, lows, strict=True)
            },
            dim=-1,
        )

    def _across_ranks(self, low: torch.Tensor) -> torch.Tensor:
        """The `rank` numbers of each token, whole where B is applied."""
        if self.tp_size == 1:
            return low
        if self.linear.split == "column":
            if self.sequence_parallel:
                return mappings.gather_from_sequence_parallel_region(low)
            return mappings.copy_to_tensor_model_parallel_region(low)
        if self.sequence_parallel:
            return mappings.reduce_scatter_to_sequence_parallel_region(low)
        return mappings.reduce_from_tensor_model_parallel_region(low)

    def _fused(self, found: dict[str, torch.Tensor], dim: int) -> torch.Tensor:
        """The projections' outputs (dim -1) or weights' rows (dim 0) as the fused linear has them.

        Group by group, zeros where a projection has no adapter."""
        projections = self.linear.projections
        if len(projections) == 1:
            return found[projections[0].name]
        groups = (self.linear.groups or self.tp_size) // self.tp_size
        like = next(iter(found.values()))
        parts = []
        for projection in projections:
            values = found.get(projection.name)
            if values is None:
                size = list(like.shape)
                size[dim] = projection.rows // self.tp_size
                values = like.new_zeros(size)
            parts.append(values.unflatten(dim, (groups, -1)))
        if dim == 0:
            return torch.cat(parts, dim=1).flatten(0, 1)
        return torch.cat(parts, dim=-1).flatten(-2)

    @torch.no_grad()
    def weight_delta(self) -> torch.Tensor:
        """s·B·A in float32, this rank's part, laid out as the linear's weight."""
        found = {
            part.projection.name: part.lora_B.float() @ part.lora_A.float() * self.scaling
            for part in self.parts
        }
        return self._fused(found, dim=0)


def attach(chunks: Sequence[Any], shape: ModelShape, spec: LoraSpec) -> None:
    """Freezes bare chunks and gives them adapters, whose values are not set yet.

    Raises:
        ModelError: a target that the model does not have.
    """
    check_targets(shape, spec)
    linears = [
        linear
        for linear in fused_linears(shape)
        if any(projection.name in spec.targets for projection in linear.projections)
    ]
    for chunk in chunks:
        chunk.requires_grad_(False)
        chunk.trains_adapters = True
        if chunk.pre_process:
            chunk.embedding.register_forward_hook(_with_gradient)
        for layer in chunk.decoder.layers:
            for linear in linears:
                module = layer.get_submodule(linear.module)
                module.adapter = LinearAdapter(linear, spec, chunk.config, module.weight)
                module.register_forward_hook(_add_adapter)
                # `model.weights.plain_weight` merges by it
                module.weight.weight_delta = weakref.WeakMethod(module.adapter.weight_delta)


def _with_gradient(_module: torch.nn.Module, _args: Any, embedded: torch.Tensor) -> torch.Tensor:
    """The embedding's output, asking for a gradient.

    Layers that are computed again in the backward need such an input, or torch's checkpoint would
    give their parameters none."""
    return embedded.requires_grad_() if torch.is_grad_enabled() else embedded


def _add_adapter(module: Any, args: tuple[torch.Tensor, ...], output: Any) -> Any:
    if not module.adapter.enabled:
        return output
    out, bias = output
    return out + module.adapter(args[0]), bias


def has_adapters(chunk: Any) -> bool:
    """Whether a bare chunk trains adapters instead of its weights."""
    return getattr(chunk, "trains_adapters", False)


def linear_adapters(chunk: Any) -> Iterator[tuple[int, LinearAdapter]]:
    """(Layer of the whole model, adapter of one of its linears) of a chunk, bare or in DDP."""
    while hasattr(chunk, "module"):
        chunk = chunk.module
    for layer in chunk.decoder.layers:
        for module in layer.modules():
            if isinstance(module, LinearAdapter):
                yield layer.layer_number - 1, module


@contextmanager
def adapters_off(chunks: Sequence[Any]) -> Iterator[None]:
    """The model without its adapters inside the block: what it was trained from."""
    found = [adapter for chunk in chunks for _, adapter in linear_adapters(chunk)]
    for adapter in found:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in found:
            adapter.enabled = True
