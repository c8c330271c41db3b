"""ce_policy and linear_policy_loss: every loss against autograd in float64, twin and interpreted
Triton; compaction; upstream factors."""

from __future__ import annotations

import itertools

import pytest
import torch

from megaladder.kernels import linear_common
from megaladder.kernels.linear_logprob import linear_logprob
from megaladder.kernels.linear_policy_loss import linear_policy_loss
from megaladder.kernels.policy_terms import KINDS, PolicyInputs, PolicyLoss, policy_terms
from megaladder.kernels.reference import PolicyRow, RowSpec, accumulator

TOKENS, HIDDEN, COLUMNS, VALID = 20, 16, 320, 301
LOSSES = [
    PolicyLoss(
        kind=kind, clip_low=0.2, clip_high=0.28, dual_clip=3.0, kl_coef=kl, entropy_coef=entropy
    )
    for kind, (kl, entropy) in itertools.product(KINDS, ((0.0, 0.0), (0.05, 0.01)))
]


def make_case(dtype: torch.dtype = torch.float64) -> dict:
    random = torch.Generator().manual_seed(11)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).mul(scale)

    wide = accumulator(dtype)
    case = {
        "hidden": normal(TOKENS, HIDDEN).to(dtype),
        "weight": normal(COLUMNS, HIDDEN, scale=0.5).to(dtype),
        "targets": torch.randint(0, VALID, (TOKENS,), generator=random),
        "scale": torch.rand(TOKENS, generator=random, dtype=torch.float64).add(0.5).to(wide),
    }
    case["targets"][torch.tensor([0, 7, 8])] = -100
    logp, _ = plain(case["hidden"].double(), case["weight"].double(), case)
    case["inputs"] = PolicyInputs(
        weight=torch.rand(TOKENS, generator=random, dtype=torch.float64).to(wide),
        advantages=normal(TOKENS).to(wide),
        old_logp=(logp + normal(TOKENS, scale=0.8)).to(wide),
        importance=torch.rand(TOKENS, generator=random, dtype=torch.float64).to(wide),
        ref_logp=(logp + normal(TOKENS, scale=0.5)).to(wide),
    )
    case["inputs"].advantages[3:6] = 0.0
    # beyond the ratio's limits
    case["inputs"].old_logp[9:11] = torch.tensor([60.0, -60.0], dtype=wide)
    return case


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, case: dict
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob and entropy by log_softmax, differentiable."""
    logs = torch.log_softmax(
        hidden @ weight[:VALID].t() * case["scale"].to(hidden.dtype).unsqueeze(1), -1
    )
    return logs.gather(1, case["targets"].clamp(min=0).unsqueeze(1)).squeeze(1), -(
        logs.exp() * logs
    ).sum(1)


def plain_loss(loss: PolicyLoss, case: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, d hidden, d weight in float64 by autograd."""
    hidden, weight = (
        case[name].detach().double().clone().requires_grad_() for name in ("hidden", "weight")
    )
    logp, entropy = plain(hidden, weight, case)
    value = policy_terms(logp, entropy, loss, case["inputs"]).loss[case["targets"] != -100].sum()
    value.backward()
    return value.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize(
    "loss", LOSSES, ids=lambda loss: f"{loss.kind}{'+kl+bonus' if loss.kl_coef else ''}"
)
def test_derivatives_are_those_of_the_loss(loss):
    """The closed forms in `policy_terms` against autograd through its own loss."""
    case = make_case()
    logp, entropy = (
        t.detach().requires_grad_() for t in plain(case["hidden"], case["weight"], case)
    )
    terms = policy_terms(logp, entropy, loss, case["inputs"])
    d_logp, d_entropy = torch.autograd.grad(terms.loss.sum(), (logp, entropy), allow_unused=True)
    torch.testing.assert_close(terms.d_logp.detach(), d_logp, rtol=1e-12, atol=1e-12)
    if loss.entropy_coef:
        torch.testing.assert_close(terms.d_entropy.detach(), d_entropy, rtol=1e-12, atol=1e-12)


