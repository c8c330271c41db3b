"""K2: statistics of R parts of the vocabulary → log-prob, entropy, log-sum-exp, peak, total.

Parts are merged in their given order, so the result is the same for any batch.
"""

import math

import torch
import triton
import triton.language as tl

from megaladder.kernels.triton_kernels import configs

LN2 = tl.constexpr(math.log(2.0))
NO_MAX = tl.constexpr(-1.0e30)


@triton.jit
def merge_kernel(
    gathered_ptr,
    targets_ptr,
    out_ptr,
    num_parts,
    part_stride,
    num_tokens,
    ignore_index,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """gathered [parts, K, T]; out [5, T]."""
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = token < num_tokens
    top = tl.full([BLOCK], NO_MAX, ACC)
    for part in range(num_parts):
        source = gathered_ptr + tl.cast(part, tl.int64) * part_stride + token
        top = tl.maximum(top, tl.load(source, mask=inside, other=NO_MAX))
    total = tl.zeros([BLOCK], ACC)
    spread = tl.zeros([BLOCK], ACC)
    at_target = tl.full([BLOCK], float("-inf"), ACC)
    for part in range(num_parts):
        source = gathered_ptr + tl.cast(part, tl.int64) * part_stride + token
        step = tl.load(source, mask=inside, other=NO_MAX) - top
        part_total = tl.load(source + num_tokens, mask=inside, other=0.0)
        share = tl.exp2(step)
        total += part_total * share
        spread += (
            tl.load(source + 3 * num_tokens, mask=inside, other=0.0) + part_total * step
        ) * share
        at_target = tl.maximum(
            at_target, tl.load(source + 2 * num_tokens, mask=inside, other=float("-inf")) + step
        )
    kept = tl.load(targets_ptr + token, mask=inside, other=ignore_index) != ignore_index
    log_total = tl.log2(total)
    tl.store(out_ptr + token, tl.where(kept, (at_target - log_total) * LN2, 0.0), mask=inside)
    tl.store(
        out_ptr + num_tokens + token,
        tl.where(kept, (log_total - spread / total) * LN2, 0.0),
        mask=inside,
    )
    tl.store(
        out_ptr + 2 * num_tokens + token, tl.where(kept, (top + log_total) * LN2, 0.0), mask=inside
    )
    tl.store(out_ptr + 3 * num_tokens + token, tl.where(kept, top, 0.0), mask=inside)
    tl.store(out_ptr + 4 * num_tokens + token, tl.where(kept, total, 1.0), mask=inside)


def merge_stats(gathered: torch.Tensor, targets: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """See `reference.merge_stats`."""
    parts, _, num_tokens = gathered.shape
    out = gathered.new_empty((5, num_tokens))
    if num_tokens:
        gathered = gathered.contiguous()
        with configs.device_guard(gathered):
            merge_kernel[(triton.cdiv(num_tokens, configs.MERGE_BLOCK),)](
                gathered,
                targets,
                out,
                parts,
                gathered.stride(0),
                num_tokens,
                ignore_index,
                BLOCK=configs.MERGE_BLOCK,
                ACC=configs.triton_dtype(gathered.dtype),
                num_warps=4,
                enable_fp_fusion=True,
            )
    return out
