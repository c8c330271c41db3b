"""Policy-gradient losses of GRPO and its kin over one packed micro-batch.

Pure torch: tensors in, a weighted sum and metric sums out.

Legend: l = log π(token) of the model being trained, the only tensor with a gradient (with the
entropy H); o = old log-prob; q = reference log-prob; A = advantage; u = correction weight of the
engine (`rollout_correction`); sg = stop-gradient; exponents are clamped to ±20 nats and flat
beyond; clip(r) = clamp(r, 1 − clip_low, 1 + clip_high).

ratio        token     r = exp(l − o)                                 PPO; GRPO, arXiv 2402.03300
             sequence  r = exp(l − sg l + sg mean_s(l − o))           GSPO with token-level
                       gradient, arXiv 2507.18071 §4.3; s: the sequence
policy_loss  clip      −u·min(A·r, A·clip(r))                         PPO; clip_high > clip_low:
                       DAPO, arXiv 2503.14476
             dual clip −u·max(min(A·r, A·clip(r)), c·A) where A < 0   arXiv 1912.09729: a loss of at
             most −c·A
             cispo     −u·A·sg clip(r)·l                              MiniMax-M1, arXiv 2506.13585
kl           k1 k2 k3  δ,  δ²/2,  e^(−δ) − 1 + δ  with δ = l − q      Schulman,
                       joschu.net/blog/kl-approx.html
             weighted  r·k1,  sg(r)·k2,  r·k3  with the token ratio   DeepSeek-V3.2, arXiv
                       2512.02556; slime; TRL. The gradient is that of
                                                                      KL(π ‖ reference) off-policy
                                                                      too (k2 is a gradient, not a
                                                                      value)
token loss   policy term + kl_coef·kl − entropy_coef·H

GRPO, Dr.GRPO and DAPO differ in A and in the weights (`advantages`), not here. Sequence masks and u
act on the policy term only, as in TRL and slime; with a sequence ratio each token's gradient
carries its own u, as in verl. The sum is Σ weight·token loss, with weights by global counts
(`advantages.token_weights`): nothing is divided here. A loss that is a sum over tokens may be
called on any part of them (the head does, block by block); one that couples the tokens of a
sequence needs whole sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch

from megaladder.config.sections.grpo import GrpoSection, RolloutSection
from megaladder.errors import ConfigError
from megaladder.train.objectives.advantages import Aggregation
from megaladder.train.objectives.rollout_correction import (
    LOG_RATIO_LIMIT,
    MISMATCH_NAMES,
    Correction,
    CorrectionWeights,
    Sequences,
    correction_weights,
    mismatch_stats,
    off_policy_tokens,
)
from megaladder.types import required

METRIC_NAMES = (
    "tokens",  # loss tokens
    "policy_loss_sum",  # Σ weight · policy term, correction included
    "kl_loss_sum",  # Σ weight · kl_coef · kl
    "entropy_loss_sum",  # −Σ weight · entropy_coef · H
    "logprob_sum",
    "entropy_sum",  # 0 where no entropy is given
    "ratio_sum",  # of the ratio that the loss uses
    "clip_low_count",  # clipped with effect: r < 1 − clip_low and A < 0 (cispo: A ≠ 0)
    "clip_high_count",  # r > 1 + clip_high and A > 0 (cispo: A ≠ 0)
    "dual_clip_count",  # r > dual_clip and A < 0
    "old_kl_k1_sum",  # estimators of KL(old ‖ current): −log r, r − 1 − log r, with the token ratio
    "old_kl_k3_sum",
    "ref_kl_k1_sum",  # estimators of KL(current ‖ reference); 0 where no reference is given
    "ref_kl_k3_sum",
    # trainer against engine, see `mismatch_stats`; 0 where no engine log-probs are given
    *MISMATCH_NAMES,
    "correction_weight_sum",  # Σ u after truncation and masks
    "correction_changed_count",  # tokens whose u was truncated or zeroed
    "correction_dropped_sequences",  # dropped by correction sequence_mask
    "off_policy_dropped_sequences",  # dropped by off_policy_mask
)
"""Keys of the metric sums, always all of them, float64 0-d. Counts are there so that the caller can
form means over all ranks."""
METRIC_MAX_NAMES = ("mismatch_max", "ratio_max")
"""Keys of the maxima: largest |Δ log-prob| trainer against engine in nats, largest ratio. 0 where
no token counts."""


@dataclass(frozen=True, slots=True)
class PolicyLossOptions:
    """The settings that the policy loss reads.

    Names and meaning are those of `config.sections.grpo.GrpoSection` (max_tokens:
    rollout.max_tokens).

    `aggregation` and `max_tokens` are for `advantages.token_weights`; the loss takes the finished
    weights.
    """

    policy_loss: Literal["clip", "cispo"] = "clip"
    ratio: Literal["token", "sequence"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    kl: Literal["none", "k1", "k2", "k3"] = "none"
    kl_coef: float = 0.0
    kl_importance_weight: bool = False
    entropy_coef: float = 0.0
    correction: Correction = "none"
    correction_low: float = 0.0
    correction_high: float = 2.0
    off_policy_mask: float | None = None
    aggregation: Aggregation = "token_mean"
    max_tokens: int = 1

    @property
    def needs_reference(self) -> bool:
        """Whether log-probs of a reference model enter the loss."""
        return self.kl != "none"

    @property
    def couples_tokens(self) -> bool:
        """Whether a token's gradient depends on other tokens of its sequence.

        The loss then needs all log-probs before any gradient.
        """
        return (
            self.ratio == "sequence"
            or self.correction == "sequence_mask"
            or self.off_policy_mask is not None
        )

    @property
    def only_advantages(self) -> bool:
        """Whether a token of advantage 0 has loss and gradient 0, exactly."""
        return not self.needs_reference and not self.needs_entropy

    @property
    def needs_entropy(self) -> bool:
        """Whether the entropy enters the loss (with a gradient)."""
        return self.entropy_coef != 0.0

    @property
    def needs_rollout_logprobs(self) -> bool:
        """Whether the engine's log-probs enter the loss.

        The off-policy mask takes them where they are known.
        """
        return self.correction != "none"


def options_from(grpo: GrpoSection, rollout: RolloutSection) -> PolicyLossOptions:
    """The loss's options out of the configuration sections `grpo` and `rollout`."""
    return PolicyLossOptions(
        policy_loss=grpo.policy_loss,
        ratio=grpo.ratio,
        clip_low=grpo.clip_low,
        clip_high=grpo.clip_high,
        dual_clip=grpo.dual_clip,
        kl=grpo.kl,
        kl_coef=grpo.kl_coef,
        kl_importance_weight=grpo.kl_importance_weight,
        entropy_coef=grpo.entropy_coef,
        correction=grpo.correction,
        correction_low=grpo.correction_low,
        correction_high=grpo.correction_high,
        off_policy_mask=grpo.off_policy_mask,
        aggregation=grpo.aggregation,
        max_tokens=rollout.max_tokens,
    )


