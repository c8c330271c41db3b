"""Log-prob and entropy of given tokens straight from hidden states, differentiable.

The full logits [T, V] need not exist.

Two phases, for losses that may couple tokens (a sequence's ratio, a mask by a sequence's mean): the
forward reads block after block of logits and keeps four numbers per row; the backward writes each
block's gradient over its logits and multiplies it on. Blocks that fit into the scratch memory are
kept from forward to backward (6·n·H·V operations, as in `linear_loss`); those beyond it are formed
again (8·n·H·V).

Collectives when the vocabulary is split: one all-gather of four float32 per active row; d hidden
once (all-reduce, or reduce-scatter along tokens under sequence parallelism), launched before the
last block's d weight product. No host synchronisation.
"""

from __future__ import annotations

from typing import Any

import torch

from megaladder.kernels import ops
from megaladder.kernels.linear_common import Blocks, Head, LinearOptions, WeightGrad, make_head
from megaladder.kernels.reference import RowGrad, RowSpec, accumulator
from megaladder.kernels.shard import TensorParallel, gather_stats, vocab_start
from megaladder.kernels.vocab_logprob import LogpOut, temperature_tensor


class _Statistics:
    """The forward's pass over the active rows: their merged statistics and the logits kept."""

    def __init__(self, head: Head, x: torch.Tensor, *, keep: bool) -> None:
        self.blocks = Blocks(head, x)
        self.kept: dict[int, torch.Tensor] = {}
        stats = x.new_empty((4, x.shape[0]), dtype=accumulator(x.dtype))
        room = self.blocks.room() if keep else 0
        for block in self.blocks:
            spare = self.blocks.new_buffer() if len(self.kept) < room else None
            logits = self.blocks.logits(block, spare)
            stats[:, block] = ops.ce_stats(
                logits, head.spec.rows(block), entropy=head.options.entropy != "none"
            )
            if spare is not None:
                self.kept[block.start] = logits
        self.merged = ops.merge_stats(
            gather_stats(stats, head.tp), head.spec.targets, head.spec.ignore_index
        )

    def logits(self, block: slice) -> torch.Tensor:
        """Those of the forward, given away; or formed again."""
        # a block's memory goes with its last use; a compiled graph sees to that itself
        take = self.kept.get if torch.compiler.is_compiling() else self.kept.pop
        found = take(block.start, None)
        return self.blocks.logits(block) if found is None else found


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, head: Head, keep: bool):
        x = head.active(hidden)
        statistics = _Statistics(head, x, keep=keep)
        logp, entropy, lse = (head.everywhere(values) for values in statistics.merged[:3])
        ctx.head, ctx.statistics, ctx.dtype = head, statistics, hidden.dtype
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        given = entropy if head.options.entropy != "none" else None
        ctx.mark_non_differentiable(lse, *([given] if head.options.entropy == "value" else []))
        return logp, given, lse

    @staticmethod
    def backward(ctx, d_logp, d_entropy, _):
        if d_logp is None and d_entropy is None:
            return None, None, None, None
        if ctx.statistics is None:
            raise RuntimeError(
                "linear_logprob: second backward through one call; its logits were overwritten by"
                " their gradient; fix: call it again"
            )
        head, statistics, (x, _) = ctx.head, ctx.statistics, ctx.saved_tensors
        ctx.statistics = None
        upstream = _row_grad(head, statistics.merged, d_logp, d_entropy)
        d_hidden, d_weight = _gradients(head, x, statistics, upstream, ctx.needs_input_grad)
        return None if d_hidden is None else d_hidden.to(ctx.dtype), d_weight, None, None


def _row_grad(
    head: Head, merged: torch.Tensor, d_logp: torch.Tensor | None, d_entropy: torch.Tensor | None
) -> RowGrad:
    def active(values: torch.Tensor | None) -> torch.Tensor | None:
        return values if values is None or head.rows is None else values[head.rows]

    _, entropy, _, peak, total = merged.unbind(0)
    slope = active(d_logp)
    slope = torch.zeros_like(total) if slope is None else slope
    return RowGrad(peak, total, entropy, slope, active(d_entropy))


def _gradients(
    head: Head,
    x: torch.Tensor,
    statistics: _Statistics,
    upstream: RowGrad,
    needed: tuple[bool, ...],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """d hidden (shaped like the given `hidden`) and the gradient for the weight."""
    blocks = statistics.blocks
    d_rows = torch.empty_like(x) if needed[0] else None
    d_weight = WeightGrad(head.weight, blocks.columns) if needed[1] else None
    last: tuple[torch.Tensor, torch.Tensor] | None = None
    for block in blocks:
        if last is not None and d_weight is not None:
            d_weight.add(*last)
        logits = statistics.logits(block)
        d_logits = ops.ce_backward(
            logits, head.spec.rows(block), upstream.rows(block), blocks.gradient_out(logits)
        )
        if d_rows is not None:
            blocks.columns.d_hidden(d_logits, d_rows[block])
        last = (d_logits, x[block])
    pending = None if d_rows is None else head.reduce(d_rows)
    if last is not None and d_weight is not None:
        d_weight.add(*last)
    weight_grad = None if d_weight is None else d_weight.result()
    return None if pending is None else pending.wait(), weight_grad


def make_spec(
    targets: torch.Tensor,
    weight: torch.Tensor,
    tp: TensorParallel | None,
    n_valid: int | None,
    inv_temperature: torch.Tensor | float,
    ignore_index: int,
) -> RowSpec:
    """The row description of a linear head; `n_valid` None means every stored column."""
    return RowSpec(
        targets=targets.to(torch.int64),
        inv_temperature=temperature_tensor(inv_temperature, targets.shape[0], weight),
        vocab_start=vocab_start(tp),
        n_valid=weight.shape[0] if n_valid is None else n_valid,
        ignore_index=ignore_index,
    )


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    tp: TensorParallel | None = None,
    n_valid: int | None = None,
    inv_temperature: torch.Tensor | float = 1.0,
    rows: torch.Tensor | None = None,
    **options: Any,
) -> LogpOut:
    """Log-probs of `targets` under softmax(inv_temperature · hidden · weightᵀ); differentiable.

    Gradients flow into hidden and weight, once.

    Args:
        hidden: [T, H], or this rank's [T/R, H] with sequence_parallel=True.
        weight: [V_local, H]; with a float32 `main_grad` the gradient is added there and `.grad` is
            a placeholder.
        targets: int64 [T], global columns, all of them on every rank; `ignore_index` gives 0.
        n_valid: columns of this rank that belong to the true vocabulary (`shard.valid_columns`);
            default all of them.
        rows: int64 [n], the tokens that take part; the others cost nothing and give 0. A caller
            who knows them spares the device the question. Default all.
        options: fields of `LinearOptions`.
    """
    settings = LinearOptions(**options)
    spec = make_spec(targets, weight, tp, n_valid, inv_temperature, settings.ignore_index)
    keep = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    logp, entropy, lse = _LinearLogprob.apply(
        hidden, weight, make_head(hidden, weight, spec, rows, tp, settings), keep
    )
    return LogpOut(logp, entropy, lse)
