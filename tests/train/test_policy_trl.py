"""Against TRL's GRPO loss (trl 1.16.0, test-only) where TRL has the variant: value, gradient and
clip fractions in fp64.

TRL's loss is a method of its trainer; here it is called on a stand-in that has the attributes the
method reads and hands out our log-probs, so no model, no trainer and no accelerate state take part.

Not compared, because they differ by definition: GSPO with token weights of the engine (equal value;
TRL's gradient is the sequence's, ours and verl's each token's own), sequence masks of the engine
(TRL: the product of w; ours: NeMo-RL's geometric mean).
"""

import importlib
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from megaladder.train.objectives.advantages import token_weights
from megaladder.train.objectives.policy_loss import PolicyLossInputs, PolicyLossOptions, policy_loss

LENGTHS = [5, 9, 1, 7, 3, 9]
MAX_TOKENS = 9


@pytest.fixture(scope="module")
def trl_trainer():
    """TRL's trainer class, imported without its vLLM client (which would start half an engine)."""
    pytest.importorskip("trl", reason="trl is not installed")
    pytest.importorskip("accelerate", reason="accelerate, which trl needs, is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            importlib.import_module("trl.import_utils"), "is_vllm_available", lambda *_, **__: False
        )
        from trl.trainer.grpo_trainer import GRPOTrainer
    return GRPOTrainer


def _batch(seed):
    """[B, T] tensors: logprobs with gradient, old, rollout, reference, entropy with gradient;
    advantages [B]; mask from LENGTHS."""
    random = torch.Generator().manual_seed(seed)

    def normal(scale):
        return torch.randn(len(LENGTHS), MAX_TOKENS, generator=random, dtype=torch.float64) * scale

    logprobs = -normal(1.5).abs()
    old = logprobs + normal(0.4)
    advantages = torch.tensor([1.2, -0.9, 0.5, -1.5, 0.0, 0.7], dtype=torch.float64)
    mask = torch.arange(MAX_TOKENS) < torch.tensor(LENGTHS)[:, None]
    return SimpleNamespace(
        logprobs=logprobs.requires_grad_(),
        old=old,
        rollout=old + normal(0.5),
        reference=logprobs.detach() + normal(0.5),
        entropy=normal(1.0).abs().requires_grad_(),
        advantages=advantages,
        mask=mask,
    )


def _trl(trainer_class, batch, options, loss_type, engine_weight=None):
    """(loss, d logprobs, d entropy, metrics) of TRL's method with settings that mean the same."""
    high = 1 + options.clip_high if loss_type == "cispo" else options.clip_high
    stand_in = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (batch.logprobs, batch.entropy, None),
        get_off_policy_mask=trainer_class.get_off_policy_mask,
        off_policy_mask_threshold=options.off_policy_mask,
        args=SimpleNamespace(
            use_bias_correction_kl=options.kl_importance_weight, delta=options.dual_clip
        ),
        importance_sampling_level=options.ratio,
        beta=0.0 if options.kl == "none" else options.kl_coef,
        loss_type=loss_type,
        epsilon_low=options.clip_low,
        epsilon_high=high,
        max_completion_length=MAX_TOKENS,
        use_vllm=engine_weight is not None,
        vllm_importance_sampling_correction=engine_weight is not None,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        use_adaptive_entropy=False,
        _entropy_bonus_enabled=options.entropy_coef != 0.0,
        entropy_coef=options.entropy_coef,
        model=SimpleNamespace(training=False),
        current_gradient_accumulation_steps=1,
        accelerator=SimpleNamespace(
            num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x
        ),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    nothing = torch.zeros(len(LENGTHS), 0, dtype=torch.long)
    inputs = {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": torch.zeros(batch.mask.shape, dtype=torch.long),
        "completion_mask": batch.mask.double(),
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old,
        "ref_per_token_logps": batch.reference,
        "sampling_per_token_logps": batch.rollout,
        "num_items_in_batch": batch.mask.sum().double(),
        "importance_sampling_ratio": engine_weight,
    }
    loss = trainer_class._compute_loss(stand_in, None, inputs)
    gradients = torch.autograd.grad(loss, (batch.logprobs, batch.entropy), allow_unused=True)
    return loss.item(), *gradients, stand_in._metrics["eval"]