@dataclass(frozen=True, slots=True)
class PolicyLossInputs:
    """One micro-batch, every tensor [T], aligned with the predicted token.

    logprobs: with gradient. old_logprobs: None = this is the first update since sampling and the
    pass was saved: old = sg(logprobs). rollout_logprobs: the engine's, None = unknown.
    ref_logprobs: the reference model's, None = no reference. advantages, weights: as given by
    `advantages`, laid out per token. mask: bool, loss tokens; whatever the others hold (NaN
    included) has no effect. sequence_of_token: int64, index of each token's sequence. entropy:
    nats, with a gradient if it enters the loss; None = not computed. num_sequences: S; None = read
    from sequence_of_token, for which the host waits.
    """

    logprobs: torch.Tensor
    old_logprobs: torch.Tensor | None
    rollout_logprobs: torch.Tensor | None
    ref_logprobs: torch.Tensor | None
    advantages: torch.Tensor
    weights: torch.Tensor
    mask: torch.Tensor
    sequence_of_token: torch.Tensor
    entropy: torch.Tensor | None = None
    num_sequences: int | None = None


def policy_loss(
    inputs: PolicyLossInputs, options: PolicyLossOptions
) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weighted policy loss of a micro-batch, with its metric sums and maxima.

    Returns (loss, sums, maxima): Σ weight·token loss as a 0-d tensor with gradient, sums with keys
    METRIC_NAMES, maxima with METRIC_MAX_NAMES.

    Losses, gradients and sums of micro-batches add up to those of the whole, as long as no sequence
    is cut. Without any loss token the loss is exactly 0 and its gradient exactly 0 everywhere, so a
    rank without work still takes part in the backward pass.
    """
    _check(inputs, options)
    x = _without_masked_tokens(inputs)
    sequences = Sequences.of(x.sequence_of_token, x.mask, inputs.num_sequences)
    token_ratio, ratio = _ratios(x, sequences, options)
    correction, off_policy = _correction(x, sequences, options)
    factor = correction.weight.masked_fill(off_policy, 0.0)
    terms = {"policy_loss_sum": factor * _policy_term(x, ratio, options)}
    if options.needs_reference:
        terms["kl_loss_sum"] = options.kl_coef * _kl_term(x, token_ratio, options)
    if options.needs_entropy:
        terms["entropy_loss_sum"] = -options.entropy_coef * required(x.entropy, "entropy")
    weighted = {name: x.weights * term for name, term in terms.items()}
    loss = torch.stack(list(weighted.values())).sum(0).sum(dtype=torch.float64)
    with torch.no_grad():
        columns = {
            **weighted,
            **_token_columns(x, token_ratio, ratio, options),
            "correction_weight_sum": factor,
            "correction_changed_count": correction.changed,
        }
        sums, maxima = _reduce(columns, x.mask, ratio)
        if options.correction == "sequence_mask":
            sums["correction_dropped_sequences"] = sequences.count_any(correction.dropped)
        if options.off_policy_mask is not None:
            sums["off_policy_dropped_sequences"] = sequences.count_any(off_policy)
        if x.rollout_logprobs is not None:
            mismatch, largest = mismatch_stats(_old(x), x.rollout_logprobs, x.mask)
            sums.update(mismatch)
            maxima.update(largest)
    return loss.to(x.logprobs.dtype), sums, maxima


def _reduce(
    columns: dict[str, torch.Tensor], mask: torch.Tensor, ratio: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The sums of all columns [T] over loss tokens, and the largest ratio.

    One reduction; 0 for every other name.
    """
    table = torch.stack([values.detach().to(ratio.dtype) for values in columns.values()])
    totals = torch.where(mask, table, 0.0).sum(1, dtype=torch.float64)
    nothing = totals.new_zeros(())
    sums = dict.fromkeys(METRIC_NAMES, nothing) | dict(zip(columns, totals, strict=True))
    maxima = dict.fromkeys(METRIC_MAX_NAMES, nothing)
    if ratio.numel():
        maxima["ratio_max"] = torch.where(mask, ratio.detach(), 0.0).max().double()
    return sums, maxima


