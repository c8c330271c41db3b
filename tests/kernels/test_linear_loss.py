"""linear_loss: value and gradient against float64 autograd, passes over main_grad, active rows,
exact factors, mistakes that raise."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megaladder.kernels import linear_common
from megaladder.kernels import linear_loss as linear_loss_module
from megaladder.kernels.linear_logprob import linear_logprob
from megaladder.kernels.linear_loss import TokenTerms, linear_loss

TOKENS, HIDDEN, COLUMNS, VALID = 40, 16, 320, 301


def make_case(dtype: torch.dtype = torch.float64, tokens: int = TOKENS) -> dict:
    random = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    return {
        "hidden": normal(tokens, HIDDEN).to(dtype),
        "weight": normal(COLUMNS, HIDDEN).to(dtype),
        "targets": torch.randint(0, VALID, (tokens,), generator=random),
        "g": normal(tokens),
        "h": normal(tokens),
        "rows": torch.randperm(tokens, generator=random)[:29].sort().values,
    }


def squared(case: dict, rows: torch.Tensor):
    """Σ g·logp + h·logp²/2 + h·entropy: a derivative that depends on the value."""

    def terms(logp, entropy, block) -> TokenTerms:
        g, h = (case[name][rows][block].to(logp.dtype) for name in ("g", "h"))
        bonus = torch.zeros_like(logp) if entropy is None else h * entropy
        loss = (g * logp + h * logp.square() / 2 + bonus).sum()
        return TokenTerms(loss, g + h * logp, None if entropy is None else h)

    return terms


def expected(case: dict, rows: torch.Tensor, factor: float, entropy: bool):
    """Loss, factor · d hidden, factor · d weight in float64 by autograd."""
    hidden, weight = (case[n].double().clone().requires_grad_() for n in ("hidden", "weight"))
    logs = torch.log_softmax(hidden[rows] @ weight[:VALID].t() * 0.7, -1)
    logp = logs.gather(1, case["targets"][rows].unsqueeze(1)).squeeze(1)
    found = -(logs.exp() * logs).sum(1) if entropy else None
    loss = squared(case, rows)(logp, found, slice(None)).loss
    (loss * factor).backward()
    return loss.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("scratch", [None, 8 * COLUMNS * 6], ids=["one block", "blocks of 6"])
@pytest.mark.parametrize("entropy", ["none", "grad"])
@pytest.mark.parametrize("some", [False, True], ids=["all rows", "active rows"])
def test_value_and_gradients(scratch, entropy, some):
    case = make_case()
    rows = case["rows"] if some else torch.arange(TOKENS)
    value, d_hidden, d_weight = expected(case, rows, -2.5, entropy == "grad")
    case["weight"][VALID:] = float("nan")
    hidden, weight = (case[n].clone().requires_grad_() for n in ("hidden", "weight"))
    options = {"n_valid": VALID, "inv_temperature": 0.7, "entropy": entropy}
    options |= {"scratch_bytes": scratch, "rows": rows if some else None}
    loss = linear_loss(
        hidden,
        weight,
        case["targets"],
        squared(case, rows),
        factor=torch.tensor(0.5, dtype=torch.float64),
        **options,
    )
    (loss * -5.0).backward()
    torch.testing.assert_close(loss.detach(), value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hidden.grad, d_hidden, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(weight.grad, d_weight, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        silent = linear_loss(
            case["hidden"], case["weight"], case["targets"], squared(case, rows), **options
        )
    torch.testing.assert_close(silent, value, rtol=1e-12, atol=1e-12)


class Passes(TorchDispatchMode):
    """Counts the operations that write into a tensor's memory, and the elements of it that they
    touch."""

    def __init__(self, watched: torch.Tensor) -> None:
        super().__init__()
        self._storage, self.count, self.elements = watched.untyped_storage().data_ptr(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for argument, value in zip(function._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            mine = isinstance(value, torch.Tensor) and (
                value.untyped_storage().data_ptr() == self._storage
            )
            if written and mine:
                self.count += 1
                self.elements += value.numel()
        return function(*args, **kwargs)


@pytest.mark.parametrize("head", ["linear_loss", "linear_logprob"])
@pytest.mark.parametrize(("blocks", "scratch"), [(1, None), (2, 4 * COLUMNS * 20)])
@pytest.mark.parametrize("valid", [320, VALID])
def test_main_grad_is_passed_over_once_for_each_block(head, blocks, scratch, valid):
    """Forward and backward together; an odd vocabulary adds its last few rows."""
    case = make_case(torch.bfloat16)
    weight = torch.nn.Parameter(case["weight"])
    weight.main_grad, weight.grad_added_to_main_grad = torch.zeros(COLUMNS, HIDDEN), False
    hidden = case["hidden"].clone().requires_grad_()
    options = {"n_valid": valid, "scratch_bytes": scratch}
    with Passes(weight.main_grad) as passes:
        if head == "linear_loss":
            terms = squared(case, torch.arange(TOKENS))
            linear_loss(hidden, weight, case["targets"], terms, **options).backward()
        else:
            linear_logprob(hidden, weight, case["targets"], **options).logp.sum().backward()
    odd = int(valid % 16 > 0)
    assert passes.count == blocks * (1 + odd)
    assert passes.elements == blocks * valid * HIDDEN


@pytest.mark.parametrize("factor", [1 / 3, 1 / 1234.567])
@pytest.mark.parametrize("promised", [True, False])
def test_a_factor_is_exact_in_16_bits(factor, promised):
    """bfloat16 cannot hold 1/3: multiplied in after rounding it would bias every gradient by up to
    0.2 %. <found, truth>/<truth, truth> − 1 sees a bias; rounding noise does not make one."""
    case = make_case(torch.bfloat16, tokens=1000)
    rows = torch.arange(1000)
    _, d_hidden, d_weight = expected(case, rows, factor, False)
    hidden, weight = (case[n].clone().requires_grad_() for n in ("hidden", "weight"))
    given = {"factor": torch.tensor(factor)} if promised else {}
    loss = linear_loss(
        hidden,
        weight,
        case["targets"],
        squared(case, rows),
        n_valid=VALID,
        inv_temperature=0.7,
        **given,
    )
    (loss if promised else loss * factor).backward()
    for found, truth in ((hidden.grad, d_hidden), (weight.grad, d_weight)):
        bias = (found.double() * truth).sum() / truth.square().sum() - 1.0
        assert abs(bias) < 3e-4


def test_no_row_and_no_token():
    case = make_case(torch.float32)
    nothing = torch.arange(0)
    for tokens in (TOKENS, 0):
        hidden = case["hidden"][:tokens].clone().requires_grad_()
        weight = case["weight"].clone().requires_grad_()
        targets = case["targets"][:tokens]
        loss = linear_loss(hidden, weight, targets, squared(case, nothing), rows=nothing)
        loss.backward()
        assert loss == 0
        assert torch.count_nonzero(hidden.grad) == torch.count_nonzero(weight.grad) == 0


def test_second_backward_and_a_factor_that_came_too_late_raise():
    case = make_case(torch.float32)
    hidden, weight = (case[n].clone().requires_grad_() for n in ("hidden", "weight"))
    terms = squared(case, torch.arange(TOKENS))
    loss = linear_loss(hidden, weight, case["targets"], terms)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()
    weight.main_grad = torch.zeros_like(weight)
    loss = linear_loss(hidden, weight, case["targets"], terms)
    with pytest.raises(RuntimeError, match=r"brought the factor 0\.5, .*fix: back-propagate"):
        (loss * 0.5).backward()


def test_rows_without_gradient_never_enter_a_product(monkeypatch):
    case = make_case()
    seen = []
    for name in ("logits", "d_hidden"):
        original = getattr(linear_common.Columns, name)

        def counting(self, first, out, original=original):
            seen.append(first.shape[0])
            return original(self, first, out)

        monkeypatch.setattr(linear_common.Columns, name, counting)
    hidden = case["hidden"].clone().requires_grad_()
    rows = case["rows"]
    linear_loss(
        hidden, case["weight"].requires_grad_(), case["targets"], squared(case, rows), rows=rows
    ).backward()
    assert seen == [len(rows), len(rows)]
    others = torch.ones(TOKENS, dtype=torch.bool)
    others[rows] = False
    assert torch.count_nonzero(hidden.grad[others]) == 0


def test_a_graphs_capture_asks_no_event(monkeypatch):
    """CUDA ends a capture in which an event of another stream is asked; the factor waits."""

    class Event:
        asked = 0

        def query(self) -> bool:
            self.asked += 1
            return True

    factors, event = linear_loss_module._Factors(), Event()
    factors._under_way.append((torch.tensor(2.0), event))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    factors.look()
    assert event.asked == 0
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.raises(RuntimeError, match="brought the factor"):
        factors.look()