def _ours(batch, options):
    """The same of ours, packed: only real tokens, one after the other."""
    weights = torch.tensor(token_weights(LENGTHS, options.aggregation, MAX_TOKENS))
    rows = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    loss, sums, _ = policy_loss(
        PolicyLossInputs(
            batch.logprobs[batch.mask],
            batch.old[batch.mask],
            batch.rollout[batch.mask],
            batch.reference[batch.mask],
            batch.advantages[rows],
            weights[rows],
            torch.ones(len(rows), dtype=torch.bool),
            rows,
            batch.entropy[batch.mask],
        ),
        options,
    )
    return (
        loss.item(),
        *torch.autograd.grad(loss, (batch.logprobs, batch.entropy), allow_unused=True),
        sums,
    )


def _engine_weight(batch, kind, low, high):
    """TRL's token_truncate and token_mask, as in `_generate_and_score_completions`."""
    weight = ((batch.old - batch.rollout) * batch.mask).exp()
    return (
        weight.clamp(low, high)
        if kind == "tis"
        else weight.masked_fill((weight < low) | (weight > high), 0.0)
    )


GRPO = PolicyLossOptions(
    clip_low=0.2, clip_high=0.2, kl="k3", kl_coef=0.04, aggregation="sequence_mean_token_mean"
)
DR_GRPO = PolicyLossOptions(
    clip_low=0.2, clip_high=0.2, aggregation="sequence_mean_token_sum_norm", max_tokens=MAX_TOKENS
)
DAPO = PolicyLossOptions(clip_low=0.2, clip_high=0.28, aggregation="token_mean")
GSPO = PolicyLossOptions(
    ratio="sequence", clip_low=0.1, clip_high=0.15, aggregation="sequence_mean_token_mean"
)
CISPO = PolicyLossOptions(
    policy_loss="cispo", clip_low=1.0, clip_high=0.5, aggregation="token_mean"
)
VARIANTS = {
    "grpo": ("grpo", GRPO),
    "grpo-weighted-kl": ("grpo", replace(GRPO, kl_importance_weight=True)),
    "dr-grpo": ("dr_grpo", DR_GRPO),
    "dapo": ("dapo", DAPO),
    "dapo-dual-clip": ("dapo", replace(DAPO, dual_clip=1.5)),
    "dapo-entropy": ("dapo", replace(DAPO, entropy_coef=0.1)),
    "dapo-off-policy-mask": ("dapo", replace(DAPO, off_policy_mask=0.1)),
    "dapo-tis": ("dapo", replace(DAPO, correction="tis", correction_low=0.0, correction_high=1.5)),
    "dapo-icepop-kl": (
        "dapo",
        replace(
            DAPO, correction="icepop", correction_low=0.6, correction_high=1.6, kl="k3", kl_coef=0.1
        ),
    ),
    "gspo": ("grpo", GSPO),
    "gspo-off-policy-mask": ("grpo", replace(GSPO, off_policy_mask=0.1)),
    "cispo": ("cispo", CISPO),
    "cispo-tis-kl": (
        "cispo",
        replace(CISPO, correction="tis", correction_high=1.5, kl="k3", kl_coef=0.1),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("seed", [0, 3])
def test_value_gradient_and_clip_fraction_equal_trl(trl_trainer, name, seed):
    loss_type, options = VARIANTS[name]
    batch = _batch(seed)
    weight = None
    if options.correction != "none":
        weight = _engine_weight(
            batch, options.correction, options.correction_low, options.correction_high
        )
    loss, gradient, d_entropy, metrics = _trl(trl_trainer, batch, options, loss_type, weight)
    our_loss, our_gradient, our_d_entropy, sums = _ours(batch, options)
    assert our_loss == pytest.approx(loss, rel=1e-12)
    assert gradient.any() and torch.allclose(our_gradient, gradient, rtol=0, atol=1e-15)
    if options.entropy_coef:
        assert d_entropy.any() and torch.allclose(our_d_entropy, d_entropy, rtol=0, atol=1e-16)
    tokens = sums["tokens"].item()
    if options.ratio == "token" and loss_type != "cispo":
        assert sums["clip_low_count"].item() / tokens == pytest.approx(
            metrics["clip_ratio/low_mean"][0], rel=1e-12
        )
        assert sums["clip_high_count"].item() / tokens == pytest.approx(
            metrics["clip_ratio/high_mean"][0], rel=1e-12
        )
    if options.kl == "k3" and not options.kl_importance_weight:
        assert sums["ref_kl_k3_sum"].item() / tokens == pytest.approx(metrics["kl"][0], rel=1e-12)
    if options.off_policy_mask is not None:
        assert 0 < sums["off_policy_dropped_sequences"] < len(LENGTHS)
    if options.dual_clip is not None:
        assert sums["dual_clip_count"] > 0
    assert sums["entropy_sum"].item() / tokens == pytest.approx(metrics["entropy"][0], rel=1e-12)
