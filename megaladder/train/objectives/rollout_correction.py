"""Corrects the gap between the policy that sampled and the one that is trained.

Importance weights, sequence masks, statistics. Pure torch.

Legend: d = old − rollout, the log-prob of a token by the trainer (before this round's updates)
minus the engine's; w = exp(clamp(d, ±20)); mean_s = mean over the loss tokens of sequence s; S =
sequences of the micro-batch. No result carries a gradient.

    none           1
    tis            clamp(w, low, high)                        token-level truncated importance
                   sampling (slime, verl, TRL token_truncate)
    icepop         w where low ≤ w ≤ high, else 0             IcePop (slime, verl, TRL token_mask)
    sequence_mask  w where low ≤ exp(mean_s d) ≤ high, else 0 NeMo-RL seq-mask-tis: the geometric
                   mean decides, w inside is not truncated

Denominators of the loss do not change when tokens or sequences are dropped: a dropped token counts
as a loss of 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

LOG_RATIO_LIMIT = 20.0  # nats; ratios and estimators are flat beyond it
Correction = Literal["none", "tis", "icepop", "sequence_mask"]
MISMATCH_NAMES = (
    "mismatch_tokens",
    "mismatch_abs_sum",
    "mismatch_k1_sum",
    "mismatch_k3_sum",
    "mismatch_outside_count",
)
OUTSIDE_LOW, OUTSIDE_HIGH = 0.5, 2.0  # a token whose w leaves this range counts as outside


@dataclass(frozen=True, slots=True)
class Sequences:
    """Which sequence each token belongs to.

    index: int64 [T] in 0…S-1; mask: bool [T], loss tokens; counts: float64 [S], loss tokens.
    """

    index: torch.Tensor
    mask: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(
        cls, sequence_of_token: torch.Tensor, mask: torch.Tensor, size: int | None = None
    ) -> Sequences:
        """`size`: S, where the host knows it; reading it from the tokens waits for the device."""
        if size is None:
            size = int(sequence_of_token.max()) + 1 if sequence_of_token.numel() else 0
        counts = torch.zeros(size, dtype=torch.float64, device=mask.device).index_add_(
            0, sequence_of_token, mask.double()
        )
        return cls(sequence_of_token, mask, counts)

    def means(self, values_t: torch.Tensor) -> torch.Tensor:
        """float64 [S]: mean of `values_t` over each sequence's loss tokens.

        0 where a sequence has none.
        """
        kept = torch.where(self.mask, values_t.detach().double(), 0.0)
        return torch.zeros_like(self.counts).index_add_(0, self.index, kept) / self.counts.clamp(
            min=1.0
        )

    def on_tokens(self, values_s: torch.Tensor) -> torch.Tensor:
        """[T]: each token gets its sequence's value."""
        return values_s[self.index]

    def count_any(self, flags_t: torch.Tensor) -> torch.Tensor:
        """0-d float64: sequences in which at least one loss token is flagged."""
        hits = torch.zeros_like(self.counts).index_add_(
            0, self.index, (flags_t & self.mask).double()
        )
        return (hits > 0).double().sum()


@dataclass(frozen=True, slots=True)
class CorrectionWeights:
    """The factor of each token's policy term, and what was changed to get it.

    weight: [T]; changed: bool [T], tokens whose weight is not the plain w (truncated or zeroed);
    dropped: bool [T], tokens of sequences that were dropped as a whole.
    """

    weight: torch.Tensor
    changed: torch.Tensor
    dropped: torch.Tensor


def correction_weights(
    kind: Correction, log_weight_t: torch.Tensor, sequences: Sequences, low: float, high: float
) -> CorrectionWeights:
    """The table above. log_weight_t: d = old − rollout, [T] in nats."""
    log_weight = log_weight_t.detach()
    weight = log_weight.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    nothing = torch.zeros_like(sequences.mask)
    if kind == "none":
        return CorrectionWeights(torch.ones_like(weight), nothing, nothing)
    if kind == "tis":
        return CorrectionWeights(weight.clamp(low, high), (weight < low) | (weight > high), nothing)
    if kind == "icepop":
        outside = (weight < low) | (weight > high)
        return CorrectionWeights(weight.masked_fill(outside, 0.0), outside, nothing)
    if kind == "sequence_mask":
        geometric = sequences.means(log_weight).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        dropped = sequences.on_tokens((geometric < low) | (geometric > high))
        return CorrectionWeights(weight.masked_fill(dropped, 0.0), dropped, dropped)
    raise ValueError(f"correction {kind!r}: expected one of {', '.join(Correction.__args__)}")


def off_policy_tokens(
    sampling_logprobs: torch.Tensor,
    logprobs: torch.Tensor,
    advantages: torch.Tensor,
    sequences: Sequences,
    limit_nats: float,
) -> torch.Tensor:
    """bool [T]: tokens of sequences with negative advantage that are too far off-policy.

    Their mean(sampling − logp) exceeds `limit_nats` (DeepSeek-V3.2, arXiv 2512.02556). `sampling`:
    the engine's log-probs where known, so that both sources of off-policyness count, else the old
    ones.
    """
    far = sequences.means(sampling_logprobs - logprobs) > limit_nats
    return (advantages < 0) & sequences.on_tokens(far)


def mismatch_stats(
    old_logprobs: torch.Tensor, rollout_logprobs: torch.Tensor, mask: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """How far trainer and engine are apart over the tokens of `mask`, in nats.

    Returns (sums with the keys MISMATCH_NAMES, maxima with the key `mismatch_max`), float64 0-d.

    old_logprobs, rollout_logprobs: [T], of the sampled tokens by the trainer and by the engine that
    sampled them. mismatch_abs_sum: Σ|d|. k1, k3: estimators of KL(engine ‖ trainer), −d and e^d − 1
    − d (d clamped to ±20 in the exponential). mismatch_outside_count: tokens with w outside [0.5,
    2]. Divide by mismatch_tokens. All 0 where no token counts.
    """
    gap = torch.where(mask, (old_logprobs - rollout_logprobs).detach().double(), 0.0)
    limited = gap.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    weight = limited.exp()
    size = gap.abs()
    outside = (weight < OUTSIDE_LOW) | (weight > OUTSIDE_HIGH)
    columns = (mask.double(), size, -gap, limited.expm1() - limited, outside.double())
    sums = dict(zip(MISMATCH_NAMES, torch.stack(columns).sum(1), strict=True))
    return sums, {"mismatch_max": size.max() if size.numel() else size.new_zeros(())}
