"""Routing of a dry run: every expert gets as many tokens, so that shapes need no values.

megatron-core's dispatcher asks for the counts of tokens, and cuts and joins by them; fake tensors
have none. Here the counts are those of an even load, and permutations have the right shapes and
gradients. What is sent is megatron-core's own: the gathered counts, the all-to-alls and, with
expert tensor parallelism, what is gathered and scattered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.moe import token_dispatcher
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher


def even_counts(choices: int, num_experts: int) -> np.ndarray:
    """Tokens of each expert, int64 [E]: alike but for a remainder, which the first ones get."""
    least, rest = divmod(choices, num_experts)
    return least + (np.arange(num_experts) < rest)


def preprocess(dispatcher: MoEAlltoAllTokenDispatcher, routing_map: torch.Tensor) -> np.ndarray:
    """The counts of an even load, in the dispatcher's fields; its gather of them is asked for.

    routing_map: bool [T, E]. Returns the tokens of each local expert, int64 [local experts]."""
    choices = routing_map.size(0) * dispatcher.config.moe_router_topk
    counts = even_counts(choices, dispatcher.num_experts)
    dispatcher.num_out_tokens = choices
    if dispatcher.ep_size > 1 or dispatcher.tp_size > 1:
        gather_from_sequence_parallel_region(routing_map.sum(0), group=dispatcher.tp_ep_group)
    local = counts[dispatcher.local_expert_indices]
    dispatcher.input_splits = counts.reshape(dispatcher.ep_size, -1).sum(1).tolist()
    dispatcher.output_splits = [int(local.sum())] * dispatcher.ep_size
    received = np.full(dispatcher.tp_size, dispatcher.ep_size * local.sum())
    dispatcher.output_splits_tp = received
    dispatcher.num_global_tokens_per_local_expert = np.tile(local, received.size)
    return local * dispatcher.ep_size * dispatcher.tp_size


def permute(
    tokens: torch.Tensor,
    routing_map: torch.Tensor,
    probs: torch.Tensor,
    num_out_tokens: int,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each token K times, its K weights, and where it stood."""
    times = num_out_tokens // tokens.size(0)
    permuted = tokens.repeat(times, 1)
    return permuted, probs.flatten()[:num_out_tokens], routing_map


def unpermute(permuted: torch.Tensor, _order: Any, restore_shape: Any, **_: Any) -> torch.Tensor:
    """The sum of a token's K outputs."""
    return permuted.view(-1, *restore_shape).sum(0)


def sort_chunks(
    tokens: torch.Tensor, *_: Any, probs: torch.Tensor | None = None, **__: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same rows in another order."""
    return tokens.clone(), None if probs is None else probs.clone()


def stand_ins() -> list[tuple[Any, str, Any]]:
    """What takes the place of what."""
    return [
        (MoEAlltoAllTokenDispatcher, "preprocess", preprocess),
        (token_dispatcher, "permute", permute),
        (token_dispatcher, "unpermute", unpermute),
        (token_dispatcher, "sort_chunks_by_idxs", sort_chunks),
    ]
