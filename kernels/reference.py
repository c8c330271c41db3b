"""Plain PyTorch twins of every Triton kernel: the CPU path, and what the kernels are compared with.

T = tokens, V = local columns, K = statistics per token, R = tensor-parallel ranks. Everything is
computed in `accumulator(logits)`: float64 for float64 logits, float32 otherwise; bfloat16 logits
are widened block by block, never as a whole. Blocks of rows are about 1 MiB, so that the passes
over a block stay in cache (three times the speed of whole-tensor passes on two cores).

Statistics per token over this rank's valid columns, with z = inv_temperature·log2(e)·x (the unit of
the exchange is log2):
    0  m = max z (−1e30 if there is no column)      1  s = Σ 2^(z−m)
    2  z_y − m (−inf where another rank owns y)     3  t = Σ 2^(z−m)·(z−m); 0 unless `entropy`
Differences to m instead of absolute z keep log-prob and entropy exact under any common shift of the
logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

LOG2E = 1.0 / math.log(2.0)
# maximum of no column: finite, so that differences of two of them are 0 and not NaN
NO_MAX = -1.0e30
FLAT = -1.0e4  # exp and exp2 of this are 0; keeps 0·(−inf) out of the entropy
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RowSpec:
    """What every row kernel needs to know besides the logits."""

    targets: torch.Tensor  # int64 [T], global column or `ignore_index`
    inv_temperature: torch.Tensor  # float [1] or [T], > 0
    vocab_start: int
    n_valid: int  # valid local columns; columns from here on are never read and get gradient 0
    ignore_index: int = -100

    def rows(self, index: torch.Tensor | slice) -> RowSpec:
        """The same for some tokens."""
        scale = (
            self.inv_temperature
            if self.inv_temperature.numel() == 1
            else self.inv_temperature[index]
        )
        return RowSpec(
            self.targets[index], scale, self.vocab_start, self.n_valid, self.ignore_index
        )


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_blocks(num_rows: int, row_bytes: int, block_bytes: int = _BLOCK_BYTES) -> Iterator[slice]:
    """Consecutive slices over the rows, each about `block_bytes`."""
    step = max(1, block_bytes // max(1, row_bytes))
    for start in range(0, num_rows, step):
        yield slice(start, min(num_rows, start + step))


def _scale(spec: RowSpec, block: slice, dtype: torch.dtype) -> torch.Tensor | float | None:
    """inv_temperature of a block as [n, 1] or a number; None when it is 1."""
    if spec.inv_temperature.numel() == 1:
        if spec.inv_temperature.device.type != "cpu":
            return spec.inv_temperature.to(dtype).view(1, 1)
        value = spec.inv_temperature.item()
        return None if value == 1.0 else value
    return spec.inv_temperature[block].to(dtype).unsqueeze(1)


def _times(values: torch.Tensor, scale: torch.Tensor | float | None) -> torch.Tensor:
    """[n] values times the block's scale."""
    if scale is None:
        return values
    return values * (scale.squeeze(1) if isinstance(scale, torch.Tensor) else scale)


