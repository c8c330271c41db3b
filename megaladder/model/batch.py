"""A packed micro-batch on the compute device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megaladder import parallel, platform
from megaladder.model.context_parallel import rank_tokens, whole_order
from megaladder.types import PackedBatch


@dataclass(frozen=True, slots=True)
class ContextPart:
    """What a context-parallel rank holds of the micro-batch: `tokens` int64 [T/cp], `order` int64
    [T] (see `context_parallel`)."""

    tokens: torch.Tensor
    order: torch.Tensor


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """`types.PackedBatch` as tensors. input_ids, position_ids: int64 [1, T]; labels: int64 [T];
    cu_seqlens: int32 [S + 1]; per-token floats: float32 [T] or None; sequence_of_token: int64 [T],
    index of each token's sequence in 0…S-1. Losses read all of it; the model computes on `local_*`,
    the tokens of its context-parallel rank (all of them without context parallelism).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    num_loss_tokens: int
    advantages: torch.Tensor | None = None
    loss_weights: torch.Tensor | None = None
    old_logprobs: torch.Tensor | None = None
    rollout_logprobs: torch.Tensor | None = None
    ref_logprobs: torch.Tensor | None = None
    part: ContextPart | None = None

    @property
    def sequence_of_token(self) -> torch.Tensor:
        lengths = (self.cu_seqlens[1:] - self.cu_seqlens[:-1]).long()
        return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)

    @property
    def local_input_ids(self) -> torch.Tensor:
        return (
            self.input_ids
            if self.part is None
            else self.input_ids.index_select(1, self.part.tokens)
        )

    @property
    def local_position_ids(self) -> torch.Tensor:
        return (
            self.position_ids
            if self.part is None
            else self.position_ids.index_select(1, self.part.tokens)
        )

    @property
    def local_labels(self) -> torch.Tensor:
        return self.labels if self.part is None else self.labels.index_select(0, self.part.tokens)


def to_device(batch: PackedBatch) -> DeviceBatch:
    """Copies a micro-batch to this process's device; under context parallelism with this rank's
    part."""
    device = platform.device()

    def move(array: object) -> torch.Tensor | None:
        return None if array is None else torch.as_tensor(array).to(device, non_blocking=True)

    cp, part = parallel.cp_size(), None
    if cp > 1:
        tokens, order = (
            rank_tokens(batch.cu_seqlens, cp, parallel.cp_rank()),
            whole_order(batch.cu_seqlens, cp),
        )
        part = ContextPart(move(tokens), move(order))
    return DeviceBatch(
        input_ids=move(batch.input_ids_t).unsqueeze(0),
        position_ids=move(batch.position_ids_t).unsqueeze(0),
        labels=move(batch.labels_t),
        cu_seqlens=move(batch.cu_seqlens),
        max_seqlen=batch.max_seqlen,
        num_loss_tokens=batch.num_loss_tokens,
        advantages=move(batch.advantages_t),
        loss_weights=move(batch.loss_weights_t),
        old_logprobs=move(batch.old_logprobs_t),
        rollout_logprobs=move(batch.rollout_logprobs_t),
        ref_logprobs=move(batch.ref_logprobs_t),
        part=part,
    )
