"""Hidden states → per-token log-probs, or a whole loss, over a vocabulary that is split across
tensor-parallel ranks.

The last stage's output layer with another forward: `kernels.linear_logprob` forms the logits chunk
by chunk and keeps four numbers a token, so memory does not grow with the vocabulary; rows without a
label are never computed; one collective of 16 bytes a token. Where the loss is a sum over tokens
known beforehand (`HeadOptions.fused_loss`), `kernels.linear_policy_loss` forms its gradient in the
forward: three matrix products of the head's size instead of four. Padded vocabulary columns take no
part in the softmax. The weight gradient goes straight to DDP's fp32 `main_grad`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from megatron.core import tensor_parallel

from megaladder.kernels.linear_logprob import linear_logprob
from megaladder.kernels.linear_policy_loss import linear_policy_loss
from megaladder.kernels.policy_terms import PolicyInputs, PolicyLoss
from megaladder.kernels.shard import TensorParallel, valid_columns
from megaladder.types import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """temperature divides the logits before the softmax (1.0 in SFT). entropy of each labelled
    position, in nats: none, value (without gradient) or grad. fused_loss: the loss itself, computed
    with its gradient in the forward; None = log-probs that carry a gradient.
    """

    temperature: float = 1.0
    entropy: str = "none"
    fused_loss: PolicyLoss | None = None


class HeadOutput(NamedTuple):
    """logprobs: float32 [T], natural log, 0 where the label is ignored (without gradient beside a
    fused loss); entropy: float32 [T] or None; loss: the fused loss, a scalar summed over tokens, or
    None."""

    logprobs: torch.Tensor
    entropy: torch.Tensor | None
    loss: torch.Tensor | None = None


class VocabularyHead(tensor_parallel.ColumnParallelLinear):
    """megatron-core's output layer (its parameter, its checkpoint entry) with log-probs as its
    forward."""

    @classmethod
    def take_over(cls, layer: tensor_parallel.ColumnParallelLinear) -> None:
        """Turns the GPTModel's output layer into this class: same parameters, same hooks, another
        forward."""
        layer.__class__ = cls
        # for `logits`: megatron-core's product would need apex's kernel and a gradient buffer
        layer.gradient_accumulation_fusion = False

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor,
        options: HeadOptions,
        *,
        weight: torch.Tensor,
        vocab_size: int,
    ) -> HeadOutput:
        """hidden_states: [T (T/tp under sequence parallelism), 1, H]; labels: int64 [T]; weight:
        [V_padded/tp, H]; vocab_size: true V."""
        tp = TensorParallel.even(self.tp_group, weight.shape[0])
        common = {
            "tp": tp,
            "n_valid": valid_columns(vocab_size, weight.shape[0], tp),
            "inv_temperature": 1.0 / options.temperature,
            "ignore_index": IGNORE_INDEX,
            "entropy": options.entropy,
            "sequence_parallel": self.sequence_parallel,
        }
        if options.fused_loss is None:
            out = linear_logprob(hidden_states.squeeze(1), weight, labels, **common)
            return HeadOutput(out.logp, out.entropy)
        # megatron-core's per-token-loss schedules back-propagate the bare sum: the factor of the
        # backward is 1
        fused = linear_policy_loss(
            hidden_states.squeeze(1),
            weight,
            labels,
            options.fused_loss,
            PolicyInputs(),
            upstream=1.0,
            **common,
        )
        return HeadOutput(fused.logp, fused.entropy, fused.loss)
