"""One pass of AdamW: clipped gradient, both moments, float32 weights and their 16-bit copy.

Reads 16 bytes an element and writes 12, and 2 for the copy: what clipping (8), a fused AdamW (28)
and the copy (6) move as passes of their own is 42.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from megaladder.kernels.triton_kernels import configs

BLOCK = 2048  # elements of a program: two 128-bit loads a thread of each tensor
WARPS = 8


@dataclass(frozen=True, slots=True)
class AdamStep:
    """The numbers of one update of a group; `step` counts from 1.

    grad_scale multiplies the gradient, which stays as it is."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    step: int
    grad_scale: float


@triton.jit
def adamw_kernel(
    weight_ptr,
    grad_ptr,
    mean_ptr,
    square_ptr,
    copy_ptr,
    num_elements,
    lr,
    beta1,
    beta2,
    rest1,
    rest2,
    unbias1,
    unbias2,
    eps,
    weight_decay,
    grad_scale,
    COPY: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """rest = 1 − beta, unbias = 1/(1 − beta^step), rounded from float64 on the host.

    WHOLE: the blocks cover the elements exactly, and nothing asks which there are."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if WHOLE:  # noqa: SIM108, the compiler decides
        inside = None
    else:
        inside = at < num_elements
    grad = tl.load(grad_ptr + at, mask=inside) * grad_scale
    mean = tl.load(mean_ptr + at, mask=inside) * beta1 + grad * rest1
    square = tl.load(square_ptr + at, mask=inside) * beta2 + grad * grad * rest2
    weight = tl.load(weight_ptr + at, mask=inside)
    change = tl.div_rn(mean * unbias1, tl.sqrt_rn(square * unbias2) + eps) + weight * weight_decay
    weight = weight - lr * change
    tl.store(mean_ptr + at, mean, mask=inside)
    tl.store(square_ptr + at, square, mask=inside)
    tl.store(weight_ptr + at, weight, mask=inside)
    if COPY:
        tl.store(copy_ptr + at, weight.to(copy_ptr.dtype.element_ty), mask=inside)


def adamw(
    weight: torch.Tensor,
    grad: torch.Tensor,
    moments: tuple[torch.Tensor, torch.Tensor],
    copy: torch.Tensor | None,
    numbers: AdamStep,
) -> None:
    """Updates `weight` and `moments` in place, all float32 and contiguous, of one size.

    copy: where the new weights go in their own type too."""
    count = weight.numel()
    if not count:
        return
    with configs.device_guard(weight):
        adamw_kernel[(triton.cdiv(count, BLOCK),)](
            weight,
            grad,
            *moments,
            weight if copy is None else copy,
            count,
            numbers.lr,
            numbers.beta1,
            numbers.beta2,
            1.0 - numbers.beta1,
            1.0 - numbers.beta2,
            1.0 / (1.0 - numbers.beta1**numbers.step),
            1.0 / (1.0 - numbers.beta2**numbers.step),
            numbers.eps,
            numbers.weight_decay,
            numbers.grad_scale,
            COPY=copy is not None,
            WHOLE=count % BLOCK == 0,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
