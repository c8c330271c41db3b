"""megatron-core's router with balancing losses that count real tokens of a whole step.

It keeps what its balance was, and sends tokens where an engine sent them.

Padding is routed like any token and reaches no other token's output: nothing is dropped. It counts
in no loss and no load.

Legend: T tokens of the micro-batch on this rank, E experts, K experts of a token, G groups of
tokens: sequences with `aux_loss sequence`, else all real tokens as one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.moe_utils import (
    MoEAuxLossAutoScaler,
    compute_routing_scores_for_aux_loss,
    topk_routing_with_score_function,
)
from megatron.core.transformer.moe.router import TopKRouter

from megaladder import parallel

# its router's product asks for this name, which is there with Transformer Engine only
if not hasattr(moe_utils, "te_general_gemm"):
    moe_utils.te_general_gemm = None

SEQUENCE, GLOBAL = "seq_aux_loss", "global_aux_loss"


def with_choices(groups: torch.Tensor, choices: torch.Tensor | None) -> torch.Tensor:
    """What the routers are told of a micro-batch, in the one tensor that megatron-core hands on.

    groups: bool [G, T]; choices: int16 [T, layers, K], the engine's. int16 [G + layers · K, T], or
    `groups` without choices."""
    if choices is None:
        return groups
    return torch.cat([groups.to(choices.dtype), choices.flatten(1).T])


class EngineChoice:
    """The experts that an engine chose for the tokens of one pass through a layer.

    megatron-core asks it (`router_replay`) instead of taking the best scores. Its own class for
    that keeps the choices in the layer, pass after pass; pipelines and recomputation go through
    micro-batches in other orders, so here they come with the micro-batch.
    """

    def __init__(self, chosen: torch.Tensor, *, replays: bool) -> None:
        """chosen: int64 [T, K], -1 where the engine chose none. replays: else it counts only."""
        self._chosen, self._replays = chosen, replays
        self.counts: torch.Tensor | None = (
            None  # int64 [2]: choices compared, and those that differ
        )

    def get_replay_topk(
        self,
        scores: torch.Tensor,
        topk: int,
        num_groups: int | None,
        group_topk: int | None,
        default_compute_topk: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and experts, each [T, K]. scores: [T, E]."""
        best, own = default_compute_topk(scores, topk, num_groups=num_groups, group_topk=group_topk)
        known = self._chosen >= 0
        shared = (self._chosen[:, :, None] == own[:, None, :]).any(-1)
        self.counts = torch.stack([known.sum(), (known & ~shared).sum()])
        if not self._replays:
            return best, own
        experts = torch.where(known, self._chosen, own)
        return scores.gather(1, experts), experts


class Router(TopKRouter):
    """Scores in fp32, K experts a token.

    step_factor: 0-d, 1 / real tokens of the step. sums: float64 [2E + 3], tokens and scores of each
    expert, log²(Σ exp logits), choices of an engine that were compared and that differed, over the
    real tokens that this rank has trained on in the step. replays: whether a micro-batch's choices
    are followed, or counted only.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.replays = True
        self.begin_step(None)

    def begin_step(self, factor: torch.Tensor | None) -> None:
        """Forgets the last step. `factor`: the new one's `step_factor`."""
        self.step_factor = factor
        self.sums: torch.Tensor | None = None
        # no buffer: a cast of the model would round it
        self._step_counts: torch.Tensor | None = None

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What each expert's output is weighted with, float32 [T, E], and the choice, bool [T, E].

        logits: float32 [T, 1, E]. padding_mask: which tokens are in which group, bool [G, T];
        padding is in none; with an engine's choices behind it, see `with_choices`."""
        logits = logits.view(-1, self.num_experts)
        config = self.config
        groups, engine = self._told(padding_mask)
        probs, routing_map = topk_routing_with_score_function(
            logits,
            self.topk,
            use_pre_softmax=config.moe_router_pre_softmax,
            num_groups=config.moe_router_num_groups,
            group_topk=config.moe_router_group_topk,
            scaling_factor=config.moe_router_topk_scaling_factor,
            score_function=self.score_function,
            expert_bias=self.expert_bias,
            router_replay=engine,
        )
        # under recomputation only the second pass has a gradient
        if self.training and torch.is_grad_enabled() and groups is not None:
            compared = None if engine is None else engine.counts
            probs = self._with_losses(probs, logits, routing_map, groups, compared)
        return probs, routing_map

    def _told(self, told: torch.Tensor | None) -> tuple[torch.Tensor | None, EngineChoice | None]:
        """Groups of tokens and this layer's choices, out of what `with_choices` put together."""
        if told is None or told.dtype == torch.bool:
            return told, None
        groups, choices = told.tensor_split([-self.config.num_layers * self.topk])
        first = (self.layer_number - 1) * self.topk
        chosen = choices[first : first + self.topk].T.long()
        return groups.bool(), EngineChoice(chosen, replays=self.replays)

    def _with_losses(
        self,
        probs: torch.Tensor,
        logits: torch.Tensor,
        routing_map: torch.Tensor,
        groups: torch.Tensor,
        compared: torch.Tensor | None,
    ) -> torch.Tensor:
        real = groups.any(0)
        # by scores alone, as DeepSeek-V3 (arXiv 2412.19437, eq. 17) has it where a bias decides
        chosen, scores = compute_routing_scores_for_aux_loss(
            logits, self.topk, self.score_function, padding_mask=~real
        )
        z_loss = (logits.logsumexp(-1).square() * real).sum()
        tokens = (routing_map & real[:, None]).sum(0)
        self._count(tokens, scores, z_loss, compared)
        losses = []
        if self.config.moe_z_loss_coeff:
            losses.append(self.config.moe_z_loss_coeff * z_loss)
        if coefficient := self.get_aux_loss_coeff(self.routing_type):
            share = self._share(groups.float(), chosen)
            losses.append(coefficient * self.num_experts * (share * scores).sum())
        if not losses or self.step_factor is None:
            return probs
        return MoEAuxLossAutoScaler.apply(probs, torch.stack(losses).sum() * self.step_factor)

    @torch.no_grad()
    def _share(self, groups: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The share of each expert in its token's group, float32 [T, E].

        Over all ranks that have tokens of the group. The loss is linear in the scores, so each rank
        needs no more."""
        counts = groups @ chosen.to(groups.dtype)
        over_batch = self.routing_type == GLOBAL
        parallel.sum_over(counts, self.tp_dp_cp_group if over_batch else self.tp_cp_group)
        if over_batch:
            counts = counts if self._step_counts is None else counts + self._step_counts
            self._step_counts = counts
        return groups.T @ (counts / counts.sum(-1, keepdim=True).clamp(min=1.0))

    @torch.no_grad()
    def _count(
        self,
        tokens: torch.Tensor,
        scores: torch.Tensor,
        z_loss: torch.Tensor,
        compared: torch.Tensor | None,
    ) -> None:
        compared = tokens.new_zeros(2) if compared is None else compared
        parts = (tokens, scores.double().sum(0), z_loss[None], compared)
        found = torch.cat([part.double() for part in parts])
        self.sums = found if self.sums is None else self.sums + found
