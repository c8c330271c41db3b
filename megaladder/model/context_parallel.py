"""Context parallelism of a packed micro-batch.

Which tokens a rank holds, and per-token results back in the order of the whole.

Every sequence is cut into 2·cp chunks; rank r holds chunks r and 2·cp − 1 − r, so that causal
attention costs all ranks the same. That is the order Transformer Engine's attention expects for
`thd` (its `thd_get_partitioned_indices`; "DualChunkSwap" in
attention/dot_product_attention/context_parallel.py). `cu_seqlens` stay those of the whole
micro-batch; its sequences are multiples of 2·cp (`data.pack`, sequence_align).

The model runs on a rank's tokens; log-probs are gathered, so a loss sees whole sequences on every
rank and needs to know nothing of this. Its gradient flows to the rank's own tokens; the
data-parallel reduction, which spans the cp ranks, adds them up. Not here: the attention itself
(Transformer Engine's ring or all-to-all; there is none for the CPU).

Legend: T tokens of the micro-batch, c = cp.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def rank_tokens(cu_seqlens: np.ndarray, cp: int, rank: int) -> np.ndarray:
    """int64 [T/c]: the tokens of `rank`, in its order.

    `cu_seqlens` int [S + 1], lengths multiples of 2·cp.

    >>> rank_tokens(np.array([0, 8, 12]), 2, 0).tolist()     # lengths 8 and 4, chunks of 2 and 1
    [0, 1, 6, 7, 8, 11]
    """
    lengths = np.diff(cu_seqlens).astype(np.int64)
    assert not (lengths % (2 * cp)).any(), (
        f"sequences of {lengths.tolist()} tokens are no multiples of 2·cp = {2 * cp}"
    )
    chunk = np.repeat(lengths // (2 * cp), lengths)
    position = np.arange(int(cu_seqlens[-1])) - np.repeat(
        np.asarray(cu_seqlens[:-1], np.int64), lengths
    )
    chunk_of_token = position // chunk
    return np.flatnonzero((chunk_of_token == rank) | (chunk_of_token == 2 * cp - 1 - rank))


def whole_order(cu_seqlens: np.ndarray, cp: int) -> np.ndarray:
    """Where each token of the micro-batch lies when the ranks' tokens are laid end to end.

    int64 [T]; inverts `rank_tokens`."""
    gathered = np.concatenate([rank_tokens(cu_seqlens, cp, rank) for rank in range(cp)])
    order = np.empty_like(gathered)
    order[gathered] = np.arange(len(gathered))
    return order


class _Gather(torch.autograd.Function):
    """[T/c] of each rank → [T] in the micro-batch's order.

    Backward: the rank's own part; every rank back-propagates the same loss."""

    @staticmethod
    def forward(
        ctx: Any, local: torch.Tensor, tokens: torch.Tensor, order: torch.Tensor, group: Any
    ) -> torch.Tensor:
        ctx.save_for_backward(tokens)
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, local.contiguous(), group=group)
        return torch.cat(parts).index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        return grad.index_select(0, tokens), None, None, None


class _Sum(torch.autograd.Function):
    """The ranks' partial losses added up. Backward: 1 for each rank's own part."""

    @staticmethod
    def forward(ctx: Any, partial: torch.Tensor, group: Any) -> torch.Tensor:
        total = partial.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return grad, None


def gather_tokens(
    local: torch.Tensor, tokens: torch.Tensor, order: torch.Tensor, group: Any
) -> torch.Tensor:
    """Per-token values of the whole micro-batch [T] from this rank's [T/c]; differentiable.

    tokens, order: `rank_tokens`, `whole_order`."""
    return _Gather.apply(local, tokens, order, group)


def largest(values: torch.Tensor, group: Any) -> torch.Tensor:
    """Elementwise maximum over the ranks; no gradient."""
    found = values.clone()
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
    return found


def sum_partial_losses(partial: torch.Tensor, group: Any) -> torch.Tensor:
    """The whole micro-batch's loss from this rank's part; differentiable."""
    return _Sum.apply(partial, group)
