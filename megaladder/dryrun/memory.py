"""Bytes that a simulated rank holds: counted in its own buffers, activations by a rule.

The layers that a dry run builds are the portable ones; those of a GPU are fused and keep less. So
activations are counted by what fused layers keep: the inputs of every norm, of every linear layer
(one byte a value in FP8) and of the attention core, and the two halves of the gated MLP; each from
the forward of its module to the start of its backward. Under recomputation only the input of what
is computed again is kept. The largest sum over the step counts, in the order of the real schedule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_layer import TransformerLayer

from megaladder.model.head import VocabularyHead
from megaladder.model.moe.router import Router
from megaladder.model.norms import ProjectionNorm, RMSNorm
from megaladder.model.portable import PackedCoreAttention


@dataclass(frozen=True, slots=True)
class HeldBytes:
    """Of one rank, by part; head and reserve are no tensors of a dry run and stay `plan`'s."""

    weights: int
    gradients: int
    optimizer: int
    fp8_copies: int
    activations: int


@dataclass(slots=True)
class ActivationMeter:
    """Adds and takes away while the step runs; `peak` is the largest sum."""

    live: int = 0
    peak: int = 0
    hooks: list[Any] = field(default_factory=list)

    def keep(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)

    def release(self, size: int, _gradient: torch.Tensor) -> None:
        self.live -= size


def meter_activations(chunks: Iterable[torch.nn.Module], recompute: str, fp8: bool) -> Any:
    """Watches the layers of `chunks`; `recompute` as in `train.recompute`."""
    meter = ActivationMeter()
    again = {"full": TransformerLayer, "selective": PackedCoreAttention}.get(recompute)
    for chunk in chunks:
        for module in chunk.modules():
            if again is not None and isinstance(module, again):
                module.register_forward_hook(
                    partial(_recomputed, meter, recompute == "full"), with_kwargs=True
                )
            elif isinstance(module, (RMSNorm, ProjectionNorm, PackedCoreAttention)):
                module.register_forward_hook(partial(_kept, meter, 1.0), with_kwargs=True)
            elif isinstance(module, VocabularyHead):
                continue
            elif isinstance(module, (ColumnParallelLinear, RowParallelLinear)):
                share = 0.5 if fp8 else 1.0
                module.register_forward_hook(partial(_kept, meter, share), with_kwargs=True)
            if isinstance(module, Router) and again is not TransformerLayer:
                module.register_forward_hook(partial(_router_kept, meter), with_kwargs=True)
            if isinstance(module, MLP):
                module.linear_fc1.register_forward_hook(partial(_output_kept, meter))
    return meter


def state_bytes(optimizer: Any) -> int:
    """Master copies and moments of the distributed optimizer's shard."""
    parts = [part.optimizer for part in optimizer.chained_optimizers]
    return sum(
        parameter.nbytes
        + sum(part.state[parameter][name].nbytes for name in ("exp_avg", "exp_avg_sq"))
        for part in parts
        for group in part.param_groups
        for parameter in group["params"]
    )


def weight_bytes(chunks: Sequence[torch.nn.Module]) -> int:
    return sum(parameter.nbytes for chunk in chunks for parameter in chunk.parameters())


def gradient_bytes(wrapped: Sequence[Any]) -> int:
    """megatron-core's flat buffers, padding included."""
    return sum(
        buffer.grad_data.nbytes
        for chunk in wrapped
        for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers]
    )


def quantized_bytes(chunks: Sequence[Any]) -> int:
    """Of the layers' matrices and their transposes in FP8, one byte a value each."""
    return 2 * sum(
        parameter.numel()
        for chunk in chunks
        for parameter in chunk.decoder.parameters()
        if parameter.dim() == 2
    )


def layer_at_work_bytes(chunk: Any, tokens: int) -> int:
    """One layer's backward.

    Hidden states gathered over tp and their gradient, three gradients of the MLP's width; of
    experts the tokens that are sent and come and their gradients too, for every token's experts."""
    config = chunk.config
    tp, hidden = config.tensor_model_parallel_size, config.hidden_size
    width = 3 * config.ffn_hidden_size / tp
    if config.num_moe_experts:
        etp = config.expert_tensor_parallel_size
        routed = config.moe_router_topk * etp / (tp if config.sequence_parallel else 1)
        shared = 3 * (config.moe_shared_expert_intermediate_size or 0) / tp
        width = shared + routed * (3 * config.moe_ffn_hidden_size / etp + 4 * hidden)
    size = torch.empty(0, dtype=config.params_dtype).element_size()
    return int(tokens * (2 * hidden + width) * size)


def _inputs(args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """Bytes of the floating-point tensors that a module was given."""
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    return sum(value.nbytes for value in given if value.is_floating_point())


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _kept(
    meter: ActivationMeter, share: float, _module: Any, args: Any, kwargs: Any, output: Any
) -> None:
    _keep_until_backward(meter, int(share * _inputs(args, kwargs)), _first(output))


def _router_kept(meter: ActivationMeter, module: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Its input, and its logits and scores in fp32."""
    size = _inputs(args, kwargs) + 2 * _first(output).numel() * 4
    _keep_until_backward(meter, size, _first(output))


def _output_kept(meter: ActivationMeter, _module: Any, _args: Any, output: Any) -> None:
    _keep_until_backward(meter, _first(output).nbytes, _first(output))


def _keep_until_backward(meter: ActivationMeter, size: int, output: torch.Tensor) -> None:
    if torch.is_grad_enabled() and output.requires_grad:
        meter.keep(size)
        output.register_hook(partial(meter.release, size))


def _recomputed(
    meter: ActivationMeter, first_input: bool, module: Any, args: Any, kwargs: Any, output: Any
) -> None:
    """The first forward has no graph and keeps the inputs; the second, in backward, ends that."""
    given = [kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]]
    size = _inputs(given if first_input else args, {} if first_input else kwargs)
    if not torch.is_grad_enabled():
        meter.keep(size if module.training else 0)
    elif _first(output).requires_grad:
        _first(output).register_hook(partial(meter.release, size))
