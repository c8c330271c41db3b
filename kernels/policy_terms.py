"""Token-separable policy losses: value, derivative by log-prob and by entropy, per token. The twin
of the Triton prologue in `ce_policy`.

Symbols: l = log π(y), o = old log-prob, A = advantage, u = importance weight of the rollout engine
(constant), w = weight of the token in the sum (mask · 1/normaliser), q = reference log-prob, H =
entropy; r = exp(clamp(l − o, ±20)); log-probs in nats.

    kind         per-token loss                                        d/dl
    sft          −l                                                    −1
    reinforce    −u·A·l                                                −u·A
    ppo          −u·max(min(A·r, A·clip(r)), c·A if A < 0)             −u·A·r where the first branch
                 is taken, else 0
    cispo        −u·A·clip(sg r)·l                                     −u·A·clip(r)
    all          + kl·(e^(q−l) − (q−l) − 1) − bonus·H                  + kl·(1 − e^(q−l)), d/dH =
                 −bonus

clip(r) = clamp(r, 1 − clip_low, 1 + clip_high): clip-higher is clip_high > clip_low (DAPO, arXiv
2503.14476); c = dual_clip (arXiv 1912.09729). GRPO and Dr.GRPO are `ppo`: they differ in A and w
only (arXiv 2402.03300, 2503.20783); CISPO: arXiv 2506.13585; truncated importance weights go into
`u`; the reference term is Schulman's k3. Losses that couple tokens (GSPO) are not separable: use
`linear_logprob` and plain autograd.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

LOG_RATIO_LIMIT = 20.0  # nats; r and the k3 term are flat beyond it
KINDS = ("sft", "reinforce", "ppo", "cispo")


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """Which loss. Numbers are dimensionless; `dual_clip` 0 switches it off, else it is > 1."""

    kind: str = "sft"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    kl_coef: float = 0.0
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"policy loss kind {self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.dual_clip and self.dual_clip <= 1.0:
            raise ValueError(f"dual_clip {self.dual_clip}: expected 0 (off) or a number > 1")

    @property
    def needs_entropy(self) -> bool:
        return self.entropy_coef != 0.0


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """Per-token constants, all [T] float32 or None. None: weight 1, advantage 1, importance weight
    1, old = the current log-prob."""

    weight: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    old_logp: torch.Tensor | None = None
    importance: torch.Tensor | None = None
    ref_logp: torch.Tensor | None = None

    def rows(self, index: torch.Tensor | slice) -> PolicyInputs:
        """The same for some tokens."""
        return PolicyInputs(
            *(
                None if v is None else v[index]
                for v in (getattr(self, f.name) for f in fields(self))
            )
        )


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """What one token contributes, each [T]: weighted loss, d loss / d logp, d loss / d entropy
    (None when it is zero everywhere)."""

    loss: torch.Tensor
    d_logp: torch.Tensor
    d_entropy: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class PolicyMetrics:
    """Sums over the tokens with loss (divide by `num_tokens`); 0-d tensors. Weights do not enter,
    except in `loss`."""

    num_tokens: torch.Tensor  # tokens whose target is not ignored
    loss: torch.Tensor
    logp: torch.Tensor
    entropy: torch.Tensor  # 0 unless the loss needs the entropy or it was asked for
    ratio: torch.Tensor
    clipped_low: torch.Tensor  # tokens with r < 1 − clip_low
    clipped_high: torch.Tensor  # tokens with r > 1 + clip_high
    dual_clipped: torch.Tensor
    # k3 estimate of KL(old ‖ current) over tokens that the old policy sampled: (r − 1) − log r
    old_kl: torch.Tensor
    ref_kl: torch.Tensor  # k3 estimate of KL(current ‖ reference)
    active_tokens: torch.Tensor  # tokens with a gradient


def clamped_ratio(
    logp: torch.Tensor, old_logp: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """r and where it is not flat, both [T]."""
    if old_logp is None:
        return torch.ones_like(logp), torch.ones_like(logp, dtype=torch.bool)
    difference = logp - old_logp.to(logp.dtype)
    return difference.clamp(
        -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT
    ).exp(), difference.abs() <= LOG_RATIO_LIMIT


def _surrogate(
    logp: torch.Tensor, spec: PolicyLoss, inputs: PolicyInputs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unweighted loss and its derivative by logp, [T] each, without reference term and bonus."""
    if spec.kind == "sft":
        return -logp, torch.full_like(logp, -1.0)
    scaled = (
        torch.ones_like(logp) if inputs.advantages is None else inputs.advantages.to(logp.dtype)
    )
    outer = scaled if inputs.importance is None else scaled * inputs.importance.to(logp.dtype)
    if spec.kind == "reinforce":
        return -outer * logp, -outer
    ratio, live = clamped_ratio(logp, inputs.old_logp)
    clipped = ratio.clamp(1.0 - spec.clip_low, 1.0 + spec.clip_high)
    if spec.kind == "cispo":
        # by definition of the loss: autograd through this function gives the same derivative as we
        # return
        clipped = clipped.detach()
        return -outer * clipped * logp, -outer * clipped
    objective, bound = outer * ratio, outer * clipped
    taken = (objective <= bound) & live
    objective = torch.minimum(objective, bound)
    if spec.dual_clip:
        floor = spec.dual_clip * outer
        cut = (scaled < 0) & (floor > objective)
        objective, taken = torch.where(cut, floor, objective), taken & ~cut
    return -objective, torch.where(taken, -outer * ratio, torch.zeros_like(ratio))


