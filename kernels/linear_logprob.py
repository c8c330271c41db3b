"""Log-prob and entropy of given tokens straight from hidden states; the full logits [T, V] never
exist.

Two phases: the forward reads chunk after chunk of logits and keeps four numbers per token; the
backward forms each chunk again, writes its gradient in place and multiplies it on. 8·T·H·V
floating-point operations against the 6 of `linear_policy_loss`; in exchange the losses can be any
differentiable function of the log-probs.

Collectives when the vocabulary is split: one all-gather of four float32 per token with a target; d
hidden once (all-reduce, or reduce-scatter along tokens under sequence parallelism), launched before
the last chunk's d weight product.
"""

from __future__ import annotations

from typing import Any

import torch

from megaladder.kernels import ops
from megaladder.kernels.linear_common import Chunks, Head, LinearOptions, WeightGrad, token_grad
from megaladder.kernels.reference import RowGrad, RowSpec, accumulator
from megaladder.kernels.shard import (
    PendingGrad,
    TensorParallel,
    gather_stats,
    is_split,
    vocab_start,
)
from megaladder.kernels.vocab_logprob import LogpOut, check_shapes, temperature_tensor


def merged_stats(head: Head, full: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """[5, T] as `merge_stats` gives them; tokens that are not in `rows` count as ignored."""
    chunks, with_entropy = Chunks(head, full, rows), head.options.entropy != "none"
    stats = torch.empty(4, chunks.num_rows, dtype=accumulator(full.dtype), device=full.device)
    for block, tokens in chunks:
        part, hidden = head.spec.rows(tokens), chunks.hidden(tokens)
        if head.options.never_materialise:
            stats[:, block] = ops.linear_stats(hidden, head.weight, part, entropy=with_entropy)
        else:
            stats[:, block] = ops.ce_stats(chunks.logits(hidden), part, entropy=with_entropy)
    targets = head.spec.targets if rows is None else head.spec.targets[rows]
    merged = ops.merge_stats(gather_stats(stats, head.tp), targets, head.spec.ignore_index)
    if rows is None:
        return merged
    everywhere = merged.new_zeros(5, full.shape[0])
    everywhere[4] = 1.0
    everywhere[:, rows] = merged
    return everywhere


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, head: Head):
        merged = merged_stats(head, head.all_tokens(hidden), head.kept_rows())
        logp, entropy, lse = merged[:3].unbind(0)
        ctx.head = head
        ctx.save_for_backward(hidden, weight, merged)
        ctx.set_materialize_grads(False)
        given = entropy if head.options.entropy != "none" else None
        ctx.mark_non_differentiable(lse, *([given] if head.options.entropy == "value" else []))
        return logp, given, lse

    @staticmethod
    def backward(ctx, d_logp, d_entropy, _):
        hidden, _, merged = ctx.saved_tensors
        if d_logp is None and d_entropy is None:
            return None, None, None
        _, entropy, _, peak, total = merged.unbind(0)
        ignored = ctx.head.spec.targets == ctx.head.spec.ignore_index
        d_logp = torch.zeros_like(total) if d_logp is None else d_logp.masked_fill(ignored, 0.0)
        d_entropy = None if d_entropy is None else d_entropy.masked_fill(ignored, 0.0)
        upstream = RowGrad(peak, total, entropy, d_logp, d_entropy)
        return (*_gradients(ctx.head, hidden, upstream, ctx.needs_input_grad), None)


def _gradients(
    head: Head, hidden: torch.Tensor, upstream: RowGrad, needed: tuple[bool, ...]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """d hidden (shaped like the given `hidden`) and the gradient for the weight."""
    full = head.all_tokens(hidden)
    rows = head.active_rows(upstream.d_logp, upstream.d_entropy)
    chunks, columns = Chunks(head, full, rows), head.weight[: head.spec.n_valid]
    d_full = token_grad(full, rows is not None) if needed[0] else None
    d_weight = WeightGrad(head.weight, head.spec.n_valid, direct=True) if needed[1] else None
    last: tuple[torch.Tensor, torch.Tensor] | None = None
    for _, tokens in chunks:
        if last is not None and d_weight is not None:
            d_weight.add(*last)
        x = chunks.hidden(tokens)
        logits = chunks.logits(x)
        part = upstream.rows(tokens)
        d_logits = ops.ce_backward(
            logits, head.spec.rows(tokens), part, chunks.gradient_out(logits)
        )
        if d_full is not None:
            d_full[tokens] = d_logits @ columns
        last = (d_logits, x)
    pending = (
        None
        if d_full is None
        else PendingGrad(d_full, head.tp, sequence_parallel=head.sequence_parallel)
    )
    if last is not None and d_weight is not None:
        d_weight.add(*last)
    weight_grad = None if d_weight is None else d_weight.result()
    return None if pending is None else pending.wait().to(hidden.dtype), weight_grad


def make_head(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    spec: RowSpec,
    tp: TensorParallel | None,
    options: LinearOptions,
) -> Head:
    """Checks shapes against each other.

    Raises:
        ValueError: shapes that do not fit, with the values.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"expected hidden [T, H] and weight [V, H], found {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    shards = tp.size if options.sequence_parallel and is_split(tp) else 1
    if hidden.shape[0] * shards != spec.targets.shape[0]:
        raise ValueError(
            f"{hidden.shape[0]} hidden rows on {shards} sequence-parallel ranks do not make {spec.targets.shape[0]} targets; "
            f"fix: pass all T targets on every rank, hidden [T/{shards}, H]"
        )
    check_shapes(
        hidden.new_empty(spec.targets.shape[0], 0), spec.targets, weight.shape[0], spec.n_valid
    )
    return Head(weight=weight, spec=spec, tp=tp, options=options)


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
    **options: Any,
) -> LogpOut:
    """Log-probs of `targets` under softmax(inv_temperature · hidden · weightᵀ); differentiable in
    hidden and weight. rank, argmax: None.

    Args:
        hidden: [T, H], or this rank's [T/R, H] with sequence_parallel=True.
        weight: [V_local, H]; with a float32 `main_grad` the gradient is added there and `.grad` is
        a placeholder. targets: int64 [T], global columns, all of them on every rank; ignored rows
        cost nothing. n_valid: columns of this rank that belong to the true vocabulary
        (`shard.valid_columns`); default all of them. options: fields of `LinearOptions`.
    """
    settings = LinearOptions(**options)
    spec = make_spec(targets, weight, tp, n_valid, inv_temperature, settings.ignore_index)
    logp, entropy, lse = _LinearLogprob.apply(
        hidden, weight, make_head(hidden, weight, spec, tp, settings)
    )
    return LogpOut(logp, entropy, lse, None, None)
