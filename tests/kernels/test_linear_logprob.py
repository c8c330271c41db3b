"""linear_logprob: values and gradients against float64, chunking, compaction, main_grad under
megatron-core's DDP, peak memory, K5."""

from __future__ import annotations

import pytest
import torch

from megaladder.kernels import linear_common, ops
from megaladder.kernels.linear_logprob import linear_logprob
from megaladder.kernels.linear_policy_loss import linear_policy_loss
from megaladder.kernels.policy_terms import PolicyInputs, PolicyLoss
from megaladder.kernels.reference import RowSpec, linear_stats
from megaladder.kernels.vocab_logprob import vocab_logprob

TOKENS, HIDDEN, COLUMNS, VALID = 30, 16, 130, 121


def make_case(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    case = {
        "hidden": torch.randn(TOKENS, HIDDEN, generator=random, dtype=torch.float64).to(dtype),
        "weight": torch.randn(COLUMNS, HIDDEN, generator=random, dtype=torch.float64).to(dtype),
        "targets": torch.randint(0, VALID, (TOKENS,), generator=random),
        "g": torch.randn(TOKENS, generator=random, dtype=torch.float64),
        "h": torch.randn(TOKENS, generator=random, dtype=torch.float64),
    }
    case["targets"][::4] = -100
    case["g"][5:15], case["h"][5:12] = 0.0, 0.0
    return case


def truth(oracle, case: dict[str, torch.Tensor]):
    """Oracle plus d hidden and d weight, float64."""
    hidden, weight = case["hidden"].double(), case["weight"].double()
    rows = oracle(
        hidden @ weight[:VALID].t(),
        case["targets"],
        torch.tensor([0.8], dtype=torch.float64),
        case["g"],
        case["h"],
    )
    d_weight = torch.zeros_like(weight)
    d_weight[:VALID] = rows.d_logits.t() @ hidden
    return rows, rows.d_logits @ weight[:VALID], d_weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"scratch_bytes": 4096}, {"compact_rows": False}, {"never_materialise": True}],
    ids=str,
)
def test_values_and_gradients(oracle, dtype, options):
    case = make_case(dtype)
    rows, d_hidden, d_weight = truth(oracle, case)
    hidden, weight = case["hidden"].requires_grad_(), case["weight"].requires_grad_()
    out = linear_logprob(
        hidden,
        weight,
        case["targets"],
        n_valid=VALID,
        inv_temperature=0.8,
        entropy="grad",
        **options,
    )
    (out.logp * case["g"] + out.entropy * case["h"]).sum().backward()
    exact, grads = {
        torch.float64: (1e-12, 1e-12),
        torch.float32: (2e-5, 2e-5),
        torch.bfloat16: (2e-5, 0.05),
    }[dtype]
    torch.testing.assert_close(out.logp.double(), rows.logp, rtol=0, atol=exact)
    torch.testing.assert_close(out.entropy.double(), rows.entropy, rtol=0, atol=exact)
    torch.testing.assert_close(hidden.grad.double(), d_hidden, rtol=0, atol=grads)
    torch.testing.assert_close(weight.grad.double(), d_weight, rtol=0, atol=grads)
    assert torch.count_nonzero(weight.grad[VALID:]) == 0


