"""megatron-core's router with balancing losses that count real tokens of a whole step.

It keeps what its balance was.

Padding is routed like any token and reaches no other token's output: nothing is dropped. It counts
in no loss and no load.

Legend: T tokens of the micro-batch on this rank, E experts, K experts of a token, G groups of
tokens: sequences with `aux_loss sequence`, else all real tokens as one.
"""

from __future__ import annotations

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


class Router(TopKRouter):
    """Scores in fp32, K experts a token.

    step_factor: 0-d, 1 / real tokens of the step. sums: float64 [2E + 1], tokens and scores of each
    expert and log²(Σ exp logits), over the real tokens that this rank has trained on in the step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
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

        logits: float32 [T, 1, E]. padding_mask: bool [G, T], which tokens are in which group;
        padding is in none."""
        logits = logits.view(-1, self.num_experts)
        config = self.config
        probs, routing_map = topk_routing_with_score_function(
            logits,
            self.topk,
            use_pre_softmax=config.moe_router_pre_softmax,
            num_groups=config.moe_router_num_groups,
            group_topk=config.moe_router_group_topk,
            scaling_factor=config.moe_router_topk_scaling_factor,
            score_function=self.score_function,
            expert_bias=self.expert_bias,
        )
        # under recomputation only the second pass has a gradient
        if self.training and torch.is_grad_enabled() and padding_mask is not None:
            probs = self._with_losses(probs, logits, routing_map, padding_mask)
        return probs, routing_map

    def _with_losses(
        self,
        probs: torch.Tensor,
        logits: torch.Tensor,
        routing_map: torch.Tensor,
        groups: torch.Tensor,
    ) -> torch.Tensor:
        real = groups.any(0)
        # by scores alone, as DeepSeek-V3 (arXiv 2412.19437, eq. 17) has it where a bias decides
        chosen, scores = compute_routing_scores_for_aux_loss(
            logits, self.topk, self.score_function, padding_mask=~real
        )
        z_loss = (logits.logsumexp(-1).square() * real).sum()
        self._count((routing_map & real[:, None]).sum(0), scores, z_loss)
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
    def _count(self, tokens: torch.Tensor, scores: torch.Tensor, z_loss: torch.Tensor) -> None:
        found = torch.cat([tokens.double(), scores.double().sum(0), z_loss.double()[None]])
        self.sums = found if self.sums is None else self.sums + found