def policy_terms(
    logp: torch.Tensor, entropy: torch.Tensor | None, spec: PolicyLoss, inputs: PolicyInputs
) -> PolicyTerms:
    """Loss and derivatives for tokens whose target is not ignored. `logp`, `entropy` [T]."""
    loss, d_logp = _surrogate(logp, spec, inputs)
    if spec.kl_coef:
        if inputs.ref_logp is None:
            raise ValueError(
                f"kl_coef={spec.kl_coef} needs ref_logp; fix: pass the reference log-probs or set kl_coef to 0"
            )
        gap = inputs.ref_logp.to(logp.dtype) - logp
        limited = gap.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        loss = loss + spec.kl_coef * (limited.exp() - limited - 1.0)
        d_logp = d_logp + torch.where(
            gap.abs() <= LOG_RATIO_LIMIT,
            spec.kl_coef * (1.0 - limited.exp()),
            torch.zeros_like(gap),
        )
    d_entropy = None
    if spec.entropy_coef:
        loss = loss - spec.entropy_coef * entropy
        d_entropy = torch.full_like(logp, -spec.entropy_coef)
    if inputs.weight is not None:
        weight = inputs.weight.to(logp.dtype)
        loss, d_logp = loss * weight, d_logp * weight
        d_entropy = None if d_entropy is None else d_entropy * weight
    return PolicyTerms(loss, d_logp, d_entropy)


@dataclass(frozen=True, slots=True)
class TokenResults:
    """What the loss head found per token, each [T]; 0 where `kept` is false. `entropy` 0 where it
    was not computed."""

    logp: torch.Tensor
    entropy: torch.Tensor
    terms: PolicyTerms
    kept: torch.Tensor  # bool: the token has a target


def policy_metrics(results: TokenResults, spec: PolicyLoss, inputs: PolicyInputs) -> PolicyMetrics:
    """Sums over the kept tokens, without waiting for the device. float64 on the CPU, float32 on an
    accelerator."""
    kept, logp, terms = results.kept, results.logp, results.terms
    accumulate = torch.float64 if logp.device.type == "cpu" else torch.float32
    zero = torch.zeros((), dtype=accumulate, device=logp.device)

    def total(values: torch.Tensor | None) -> torch.Tensor:
        return zero if values is None else torch.where(kept, values.to(accumulate), zero).sum()

    ratio, _ = clamped_ratio(logp, inputs.old_logp)
    dual = None
    if spec.kind == "ppo" and spec.dual_clip and inputs.advantages is not None:
        dual = (inputs.advantages < 0) & (ratio > spec.dual_clip)
    gap = (
        None
        if inputs.ref_logp is None
        else (inputs.ref_logp.to(logp.dtype) - logp).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    )
    active = (
        terms.d_logp != 0
        if terms.d_entropy is None
        else (terms.d_logp != 0) | (terms.d_entropy != 0)
    )
    return PolicyMetrics(
        num_tokens=total(torch.ones_like(logp)),
        loss=total(terms.loss),
        logp=total(logp),
        entropy=total(results.entropy),
        ratio=total(ratio),
        clipped_low=total(ratio < 1.0 - spec.clip_low),
        clipped_high=total(ratio > 1.0 + spec.clip_high),
        dual_clipped=total(dual),
        old_kl=total(ratio - 1.0 - ratio.log()),
        ref_kl=total(None if gap is None else gap.exp() - gap - 1.0),
        active_tokens=total(active),
    )
