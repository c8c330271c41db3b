"""The policy losses once more, in Python floats, by cases instead of min and max: value,
derivatives and metrics of one micro-batch.

Independent of `megaladder.train.objectives.policy_loss`: no torch, one token at a time, derivatives
written out by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

import torch

from megaladder.train.objectives.policy_loss import PolicyLossInputs, PolicyLossOptions


@dataclass
class ByHand:
    """loss; d loss / d logprobs and d loss / d entropy, one per token; metrics by name."""

    loss: float
    d_logprobs: list[float]
    d_entropy: list[float]
    metrics: dict[str, float]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def example(
    *, seed=0, dtype=torch.float64, drift=0.5, gap=0.5, num_sequences=6
) -> PolicyLossInputs:
    """Sequences of 1 to 9 tokens, a third of the tokens masked, one sequence masked altogether,
    advantages ±, every tensor given.

    Seed 20 with 10 sequences has tokens of every case: clipped low, high, dually, dropped by each
    sequence mask. drift, gap: standard deviation in nats of logprobs − old and old − rollout."""
    random = torch.Generator().manual_seed(seed)

    def normal(n, scale=1.0):
        return torch.randn(n, generator=random, dtype=torch.float64) * scale

    lengths = torch.randint(1, 10, (num_sequences,), generator=random)
    index = torch.repeat_interleave(torch.arange(num_sequences), lengths)
    n = len(index)
    mask = (torch.rand(n, generator=random) > 0.33) & (index != 2)
    logprobs = -torch.rand(n, generator=random, dtype=torch.float64) * 3
    old = logprobs + normal(n, drift) + normal(num_sequences, drift)[index]
    tensors = (
        logprobs,
        old,
        old + normal(n, gap) + normal(num_sequences, gap / 2)[index],
        logprobs + normal(n, 0.7),
        normal(num_sequences)[index],
        torch.rand(num_sequences, generator=random, dtype=torch.float64)[index] * mask,
    )
    logprobs, old, rollout, reference, advantages, weights = (
        tensor.to(dtype) for tensor in tensors
    )
    entropy = torch.rand(n, generator=random, dtype=torch.float64).to(dtype)
    return PolicyLossInputs(
        logprobs.requires_grad_(),
        old,
        rollout,
        reference,
        advantages,
        weights,
        mask,
        index,
        entropy.requires_grad_(),
    )


def by_hand(x: PolicyLossInputs, o: PolicyLossOptions) -> ByHand:
    names = (
        "logprobs",
        "old_logprobs",
        "rollout_logprobs",
        "ref_logprobs",
        "advantages",
        "weights",
        "entropy",
    )
    column = {name: getattr(x, name).tolist() for name in names}
    index, n = x.sequence_of_token.tolist(), len(x.mask)
    result = ByHand(0.0, [0.0] * n, [0.0] * n, {"tokens": 0})
    for sequence in sorted(set(index)):
        tokens = [t for t in range(n) if index[t] == sequence and x.mask[t]]
        if tokens:
            _sequence(
                result, [{name: column[name][t] for name in names} | {"t": t} for t in tokens], o
            )
    return result


def _sequence(result: ByHand, tokens: list[dict], o: PolicyLossOptions) -> None:
    sequence_ratio = exp(mean(k["logprobs"] - k["old_logprobs"] for k in tokens))
    geometric = exp(mean(k["old_logprobs"] - k["rollout_logprobs"] for k in tokens))
    distance = mean(k["rollout_logprobs"] - k["logprobs"] for k in tokens)
    outside = not o.correction_low <= geometric <= o.correction_high
    too_far = (
        o.off_policy_mask is not None
        and distance > o.off_policy_mask
        and tokens[0]["advantages"] < 0
    )
    _add(result, "correction_dropped_sequences", o.correction == "sequence_mask" and outside)
    _add(result, "off_policy_dropped_sequences", too_far)
    for k in tokens:
        token_ratio = exp(k["logprobs"] - k["old_logprobs"])
        ratio = token_ratio if o.ratio == "token" else sequence_ratio
        plain = exp(k["old_logprobs"] - k["rollout_logprobs"])
        weight = {
            "none": 1.0,
            "tis": max(o.correction_low, min(plain, o.correction_high)),
            "icepop": plain if o.correction_low <= plain <= o.correction_high else 0.0,
            "sequence_mask": 0.0 if outside else plain,
        }[o.correction]
        _add(result, "correction_changed_count", o.correction != "none" and weight != plain)
        weight = 0.0 if too_far else weight
        policy, d_policy = (
            _cispo(k, ratio, o) if o.policy_loss == "cispo" else _clip(result, k, ratio, o)
        )
        kl, d_kl = _kl(
            k["logprobs"] - k["ref_logprobs"], token_ratio if o.kl_importance_weight else None, o.kl
        )
        result.loss += k["weights"] * (
            weight * policy + o.kl_coef * kl - o.entropy_coef * k["entropy"]
        )
        result.d_logprobs[k["t"]] = k["weights"] * (weight * d_policy + o.kl_coef * d_kl)
        result.d_entropy[k["t"]] = -k["weights"] * o.entropy_coef
        _metrics(
            result,
            k,
            {"ratio": ratio, "token_ratio": token_ratio, "plain": plain, "weight": weight},
            o,
        )
        _add(result, "policy_loss_sum", k["weights"] * weight * policy)
        _add(result, "kl_loss_sum", k["weights"] * o.kl_coef * kl)
        _add(result, "entropy_loss_sum", -k["weights"] * o.entropy_coef * k["entropy"])


def _cispo(k, ratio, o):
    cut = min(max(ratio, 1 - o.clip_low), 1 + o.clip_high)
    return -k["advantages"] * cut * k["logprobs"], -k["advantages"] * cut


def _clip(result, k, ratio, o):
    """Better than expected: no reward above 1 + high. Worse: no reward below 1 − low, no punishment
    beyond c."""
    if k["advantages"] >= 0:
        return (
            (-k["advantages"] * ratio,) * 2
            if ratio <= 1 + o.clip_high
            else (-k["advantages"] * (1 + o.clip_high), 0.0)
        )
    if ratio < 1 - o.clip_low:
        return -k["advantages"] * (1 - o.clip_low), 0.0
    if o.dual_clip is not None and ratio > o.dual_clip:
        _add(result, "dual_clip_count", 1)
        return -k["advantages"] * o.dual_clip, 0.0
    return (-k["advantages"] * ratio,) * 2


def _kl(gap, ratio, kind):
    """Value and derivative by logprob; the ratio, where given, has derivative `ratio`."""
    value, slope = {
        "none": (0.0, 0.0),
        "k1": (gap, 1.0),
        "k2": (gap * gap / 2, gap),
        "k3": (exp(-gap) - 1 + gap, 1 - exp(-gap)),
    }[kind]
    if ratio is None:
        return value, slope
    return ratio * value, ratio * slope + (ratio * value if kind in ("k1", "k3") else 0.0)


def _metrics(result, k, found, o):
    advantage, ratio, gap, d = (
        k["advantages"],
        found["ratio"],
        k["logprobs"] - k["ref_logprobs"],
        k["old_logprobs"] - k["rollout_logprobs"],
    )
    bites_low, bites_high = (
        (advantage != 0,) * 2 if o.policy_loss == "cispo" else (advantage < 0, advantage > 0)
    )
    for name, value in {
        "tokens": 1,
        "logprob_sum": k["logprobs"],
        "entropy_sum": k["entropy"],
        "ratio_sum": ratio,
        "clip_low_count": ratio < 1 - o.clip_low and bites_low,
        "clip_high_count": ratio > 1 + o.clip_high and bites_high,
        "old_kl_k1_sum": k["old_logprobs"] - k["logprobs"],
        "old_kl_k3_sum": found["token_ratio"] - 1 - (k["logprobs"] - k["old_logprobs"]),
        "ref_kl_k1_sum": gap,
        "ref_kl_k3_sum": exp(-gap) - 1 + gap,
        "mismatch_tokens": 1,
        "mismatch_abs_sum": abs(d),
        "mismatch_k1_sum": -d,
        "mismatch_k3_sum": found["plain"] - 1 - d,
        "mismatch_outside_count": not 0.5 <= found["plain"] <= 2.0,
        "correction_weight_sum": found["weight"],
    }.items():
        _add(result, name, value)
    for name, value in {"mismatch_max": abs(d), "ratio_max": ratio}.items():
        result.metrics[name] = max(result.metrics.get(name, 0.0), value)


def _add(result, name, value):
    result.metrics[name] = result.metrics.get(name, 0.0) + float(value)
