"""Every option of the policy loss against the formulas by hand in fp64; on-policy identities,
invariances, degenerate, extreme inputs."""

import itertools
from dataclasses import fields, replace

import pytest
import torch
from train.policy_by_hand import by_hand, example

from megaladder.config.sections.grpo import GrpoSection, RolloutSection, presets
from megaladder.errors import ConfigError
from megaladder.train.objectives.policy_loss import (
    METRIC_MAX_NAMES,
    METRIC_NAMES,
    PolicyLossInputs,
    PolicyLossOptions,
    options_from,
    policy_loss,
)

BASE = PolicyLossOptions(
    clip_low=0.2,
    clip_high=0.28,
    kl_coef=0.3,
    entropy_coef=0.1,
    correction_low=0.6,
    correction_high=1.5,
)


TENSORS = tuple(f.name for f in fields(PolicyLossInputs) if f.name != "num_sequences")


def run(inputs, options):
    """(loss, d logprobs, d entropy, sums, maxima) as fresh tensors and floats."""
    loss, sums, maxima = policy_loss(inputs, options)
    wanted = [
        tensor
        for tensor in (inputs.logprobs, inputs.entropy)
        if tensor is not None and tensor.requires_grad
    ]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    gradients = [
        torch.zeros_like(t) if g is None else g for t, g in zip(wanted, gradients, strict=True)
    ]
    d_logprobs, d_entropy = [*gradients, None][:2]
    return (
        loss.item(),
        d_logprobs,
        d_entropy,
        {k: v.item() for k, v in sums.items()},
        {k: v.item() for k, v in maxima.items()},
    )


def leaves(inputs, **changes):
    """The same micro-batch on fresh leaf tensors."""
    inputs = replace(inputs, **changes)
    return replace(
        inputs,
        logprobs=inputs.logprobs.detach().clone().requires_grad_(),
        entropy=(
            None if inputs.entropy is None else inputs.entropy.detach().clone().requires_grad_()
        ),
    )


