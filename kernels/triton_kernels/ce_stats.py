"""K1: one read of a row of logits → maximum, sum of exponentials, target logit, entropy sum;
optionally rank and argmax.

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
FAR = tl.constexpr(2**30)  # larger than any column


@triton.jit
def load_block(
    row_ptr,
    start,
    n_valid,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    ACC: tl.constexpr,
    WHOLE: tl.constexpr,
    POLICY: tl.constexpr,
):
    """Four quarters [W, VEC] of the block at `start`; −inf from n_valid on unless the block is
    WHOLE."""
    SIZE: tl.constexpr = LANES * VEC
    columns = start + tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    if WHOLE:
        a = tl.load(row_ptr + columns, eviction_policy=POLICY)
        b = tl.load(row_ptr + columns + SIZE, eviction_policy=POLICY)
        c = tl.load(row_ptr + columns + 2 * SIZE, eviction_policy=POLICY)
        d = tl.load(row_ptr + columns + 3 * SIZE, eviction_policy=POLICY)
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
    row_ptr, scale, n_valid,
    LANES: tl.constexpr, VEC: tl.constexpr, ENTROPY: tl.constexpr, ACC: tl.constexpr, POLICY: tl.constexpr, GUARD: tl.constexpr,
):  # fmt: skip
    """One pass over a row. POLICY: whether the L2 cache should hold the row for a second pass."""
    BLOCK: tl.constexpr = 4 * LANES * VEC
    peak = tl.full([LANES], NO_MAX, ACC)
    total = tl.zeros([LANES], ACC)
    spread = tl.zeros([LANES], ACC)
    whole = n_valid // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        quarters = load_block(row_ptr, start, n_valid, LANES, VEC, ACC, True, POLICY)
        peak, total, spread = lane_update(quarters, scale, peak, total, spread, ENTROPY, GUARD)
    if whole < n_valid:
        quarters = load_block(row_ptr, whole, n_valid, LANES, VEC, ACC, False, POLICY)
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
    POLICY: tl.constexpr,
):
    """Statistics of a row. The rare row that holds −inf shows itself by a NaN entropy sum and is
    read again with guards."""
    top, total, spread = scan_row(row_ptr, scale, n_valid, LANES, VEC, ENTROPY, ACC, POLICY, False)
    if ENTROPY:  # noqa: SIM102, the outer test is made by the compiler
        if spread != spread:
            top, total, spread = scan_row(
                row_ptr, scale, n_valid, LANES, VEC, ENTROPY, ACC, POLICY, True
            )
    return top, total, spread


@triton.jit
def ce_stats_kernel(
    logits_ptr, targets_ptr, inv_temperature_ptr, stats_ptr,
    num_tokens, row_stride, vocab_start, n_valid, ignore_index,
    PER_TOKEN: tl.constexpr, ENTROPY: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    if target != ignore_index:
        scale = tl.load(inv_temperature_ptr + row * PER_TOKEN).to(ACC) * LOG2E
        row_ptr = logits_ptr + row * row_stride
        top, total, spread = row_stats(
            row_ptr, scale, n_valid, LANES, VEC, ENTROPY, ACC, "evict_first"
        )
        local = target - vocab_start
        owned = (local >= 0) & (local < n_valid)
        at_target = tl.load(row_ptr + local, mask=owned, other=float("-inf")).to(ACC)
        tl.store(stats_ptr + row, top)
        tl.store(stats_ptr + num_tokens + row, total)
        tl.store(stats_ptr + 2 * num_tokens + row, at_target * scale - top)
        tl.store(stats_ptr + 3 * num_tokens + row, spread)


@triton.jit
def count_quarters(quarters, threshold):
    """[W] columns of each lane that are not below the threshold."""
    a, b, c, d = quarters
    counts = (
        (a >= threshold).to(tl.int32)
        + (b >= threshold).to(tl.int32)
        + (c >= threshold).to(tl.int32)
        + (d >= threshold).to(tl.int32)
    )
    return tl.sum(counts, 1)


@triton.jit
def ranked_update(
    quarters, at_target, start, scale, state, ENTROPY: tl.constexpr, GUARD: tl.constexpr
):
    """`lane_update` that also counts columns not below the target's and remembers each lane's first
    block with its maximum."""
    peak, total, spread, best, block, count = state
    a, b, c, d = quarters
    top = lane_max(a, b, c, d)
    better = top > best
    block = tl.where(better, start, block)
    best = tl.where(better, top, best)
    count += count_quarters(quarters, at_target)
    peak, total, spread = lane_update(quarters, scale, peak, total, spread, ENTROPY, GUARD)
    return peak, total, spread, best, block, count


@triton.jit
def first_equal(
    row_ptr, highest, block, n_valid, LANES: tl.constexpr, VEC: tl.constexpr, ACC: tl.constexpr
):
    """First column that equals the row's maximum, looked for in each lane's `block` [W]."""
    first = tl.full([LANES], FAR, tl.int32)
    for quarter in tl.static_range(4):
        columns = (
            block[:, None]
            + quarter * LANES * VEC
            + tl.arange(0, LANES)[:, None] * VEC
            + tl.arange(0, VEC)[None, :]
        )
        x = tl.load(row_ptr + columns, mask=columns < n_valid, other=float("-inf")).to(ACC)
        first = tl.minimum(
            first, tl.min(tl.where((x == highest) & (columns < n_valid), columns, FAR), 1)
        )
    return tl.min(first, 0)


@triton.jit
def ce_stats_rank_kernel(
    logits_ptr, targets_ptr, inv_temperature_ptr, stats_ptr,
    num_tokens, row_stride, vocab_start, n_valid, ignore_index,
    PER_TOKEN: tl.constexpr, ENTROPY: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    if target != ignore_index:
        BLOCK: tl.constexpr = 4 * LANES * VEC
        scale = tl.load(inv_temperature_ptr + row * PER_TOKEN).to(ACC) * LOG2E
        row_ptr = logits_ptr + row * row_stride
        local = target - vocab_start
        owned = (local >= 0) & (local < n_valid)
        at_target = tl.load(row_ptr + local, mask=owned, other=float("-inf")).to(ACC)
        nothing = tl.zeros([LANES], ACC)
        zero = tl.zeros([LANES], tl.int32)
        state = (
            tl.full([LANES], NO_MAX, ACC),
            nothing,
            nothing,
            tl.full([LANES], float("-inf"), ACC),
            zero,
            zero,
        )
        whole = n_valid // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            quarters = load_block(row_ptr, start, n_valid, LANES, VEC, ACC, True, "evict_first")
            state = ranked_update(quarters, at_target, start, scale, state, ENTROPY, False)
        quarters = load_block(row_ptr, whole, n_valid, LANES, VEC, ACC, False, "evict_first")
        state = ranked_update(quarters, at_target, whole, scale, state, ENTROPY, True)
        peak, total, spread, best, block, count = state
        top, row_total, row_spread = combine_lanes(peak, total, spread, ENTROPY)
        if ENTROPY:  # noqa: SIM102
            if row_spread != row_spread:  # a column at −inf: see row_stats
                top, row_total, row_spread = scan_row(
                    row_ptr, scale, n_valid, LANES, VEC, ENTROPY, ACC, "evict_first", True
                )
        highest = tl.max(best, 0)
        first = first_equal(row_ptr, highest, block, n_valid, LANES, VEC, ACC)
        # against −inf the masked tail counts itself too
        row_count = tl.minimum(tl.sum(count, 0), n_valid)
        tl.store(stats_ptr + row, top)
        tl.store(stats_ptr + num_tokens + row, row_total)
        tl.store(stats_ptr + 2 * num_tokens + row, at_target * scale - top)
        tl.store(stats_ptr + 3 * num_tokens + row, row_spread)
        tl.store(stats_ptr + 4 * num_tokens + row, at_target)
        tl.store(stats_ptr + 5 * num_tokens + row, highest)
        tl.store(stats_ptr + 6 * num_tokens + row, (first + vocab_start).to(ACC))
        tl.store(stats_ptr + 7 * num_tokens + row, tl.where(owned, row_count, 0).to(ACC))


@triton.jit
def count_kernel(
    logits_ptr,
    threshold_ptr,
    counts_ptr,
    row_stride,
    n_valid,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    BLOCK: tl.constexpr = 4 * LANES * VEC
    threshold = tl.load(threshold_ptr + row).to(ACC)
    row_ptr = logits_ptr + row * row_stride
    count = tl.zeros([LANES], tl.int32)
    whole = n_valid // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        count += count_quarters(
            load_block(row_ptr, start, n_valid, LANES, VEC, ACC, True, "evict_first"), threshold
        )
    count += count_quarters(
        load_block(row_ptr, whole, n_valid, LANES, VEC, ACC, False, "evict_first"), threshold
    )
    tl.store(counts_ptr + row, tl.minimum(tl.sum(count, 0), n_valid).to(ACC))


def ce_stats(
    logits: torch.Tensor, spec: RowSpec, *, entropy: bool, rank: bool = False
) -> torch.Tensor:
    """See `reference.ce_stats`. Statistics of ignored rows are those of an empty row."""
    configs.check_rows(logits)
    num_tokens, dtype = logits.shape[0], accumulator(logits.dtype)
    stats = torch.zeros(8 if rank else 4, num_tokens, dtype=dtype, device=logits.device)
    stats[0], stats[2] = NO_MAX.value, -math.inf
    if rank:
        stats[4:6], stats[6] = -math.inf, -1.0
    if num_tokens == 0 or spec.n_valid == 0:
        return stats
    config = configs.row_config(configs.STATS)
    with configs.device_guard(logits):
        (ce_stats_rank_kernel if rank else ce_stats_kernel)[(num_tokens,)](
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


def count_at_least(logits: torch.Tensor, threshold: torch.Tensor, n_valid: int) -> torch.Tensor:
    """See `reference.count_at_least`."""
    configs.check_rows(logits)
    counts = torch.zeros_like(threshold)
    if logits.shape[0] and n_valid:
        config = configs.row_config(configs.COUNT)
        with configs.device_guard(logits):
            count_kernel[(logits.shape[0],)](
                logits,
                threshold.contiguous(),
                counts,
                logits.stride(0),
                n_valid,
                LANES=config.lanes,
                VEC=configs.vector(logits.dtype),
                ACC=configs.triton_dtype(threshold.dtype),
                num_warps=config.num_warps,
                enable_fp_fusion=True,
            )
    return counts