def test_kernel_twin_and_plain_torch_agree_through_the_whole_head(kernels, monkeypatch, oracle):
    """float32: interpreted Triton, twin and log_softmax give the same loss and gradients within
    rounding."""
    case = make_case(torch.float32)
    _, d_hidden, d_weight = truth(oracle, case)
    found = {}
    for choice in ("torch", "triton"):
        monkeypatch.setenv("MEGALADDER_KERNELS", choice)
        hidden, weight = (
            case["hidden"].clone().requires_grad_(),
            case["weight"].clone().requires_grad_(),
        )
        out = linear_logprob(
            hidden,
            weight,
            case["targets"],
            n_valid=VALID,
            inv_temperature=0.8,
            entropy="grad",
            scratch_bytes=8192,
        )
        (out.logp * case["g"] + out.entropy * case["h"]).sum().backward()
        policy = linear_policy_loss(
            *(t.detach().requires_grad_() for t in (hidden, weight)),
            case["targets"],
            PolicyLoss("sft"),
            PolicyInputs(),
            n_valid=VALID,
        )
        found[choice] = (out.logp, hidden.grad, weight.grad, policy.loss)
    for ours, theirs in zip(found["torch"], found["triton"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found["triton"][1].double(), d_hidden, rtol=0, atol=2e-5)
    torch.testing.assert_close(found["triton"][2].double(), d_weight, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zero_logit_kernel(kernels, dtype):
    """K5 against the twin over ragged rows, splits and valid columns; a row alone gives the same
    bits as in the batch."""
    case = make_case(dtype)
    scale = torch.rand(TOKENS) + 0.5
    spec = RowSpec(case["targets"], scale, 0, VALID)
    got = kernels.linear_stats(case["hidden"], case["weight"], spec, entropy=True)
    expected = linear_stats(case["hidden"], case["weight"], spec, entropy=True)
    kept = case["targets"] >= 0
    torch.testing.assert_close(got[:, kept], expected[:, kept], rtol=1e-5, atol=2e-5)
    for row in (1, 17, 29):
        one = slice(row, row + 1)
        alone = kernels.linear_stats(
            case["hidden"][one],
            case["weight"],
            RowSpec(case["targets"][one], scale[one], 0, VALID),
            entropy=True,
        )
        assert torch.equal(alone[:, 0], got[:, row])


def test_only_rows_with_targets_and_gradient_are_multiplied(monkeypatch):
    case = make_case(torch.float64)
    rows = []
    original = linear_common.Chunks.logits

    def counting(self, hidden):
        rows.append(hidden.shape[0])
        return original(self, hidden)

    monkeypatch.setattr(linear_common.Chunks, "logits", counting)
    hidden = case["hidden"].requires_grad_()
    out = linear_logprob(hidden, case["weight"].requires_grad_(), case["targets"], n_valid=VALID)
    kept = case["targets"] >= 0
    assert sum(rows) == int(kept.sum())
    rows.clear()
    (out.logp * case["g"]).sum().backward()
    assert sum(rows) == int((kept & (case["g"] != 0)).sum())


@pytest.mark.parametrize("direct", [False, True], ids=["stashed", "upstream promised"])
def test_main_grad_of_megatron_ddp_receives_float32_sums_once(direct):
    """Attributes as megatron-core's DistributedDataParallel sets them: sums in main_grad over two
    calls, a placeholder in .grad."""
    case = make_case(torch.bfloat16)
    case["g"], case["h"] = (
        torch.ones(TOKENS, dtype=torch.float64),
        torch.zeros(TOKENS, dtype=torch.float64),
    )
    weight = torch.nn.Parameter(case["weight"].clone())
    weight.main_grad, weight.grad_added_to_main_grad = torch.zeros(COLUMNS, HIDDEN), False
    exact = torch.nn.Parameter(case["weight"].float())
    for _ in range(2):
        (
            -linear_logprob(case["hidden"], weight, case["targets"], n_valid=VALID).logp.sum()
        ).backward()
        assert weight.grad_added_to_main_grad
        assert weight.grad.shape == weight.shape
        weight.grad = None
        out = linear_policy_loss(
            case["hidden"],
            weight,
            case["targets"],
            PolicyLoss(),
            PolicyInputs(),
            n_valid=VALID,
            upstream=0.25 if direct else None,
        )
        (out.loss * 0.25).backward()
        weight.grad = None
        plain = linear_logprob(case["hidden"].float(), exact, case["targets"], n_valid=VALID)
        (-plain.logp.sum() * 1.25).backward()
    scale = exact.grad.abs().max()
    assert (weight.main_grad - exact.grad).abs().max() < 2**-7 * scale, (
        "bfloat16 d logits, float32 sums"
    )
    assert torch.count_nonzero(weight.main_grad[VALID:]) == 0


def test_tied_weight_gets_zeros_as_placeholder():
    """zero_out_wgrad: megatron's hook then adds .grad to main_grad, so the head's part of .grad
    must be zero."""
    case = make_case(torch.float32)
    weight = torch.nn.Parameter(case["weight"].clone())
    weight.main_grad, weight.grad_added_to_main_grad, weight.zero_out_wgrad = (
        torch.zeros(COLUMNS, HIDDEN),
        False,
        True,
    )
    linear_logprob(case["hidden"], weight, case["targets"], n_valid=VALID).logp.sum().backward()
    assert torch.count_nonzero(weight.grad) == 0
    assert torch.count_nonzero(weight.main_grad) > 0


def test_scratch_bounds_the_logits_buffer():
    """Chunk rows · padded columns · bytes never exceed scratch_bytes, and the row stride is a
    multiple of 16 elements."""
    case = make_case(torch.bfloat16)
    spec = RowSpec(case["targets"], torch.ones(1), 0, VALID)
    for scratch in (1000, 5000, 10**6):
        head = linear_common.Head(
            case["weight"], spec, None, linear_common.LinearOptions(scratch_bytes=scratch)
        )
        chunks = linear_common.Chunks(head, case["hidden"], None)
        logits = chunks.logits(case["hidden"][: chunks.step])
        out = chunks.gradient_out(logits)
        used = chunks.step * (logits.stride(0) * 4 + out.stride(0) * 2)
        assert logits.stride(0) % 16 == 0
        assert out.stride(0) % 16 == 0
        assert used <= scratch or chunks.step == 1


def test_overwritten_logits_raise_instead_of_giving_a_wrong_gradient():
    logits = torch.randn(4, 9, requires_grad=True)
    targets = torch.tensor([1, 2, -100, 8])
    shared = logits * 1
    first, second = (
        vocab_logprob(shared, targets).logp.sum(),
        vocab_logprob(shared, targets, inv_temperature=0.5).logp.sum(),
    )
    with pytest.raises(RuntimeError, match="overwritten"):
        (first + second).backward()
    shared = logits * 1
    # made first, so its backward comes last and finds gradients where it saved logits
    squares = shared.square().sum()
    loss = vocab_logprob(shared, targets).logp.sum() + squares
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|overwritten"):
        loss.backward()
    logits.grad = None
    shared = logits * 1
    out = [
        vocab_logprob(shared, targets, inv_temperature=t, overwrite_logits=False).logp.sum()
        for t in (1.0, 0.5)
    ]
    sum(out).backward()
    expected = torch.zeros_like(logits)
    for t in (1.0, 0.5):
        p = torch.softmax(logits.detach() * t, 1)
        kept = (targets >= 0).float().unsqueeze(1)
        expected += t * kept * (torch.nn.functional.one_hot(targets.clamp(min=0), 9) - p)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-6)
    leaf = torch.randn(4, 9, requires_grad=True)
    before = leaf.detach().clone()
    vocab_logprob(leaf, targets).logp.sum().backward()
    assert torch.equal(leaf.detach(), before), "a leaf is never overwritten"


def test_operators_pass_torch_library_checks():
    """Schema, fake tensors and mutation annotations, as torch.compile relies on them."""
    logits, targets, scale = torch.randn(5, 32), torch.tensor([0, 3, -100, 9, 31]), torch.ones(1)
    row = (targets, scale, 0, 30, -100)
    stats = ops._stats_op(logits, *row, True, False)
    ones = torch.ones(5)
    policy = (None, None, None, None, None, "sft", 0.2, 0.2, 0.0, 0.0, 0.0)
    checks = ["test_schema", "test_faketensor"]
    torch.library.opcheck(ops._stats_op, (logits, *row, True, True), test_utils=checks)
    torch.library.opcheck(ops._merge_op, (stats.unsqueeze(0), targets, -100), test_utils=checks)
    torch.library.opcheck(
        ops._backward_in_place,
        (logits.clone(), *row, ones, ones, None, ones, None),
        test_utils=checks,
    )
    torch.library.opcheck(
        ops._backward_out,
        (logits, torch.empty_like(logits), *row, ones, ones, None, ones, None),
        test_utils=checks,
    )
    torch.library.opcheck(
        ops._policy_in_place, (logits.clone(), *row, None, *policy), test_utils=checks
    )
    torch.library.opcheck(
        ops._policy_out, (logits, torch.empty_like(logits), *row, None, *policy), test_utils=checks
    )
    torch.library.opcheck(
        ops._linear_op, (torch.randn(5, 8), torch.randn(32, 8), *row, True), test_utils=checks
    )
    torch.library.opcheck(ops._count_op, (logits, torch.zeros(5), 30), test_utils=checks)


def test_backend_choice_is_validated_and_said_once(monkeypatch, caplog):
    from megaladder.kernels import dispatch

    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    with pytest.raises(ValueError, match="expected one of auto, triton, torch"):
        dispatch.backend(torch.device("cpu"))
    monkeypatch.setenv(dispatch.VARIABLE, "auto")
    dispatch._say_once.cache_clear()
    with caplog.at_level("INFO", logger="megaladder.kernels"):
        assert [dispatch.backend(torch.device("cpu")) for _ in range(3)] == ["torch"] * 3
        assert dispatch.backend(torch.device("cuda")) == "triton"
    assert len(caplog.records) == 2


@pytest.mark.slow
@pytest.mark.parametrize("head", ["vocab_logprob", "linear_logprob", "linear_policy_loss"])
def test_heads_compile_without_a_graph_break(head):
    """torch.compile(fullgraph=True), traced and differentiated, equals eager bit for bit on the
    CPU."""
    case = make_case(torch.float32)

    def loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if head == "vocab_logprob":
            return vocab_logprob(
                hidden @ weight.t(), targets, n_valid=VALID, entropy="grad"
            ).logp.sum()
        if head == "linear_logprob":
            return linear_logprob(
                hidden, weight, targets, n_valid=VALID, compact_rows=False
            ).logp.sum()
        return linear_policy_loss(
            hidden, weight, targets, PolicyLoss(), PolicyInputs(), n_valid=VALID, compact_rows=False
        ).loss

    found = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        hidden, weight = (
            case["hidden"].clone().requires_grad_(),
            case["weight"].clone().requires_grad_(),
        )
        function(hidden, weight, case["targets"]).backward()
        found.append((hidden.grad, weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