@pytest.mark.parametrize("policy_loss_kind", ["clip", "cispo"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("correction", ["none", "tis", "icepop", "sequence_mask"])
def test_value_gradient_and_metrics_equal_the_formula_for_every_combination(
    policy_loss_kind, ratio, correction
):
    inputs = example(seed=20, num_sequences=10)
    seen = dict.fromkeys(METRIC_NAMES, 0.0)
    for kl, weighted, dual_clip, off_policy_mask in itertools.product(
        ("none", "k1", "k2", "k3"), (False, True), (None, 1.6), (None, 0.1)
    ):
        options = replace(
            BASE,
            policy_loss=policy_loss_kind,
            ratio=ratio,
            correction=correction,
            kl=kl,
            kl_importance_weight=weighted,
            dual_clip=dual_clip,
            off_policy_mask=off_policy_mask,
        )
        loss, d_logprobs, d_entropy, sums, maxima = run(inputs, options)
        expected = by_hand(inputs, options)
        assert loss == pytest.approx(expected.loss, rel=1e-12, abs=1e-13), options
        assert d_logprobs.tolist() == pytest.approx(expected.d_logprobs, rel=1e-11, abs=1e-13), (
            options
        )
        assert d_entropy.tolist() == pytest.approx(expected.d_entropy, rel=1e-12, abs=1e-15), (
            options
        )
        assert set(sums) == set(METRIC_NAMES) and set(maxima) == set(METRIC_MAX_NAMES)
        for name, value in {**sums, **maxima}.items():
            assert value == pytest.approx(expected.metrics.get(name, 0.0), rel=1e-11, abs=1e-13), (
                name,
                options,
            )
        seen = {name: seen[name] + abs(sums[name]) for name in METRIC_NAMES}
    # every branch was taken, except those of options that are off
    idle = {name for name, value in seen.items() if value == 0.0}
    allowed = {"correction_dropped_sequences"} - (
        {"correction_dropped_sequences"} if correction == "sequence_mask" else set()
    )
    allowed |= {"correction_changed_count"} if correction == "none" else set()
    allowed |= {"dual_clip_count"} if policy_loss_kind == "cispo" else set()
    assert idle == allowed


@pytest.mark.parametrize(
    "options",
    [
        replace(BASE, kl="k3", kl_importance_weight=True, correction="tis"),
        replace(BASE, kl="k1", kl_importance_weight=True, dual_clip=1.6, correction="icepop"),
        replace(BASE, kl="k2", entropy_coef=0.5),
        replace(BASE, ratio="sequence", correction="sequence_mask", clip_low=0.9, clip_high=4.0),
        replace(BASE, ratio="sequence", dual_clip=1.6),
    ],
    ids=lambda options: f"{options.ratio}-{options.kl}-{options.correction}",
)
def test_gradient_equals_finite_differences(options):
    """Where no stop-gradient is part of the definition. For the sequence ratio this shows that the
    token-level form has the gradient of the sequence-level objective (arXiv 2507.18071: equal where
    the advantage is one per sequence).
    """
    inputs = example(seed=3)

    def loss(logprobs, entropy):
        return policy_loss(replace(inputs, logprobs=logprobs, entropy=entropy), options)[0]

    assert torch.autograd.gradcheck(loss, (inputs.logprobs, inputs.entropy), eps=1e-6, atol=1e-8)


@pytest.mark.parametrize("policy_loss_kind", ["clip", "cispo"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("bypass", [True, False])
def test_the_first_on_policy_update_is_plain_policy_gradient_exactly(
    policy_loss_kind, ratio, bypass
):
    """fp32: ratio 1, nothing clipped, gradient −weight·A bit for bit, whether the old log-probs
    were computed or the pass was saved."""
    inputs = example(dtype=torch.float32, gap=0.0)
    inputs = leaves(
        inputs,
        old_logprobs=None if bypass else inputs.logprobs.detach().clone(),
        rollout_logprobs=None,
    )
    options = PolicyLossOptions(
        policy_loss=policy_loss_kind, ratio=ratio, clip_low=3e-4, clip_high=4e-4, dual_clip=3.0
    )
    _, gradient, _, sums, maxima = run(inputs, options)
    assert torch.equal(gradient, -inputs.weights * inputs.advantages)
    assert sums["ratio_sum"] == sums["tokens"] == inputs.mask.sum() and maxima["ratio_max"] == 1.0
    assert sums["clip_low_count"] == sums["clip_high_count"] == sums["dual_clip_count"] == 0.0
    assert sums["old_kl_k1_sum"] == sums["old_kl_k3_sum"] == 0.0


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_importance_weighted_kl_has_the_gradient_of_the_true_kl_off_policy(kl, weighted):
    """Exact expectation over a vocabulary of 6, sampled from `old`: weighted, all three give ∇KL(π
    ‖ reference), else none."""
    random = torch.Generator().manual_seed(1)
    logits, old, reference = (
        torch.randn(6, generator=random, dtype=torch.float64) for _ in range(3)
    )
    logits.requires_grad_()
    log_pi, log_old, log_ref = logits.log_softmax(0), old.log_softmax(0), reference.log_softmax(0)
    (expected,) = torch.autograd.grad(
        (log_pi.exp() * (log_pi - log_ref)).sum(), logits, retain_graph=True
    )
    inputs = PolicyLossInputs(
        log_pi,
        log_old,
        None,
        log_ref,
        torch.zeros(6),
        log_old.exp(),
        torch.ones(6).bool(),
        torch.arange(6),
    )
    loss, *_ = policy_loss(
        inputs, PolicyLossOptions(kl=kl, kl_coef=1.0, kl_importance_weight=weighted)
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(gradient, expected, atol=1e-12) is weighted
    if weighted and kl != "k2":
        assert loss.item() == pytest.approx(
            (log_pi.exp() * (log_pi - log_ref)).sum().item(), rel=1e-12
        )


@pytest.mark.parametrize(
    "options",
    [
        replace(BASE, kl="k3", correction="tis", dual_clip=1.6, off_policy_mask=0.1),
        replace(BASE, ratio="sequence", correction="sequence_mask", off_policy_mask=0.1),
        replace(BASE, policy_loss="cispo", correction="icepop", kl="k2", kl_importance_weight=True),
    ],
    ids=["token", "sequence", "cispo"],
)
def test_loss_gradient_and_metrics_do_not_depend_on_micro_batches(options):
    """Sequences dealt in any order to 1, 2, 3 or 7 micro-batches (some empty)."""
    whole = example(seed=7, num_sequences=9)
    loss, gradient, _, sums, maxima = run(whole, options)
    for num_parts, seed in ((1, 0), (2, 1), (3, 2), (7, 3), (20, 4)):
        order = torch.randperm(9, generator=torch.Generator().manual_seed(seed)).tolist()
        parts = [order[i::num_parts] for i in range(num_parts)]
        results, total = [], torch.zeros_like(gradient)
        for part in parts:
            tokens = (
                torch.cat([torch.nonzero(whole.sequence_of_token == s).flatten() for s in part])
                if part
                else torch.arange(0)
            )
            lengths = torch.tensor(
                [(whole.sequence_of_token == s).sum() for s in part], dtype=torch.int64
            )
            index = torch.repeat_interleave(torch.arange(len(part)), lengths)
            cut = {name: getattr(whole, name).detach()[tokens] for name in TENSORS}
            results.append(
                run(leaves(PolicyLossInputs(**{**cut, "sequence_of_token": index})), options)
            )
            total[tokens] += results[-1][1]
        assert sum(r[0] for r in results) == pytest.approx(loss, rel=1e-13, abs=1e-14)
        assert torch.allclose(total, gradient, rtol=0, atol=1e-15)
        for name in METRIC_NAMES:
            assert sum(r[3][name] for r in results) == pytest.approx(
                sums[name], rel=1e-12, abs=1e-13
            ), name
        for name in METRIC_MAX_NAMES:
            assert max(r[4][name] for r in results) == pytest.approx(maxima[name], rel=1e-14), name


ALL_KINDS = [
    replace(
        BASE,
        policy_loss=kind,
        ratio=ratio,
        correction=correction,
        kl=kl,
        dual_clip=3.0,
        off_policy_mask=0.5,
        kl_importance_weight=True,
    )
    for kind, ratio, correction, kl in itertools.product(
        ("clip", "cispo"),
        ("token", "sequence"),
        ("tis", "icepop", "sequence_mask"),
        ("k1", "k2", "k3"),
    )
]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_without_a_loss_token_everything_is_exactly_zero_whatever_the_tensors_hold(bad):
    n = 7
    for options in ALL_KINDS:
        inputs = PolicyLossInputs(
            *(torch.full((n,), bad) for _ in range(6)),
            torch.zeros(n, dtype=torch.bool),
            torch.arange(n) // 3,
            torch.full((n,), bad),
        )
        inputs = leaves(inputs)
        loss, gradient, d_entropy, sums, maxima = run(inputs, options)
        assert (
            loss == 0.0
            and torch.equal(gradient, torch.zeros(n))
            and torch.equal(d_entropy, torch.zeros(n))
        ), options
        assert not any(sums.values()) and not any(maxima.values()), options


def test_no_token_at_all_gives_a_zero_that_can_be_back_propagated():
    empty = torch.zeros(0)
    inputs = leaves(
        PolicyLossInputs(
            empty, empty, empty, empty, empty, empty, empty.bool(), empty.long(), empty
        )
    )
    for options in ALL_KINDS:
        loss, gradient, _, sums, maxima = run(inputs, options)
        assert (
            loss == 0.0
            and gradient.shape == (0,)
            and not any(sums.values())
            and not any(maxima.values())
        )


def test_masked_tokens_reach_nothing():
    """NaN in every masked place changes no bit of loss, gradient and metrics."""
    inputs = leaves(example(seed=2))
    spoilt = {
        name: torch.where(inputs.mask, getattr(inputs, name), float("nan")).detach()
        for name in TENSORS
        if name not in ("mask", "sequence_of_token")
    }
    for options in ALL_KINDS:
        clean, dirty = run(inputs, options), run(leaves(replace(inputs, **spoilt)), options)
        assert (
            clean[0] == dirty[0]
            and torch.equal(clean[1], dirty[1])
            and torch.equal(clean[2], dirty[2])
            and clean[3:] == dirty[3:]
        )


def test_a_zero_variance_batch_has_no_policy_gradient():
    inputs = leaves(example(seed=4), advantages=torch.zeros_like(example(seed=4).advantages))
    for options in ALL_KINDS:
        options = replace(options, kl="none", entropy_coef=0.0)
        loss, gradient, _, sums, _ = run(inputs, options)
        assert (
            loss == 0.0
            and not gradient.any()
            and sums["clip_low_count"] == sums["clip_high_count"] == sums["dual_clip_count"] == 0.0
        )


@pytest.mark.parametrize("distance", [30.0, 1e4, float("inf")])
def test_extreme_ratios_stay_finite_in_fp32(distance):
    """Old, rollout and reference log-probs far above and below the current one; the ratio stops at
    e^20 and has no gradient there."""
    inputs = example(seed=6, dtype=torch.float32)
    sign = torch.where(torch.arange(len(inputs.mask)) % 2 == 0, 1.0, -1.0)
    # a reference or an engine with probability 0 of a sampled token has no finite k1 or mean
    finite = min(distance, 1e4)
    far = leaves(
        inputs,
        old_logprobs=inputs.logprobs.detach() + sign * distance,
        ref_logprobs=inputs.logprobs.detach() - sign * finite,
        rollout_logprobs=inputs.logprobs.detach() - 2 * sign * finite,
    )
    for options in ALL_KINDS:
        if distance == float("inf") and options.ratio == "sequence":
            continue  # the mean of +∞ and −∞ is no number
        options = replace(options, off_policy_mask=None if distance == float("inf") else 0.5)
        loss, gradient, *_ = run(far, options)
        assert torch.isfinite(torch.tensor(loss)) and torch.isfinite(gradient).all(), options
    _, gradient, *_ = run(far, PolicyLossOptions(dual_clip=None))
    assert not gradient.any()


def test_what_an_option_needs_is_asked_for():
    inputs = example()
    with pytest.raises(ConfigError, match=r"grpo\.kl k3 needs .* fix: .*grpo\.kl none"):
        policy_loss(replace(inputs, ref_logprobs=None), PolicyLossOptions(kl="k3"))
    with pytest.raises(ConfigError, match=r"grpo\.entropy_coef 0\.1 needs the entropy"):
        policy_loss(replace(inputs, entropy=None), PolicyLossOptions(entropy_coef=0.1))
    with pytest.raises(ConfigError, match=r"grpo\.correction tis needs the engine's log-probs"):
        policy_loss(replace(inputs, rollout_logprobs=None), PolicyLossOptions(correction="tis"))
    with pytest.raises(ValueError, match=r"advantages of shape \(3,\): expected that of logprobs"):
        policy_loss(replace(inputs, advantages=torch.ones(3)), PolicyLossOptions())


@pytest.mark.parametrize("preset", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_options_of_every_preset_are_those_of_the_configuration(preset):
    section = GrpoSection.model_validate(
        {"preset": preset, "dual_clip": 3.0, "off_policy_mask": 0.7}
    )
    options = options_from(section, RolloutSection(max_tokens=77))
    for name, value in presets()[preset].items():
        if hasattr(options, name):
            assert getattr(options, name) == value, name
    assert (options.max_tokens, options.dual_clip, options.off_policy_mask) == (77, 3.0, 0.7)
    assert (
        options.needs_reference is (preset == "grpo")
        and options.needs_rollout_logprobs
        and not options.needs_entropy
    )
