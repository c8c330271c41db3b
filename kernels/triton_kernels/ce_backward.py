"""K3: d logits of a row in one read and one write, in place or into another floating type.

Formula: `reference.ce_backward`.

The upstream gradient and the −1 at the target enter in float32; the result is rounded once. Rows
without gradient are not read.

A 16-bit gradient over float32 logits (HALF) fills the first half of the row's own bytes. Block k
of the gradient lies on columns up to (k + 1)·BLOCK/2, which every thread has loaded once the
barrier between load and store of block k is passed.
"""

import math

import torch
import triton
import triton.language as tl

from megaladder.kernels.reference import RowGrad, RowSpec, accumulator
from megaladder.kernels.triton_kernels import configs

LOG2E = tl.constexpr(1.0 / math.log(2.0))
LN2 = tl.constexpr(math.log(2.0))
FLAT = tl.constexpr(-1.0e4)


@triton.jit
def grad_tile(x, columns, c, peak, total, slope, bend, offset, local, HAS_ENTROPY: tl.constexpr):
    """slope·(1[target] − p) − bend·p·(ln p + H) for a tile.

    Offset = H in log2 units, bend carries ln 2.

    p = 2^(x·c − peak)/total: two small numbers instead of one large log-sum-exp, so a common shift
    of the logits costs no accuracy.
    """
    below = x * c - peak
    share = tl.exp2(below)
    factor = -slope / total
    if HAS_ENTROPY:
        factor = factor - (bend / total) * (tl.maximum(below, FLAT) + (offset - tl.log2(total)))
    return share * factor + tl.where(columns == local, slope, 0.0)


@triton.jit
def write_row_grad(
    row_ptr,
    out_ptr,
    c,
    peak,
    total,
    slope,
    bend,
    offset,
    local,
    n_valid,
    n_columns,
    HAS_ENTROPY: tl.constexpr,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    ACC: tl.constexpr,
):
    """One pass over a row.

    A row without gradient gets zeros and is not loaded; so do columns from n_valid on."""
    BLOCK: tl.constexpr = 4 * LANES * VEC
    columns = tl.arange(0, BLOCK)
    active = slope != 0.0
    if HAS_ENTROPY:
        active = active | (bend != 0.0)
    readable = tl.where(active, n_valid, 0)
    whole = readable // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        x = tl.load(row_ptr + start + columns, eviction_policy="evict_first").to(ACC)
        grad = grad_tile(
            x, start + columns, c, peak, total, slope, bend, offset, local, HAS_ENTROPY
        )
        if HALF:
            tl.debug_barrier()
        tl.store(out_ptr + start + columns, grad.to(out_ptr.dtype.element_ty))
    for start in range(whole, n_columns, BLOCK):
        at = start + columns
        x = tl.load(row_ptr + at, mask=at < readable, other=float("-inf")).to(ACC)
        grad = grad_tile(x, at, c, peak, total, slope, bend, offset, local, HAS_ENTROPY)
        grad = tl.where(at < readable, grad, 0.0)
        if HALF:
            tl.debug_barrier()
        tl.store(out_ptr + at, grad.to(out_ptr.dtype.element_ty), mask=at < n_columns)


@triton.jit
def ce_backward_kernel(
    logits_ptr,
    out_ptr,
    targets_ptr,
    inv_temperature_ptr,
    peak_ptr,
    total_ptr,
    entropy_ptr,
    d_logp_ptr,
    d_entropy_ptr,
    row_stride,
    out_stride,
    vocab_start,
    n_valid,
    n_columns,
    ignore_index,
    PER_TOKEN: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    scale = tl.load(inv_temperature_ptr + row * PER_TOKEN).to(ACC)
    kept = target != ignore_index
    slope = tl.where(kept, tl.load(d_logp_ptr + row).to(ACC) * scale, 0.0)
    bend = slope * 0.0
    offset = slope * 0.0
    if HAS_ENTROPY:
        bend = tl.where(kept, tl.load(d_entropy_ptr + row).to(ACC) * scale * LN2, 0.0)
        offset = tl.load(entropy_ptr + row).to(ACC) * LOG2E
    local = target - vocab_start
    local = tl.where((local >= 0) & (local < n_valid), local, -1)
    peak = tl.load(peak_ptr + row).to(ACC)
    total = tl.load(total_ptr + row).to(ACC)
    write_row_grad(
        logits_ptr + row * row_stride,
        out_ptr + row * out_stride,
        scale * LOG2E,
        peak,
        total,
        slope,
        bend,
        offset,
        local,
        n_valid,
        n_columns,
        HAS_ENTROPY,
        HALF,
        LANES,
        VEC,
        ACC,
    )


def ce_backward(logits: torch.Tensor, spec: RowSpec, upstream: RowGrad, out: torch.Tensor) -> None:
    """See `reference.ce_backward`."""
    configs.check_rows(logits, out)
    config, with_entropy = configs.row_config("backward", logits), upstream.d_entropy is not None
    dtype = accumulator(logits.dtype)
    if logits.shape[0] == 0:
        return
    unused, shared = upstream.peak, out.data_ptr() == logits.data_ptr()
    with configs.device_guard(logits):
        ce_backward_kernel[(logits.shape[0],)](
            logits,
            out,
            spec.targets,
            spec.inv_temperature,
            upstream.peak.contiguous(),
            upstream.total.contiguous(),
            upstream.entropy.contiguous() if with_entropy else unused,
            upstream.d_logp.contiguous(),
            upstream.d_entropy.contiguous() if with_entropy else unused,
            logits.stride(0),
            out.stride(0),
            spec.vocab_start,
            spec.n_valid,
            logits.shape[1],
            spec.ignore_index,
            PER_TOKEN=int(spec.inv_temperature.numel() > 1),
            HAS_ENTROPY=with_entropy,
            HALF=shared and out.dtype != logits.dtype,
            LANES=config.lanes,
            VEC=configs.vector(logits.dtype),
            ACC=configs.triton_dtype(dtype),
            num_warps=config.num_warps,
            enable_fp_fusion=True,
        )
