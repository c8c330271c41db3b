"""Turns rewards into group advantages and into the weights of tokens in the loss.

numpy, no torch.

Both are computed once for the whole optimizer step, over all data-parallel ranks, before samples
are packed: that is why neither loss nor gradient depends on micro-batches, rows or ranks.

Legend: G = groups (problems), n = samples of a group, B = samples of the step, |o_b| = loss tokens
of sample b.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Aggregation = Literal[
    "token_mean",
    "sequence_mean_token_mean",
    "sequence_mean_token_sum",
    "sequence_mean_token_sum_norm",
]
# a group whose rewards lie within this of each other has no variance: what is left is rounding of
# the reward's sum
EQUAL_REWARDS = 1e-9


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """What the log says about the rewards of one round.

    `num_zero_variance` groups teach nothing; `reward_std_mean` is the mean over groups of their
    sample standard deviation (ddof 1; 0 for groups of one).
    """

    num_groups: int
    num_zero_variance: int
    reward_mean: float
    reward_std_mean: float


def zero_variance(rewards_gn: np.ndarray) -> np.ndarray:
    """bool [G]: groups whose rewards are all equal, and so have no advantage.

    DAPO's dynamic sampling replaces them (arXiv 2503.14476).
    """
    rewards = _checked_rewards(rewards_gn)
    if not rewards.shape[1]:
        return np.ones(len(rewards), dtype=bool)
    return np.ptp(rewards, axis=1) <= EQUAL_REWARDS


def group_advantages(
    rewards_gn: np.ndarray,
    *,
    baseline: Literal["mean", "leave_one_out"],
    std: bool,
    eps: float = 1e-6,
) -> np.ndarray:
    """Advantages float64 [G, n] of rewards [G, n].

    Exactly 0 in groups without variance and in groups of one.

    baseline mean:           A_i = R_i − mean(R)                        GRPO, arXiv 2402.03300
    baseline leave_one_out:  A_i = R_i − mean(R_j, j ≠ i)               RLOO, arXiv 2402.14740;
    equals n/(n−1) times the former std:                     A_i / (s + eps), s² = Σ(R −
    mean)²/(n−1)   GRPO; off in Dr.GRPO, arXiv 2503.20783

    s is that of the whole group with either baseline, by n − 1 as torch.std in verl, TRL and
    OpenRLHF. Raises ValueError on rewards that are not finite: a failed grader must not
    become an advantage.
    """
    if baseline not in ("mean", "leave_one_out"):
        raise ValueError(f"baseline {baseline!r}: expected mean or leave_one_out")
    rewards = _checked_rewards(rewards_gn)
    n = rewards.shape[1]
    if n < 2:
        return np.zeros_like(rewards)
    advantages = rewards - rewards.mean(axis=1, keepdims=True)
    if baseline == "leave_one_out":
        advantages *= n / (n - 1)
    if std:
        advantages /= rewards.std(axis=1, ddof=1, keepdims=True) + eps
    advantages[zero_variance(rewards)] = 0.0
    return advantages


def group_statistics(rewards_gn: np.ndarray) -> GroupStatistics:
    """What a step's log says about its rewards [G, n]; zeros for no group."""
    rewards = _checked_rewards(rewards_gn)
    spread = rewards.std(axis=1, ddof=1) if rewards.shape[1] > 1 else np.zeros(len(rewards))
    return GroupStatistics(
        num_groups=len(rewards),
        num_zero_variance=int(zero_variance(rewards).sum()),
        reward_mean=float(rewards.mean()) if rewards.size else 0.0,
        reward_std_mean=float(spread.mean()) if rewards.size else 0.0,
    )


def filter_truncated(loss_lengths_b: np.ndarray, truncated_b: np.ndarray) -> np.ndarray:
    """Loss lengths int64 [B], 0 for samples that were cut at max_tokens.

    Overlong filtering (DAPO §3.4, arXiv 2503.14476).

    Rewards of cut samples still enter their group's baseline. The caller masks the same samples'
    tokens, and counts them.
    """
    return np.where(np.asarray(truncated_b, dtype=bool), 0, _checked_lengths(loss_lengths_b))


def token_weights(
    loss_lengths_b: np.ndarray, aggregation: Aggregation, max_tokens: int
) -> np.ndarray:
    """float64 [B]: the weight of each loss token of sample b.

    The step's loss is Σ_b weight_b · Σ_t loss_bt.

    loss_lengths_b: |o_b| of *every* sample of the optimizer step, over all ranks. Samples without
    loss tokens weigh 0 and are not counted. N = Σ|o_b|; S = samples with |o_b| > 0.

    token_mean                    1 / N                   DAPO, arXiv 2503.14476; CISPO, arXiv
    2506.13585
    sequence_mean_token_mean      1 / (S·|o_b|)           GRPO, arXiv 2402.03300; GSPO, arXiv
                                  2507.18071
    sequence_mean_token_sum       1 / S                   verl seq-mean-token-sum
    sequence_mean_token_sum_norm  1 / (S·max_tokens)      Dr.GRPO, arXiv 2503.20783
    """
    lengths = _checked_lengths(loss_lengths_b)
    active = lengths > 0
    num_tokens, num_samples = int(lengths.sum()), int(active.sum())
    if aggregation == "sequence_mean_token_sum_norm" and max_tokens < 1:
        raise ValueError(
            f"aggregation {aggregation} divides by max_tokens, found {max_tokens}; expected at"
            " least 1"
        )
    if not num_samples:
        return np.zeros(lengths.shape)
    if aggregation == "token_mean":
        return active / num_tokens
    if aggregation == "sequence_mean_token_mean":
        return active / (num_samples * np.maximum(lengths, 1))
    if aggregation == "sequence_mean_token_sum":
        return active / num_samples
    if aggregation == "sequence_mean_token_sum_norm":
        return active / (num_samples * max_tokens)
    raise ValueError(
        f"aggregation {aggregation!r}: expected one of {', '.join(Aggregation.__args__)}"
    )


def _checked_rewards(rewards_gn: np.ndarray) -> np.ndarray:
    rewards = np.asarray(rewards_gn, dtype=np.float64)
    if rewards.ndim != 2:
        raise ValueError(f"rewards of shape {rewards.shape}: expected [groups, samples of a group]")
    if not np.isfinite(rewards).all():
        group, sample = np.argwhere(~np.isfinite(rewards))[0]
        raise ValueError(
            f"reward of group {group}, sample {sample} is {rewards[group, sample]}: expected a"
            " finite number"
        )
    return rewards


def _checked_lengths(loss_lengths_b: np.ndarray) -> np.ndarray:
    lengths = np.asarray(loss_lengths_b, dtype=np.int64)
    if lengths.ndim != 1 or (lengths < 0).any():
        raise ValueError(f"loss lengths {lengths}: expected one count per sample, none negative")
    return lengths
