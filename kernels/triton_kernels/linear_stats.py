"""K5: statistics of hidden · weightᵀ without logits in memory: a TMA-fed product whose float32 sums
go straight into online softmax.

A program owns a tile of rows and a fixed range of columns (a split); the splits of a row are merged
in order by `partial_merge`. Tile sizes, the order over the hidden dimension and the splits do not
depend on the number of tokens: a row gives the same bits in any batch. The epilogue handles the
tile in two halves; as a whole it would spill.
"""

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from megaladder.kernels import reference
from megaladder.kernels.reference import RowSpec
from megaladder.kernels.triton_kernels import configs
from megaladder.kernels.triton_kernels.merge_stats import partial_merge

LOG2E = tl.constexpr(1.0 / math.log(2.0))
NO_MAX = tl.constexpr(-1.0e30)
FLAT = tl.constexpr(-1.0e4)


@triton.jit
def take_half(x, first, c, local, n_valid, state, ENTROPY: tl.constexpr, COLUMNS: tl.constexpr):
    """Online softmax over x [M, COLUMNS], columns first … ; state [M] in log2 units; at_target is
    absolute."""
    peak, total, at_target, spread = state
    columns = first + tl.arange(0, COLUMNS)
    z = tl.where(columns[None, :] < n_valid, x, float("-inf")) * c[:, None]
    at_target += tl.sum(tl.where(columns[None, :] == local[:, None], z, 0.0), 1)
    new_peak = tl.maximum(peak, tl.max(z, 1))
    below = tl.maximum(z - new_peak[:, None], FLAT, propagate_nan=tl.PropagateNan.ALL)
    share = tl.exp2(below)
    step = peak - new_peak
    shrink = tl.exp2(step)
    if ENTROPY:
        spread = (spread + total * step) * shrink + tl.sum(share * below, 1)
    total = total * shrink + tl.sum(share, 1)
    return new_peak, total, at_target, spread


@triton.jit
def linear_stats_kernel(
    hidden_desc, weight_desc, targets_ptr, inv_temperature_ptr, stats_ptr,
    num_tokens, hidden_size, vocab_start, n_valid, num_row_tiles, num_splits, ignore_index,
    PER_TOKEN: tl.constexpr, ENTROPY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
    TILES: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """stats [splits, 4, T]. WIDEN: multiply in float32 (the interpreter's bfloat16 product is
    wrong)."""
    program = tl.program_id(0)
    per_group = GROUP * num_splits
    first_tile = program // per_group * GROUP
    tiles_here = tl.minimum(num_row_tiles - first_tile, GROUP)
    row_tile = first_tile + program % per_group % tiles_here
    split = program % per_group // tiles_here
    row = row_tile * ROWS + tl.arange(0, ROWS)
    inside = row < num_tokens
    c = (
        tl.load(inv_temperature_ptr + row * PER_TOKEN, mask=inside, other=1.0).to(tl.float32)
        * LOG2E
    )
    target = tl.load(targets_ptr + row, mask=inside, other=ignore_index)
    local = tl.where(target == ignore_index, -1, target - vocab_start)
    owned = (local >= 0) & (local < n_valid)
    local = tl.where(owned, local, -1).to(tl.int32)
    peak = tl.full([ROWS], NO_MAX, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    at_target = tl.zeros([ROWS], tl.float32)
    spread = tl.zeros([ROWS], tl.float32)
    for tile in range(TILES):
        first = (split * TILES + tile) * COLUMNS
        if first < n_valid:
            sums = tl.zeros([ROWS, COLUMNS], tl.float32)
            for k in range(0, hidden_size, INNER):
                x = hidden_desc.load([row_tile * ROWS, k])
                w = weight_desc.load([first, k])
                if WIDEN:
                    sums = tl.dot(
                        x.to(tl.float32), w.to(tl.float32).T, sums, input_precision="ieee"
                    )
                else:
                    sums = tl.dot(x, w.T, sums)
            HALF: tl.constexpr = COLUMNS // 2
            left, right = tl.reshape(sums, [ROWS, 2, HALF]).permute(0, 2, 1).split()
            state = (peak, total, at_target, spread)
            state = take_half(left, first, c, local, n_valid, state, ENTROPY, HALF)
            peak, total, at_target, spread = take_half(
                right, first + HALF, c, local, n_valid, state, ENTROPY, HALF
            )
    here = owned & (local >= split * TILES * COLUMNS) & (local < (split + 1) * TILES * COLUMNS)
    out = stats_ptr + split.to(tl.int64) * 4 * num_tokens + row
    tl.store(out, peak, mask=inside)
    tl.store(out + num_tokens, total, mask=inside)
    tl.store(out + 2 * num_tokens, tl.where(here, at_target - peak, float("-inf")), mask=inside)
    tl.store(out + 3 * num_tokens, spread, mask=inside)


def linear_stats(
    hidden: torch.Tensor, weight: torch.Tensor, spec: RowSpec, *, entropy: bool
) -> torch.Tensor:
    """See `reference.linear_stats`. Rows of hidden and weight must start at multiples of 16 bytes
    (hidden size % 8 == 0 for 16 bits)."""
    if hidden.dtype == torch.float64 or spec.n_valid == 0 or hidden.shape[0] == 0:
        return reference.linear_stats(hidden, weight, spec, entropy=entropy)
    if hidden.shape[1] * hidden.element_size() % 16:
        row = f"hidden size {hidden.shape[1]} × {hidden.element_size()} bytes"
        raise ValueError(
            f"{row} is no multiple of 16 bytes, which TMA needs; fix: never_materialise=False"
        )
    small = configs.interpreted()
    config = configs.INTERPRETED_LINEAR if small else configs.LINEAR
    hidden, weight, num_tokens = hidden.contiguous(), weight.contiguous(), hidden.shape[0]
    row_tiles = triton.cdiv(num_tokens, config.rows)
    splits = triton.cdiv(spec.n_valid, config.columns * config.tiles_per_split)
    stats = torch.empty(splits, 4, num_tokens, dtype=torch.float32, device=hidden.device)
    with configs.device_guard(hidden):
        linear_stats_kernel[(row_tiles * splits,)](
            TensorDescriptor.from_tensor(hidden, [config.rows, config.inner]),
            TensorDescriptor.from_tensor(weight, [config.columns, config.inner]),
            spec.targets, spec.inv_temperature, stats,
            num_tokens, hidden.shape[1], spec.vocab_start, spec.n_valid, row_tiles, splits, spec.ignore_index,
            PER_TOKEN=int(spec.inv_temperature.numel() > 1), ENTROPY=entropy, ROWS=config.rows, COLUMNS=config.columns, INNER=config.inner,
            TILES=config.tiles_per_split, GROUP=config.group, WIDEN=small, num_warps=config.num_warps, num_stages=config.num_stages,
            enable_fp_fusion=True,
        )  # fmt: skip
    return partial_merge(stats, spec.targets)