def test_known_values():
    """By hand: r = 2 at A = 1 is cut at 1.28; A = −1 with r = 5 is cut at −3 by the dual clip;
    CISPO keeps the clipped weight."""
    logp = torch.log(torch.tensor([2.0, 5.0, 1.0], dtype=torch.float64))
    inputs = PolicyInputs(
        advantages=torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64),
        old_logp=torch.zeros(3, dtype=torch.float64),
    )
    ppo = policy_terms(logp, None, PolicyLoss("ppo", 0.2, 0.28, 3.0), inputs)
    torch.testing.assert_close(ppo.loss, torch.tensor([-1.28, 3.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close(ppo.d_logp, torch.tensor([0.0, 0.0, -2.0], dtype=torch.float64))
    cispo = policy_terms(logp, None, PolicyLoss("cispo", 0.2, 0.28), inputs)
    torch.testing.assert_close(cispo.d_logp, torch.tensor([-1.28, 1.28, -2.0], dtype=torch.float64))
    k3 = policy_terms(
        torch.zeros(1), None, PolicyLoss("sft", kl_coef=1.0), PolicyInputs(ref_logp=torch.ones(1))
    )
    torch.testing.assert_close(k3.loss, torch.tensor([torch.e - 2.0]))
    assert torch.equal(
        policy_terms(logp, None, PolicyLoss("ppo"), PolicyInputs()).d_logp,
        -torch.ones(3, dtype=torch.float64),
    )


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float64, marks=pytest.mark.slow), torch.float32, torch.bfloat16],
    ids=str,
)
@pytest.mark.parametrize(
    "loss", LOSSES, ids=lambda loss: f"{loss.kind}{'+kl+bonus' if loss.kl_coef else ''}"
)
def test_row_kernel_fused_and_from_statistics(implementation, loss, dtype):
    """Both modes of ce_policy, in place and into another type, against autograd; poisoned padding
    and ignored rows get exact zeros."""
    case = make_case()
    logits = torch.full((TOKENS, COLUMNS), 777.0, dtype=dtype)
    logits[:, :VALID] = (case["hidden"] @ case["weight"][:VALID].t()).to(dtype)
    logits[case["targets"] == -100] = float("nan")
    x = logits[:, :VALID].double().nan_to_num().requires_grad_()
    logs = torch.log_softmax(x * case["scale"].unsqueeze(1), -1)
    logp = logs.gather(1, case["targets"].clamp(min=0).unsqueeze(1)).squeeze(1)
    truth = policy_terms(logp, -(logs.exp() * logs).sum(1), loss, case["inputs"])
    kept = case["targets"] != -100
    truth.loss[kept].sum().backward()
    wide = accumulator(dtype)
    inputs = PolicyInputs(
        *(
            getattr(case["inputs"], n).to(wide)
            for n in ("weight", "advantages", "old_logp", "importance", "ref_logp")
        )
    )
    spec = RowSpec(case["targets"], case["scale"].to(wide), 0, VALID)
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-5}[dtype]
    for gathered in (
        None,
        implementation.ce_stats(logits, spec, entropy=loss.needs_entropy).unsqueeze(0),
    ):
        for out_dtype in {dtype, dtype if dtype == torch.float64 else torch.bfloat16}:
            work = logits.clone()
            out = (
                work
                if out_dtype == dtype
                else torch.full((TOKENS, COLUMNS), float("nan"), dtype=out_dtype)
            )
            result = implementation.ce_policy(work, spec, PolicyRow(loss, inputs), gathered, out)
            torch.testing.assert_close(
                result[0][kept].double(), truth.loss[kept].detach(), rtol=tolerance, atol=tolerance
            )
            torch.testing.assert_close(
                result[1][kept].double(),
                truth.d_logp[kept].detach(),
                rtol=tolerance,
                atol=tolerance,
            )
            ulp = 2**-7 if out_dtype == torch.bfloat16 else 0.0
            torch.testing.assert_close(
                out[:, :VALID].double(), x.grad, rtol=tolerance + ulp, atol=tolerance
            )
            assert torch.count_nonzero(out[:, VALID:]) == 0
            assert torch.count_nonzero(out[~kept]) == 0


def linear(loss: PolicyLoss, case: dict, factor: float = 1.0, **options):
    hidden, weight = (
        case["hidden"].clone().requires_grad_(),
        case["weight"].clone().requires_grad_(),
    )
    out = linear_policy_loss(
        hidden,
        weight,
        case["targets"],
        loss,
        case["inputs"],
        n_valid=VALID,
        inv_temperature=case["scale"],
        **options,
    )
    (out.loss * factor).backward()
    return out, hidden.grad, weight.grad


