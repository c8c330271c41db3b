"""A packed micro-batch on the compute device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from megaladder import parallel, platform
from megaladder.model.context_parallel import rank_tokens, whole_order
from megaladder.types import IGNORE_INDEX, PackedBatch


@dataclass(frozen=True, slots=True)
class ContextPart:
    """What a context-parallel rank holds of the micro-batch.

    `tokens` int64 [T/cp], `order` int64 [T] (see `context_parallel`)."""

    tokens: torch.Tensor
    order: torch.Tensor


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """`types.PackedBatch` as tensors.

    input_ids, position_ids: int64 [1, T]; labels: int64 [T]; cu_seqlens: int32 [S + 1]; per-token
    floats: float32 [T] or None; routed_experts: int16 [T, layers, K], the engine's. loss_mask: bool
    [T], tokens through which a gradient may flow; their places among this rank's tokens are
    `active_rows`, among all T `active_tokens` (int64 [n]; None: the batch was made without the
    question, all tokens go through the head). sequence_of_token: int64 [T], index of each token's
    sequence in 0…S-1; those from `num_samples` on are padding. num_tokens: without it.
    gradient_factor: 0-d, what the gradient of the summed loss is multiplied with. Losses read all
    of it; the model computes on `local_*`, the tokens of its context-parallel rank (all of them
    without context parallelism).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    num_loss_tokens: int
    num_samples: int = 0
    num_tokens: int = 0
    loss_mask: torch.Tensor | None = None
    active_rows: torch.Tensor | None = None
    active_tokens: torch.Tensor | None = None
    sequence_of_token: torch.Tensor | None = None
    gradient_factor: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    loss_weights: torch.Tensor | None = None
    old_logprobs: torch.Tensor | None = None
    rollout_logprobs: torch.Tensor | None = None
    ref_logprobs: torch.Tensor | None = None
    routed_experts: torch.Tensor | None = None
    part: ContextPart | None = None

    @property
    def num_sequences(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    def tokens(self, index: torch.Tensor | slice) -> DeviceBatch:
        """What a loss reads of some tokens; `input_ids`, positions and bounds stay those of all."""
        chosen: dict[str, Any] = {
            name: None if (values := getattr(self, name)) is None else values[index]
            for name in _OF_TOKENS
        }
        return replace(self, **chosen)

    def balance_groups(self, *, by_sequence: bool) -> torch.Tensor:
        """Which tokens are balanced together, bool [G, T]; padding is in no group.

        Each sequence for itself, or all as one."""
        assert self.sequence_of_token is not None
        real = (self.sequence_of_token < self.num_samples)[None]
        if not by_sequence:
            return real
        index = torch.arange(max(1, self.num_samples), device=self.input_ids.device)
        return (self.sequence_of_token[None] == index[:, None]) & real

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


_OF_TOKENS = (
    "labels",
    "loss_mask",
    "sequence_of_token",
    "advantages",
    "loss_weights",
    "old_logprobs",
    "rollout_logprobs",
    "ref_logprobs",
)


def active_tokens(batch: PackedBatch, *, skip_zero_advantage: bool) -> np.ndarray:
    """Bool [T]: tokens with a label and a weight.

    With `skip_zero_advantage` those of advantage 0 are left out too. Known on the host before
    anything runs, so no device is asked."""
    active = batch.labels_t != IGNORE_INDEX
    if batch.loss_weights_t is not None:
        active &= batch.loss_weights_t != 0
    if skip_zero_advantage and batch.advantages_t is not None:
        active &= batch.advantages_t != 0
    return active


def to_device(batch: PackedBatch, *, skip_zero_advantage: bool = False) -> DeviceBatch:
    """Copies a micro-batch to this process's device.

    Under context parallelism with this rank's part. skip_zero_advantage: see `active_tokens`."""
    device = platform.device()
    active = active_tokens(batch, skip_zero_advantage=skip_zero_advantage)
    mine = np.arange(len(active))

    def move(array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array).to(device, non_blocking=True)

    def move_given(array: np.ndarray | None) -> torch.Tensor | None:
        return None if array is None else move(array)

    cp, part = parallel.cp_size(), None
    if cp > 1:
        tokens, order = (
            rank_tokens(batch.cu_seqlens, cp, parallel.cp_rank()),
            whole_order(batch.cu_seqlens, cp),
        )
        part, mine = ContextPart(move(tokens), move(order)), tokens
    return DeviceBatch(
        input_ids=move(batch.input_ids_t).unsqueeze(0),
        position_ids=move(batch.position_ids_t).unsqueeze(0),
        labels=move(batch.labels_t),
        cu_seqlens=move(batch.cu_seqlens),
        max_seqlen=batch.max_seqlen,
        num_loss_tokens=batch.num_loss_tokens,
        num_samples=int((batch.sample_index >= 0).sum()),
        num_tokens=batch.num_tokens,
        loss_mask=move(active),
        active_rows=move(np.flatnonzero(active[mine])),
        active_tokens=move(mine[active[mine]]),
        sequence_of_token=move(
            np.repeat(np.arange(len(batch.cu_seqlens) - 1), np.diff(batch.cu_seqlens))
        ),
        advantages=move_given(batch.advantages_t),
        loss_weights=move_given(batch.loss_weights_t),
        old_logprobs=move_given(batch.old_logprobs_t),
        rollout_logprobs=move_given(batch.rollout_logprobs_t),
        ref_logprobs=move_given(batch.ref_logprobs_t),
        routed_experts=move_given(batch.routed_experts_t),
        part=part,
    )
