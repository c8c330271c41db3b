"""linear_logprob: values and gradients against float64, blocks kept or formed again, active rows,
main_grad under megatron-core's DDP, odd vocabularies."""

from __future__ import annotations

import pytest
import torch

from megaladder.kernels import linear_common, ops
from megaladder.kernels.linear_logprob import linear_logprob
from megaladder.kernels.linear_loss import TokenTerms, linear_loss
from megaladder.kernels.reference import RowSpec
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


def cross_entropy(logp: torch.Tensor, entropy: torch.Tensor | None, block: slice) -> TokenTerms:
    return TokenTerms(-logp.sum(), torch.full_like(logp, -1.0))


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
    [{}, {"scratch_bytes": 4096}, {"scratch_bytes": 24_000}, {"rows": True}],
    ids=["all blocks kept", "every block twice", "some kept", "active rows"],
)
def test_values_and_gradients(oracle, dtype, options):
    case = make_case(dtype)
    rows, d_hidden, d_weight = truth(oracle, case)
    if "rows" in options:
        options = {"rows": (case["targets"] >= 0).nonzero().squeeze(1)}
    case["weight"][VALID:] = float("nan")  # padding is never read, whatever it holds
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
        loss = linear_loss(
            *(t.detach().requires_grad_() for t in (hidden, weight)),
            case["targets"],
            cross_entropy,
            n_valid=VALID,
        )
        found[choice] = (out.logp, hidden.grad, weight.grad, loss)
    for ours, theirs in zip(found["torch"], found["triton"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found["triton"][1].double(), d_hidden, rtol=0, atol=2e-5)
    torch.testing.assert_close(found["triton"][2].double(), d_weight, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("scratch", "times"), [(None, 1), (4096, 2)], ids=["kept", "again"])
def test_only_active_rows_are_multiplied_and_kept_logits_not_twice(monkeypatch, scratch, times):
    case = make_case(torch.float64)
    seen = []
    original = linear_common.Columns.logits

    def counting(self, x, out):
        seen.append(x.shape[0])
        return original(self, x, out)

    monkeypatch.setattr(linear_common.Columns, "logits", counting)
    hidden = case["hidden"].requires_grad_()
    rows = (case["targets"] >= 0).nonzero().squeeze(1)
    out = linear_logprob(
        hidden,
        case["weight"].requires_grad_(),
        case["targets"],
        n_valid=VALID,
        rows=rows,
        scratch_bytes=scratch,
    )
    (out.logp * case["g"]).sum().backward()
    assert sum(seen) == times * len(rows)
    with pytest.raises(RuntimeError, match="second backward"):
        out.logp.sum().backward()


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 37])
def test_a_vocabulary_that_is_no_multiple_of_16(oracle, columns):
    """Products of 16 columns and zeros stand for the last few; every product is aligned."""
    random = torch.Generator().manual_seed(columns)
    hidden, weight = (
        torch.randn(n, HIDDEN, generator=random, dtype=torch.float64).requires_grad_()
        for n in (12, columns)
    )
    targets = torch.randint(0, columns, (12,), generator=random)
    g, h = (torch.randn(12, generator=random, dtype=torch.float64) for _ in range(2))
    rows = oracle((hidden @ weight.t()).detach(), targets, torch.ones(1, dtype=torch.float64), g, h)
    out = linear_logprob(hidden, weight, targets, entropy="grad")
    (out.logp * g + out.entropy * h).sum().backward()
    torch.testing.assert_close(out.logp, rows.logp, rtol=0, atol=1e-12)
    torch.testing.assert_close(hidden.grad, rows.d_logits @ weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(weight.grad, rows.d_logits.t() @ hidden, rtol=0, atol=1e-12)


def test_main_grad_of_megatron_ddp_receives_float32_sums_once():
    """Attributes as megatron-core's DistributedDataParallel sets them: sums in main_grad over two
    calls, a placeholder in .grad."""
    case = make_case(torch.bfloat16)
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
        linear_loss(
            case["hidden"],
            weight,
            case["targets"],
            cross_entropy,
            n_valid=VALID,
            factor=torch.tensor(0.25),
        ).backward()
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


def test_scratch_bounds_the_logits_and_their_gradient():
    """Rows of a block · padded columns · bytes never exceed scratch_bytes, gradient included: it
    lies over the logits. Row strides are multiples of 16 elements."""
    case = make_case(torch.bfloat16)
    spec = RowSpec(case["targets"], torch.ones(1), 0, VALID)
    for scratch in (1000, 5000, 10**6):
        options = linear_common.LinearOptions(scratch_bytes=scratch)
        head = linear_common.make_head(case["hidden"], case["weight"], spec, None, None, options)
        blocks = linear_common.Blocks(head, case["hidden"])
        logits = blocks.logits(slice(0, blocks.step))
        out = blocks.gradient_out(logits)
        assert logits.stride(0) % 16 == out.stride(0) % 16 == 0
        assert out.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()
        assert logits.untyped_storage().nbytes() <= scratch or blocks.step == 1


@pytest.mark.parametrize(
    ("num_rows", "fit", "expected"),
    [
        (8192, 10**6, 8192),  # one block
        (20_480, 10**6, 6912),  # three alike, none longer than 8,192
        (8192, 1353, 1280),  # 1200 MiB of float32 logits over 151,936 columns
        (8192, 4096, 4096),
        (300, 100, 100),
        (5, 2, 2),
        (0, 9, 1),
        (7, 0, 1),
    ],
)
def test_blocks_are_few_and_even(num_rows, fit, expected):
    assert linear_common.block_rows(num_rows, fit) == expected


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
    stats = ops._stats_op(logits, *row, True)
    ones = torch.ones(5)
    checks = ["test_schema", "test_faketensor"]
    torch.library.opcheck(ops._stats_op, (logits, *row, True), test_utils=checks)
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
        ops._add_op, (torch.zeros(8, 4), torch.randn(5, 8), torch.randn(5, 4)), test_utils=checks
    )


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
@pytest.mark.parametrize("head", ["vocab_logprob", "linear_logprob"])
def test_heads_compile_without_a_graph_break(head):
    """torch.compile(fullgraph=True), traced and differentiated, equals eager."""
    case = make_case(torch.float32)

    def loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if head == "vocab_logprob":
            return vocab_logprob(
                hidden @ weight.t(), targets, n_valid=VALID, entropy="grad"
            ).logp.sum()
        return linear_logprob(hidden, weight, targets, n_valid=VALID).logp.sum()

    found = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        hidden, weight = (
            case["hidden"].clone().requires_grad_(),
            case["weight"].clone().requires_grad_(),
        )
        function(hidden, weight, case["targets"]).backward()
        found.append((hidden.grad, weight.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