def _owner(spec: RowSpec, block: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whose each target is.

    Local target column clamped into range [n, 1], whether this rank owns it [n], whether the row is
    ignored [n]."""
    targets = spec.targets[block]
    ignored = targets == spec.ignore_index
    local = targets - spec.vocab_start
    owned = (local >= 0) & (local < spec.n_valid) & ~ignored
    return local.clamp(0, max(0, spec.n_valid - 1)).unsqueeze(1), owned, ignored


def ce_stats(logits: torch.Tensor, spec: RowSpec, *, entropy: bool) -> torch.Tensor:
    """[4, T] statistics (module docstring) of logits [T, V].

    Rows of ignored targets are unspecified."""
    dtype = accumulator(logits.dtype)
    stats = torch.zeros(4, logits.shape[0], dtype=dtype, device=logits.device)
    if spec.n_valid == 0 or logits.shape[0] == 0:
        stats[0], stats[2] = NO_MAX, -math.inf
        return stats
    tops = torch.empty(logits.shape[0], dtype=dtype, device=logits.device)
    for block in row_blocks(logits.shape[0], spec.n_valid * dtype.itemsize):
        wide = logits[block, : spec.n_valid].to(dtype)
        _stats_of_block(wide, tops, spec, block, stats, entropy)
    _rebase(stats, tops, spec)
    return stats


def _stats_of_block(
    wide: torch.Tensor,
    tops: torch.Tensor,
    spec: RowSpec,
    block: slice,
    stats: torch.Tensor,
    entropy: bool,
) -> None:
    scale = _scale(spec, block, wide.dtype)
    local, owned, _ = _owner(spec, block)
    top = wide.amax(1).clamp_(min=NO_MAX)
    below = wide - top.unsqueeze(1)
    if scale is not None:
        below.mul_(scale)
    stats[2, block] = torch.where(owned, below.gather(1, local).squeeze(1) * LOG2E, -math.inf)
    if entropy:
        below.clamp_(min=FLAT)
        shares = below.exp()
        stats[1, block] = shares.sum(1)
        stats[3, block] = shares.mul_(below).sum(1) * LOG2E
    else:
        stats[1, block] = below.exp_().sum(1)
    tops[block] = top


def _rebase(stats: torch.Tensor, tops: torch.Tensor, spec: RowSpec) -> None:
    """Sums were taken relative to the exact maximum.

    Refers them to the rounded peak that is exchanged."""
    exact = tops.double() * spec.inv_temperature.double() * LOG2E
    stats[0] = exact
    # at most half a unit in the last place of the peak
    gap = (exact - stats[0].double()).to(stats.dtype)
    gap.masked_fill_(tops <= NO_MAX, 0.0)  # nothing but −inf: there are no sums to refer
    factor = torch.exp2(gap)
    stats[3] = (stats[3] + stats[1] * gap) * factor
    stats[1] *= factor
    stats[2] += gap


def merge_stats(gathered: torch.Tensor, targets: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """[R, K, T] statistics of all ranks → [5, T].

    Log-prob, entropy, log-sum-exp in nats, and the peak (log2 units) and total that the backward
    needs; 0, 0, 0, 0, 1 on ignored tokens.

    A target outside every rank's columns gives log-prob −inf, never a plausible number.
    """
    peaks, sums, at_target, weighted = (
        gathered[:, 0],
        gathered[:, 1],
        gathered[:, 2],
        gathered[:, 3],
    )
    top = peaks.amax(0)
    shift = peaks - top
    share = torch.exp2(shift)
    total = (sums * share).sum(0)
    spread = ((weighted + sums * shift) * share).sum(0)
    log_total = total.log2()
    ignored = targets == ignore_index
    logp = ((at_target + shift).amax(0) - log_total) / LOG2E
    merged = torch.stack(
        [logp, (log_total - spread / total) / LOG2E, (top + log_total) / LOG2E, top, total]
    )
    merged.masked_fill_(ignored, 0.0)
    merged[4].masked_fill_(ignored, 1.0)
    return merged


@dataclass(frozen=True, slots=True)
class RowGrad:
    """Upstream of a row and its merged statistics: all [T].

    `d_entropy` None when nothing flows into the entropy."""

    peak: torch.Tensor  # log2 units, as merge_stats gives it
    total: torch.Tensor  # Σ 2^(z − peak) over the whole vocabulary
    entropy: torch.Tensor | None  # nats; needed with `d_entropy`
    d_logp: torch.Tensor
    d_entropy: torch.Tensor | None = None

    def rows(self, index: torch.Tensor | slice) -> RowGrad:
        """The same for some tokens."""
        return RowGrad(
            self.peak[index],
            self.total[index],
            None if self.entropy is None else self.entropy[index],
            self.d_logp[index],
            None if self.d_entropy is None else self.d_entropy[index],
        )


def _finish(
    grad: torch.Tensor,
    at_target: torch.Tensor,
    spec: RowSpec,
    block: slice,
    active: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Adds the target's part, zeroes inactive rows and padded columns, and stores the block."""
    local, owned, _ = _owner(spec, block)
    grad.scatter_add_(
        1, local, torch.where(owned, at_target, torch.zeros_like(at_target)).unsqueeze(1)
    )
    if not bool(active.all()):
        grad.masked_fill_(~active.unsqueeze(1), 0.0)
    target = out[block, : spec.n_valid]
    if grad.data_ptr() != target.data_ptr() or grad.dtype != target.dtype:
        target.copy_(grad)
    out[block, spec.n_valid :].zero_()


def _workspace(
    logits: torch.Tensor, out: torch.Tensor, block: slice, n_valid: int, dtype: torch.dtype
) -> torch.Tensor:
    """A [n, n_valid] block of accumulator type that may be overwritten.

    The output itself where its type allows."""
    target = out[block, :n_valid]
    return (
        target
        if target.dtype == dtype
        else torch.empty(target.shape, dtype=dtype, device=logits.device)
    )


def ce_backward(logits: torch.Tensor, spec: RowSpec, upstream: RowGrad, out: torch.Tensor) -> None:
    """The gradient of the loss with respect to logits [T, V], into `out`.

    Which may be `logits` itself or a tensor of another floating type.

    dx_i = inv_temperature·(g·(1[i=y] − p_i) − h·p_i·(ln p_i + H)), g = d_logp, h = d_entropy.
    Exactly 0 on ignored tokens, on tokens with g = h = 0 and in columns from n_valid on, whatever
    the logits hold there.
    """
    dtype = accumulator(logits.dtype)
    if spec.n_valid == 0:
        out.zero_()
        return
    # the peak in the unit of the logits
    base = (upstream.peak.double() / (spec.inv_temperature.double() * LOG2E)).to(dtype)
    rest = base.double() * spec.inv_temperature.double() * LOG2E - upstream.peak.double()
    share_of_one = torch.exp2(rest).to(dtype) / upstream.total  # p where x = base
    for block in row_blocks(logits.shape[0], spec.n_valid * dtype.itemsize):
        scale = _scale(spec, block, dtype)
        _, _, ignored = _owner(spec, block)
        slope = _times(upstream.d_logp[block].to(dtype), scale).masked_fill(ignored, 0.0)
        bend = (
            None
            if upstream.d_entropy is None
            else _times(upstream.d_entropy[block].to(dtype), scale).masked_fill(ignored, 0.0)
        )
        active = slope != 0 if bend is None else (slope != 0) | (bend != 0)
        raw, work = (
            logits[block, : spec.n_valid],
            _workspace(logits, out, block, spec.n_valid, dtype),
        )
        torch.sub(raw, base[block].unsqueeze(1), out=work)
        if scale is not None:
            work.mul_(scale)
        unit = share_of_one[block]
        if bend is None:
            work.exp_().mul_((-slope * unit).unsqueeze(1))
        else:
            assert upstream.entropy is not None, "d_entropy without entropy"
            shares = work.exp()
            work.clamp_(min=FLAT).add_(
                (unit.log() + upstream.entropy[block].to(dtype)).unsqueeze(1)
            )
            work.mul_((-bend * unit).unsqueeze(1)).sub_((slope * unit).unsqueeze(1)).mul_(shares)
        _finish(work, slope, spec, block, active, out)


def wide_mm(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """out = left @ right with products summed in `out`'s type.

    Bfloat16 times bfloat16 into float32 without rounding the sums."""
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)


def add_product(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """out += leftᵀ @ right, summed in `out`'s type, in one pass over `out`.

    On CUDA bfloat16 factors add to a float32 `out` inside the product (cuBLAS, beta = 1): `out` is
    read and written once, and no product of its size is stored.
    """
    if left.dtype == out.dtype:
        out.addmm_(left.t(), right)
    elif left.device.type == "cuda":
        torch.addmm(out, left.t(), right, out_dtype=out.dtype, out=out)
    else:
        out.addmm_(left.t().to(out.dtype), right.to(out.dtype))
