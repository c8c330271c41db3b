"""The ten token-weighting modes against formulas written out by hand in fp64, and the identities of
the paper's appendix."""

import math

import pytest
import torch

from megaladder.train.objectives.token_loss import (
    NEEDS_ADVANTAGE,
    NEEDS_OLD_LOGPROBS,
    TokenLossInputs,
    sequence_mean,
    token_losses,
)
from megaladder.types import TokenWeighting as Mode

T = 12
SEQUENCE = torch.tensor([0] * 5 + [1] * 7)
MASK = torch.tensor([0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0], dtype=torch.bool)


def _inputs(shift=0.4, low=1.0, high=1.0, advantages=None):
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(T, generator=generator, dtype=torch.float64) * 3
    old = logprobs + torch.randn(T, generator=generator, dtype=torch.float64) * shift
    if advantages is None:
        advantages = torch.where(SEQUENCE == 0, 1.5, -0.7).double()
    return TokenLossInputs(logprobs.requires_grad_(), MASK, old, advantages, SEQUENCE, low, high)


def _gradient(mode, inputs):
    (gradient,) = torch.autograd.grad(token_losses(mode, inputs).sum(), inputs.logprobs)
    return gradient


def _by_hand(mode, logp, old, advantage, mean_log_ratio, low, high):
    """Value and d value / d logp of one token; r = exp(logp − old), s = exp(mean log ratio of the
    sequence)."""
    r, s, p = math.exp(logp - old), math.exp(min(mean_log_ratio, 10.0)), math.exp(logp)

    def clip(x):
        return min(max(x, 1 - low), 1 + high)

    def slope(x):  # d clip(x) / d logp when dx/dlogp = x
        return x if 1 - low <= x <= 1 + high else 0.0

    def pessimist(x):
        plain, clipped = -advantage * x, -advantage * clip(x)
        return (plain, -advantage * x) if plain > clipped or slope(x) else (clipped, 0.0)

    return {
        Mode.VANILLA: (-logp, -1.0),
        Mode.TEACHER_WEIGHTED: (-math.exp(old) * logp, -math.exp(old)),
        Mode.DFT: (-clip(p) * logp, -clip(p)),
        Mode.ADV_ONLY: (-advantage * logp, -advantage),
        Mode.PPO_ORI: pessimist(r),
        Mode.PPO: (-advantage * clip(r), -advantage * slope(r)),
        Mode.CLIP: (-advantage * logp, -advantage) if 1 - low <= r <= 1 + high else (0.0, 0.0),
        Mode.CISPO: (-advantage * clip(r) * logp, -advantage * clip(r)),
        Mode.GSPO_ORI: pessimist(s),
        Mode.GSPO: (-advantage * clip(s), -advantage * slope(s)),
    }[mode]


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.2, 0.28)])
def test_values_and_gradients_equal_the_formula(mode, low, high):
    inputs = _inputs(low=low, high=high)
    losses, gradient = token_losses(mode, inputs).detach(), _gradient(mode, inputs)
    log_ratio = (inputs.logprobs - inputs.old_logprobs).detach()
    for t in range(T):
        if not MASK[t]:
            assert losses[t] == 0.0 and gradient[t] == 0.0
            continue
        same = (SEQUENCE[t] == SEQUENCE) & MASK
        value, slope = _by_hand(
            mode,
            inputs.logprobs[t].item(),
            inputs.old_logprobs[t].item(),
            inputs.advantages[t].item(),
            log_ratio[same].mean().item(),
            low,
            high,
        )
        assert losses[t].item() == pytest.approx(value, abs=1e-12)
        assert gradient[t].item() == pytest.approx(slope, abs=1e-12)


def test_on_policy_with_unit_advantage_the_gradients_are_those_of_vanilla():
    inputs = _inputs(shift=0.0, advantages=torch.ones(T, dtype=torch.float64))
    vanilla = _gradient(Mode.VANILLA, inputs)
    for mode in (
        Mode.ADV_ONLY,
        Mode.CISPO,
        Mode.CLIP,
        Mode.PPO,
        Mode.PPO_ORI,
        Mode.GSPO,
        Mode.GSPO_ORI,
    ):
        assert torch.allclose(_gradient(mode, inputs), vanilla, atol=1e-12), mode
    assert torch.allclose(
        _gradient(Mode.DFT, inputs), vanilla * inputs.logprobs.detach().exp(), atol=1e-12
    )


def test_negative_advantage_flips_adv_only_and_leaves_vanilla():
    plus, minus = (
        _inputs(advantages=torch.full((T,), sign, dtype=torch.float64)) for sign in (1.0, -1.0)
    )
    assert torch.equal(_gradient(Mode.ADV_ONLY, plus), -_gradient(Mode.ADV_ONLY, minus))
    assert torch.equal(_gradient(Mode.VANILLA, plus), _gradient(Mode.VANILLA, minus))


def test_ratio_above_two_stops_ppo_and_clip_and_scales_cispo_by_two():
    logprobs = torch.full((T,), -1.0, dtype=torch.float64, requires_grad=True)
    inputs = TokenLossInputs(
        logprobs, MASK, logprobs.detach() - 1.0, torch.ones(T, dtype=torch.float64), SEQUENCE
    )
    assert not _gradient(Mode.PPO, inputs).any() and not _gradient(Mode.CLIP, inputs).any()
    assert torch.equal(
        _gradient(Mode.CISPO, inputs)[MASK],
        torch.full((int(MASK.sum()),), -2.0, dtype=torch.float64),
    )


def test_extreme_ratios_stay_finite():
    logprobs = torch.zeros(T, dtype=torch.float64, requires_grad=True)
    inputs = TokenLossInputs(
        logprobs,
        MASK,
        torch.full((T,), -1e4, dtype=torch.float64),
        torch.ones(T, dtype=torch.float64),
        SEQUENCE,
    )
    for mode in Mode:
        assert (
            torch.isfinite(token_losses(mode, inputs)).all()
            and torch.isfinite(_gradient(mode, inputs)).all()
        ), mode


def test_sequence_mean_ignores_masked_tokens_and_empty_sequences():
    values = torch.arange(6, dtype=torch.float64)
    mask = torch.tensor([1, 0, 1, 0, 0, 1], dtype=torch.bool)
    assert sequence_mean(values, mask, torch.tensor([0, 0, 0, 1, 1, 2])).tolist() == [
        1,
        1,
        1,
        0,
        0,
        5,
    ]


def test_needs_are_what_the_table_says():
    assert {Mode.VANILLA, Mode.DFT, Mode.ADV_ONLY} == set(Mode) - NEEDS_OLD_LOGPROBS
    assert {Mode.VANILLA, Mode.TEACHER_WEIGHTED, Mode.DFT} == set(Mode) - NEEDS_ADVANTAGE