def _check(inputs: PolicyLossInputs, options: PolicyLossOptions) -> None:
    """Every tensor [T], and there if an option needs it."""
    num_tokens = inputs.logprobs.shape
    for field in fields(inputs):
        tensor = getattr(inputs, field.name)
        if isinstance(tensor, torch.Tensor) and tensor.shape != num_tokens:
            raise ValueError(
                f"{field.name} of shape {tuple(tensor.shape)}: expected that of logprobs,"
                f" {tuple(num_tokens)}"
            )
    if options.needs_reference and inputs.ref_logprobs is None:
        raise ConfigError(
            f"grpo.kl {options.kl} needs log-probs of a reference model, found none; fix: compute"
            " them, or grpo.kl none"
        )
    if options.needs_entropy and inputs.entropy is None:
        raise ConfigError(
            f"grpo.entropy_coef {options.entropy_coef:g} needs the entropy, found none; fix:"
            " compute it, or entropy_coef 0"
        )
    if options.needs_rollout_logprobs and inputs.rollout_logprobs is None:
        raise ConfigError(
            f"grpo.correction {options.correction} needs the engine's log-probs, these rollouts"
            " have none; fix: generate with log-probs, or grpo.correction none"
        )


def _without_masked_tokens(inputs: PolicyLossInputs) -> PolicyLossInputs:
    """The same inputs with every number 0 outside the mask.

    In the dtype of logprobs. Nothing masked can reach the loss or its gradient.
    """
    zero = inputs.logprobs.new_zeros(())

    def kept(values: torch.Tensor) -> torch.Tensor:
        return torch.where(inputs.mask, values.to(zero.dtype), zero)

    def kept_if_given(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else kept(values)

    return replace(
        inputs,
        logprobs=kept(inputs.logprobs),
        old_logprobs=kept_if_given(inputs.old_logprobs),
        rollout_logprobs=kept_if_given(inputs.rollout_logprobs),
        ref_logprobs=kept_if_given(inputs.ref_logprobs),
        advantages=kept(inputs.advantages),
        weights=kept(inputs.weights),
        entropy=kept_if_given(inputs.entropy),
    )


def _old(x: PolicyLossInputs) -> torch.Tensor:
    return x.logprobs.detach() if x.old_logprobs is None else x.old_logprobs


def _ratios(
    x: PolicyLossInputs, sequences: Sequences, options: PolicyLossOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ratio, the ratio that the loss uses), [T] each, both with gradient r·∇l."""
    log_ratio = x.logprobs - _old(x)
    token_ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    if options.ratio == "token":
        return token_ratio, token_ratio
    mean = sequences.on_tokens(sequences.means(log_ratio)).to(x.logprobs.dtype)
    return (
        token_ratio,
        (x.logprobs - x.logprobs.detach() + mean).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp(),
    )


def _correction(
    x: PolicyLossInputs, sequences: Sequences, options: PolicyLossOptions
) -> tuple[CorrectionWeights, torch.Tensor]:
    """The engine's correction weights, and the tokens that the off-policy mask drops."""
    old = _old(x)
    sampling = old if x.rollout_logprobs is None else x.rollout_logprobs
    weights = correction_weights(
        options.correction,
        old - sampling,
        sequences,
        options.correction_low,
        options.correction_high,
    )
    if options.off_policy_mask is None:
        return weights, torch.zeros_like(x.mask)
    return weights, off_policy_tokens(
        sampling, x.logprobs, x.advantages, sequences, options.off_policy_mask
    )


def _policy_term(
    x: PolicyLossInputs, ratio: torch.Tensor, options: PolicyLossOptions
) -> torch.Tensor:
    clipped = ratio.clamp(1.0 - options.clip_low, 1.0 + options.clip_high)
    if options.policy_loss == "cispo":
        return -x.advantages * clipped.detach() * x.logprobs
    objective = torch.minimum(x.advantages * ratio, x.advantages * clipped)
    if options.dual_clip is not None:
        bounded = torch.maximum(objective, options.dual_clip * x.advantages)
        objective = torch.where(x.advantages < 0, bounded, objective)
    return -objective


def _kl_term(
    x: PolicyLossInputs, token_ratio: torch.Tensor, options: PolicyLossOptions
) -> torch.Tensor:
    gap = x.logprobs - required(x.ref_logprobs, "ref_logprobs")
    weight = token_ratio if options.kl_importance_weight else torch.ones_like(gap)
    if options.kl == "k1":
        return weight * gap
    if options.kl == "k2":
        return weight.detach() * gap.square() / 2
    return weight * _k3(gap)


def _k3(gap: torch.Tensor) -> torch.Tensor:
    """e^(−δ) − 1 + δ ≥ 0, with δ clamped to ±20."""
    limited = gap.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (-limited).expm1() + limited


def _token_columns(
    x: PolicyLossInputs, token_ratio: torch.Tensor, ratio: torch.Tensor, options: PolicyLossOptions
) -> dict[str, torch.Tensor]:
    """The metrics that are sums over loss tokens, [T] each."""
    log_ratio = x.logprobs - _old(x)
    low, high = ratio < 1.0 - options.clip_low, ratio > 1.0 + options.clip_high
    is_cispo = options.policy_loss == "cispo"
    columns = {
        "tokens": x.mask,
        "logprob_sum": x.logprobs,
        "ratio_sum": ratio,
        "clip_low_count": low & (x.advantages != 0 if is_cispo else x.advantages < 0),
        "clip_high_count": high & (x.advantages != 0 if is_cispo else x.advantages > 0),
        "old_kl_k1_sum": -log_ratio,
        "old_kl_k3_sum": _k3(-log_ratio.double()),
    }
    if options.dual_clip is not None and not is_cispo:
        columns["dual_clip_count"] = (ratio > options.dual_clip) & (x.advantages < 0)
    if x.entropy is not None:
        columns["entropy_sum"] = x.entropy
    if x.ref_logprobs is not None:
        gap = (x.logprobs - x.ref_logprobs).double()
        columns |= {"ref_kl_k1_sum": gap, "ref_kl_k3_sum": _k3(gap)}
    return columns
