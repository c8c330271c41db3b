"""Norms that megatron-core's portable layers lack, for any device and either layer specification.

Legend: T tokens, H hidden size, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import mappings
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm over the last dimension, statistics in fp32.

    Under sequence parallelism its gradient is summed over TP. With layernorm_zero_centered_gamma it
    multiplies by 1 + weight (Gemma)."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_unused: Any
    ) -> None:
        super().__init__()
        self.eps = eps
        self.hidden_size = hidden_size
        self.offset = config.layernorm_zero_centered_gamma
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # a mark that megatron-core reads off the parameter; no class declares it
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.offset:
            return F.rms_norm(hidden_states, (self.hidden_size,), self.weight, self.eps)
        # in fp32, as Gemma does: 1 + weight would lose the weight's small values in bf16
        weight = 1.0 + self.weight.float()
        normed = F.rms_norm(hidden_states.float(), (self.hidden_size,), weight, self.eps)
        return normed.to(hidden_states.dtype)


class NormThenAdd(torch.nn.Module):
    """A norm on what attention or MLP returns, before it is added to the residual.

    Stands where megatron-core adds (`self_attn_bda`, `mlp_bda`)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, *_training_and_fusion: bool) -> Callable[..., torch.Tensor]:
        """megatron-core asks for a function first, then calls it."""
        return self._normed_sum

    def _normed_sum(
        self,
        output_with_bias: tuple[torch.Tensor, torch.Tensor | None],
        residual: torch.Tensor,
        _dropout: float,
    ) -> torch.Tensor:
        output, bias = output_with_bias
        return residual + self.norm(output if bias is None else output + bias)


class ProjectionNorm(torch.nn.Module):
    """RMS norm over all heads of a query or key projection together (OLMo-2).

    [T, …, heads, D] → the same shape. Heads are split over TP; the mean square is that of all
    ranks' heads."""

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float = 1e-6,
        *,
        num_heads: int,
        **_unused: Any,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.size = num_heads * hidden_size
        local = self.size // config.tensor_model_parallel_size
        self.weight = torch.nn.Parameter(torch.ones(local, dtype=config.params_dtype))

    def forward(self, projected: torch.Tensor) -> torch.Tensor:
        flat = projected.flatten(-2).float()
        squares = flat.square().sum(-1, keepdim=True)
        # summed over the ranks both ways: every rank's heads depend on every rank's squares
        squares = mappings.copy_to_tensor_model_parallel_region(
            mappings.reduce_from_tensor_model_parallel_region(squares)
        )
        normed = (flat * torch.rsqrt(squares / self.size + self.eps)).to(projected.dtype)
        return (normed * self.weight).view_as(projected)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Its entry of a checkpoint: the ranks' heads end to end."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(keep_vars=True), prefix, {"weight": 0}, sharded_offsets
        )
