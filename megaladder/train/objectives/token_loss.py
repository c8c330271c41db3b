"""Per-token SFT losses: the ten token weightings of Rethinking SFT.

Pure functions (arXiv 2604.06628, its `importance_sampling_mode`).

Each returns the loss of every token *before* normalisation; the caller divides by the global count
of loss tokens, once. (The published code sums micro-batch means, so its gradient scale depends on
the micro-batch size; ours does not.)

Legend: logp = log π(token) of the model being trained, old = log π_old(token), r = exp(clamp(logp −
old, −20, 20)), clip(x) = clamp(x, 1 − low, 1 + high), A = the sample's advantage, sg =
stop-gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megaladder.types import TokenWeighting, required

NEEDS_OLD_LOGPROBS = frozenset(TokenWeighting) - {
    TokenWeighting.VANILLA,
    TokenWeighting.DFT,
    TokenWeighting.ADV_ONLY,
}
NEEDS_ADVANTAGE = frozenset(TokenWeighting) - {
    TokenWeighting.VANILLA,
    TokenWeighting.TEACHER_WEIGHTED,
    TokenWeighting.DFT,
}
NEEDS_SEQUENCES = frozenset({TokenWeighting.GSPO, TokenWeighting.GSPO_ORI})
_LOG_RATIO_LIMIT = 20.0
_GSPO_LOG_RATIO_LIMIT = 10.0


@dataclass(frozen=True, slots=True)
class TokenLossInputs:
    """What a token weighting may read of a micro-batch.

    logprobs: float32 [T], the only one with a gradient; mask: bool [T], tokens that count;
    old_logprobs, advantages: float32 [T] where the mode needs them; sequence_of_token: int64 [T]
    (gspo modes); clip_low, clip_high: the clip is [1 − low, 1 + high]; num_sequences: as
    `sequence_mean` takes it.
    """

    logprobs: torch.Tensor
    mask: torch.Tensor
    old_logprobs: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    sequence_of_token: torch.Tensor | None = None
    clip_low: float = 1.0
    clip_high: float = 1.0
    num_sequences: int | None = None

    def clip(self, ratio: torch.Tensor) -> torch.Tensor:
        return ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)

    @property
    def old(self) -> torch.Tensor:
        """`old_logprobs`, of a mode that needs them."""
        return required(self.old_logprobs, "old_logprobs")

    @property
    def advantage(self) -> torch.Tensor:
        """`advantages`, of a mode that needs them."""
        return required(self.advantages, "advantages")

    @property
    def ratio(self) -> torch.Tensor:
        return (self.logprobs - self.old).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT).exp()


def sequence_mean(
    values_t: torch.Tensor,
    mask_t: torch.Tensor,
    sequence_of_token: torch.Tensor,
    num_sequences: int | None = None,
) -> torch.Tensor:
    """Mean of `values_t` over the masked tokens of each token's own sequence.

    Laid back on the tokens [T]. num_sequences: None = read from `sequence_of_token`, for which the
    host waits."""
    size = num_sequences
    if size is None:
        size = int(sequence_of_token[-1]) + 1 if len(sequence_of_token) else 0
    weight = mask_t.to(values_t.dtype)
    total = values_t.new_zeros(size).index_add_(0, sequence_of_token, values_t * weight)
    count = values_t.new_zeros(size).index_add_(0, sequence_of_token, weight)
    return (total / count.clamp(min=1.0))[sequence_of_token]


def _sequence_ratio(x: TokenLossInputs) -> torch.Tensor:
    """GSPO's sequence-level ratio with a token-level gradient.

    exp(min(logp − sg logp + sg mean(logp − old), 10)).
    """
    sequences = required(x.sequence_of_token, "sequence_of_token")
    gap = (x.logprobs - x.old).detach()
    mean = sequence_mean(gap, x.mask, sequences, x.num_sequences)
    return (x.logprobs - x.logprobs.detach() + mean).clamp(max=_GSPO_LOG_RATIO_LIMIT).exp()


def _clip(x: TokenLossInputs) -> torch.Tensor:
    ratio = x.ratio.detach()
    inside = (ratio >= 1.0 - x.clip_low) & (ratio <= 1.0 + x.clip_high)
    return -x.advantage * x.logprobs * inside


def _gspo_ori(x: TokenLossInputs) -> torch.Tensor:
    ratio = _sequence_ratio(x)
    return torch.maximum(-x.advantage * ratio, -x.advantage * x.clip(ratio))


_LOSSES: dict[TokenWeighting, Callable[[TokenLossInputs], torch.Tensor]] = {
    TokenWeighting.VANILLA: lambda x: -x.logprobs,
    TokenWeighting.TEACHER_WEIGHTED: lambda x: -x.old.exp() * x.logprobs,
    TokenWeighting.DFT: lambda x: -x.clip(x.logprobs.detach().exp()) * x.logprobs,
    TokenWeighting.ADV_ONLY: lambda x: -x.advantage * x.logprobs,
    TokenWeighting.PPO_ORI: lambda x: torch.maximum(
        -x.advantage * x.ratio, -x.advantage * x.clip(x.ratio)
    ),
    TokenWeighting.PPO: lambda x: -x.advantage * x.clip(x.ratio),
    TokenWeighting.CLIP: _clip,
    TokenWeighting.CISPO: lambda x: -x.advantage * x.clip(x.ratio.detach()) * x.logprobs,
    TokenWeighting.GSPO_ORI: _gspo_ori,
    TokenWeighting.GSPO: lambda x: -x.advantage * x.clip(_sequence_ratio(x)),
}


def token_losses(mode: TokenWeighting, inputs: TokenLossInputs) -> torch.Tensor:
    """Loss of every token, float32 [T]; exactly 0 where the mask is off."""
    losses = _LOSSES[mode](inputs)
    return torch.where(inputs.mask, losses, losses.new_zeros(()))
