"""Weights as others want them.

Complete on every rank, and as ordinary tensors where they are kept in FP8.

Two things of the CUDA path would otherwise hand out wrong numbers without a word: with
gpu.overlap_param_gather an update leaves a rank only its own share of the new weights until the
next forward, and with gpu.fp8_param_gather a weight is quantised blocks and scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def gathered(wrapped: Sequence[Any]) -> Iterator[None]:
    """Weights complete on every rank inside the block.

    For who exports, saves or sends them (a loss spike after resume otherwise, NeMo-RL PR 949).
    `wrapped`: chunks in megatron-core's DDP, or bare ones. Collective; costs nothing without
    overlap_param_gather.
    """
    overlapping = [chunk for chunk in wrapped if getattr(chunk, "use_forward_hook", False)]
    for chunk in overlapping:
        chunk.disable_forward_pre_hook(param_sync=True)
    yield
    for chunk in overlapping:
        chunk.enable_forward_pre_hook()


def is_quantized(parameter: torch.Tensor) -> bool:
    """Whether a weight is kept in FP8."""
    from megatron.core.fp8_utils import is_float8tensor

    return is_float8tensor(parameter)


def set_weight(parameter: torch.Tensor, values: torch.Tensor) -> None:
    """Quantises `values` into an FP8 weight.

    And leaves them where the optimizer takes its fp32 master copy from."""
    parameter.data.copy_(values)
    # Transformer Engine keeps what the weight was made from, on the CPU, in an attribute that it
    # adds to the parameter: no class declares it
    if hasattr(parameter, "get_high_precision_init_val"):
        values = values.detach().to("cpu", copy=True)
        parameter._high_precision_init_val = values  # type: ignore[attr-defined]


def plain_weight(parameter: torch.Tensor) -> torch.Tensor:
    """A weight as an ordinary tensor: what the forward pass computes with.

    Dequantised where it is kept in FP8; with its adapter's product where it has one, summed in
    float64 and rounded once.
    """
    delta = getattr(parameter, "weight_delta", None)
    if delta is not None:
        return delta()().add_(parameter.data).to(parameter.dtype)
    return parameter.dequantize() if is_quantized(parameter) else parameter.data