@pytest.mark.parametrize("scratch_bytes", [None, 8 * COLUMNS * 6], ids=["one chunk", "chunks of 6"])
@pytest.mark.parametrize(
    "loss", LOSSES, ids=lambda loss: f"{loss.kind}{'+kl+bonus' if loss.kl_coef else ''}"
)
def test_linear_loss_and_gradients(loss, scratch_bytes):
    case = make_case()
    value, d_hidden, d_weight = plain_loss(loss, case)
    out, got_hidden, got_weight = linear(loss, case, factor=-2.5, scratch_bytes=scratch_bytes)
    torch.testing.assert_close(out.loss.detach(), value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got_hidden, -2.5 * d_hidden, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(got_weight, -2.5 * d_weight, rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        silent = linear_policy_loss(
            case["hidden"],
            case["weight"],
            case["targets"],
            loss,
            case["inputs"],
            n_valid=VALID,
            inv_temperature=case["scale"],
        )
    torch.testing.assert_close(silent.loss, value, rtol=1e-12, atol=1e-12)
    assert silent.metrics.active_tokens == out.metrics.active_tokens


def test_gradient_in_forward_equals_the_two_phase_path():
    """The loss formed inside the kernels and the same loss formed outside from `linear_logprob` are
    one loss."""
    case, loss = make_case(), PolicyLoss("ppo", clip_high=0.28, kl_coef=0.05, entropy_coef=0.01)
    _, one_hidden, one_weight = linear(loss, case)
    hidden, weight = (
        case["hidden"].clone().requires_grad_(),
        case["weight"].clone().requires_grad_(),
    )
    got = linear_logprob(
        hidden,
        weight,
        case["targets"],
        n_valid=VALID,
        inv_temperature=case["scale"],
        entropy="grad",
    )
    kept = case["targets"] != -100
    policy_terms(got.logp, got.entropy, loss, case["inputs"]).loss[kept].sum().backward()
    torch.testing.assert_close(hidden.grad, one_hidden, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(weight.grad, one_weight, rtol=1e-11, atol=1e-12)


def test_rows_without_gradient_are_left_out_exactly(monkeypatch):
    """Compaction changes no bit of d hidden; and the number of rows that reach the d weight product
    is the number of active ones."""
    case, loss = make_case(), PolicyLoss("ppo", clip_high=0.28)
    seen = []
    original = linear_common.WeightGrad.add

    def counting(self, d_logits, x):
        seen.append(d_logits.shape[0])
        return original(self, d_logits, x)

    monkeypatch.setattr(linear_common.WeightGrad, "add", counting)
    out, compact_hidden, compact_weight = linear(loss, case)
    active = int(out.metrics.active_tokens)
    assert sum(seen) == active < int(out.metrics.num_tokens) < TOKENS
    seen.clear()
    _, dense_hidden, dense_weight = linear(loss, case, compact_rows=False)
    assert sum(seen) == TOKENS
    torch.testing.assert_close(compact_hidden, dense_hidden, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(compact_weight, dense_weight, rtol=1e-13, atol=1e-14)
    assert torch.count_nonzero(compact_hidden[case["targets"] == -100]) == 0


def test_all_ignored_and_no_tokens():
    case = make_case()
    case["targets"][:] = -100
    out, d_hidden, d_weight = linear(PolicyLoss("sft"), case)
    assert out.loss == 0
    assert out.metrics.num_tokens == 0
    assert torch.count_nonzero(d_hidden) == 0
    assert torch.count_nonzero(d_weight) == 0
    empty = torch.zeros(0, HIDDEN, requires_grad=True)
    weight = torch.randn(5, HIDDEN, requires_grad=True)
    linear_policy_loss(
        empty, weight, torch.zeros(0, dtype=torch.int64), PolicyLoss(), PolicyInputs()
    ).loss.backward()
    assert torch.count_nonzero(weight.grad) == 0


def test_metrics_count_what_happened():
    """Ratios of 0.5, 1, 1.5 and 4 with A = −1: one below, two above, one cut by the dual clip at
    3."""
    logits = torch.zeros(4, 8)
    ratios = torch.tensor([0.5, 1.0, 1.5, 4.0])
    now = torch.full((4,), -torch.log(torch.tensor(8.0)).item())
    inputs = PolicyInputs(advantages=-torch.ones(4), old_logp=now - ratios.log())
    weight = torch.eye(8)
    out = linear_policy_loss(
        logits, weight, torch.arange(4), PolicyLoss("ppo", 0.2, 0.28, 3.0), inputs, entropy="value"
    )
    m = out.metrics
    assert (int(m.clipped_low), int(m.clipped_high), int(m.dual_clipped), int(m.num_tokens)) == (
        1,
        2,
        1,
        4,
    )
    torch.testing.assert_close(m.ratio, ratios.sum().double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        m.entropy,
        torch.tensor(4 * 8.0).log().double() * 0 + 4 * torch.log(torch.tensor(8.0)).double(),
    )
    expected = (ratios - 1 - ratios.log()).sum().double()
    torch.testing.assert_close(m.old_kl, expected, rtol=1e-5, atol=1e-6)


def test_second_backward_and_broken_promise_raise():
    case = make_case(torch.float32)
    hidden, weight = (
        case["hidden"].clone().requires_grad_(),
        case["weight"].clone().requires_grad_(),
    )
    out = linear_policy_loss(
        hidden, weight, case["targets"], PolicyLoss(), PolicyInputs(), n_valid=VALID
    )
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        out.loss.backward()
    weight.main_grad = torch.zeros_like(weight)
    out = linear_policy_loss(
        hidden, weight, case["targets"], PolicyLoss(), PolicyInputs(), n_valid=VALID, upstream=0.5
    )
    with pytest.raises(RuntimeError, match=r"upstream=0\.5 was promised"):
        out.loss.backward()
