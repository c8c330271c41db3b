"""Trainer against engine: correction weights and the off-policy mask by hand, statistics of the
mismatch, what the weights repair."""

import math
from dataclasses import replace

import pytest
import torch
from train.policy_by_hand import example

from megaladder.train.objectives.policy_loss import PolicyLossInputs, PolicyLossOptions, policy_loss
from megaladder.train.objectives.rollout_correction import (
    MISMATCH_NAMES,
    Sequences,
    correction_weights,
    mismatch_stats,
    off_policy_tokens,
)

LOG2 = math.log(2.0)
INDEX = torch.tensor([0, 0, 0, 1, 1, 2])
MASK = torch.tensor([1, 1, 0, 1, 1, 0], dtype=torch.bool)
# w = 4, ½, –, 1, √2, –; geometric means √2, 2^¼
GAP = torch.tensor([2 * LOG2, -LOG2, 9.0, 0.0, LOG2 / 2, 9.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "low", "high", "expected", "changed", "dropped"),
    [
        ("none", 0.9, 1.1, [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]),
        ("tis", 0.0, 2.0, [2, 0.5, 1, 2**0.5], [1, 0, 0, 0], [0, 0, 0, 0]),
        ("tis", 0.8, 1.2, [1.2, 0.8, 1, 1.2], [1, 1, 0, 1], [0, 0, 0, 0]),
        ("icepop", 0.5, 2.0, [0, 0.5, 1, 2**0.5], [1, 0, 0, 0], [0, 0, 0, 0]),
        ("sequence_mask", 0.5, 1.3, [0, 0, 1, 2**0.5], [1, 1, 0, 0], [1, 1, 0, 0]),
        ("sequence_mask", 0.5, 1.5, [4, 0.5, 1, 2**0.5], [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_weights_by_hand(kind, low, high, expected, changed, dropped):
    found = correction_weights(kind, GAP, Sequences.of(INDEX, MASK), low, high)
    assert found.weight[MASK].tolist() == pytest.approx(expected, rel=1e-14)
    assert (
        found.changed[MASK].int().tolist() == changed
        and found.dropped[MASK].int().tolist() == dropped
    )


def test_an_unknown_correction_is_refused():
    with pytest.raises(ValueError, match="expected one of none, tis, icepop, sequence_mask"):
        correction_weights("mis", GAP, Sequences.of(INDEX, MASK), 0.0, 2.0)


def test_the_off_policy_mask_drops_far_sequences_with_negative_advantage_only():
    sampling, logprobs = (
        torch.tensor([-1.0, -1, 50, -1, -1, -1]),
        torch.tensor([-2.0, -1.2, 0, -2, -1.2, -9]),
    )
    sequences = Sequences.of(INDEX, MASK)  # mean distances 0.6, 0.6, none

    def dropped(advantages, limit):
        return (
            off_policy_tokens(sampling, logprobs, torch.tensor(advantages)[INDEX], sequences, limit)
            .int()
            .tolist()
        )

    assert dropped([-1.0, 1.0, -1.0], 0.5) == [1, 1, 1, 0, 0, 0]
    assert dropped([-1.0, 1.0, -1.0], 0.7) == [0] * 6
    assert dropped([0.0, -1.0, -1.0], 0.5) == [0, 0, 0, 1, 1, 0]


def test_the_off_policy_mask_measures_from_the_engine_where_its_logprobs_are_known():
    """Trainer and old policy agree; only the engine is far: both sources of off-policyness count
    (DeepSeek-V3.2)."""
    inputs = example(seed=20, num_sequences=10, drift=0.0, gap=0.0)
    inputs = replace(
        inputs,
        old_logprobs=inputs.logprobs.detach(),
        rollout_logprobs=inputs.logprobs.detach() + 1.0,
    )
    options = PolicyLossOptions(off_policy_mask=0.5)
    negative = (inputs.advantages < 0) & inputs.mask
    _, sums, _ = policy_loss(inputs, options)
    assert (
        sums["off_policy_dropped_sequences"]
        == inputs.sequence_of_token[negative].unique().numel()
        > 0
    )
    assert sums["correction_weight_sum"] == (inputs.mask & ~negative).sum()
    _, sums, _ = policy_loss(replace(inputs, rollout_logprobs=None), options)
    assert sums["off_policy_dropped_sequences"] == 0.0


def test_the_token_weight_makes_the_gradient_that_of_the_trainers_own_policy():
    """Exact expectation over a vocabulary sampled by the engine: with w untruncated, the gradient
    is −∇E_π[A]; without, it is not."""
    random = torch.Generator().manual_seed(0)
    logits, engine, advantages = (
        torch.randn(6, generator=random, dtype=torch.float64) for _ in range(3)
    )
    logits.requires_grad_()
    log_pi, log_engine = logits.log_softmax(0), engine.log_softmax(0)
    (expected,) = torch.autograd.grad(-(log_pi.exp() * advantages).sum(), logits, retain_graph=True)
    inputs = PolicyLossInputs(
        log_pi,
        None,
        log_engine,
        None,
        advantages,
        log_engine.exp(),
        torch.ones(6).bool(),
        torch.arange(6),
    )
    cases = (
        ("tis", 1e9, True),
        ("icepop", 1e9, True),
        ("sequence_mask", 1e9, True),
        ("none", 2.0, False),
        ("tis", 1.0, False),
    )
    for kind, high, same in cases:
        loss, *_ = policy_loss(inputs, PolicyLossOptions(correction=kind, correction_high=high))
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert torch.allclose(gradient, expected, atol=1e-13) is same, (kind, high)


def test_mismatch_by_hand():
    sums, maxima = mismatch_stats(GAP, torch.zeros(6, dtype=torch.float64), MASK)
    assert set(sums) == set(MISMATCH_NAMES) and set(maxima) == {"mismatch_max"}
    assert {name: value.item() for name, value in (sums | maxima).items()} == pytest.approx(
        {
            "mismatch_tokens": 4,
            "mismatch_abs_sum": 3.5 * LOG2,
            "mismatch_k1_sum": -1.5 * LOG2,
            "mismatch_k3_sum": (4 + 0.5 + 1 + 2**0.5) - 4 - 1.5 * LOG2,
            "mismatch_outside_count": 1,
            "mismatch_max": 2 * LOG2,
        },
        rel=1e-13,
    )


def test_k1_and_k3_estimate_the_divergence_of_engine_and_trainer():
    """Tokens in the proportions of the engine's own probabilities: both sums become the exact
    KL(engine ‖ trainer)."""
    counts = torch.tensor([50, 30, 15, 5])
    engine, trainer = counts / 100, torch.tensor([0.4, 0.4, 0.1, 0.1], dtype=torch.float64)
    token = torch.repeat_interleave(torch.arange(4), counts)
    sums, _ = mismatch_stats(
        trainer.log()[token], engine.double().log()[token], torch.ones(100, dtype=torch.bool)
    )
    exact = (engine.double() * (engine.double() / trainer).log()).sum().item()
    assert sums["mismatch_k1_sum"].item() / 100 == pytest.approx(exact, rel=1e-6)
    assert sums["mismatch_k3_sum"].item() / 100 == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("n", [0, 5])
def test_no_token_no_mismatch(n):
    sums, maxima = mismatch_stats(
        torch.full((n,), float("nan")),
        torch.full((n,), float("inf")),
        torch.zeros(n, dtype=torch.bool),
    )
    assert not any(value.item() for value in (sums | maxima).values())


def test_statistics_of_a_million_tokens_keep_fp32_noise_out():
    """Sums in float64: a mean of 1e-7 over a million tokens is not lost in rounding."""
    n = 1_000_000
    sums, _ = mismatch_stats(
        torch.full((n,), 1e-7), torch.zeros(n), torch.ones(n, dtype=torch.bool)
    )
    assert sums["mismatch_abs_sum"].item() / n == pytest.approx(
        float(torch.tensor(1e-7)), rel=1e-12
    )
