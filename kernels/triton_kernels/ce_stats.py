"""K1: one read of a row of logits → maximum, sum of exponentials, target logit, entropy sum.

A block of columns is four quarters, each a tile [W, VEC]: W lanes, one per thread, and VEC columns
in one 128-bit load. Each lane keeps its own online state over its 4·VEC columns, so the loop has no
shuffle and no barrier; lanes are combined once at the end. (A tile [4, W, VEC] would say the same,
but triton 3.6 lays its first axis over threads.) Statistics and units: `reference.py`. Columns from
n_valid on are never loaded.
"""

import math

import torch
import triton
import triton.language as tl

from megaladder.kernels import reference
from megaladder.kernels.reference import RowSpec, accumulator
from megaladder.kernels.triton_kernels import configs

LOG2E = tl.constexpr(1.0 / math.log(2.0))
NO_MAX = tl.constexpr(reference.NO_MAX)
FLAT = tl.constexpr(reference.FLAT)


@triton.jit
def load_block(
    row_ptr,
    start,
    n_valid,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    ACC: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Four quarters [W, VEC] of the block at `start`.

    −inf from n_valid on unless the block is WHOLE."""
    SIZE: tl.constexpr = LANES * VEC
    columns = start + tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    if WHOLE:
        a = tl.load(row_ptr + columns, eviction_policy="evict_first")
        b = tl.load(row_ptr + columns + SIZE, eviction_policy="evict_first")
        c = tl.load(row_ptr + columns + 2 * SIZE, eviction_policy="evict_first")
        d = tl.load(row_ptr + columns + 3 * SIZE, eviction_policy="evict_first")
    else:
        a = tl.load(row_ptr + columns, mask=columns < n_valid, other=float("-inf"))
        b = tl.load(row_ptr + columns + SIZE, mask=columns + SIZE < n_valid, other=float("-inf"))
        c = tl.load(
            row_ptr + columns + 2 * SIZE, mask=columns + 2 * SIZE < n_valid, other=float("-inf")
        )
        d = tl.load(
            row_ptr + columns + 3 * SIZE, mask=columns + 3 * SIZE < n_valid, other=float("-inf")
        )
    return a.to(ACC), b.to(ACC), c.to(ACC), d.to(ACC)


@triton.jit
def lane_max(a, b, c, d):
    return tl.max(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), 1)


@triton.jit
def below_peak(x, scale, peak, GUARD: tl.constexpr):
    below = x * scale - peak[:, None]
    if GUARD:
        # a NaN logit stays visible
        below = tl.maximum(below, FLAT, propagate_nan=tl.PropagateNan.ALL)
    return below


@triton.jit
def lane_update(quarters, scale, peak, total, spread, ENTROPY: tl.constexpr, GUARD: tl.constexpr):
    """Takes a block into the lanes' state: peak (log2 units), total, spread, all [W].

    Without GUARD a column at −inf makes `spread` NaN (0·(−inf)); with it, an instruction per
    element keeps it out.
    """
    a, b, c, d = quarters
    new_peak = tl.maximum(peak, lane_max(a, b, c, d) * scale)
    a = below_peak(a, scale, new_peak, ENTROPY and GUARD)
    b = below_peak(b, scale, new_peak, ENTROPY and GUARD)
    c = below_peak(c, scale, new_peak, ENTROPY and GUARD)
    d = below_peak(d, scale, new_peak, ENTROPY and GUARD)
    step = peak - new_peak
    shrink = tl.exp2(step)
    share_a = tl.exp2(a)
    share_b = tl.exp2(b)
    share_c = tl.exp2(c)
    share_d = tl.exp2(d)
    if ENTROPY:
        spread = (spread + total * step) * shrink + tl.sum(
            share_a * a + share_b * b + share_c * c + share_d * d, 1
        )
    total = total * shrink + tl.sum((share_a + share_b) + (share_c + share_d), 1)
    return new_peak, total, spread


@triton.jit
def combine_lanes(peak, total, spread, ENTROPY: tl.constexpr):
    """The row's maximum, sum and entropy sum from its lanes."""
    top = tl.max(peak, 0)
    step = peak - top
    share = tl.exp2(step)
    row_spread = tl.sum(total, 0) * 0.0
    if ENTROPY:
        row_spread = tl.sum((spread + total * step) * share, 0)
    return top, tl.sum(total * share, 0), row_spread


@triton.jit
def scan_row(
    row_ptr,
    scale,
    n_valid,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
    GUARD: tl.constexpr,
):
    """One pass over a row."""
    BLOCK: tl.constexpr = 4 * LANES * VEC
    peak = tl.full([LANES], NO_MAX, ACC)
    total = tl.zeros([LANES], ACC)
    spread = tl.zeros([LANES], ACC)
    whole = n_valid // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        quarters = load_block(row_ptr, start, n_valid, LANES, VEC, ACC, True)
        peak, total, spread = lane_update(quarters, scale, peak, total, spread, ENTROPY, GUARD)
    if whole < n_valid:
        quarters = load_block(row_ptr, whole, n_valid, LANES, VEC, ACC, False)
        peak, total, spread = lane_update(quarters, scale, peak, total, spread, ENTROPY, True)
    return combine_lanes(peak, total, spread, ENTROPY)


@triton.jit
def row_stats(
    row_ptr,
    scale,
    n_valid,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
):
    """Statistics of a row.

    The rare row that holds −inf shows itself by a NaN entropy sum and is read again with guards."""
    top, total, spread = scan_row(row_ptr, scale, n_valid, LANES, VEC, ENTROPY, ACC, False)
    if ENTROPY:  # noqa: SIM102, the outer test is made by the compiler
        if spread != spread:
            top, total, spread = scan_row(row_ptr, scale, n_valid, LANES, VEC, ENTROPY, ACC, True)
    return top, total, spread


@triton.jit
def ce_stats_kernel(
    logits_ptr,
    targets_ptr,
    inv_temperature_ptr,
    stats_ptr,
    num_tokens,
    row_stride,
    vocab_start,
    n_valid,
    ignore_index,
    PER_TOKEN: tl.constexpr,
    ENTROPY: tl.constexpr,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    if target != ignore_index:
        scale = tl.load(inv_temperature_ptr + row * PER_TOKEN).to(ACC) * LOG2E
        row_ptr = logits_ptr + row * row_stride
        top, total, spread = row_stats(row_ptr, scale, n_valid, LANES, VEC, ENTROPY, ACC)
        local = target - vocab_start
        owned = (local >= 0) & (local < n_valid)
        at_target = tl.load(row_ptr + local, mask=owned, other=float("-inf")).to(ACC)
        tl.store(stats_ptr + row, top)
        tl.store(stats_ptr + num_tokens + row, total)
        tl.store(stats_ptr + 2 * num_tokens + row, at_target * scale - top)
        tl.store(stats_ptr + 3 * num_tokens + row, spread)
    else:  # as of no column, so that the caller need not fill anything
        nothing = tl.full([], 0.0, ACC)
        tl.store(stats_ptr + row, nothing + NO_MAX)
        tl.store(stats_ptr + num_tokens + row, nothing)
        tl.store(stats_ptr + 2 * num_tokens + row, nothing + float("-inf"))
        tl.store(stats_ptr + 3 * num_tokens + row, nothing)


def ce_stats(logits: torch.Tensor, spec: RowSpec, *, entropy: bool) -> torch.Tensor:
    """See `reference.ce_stats`. Statistics of ignored rows are those of an empty row."""
    configs.check_rows(logits)
    num_tokens, dtype = logits.shape[0], accumulator(logits.dtype)
    stats = torch.empty(4, num_tokens, dtype=dtype, device=logits.device)
    if num_tokens == 0:
        return stats
    config = configs.row_config("stats", logits)
    with configs.device_guard(logits):
        ce_stats_kernel[(num_tokens,)](
            logits,
            spec.targets,
            spec.inv_temperature,
            stats,
            num_tokens,
            logits.stride(0),
            spec.vocab_start,
            spec.n_valid,
            spec.ignore_index,
            PER_TOKEN=int(spec.inv_temperature.numel() > 1),
            ENTROPY=entropy,
            LANES=config.lanes,
            VEC=configs.vector(logits.dtype),
            ACC=configs.triton_dtype(dtype),
            num_warps=config.num_warps,
            enable_fp_fusion=True,
        )
    return stats
