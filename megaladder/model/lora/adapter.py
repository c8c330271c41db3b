"""Adapters on the linears of a model chunk: y = W·x + s·B·(A·x), W frozen.

Which matrix lies where over tensor-parallel ranks:

    column-parallel (qkv, gate and up)    A [rank, in] whole on every rank, B [out / tp, rank] cut
    row-parallel (o, down)                A [rank, in / tp] cut, B [out, rank] whole on every rank

Only the `rank` numbers of a token cross ranks. Column: A·x is the same on all ranks, and its
gradient, of which each rank has its rows' share, is summed (under sequence parallelism: gathered,
and reduce-scattered). Row: the partial A·x are summed (reduce-scattered). Under sequence parallelism
the whole matrix has seen a rank's own tokens only: it is marked, and megatron-core sums its
gradient over the ranks.

An expert's matrices are whole on the ranks that hold the expert, as its weights are (expert tensor
parallelism is refused). Its tokens come from all ranks, its gradient is summed over its holders.
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
    adapted_linears,
    check_targets,
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
    """The adapters of one megatron-core linear. expert: whose it is, over all ranks."""

    def __init__(
        self,
        linear: FusedLinear,
        spec: LoraSpec,
        config: TransformerConfig,
        weight: torch.Tensor,
        expert: int | None = None,
    ) -> None:
        super().__init__()
        self.linear, self.scaling, self.enabled = linear, spec.scaling, True
        self.expert = expert
        self.tp_size = config.tensor_model_parallel_size if expert is None else 1
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
        self._mark(adapter)
        return adapter

    def _mark(self, adapter: ProjectionAdapter) -> None:
        """Tells megatron-core over which ranks gradients are summed and norms counted.

        Its gradient norm counts what is not marked as cut on the first rank of tp only, where an
        expert's matrices may not be at all."""
        column = self.linear.split == "column"
        whole, cut = adapter.lora_A, adapter.lora_B
        if not column:
            cut, whole = whole, cut
        for one in (cut,) if self.expert is None else (cut, whole):
            _set(one, tensor_model_parallel=True, partition_dim=int(not column), partition_stride=1)
        if self.expert is None:
            _set(whole, sequence_parallel=self.sequence_parallel)
        else:
            _set(cut, allreduce=False)
            _set(whole, allreduce=False)

    def tensors(self, layer: int) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """(PEFT's name in that layer of the whole model, this rank's part)."""
        for part in self.parts:
            yield part.projection.tensor(layer, "A", self.expert), part.lora_A
            yield part.projection.tensor(layer, "B", self.expert), part.lora_B

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[T, 1, in] as the linear takes it → what is added to its output, [T, 1, out].

        Of an expert [tokens, in] → [tokens, out]."""
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
        """s·B·A in float64, this rank's part, laid out as the linear's weight."""
        found = {
            part.projection.name: part.lora_B.double() @ part.lora_A.double() * self.scaling
            for part in self.parts
        }
        return self._fused(found, dim=0)


def attach(chunks: Sequence[Any], shape: ModelShape, spec: LoraSpec) -> None:
    """Freezes bare chunks and gives them adapters, whose values are not set yet.

    Raises:
        ModelError: a target that the model does not have.
    """
    check_targets(shape, spec)
    for chunk in chunks:
        chunk.requires_grad_(False)
        chunk.trains_adapters = True
        if chunk.pre_process:
            chunk.embedding.register_forward_hook(_with_gradient)
        for layer in chunk.decoder.layers:
            for linear in adapted_linears(shape, spec, layer.layer_number - 1):
                for module, expert in _modules(layer, linear):
                    module.adapter = LinearAdapter(
                        linear, spec, chunk.config, module.weight, expert
                    )
                    module.register_forward_hook(_add_adapter)
                    # `model.weights.plain_weight` merges by it
                    module.weight.weight_delta = weakref.WeakMethod(module.adapter.weight_delta)


def _set(parameter: torch.nn.Parameter, **marks: Any) -> None:
    """Attributes that megatron-core reads and no class declares."""
    for mark, value in marks.items():
        setattr(parameter, mark, value)


def _modules(layer: Any, linear: FusedLinear) -> Iterator[tuple[Any, int | None]]:
    """A layer's modules of one kind on this rank, each with its expert's index over all ranks."""
    if not linear.of_experts:
        yield layer.get_submodule(linear.module), None
        return
    for local, expert in enumerate(layer.mlp.local_expert_indices):
        yield layer.get_submodule(linear.module.replace("@", str(local))), expert


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
