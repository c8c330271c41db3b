"""On a GPU only (`pytest -m gpu tests/gpu/test_kernels.py`): the loss head at real sizes against
float64: every path, losses, types, odd and split vocabularies, rows beyond 2^31 elements, races,
streams, graphs.

A row kernel may differ from float64 of the same logits by 1e-5 nats; a head no more than a
float32-summed product with a float64 softmax does. Run without a GPU at toy sizes as
`kernel_truth` says; the device itself has run an earlier version of these checks (28 November
2026).
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from gpu.kernel_truth import (
    DEVICE,
    FEW,
    HIDDEN,
    TINY,
    TOKENS,
    TYPE,
    VOCAB,
    Inputs,
    bias,
    loss_terms,
    normal,
    relative,
    token_loss,
    truth_of,
)

from megaladder.kernels import linear_common, linear_loss, ops, shard
from megaladder.kernels.linear_logprob import linear_logprob
from megaladder.kernels.reference import RowGrad, RowSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (TINY or torch.cuda.is_available()), reason="no CUDA device; toy sizes were not asked"
    ),
]
KINDS = ("sft", "reinforce", "clip", "cispo", "everything")
BF16 = torch.bfloat16


@pytest.fixture(scope="module", params=KINDS)
def case(request):
    """A loss at 1,024 tokens of the full width, with its truth."""
    inputs = Inputs.make(FEW, seed=3)
    old = linear_logprob(inputs.hidden, inputs.weight, inputs.targets).logp.detach().double()
    terms = loss_terms(request.param, inputs, old)
    return request.param, inputs, terms, truth_of(inputs, lambda _: terms)


def check(inputs: Inputs, truth, found_logp, loss, *, limit: float = 7e-3) -> None:
    """Log-probs, loss, d hidden and d weight of a step that has run its backward."""
    main = getattr(inputs.weight, "main_grad", None)
    d_weight = inputs.weight.grad if main is None else main
    if found_logp is not None:
        error = (found_logp[inputs.rows].double() - truth.logp).abs().max()
        assert error <= 1.5 * truth.plain_error + 1e-5
    assert float(loss) == pytest.approx(truth.loss, rel=1e-3, abs=1e-3)
    assert relative(inputs.hidden.grad, truth.d_hidden) < limit
    assert relative(d_weight, truth.d_weight) < limit


def clear(inputs: Inputs) -> None:
    inputs.hidden.grad = inputs.weight.grad = None
    if hasattr(inputs.weight, "main_grad"):
        del inputs.weight.main_grad, inputs.weight.grad_added_to_main_grad


BLOCKS = {"one block": None, "blocks of 128 rows": 130 * VOCAB * 4}


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("main_grad", [False, True])
def test_a_loss_formed_in_the_head(case, blocks, main_grad):
    kind, inputs, terms, truth = case
    clear(inputs)
    weight = inputs.with_main_grad() if main_grad else inputs.weight
    options = {"rows": inputs.rows, "scratch_bytes": BLOCKS[blocks]}
    options["entropy"] = "grad" if kind == "everything" else "none"
    loss = linear_loss.linear_loss(
        inputs.hidden, weight, inputs.targets, token_loss(terms, inputs.rows), **options
    )
    loss.backward()
    check(inputs, truth, None, loss.detach())


@pytest.mark.parametrize("blocks", BLOCKS)
def test_log_probs_that_carry_a_gradient(case, blocks):
    _, inputs, terms, truth = case
    clear(inputs)
    out = linear_logprob(
        inputs.hidden,
        inputs.weight,
        inputs.targets,
        rows=inputs.rows,
        entropy="grad",
        scratch_bytes=BLOCKS[blocks],
    )
    loss = terms(out.logp[inputs.rows], out.entropy[inputs.rows], inputs.rows).sum()
    loss.backward()
    check(inputs, truth, out.logp, loss.detach())
    assert (out.entropy[inputs.rows].double() - truth.entropy).abs().max() < 3e-4


@pytest.fixture(scope="module")
def full():
    inputs = Inputs.make(TOKENS)
    return inputs, truth_of(inputs, lambda old: loss_terms("sft", inputs, old))


@pytest.mark.parametrize("bf16_logits", [False, True])
@pytest.mark.parametrize("factor", [None, 1 / 3, 1 / 1234.567])
def test_sft_at_full_size_and_its_factor_is_exact(full, bf16_logits, factor):
    inputs, truth = full
    clear(inputs)
    weight = inputs.with_main_grad()
    terms = token_loss(loss_terms("sft", inputs, truth.logp), inputs.rows)
    given = None if factor is None else torch.tensor(factor, device=DEVICE)
    options = {"rows": inputs.rows, "bf16_logits": bf16_logits, "factor": given}
    loss = linear_loss.linear_loss(inputs.hidden, weight, inputs.targets, terms, **options)
    loss.backward()
    limit = 4e-2 if bf16_logits else 7e-3
    scale = 1.0 if factor is None else factor
    for found, true in ((inputs.hidden.grad, truth.d_hidden), (weight.main_grad, truth.d_weight)):
        assert relative(found, true * scale) < limit
        assert abs(bias(found, true * scale)) < (2e-3 if bf16_logits else 3e-4)
    assert float(loss) == pytest.approx(truth.loss, rel=1e-3)


def test_an_odd_vocabulary_whose_padding_is_nan():
    inputs = Inputs.make(FEW, seed=9)
    n = VOCAB - 137
    inputs.targets.clamp_(max=n - 1)
    truth = truth_of(inputs, lambda old: loss_terms("sft", inputs, old), n_valid=n)
    with torch.no_grad():
        inputs.weight[n:] = float("nan")
    terms = token_loss(loss_terms("sft", inputs, truth.logp), inputs.rows)
    loss = linear_loss.linear_loss(
        inputs.hidden, inputs.weight, inputs.targets, terms, rows=inputs.rows, n_valid=n
    )
    loss.backward()
    check(inputs, truth, None, loss.detach())
    assert torch.count_nonzero(inputs.weight.grad[n:]) == 0


@pytest.mark.parametrize("size", [2, 4, 8])
def test_ranks_of_a_split_vocabulary_one_after_another(case, size, monkeypatch):
    """The gather is replaced by the ranks' true statistics, the reduction by a sum here."""
    kind, inputs, terms, truth = case
    if kind != "everything":
        pytest.skip("one loss is enough: statistics do not know it")
    edges = [rank * (VOCAB // size // 16 * 16) for rank in range(size)] + [VOCAB]
    parts = [
        inputs.weight.detach()[a:b].clone().requires_grad_() for a, b in itertools.pairwise(edges)
    ]
    widest = max(len(part) for part in parts)
    stats: list[torch.Tensor] = []
    monkeypatch.setattr(linear_loss, "gather_stats", lambda own, tp: stats.append(own) or own[None])
    monkeypatch.setattr(linear_common, "PendingGrad", _Local)
    d_hidden = torch.zeros_like(truth.d_hidden)
    for phase in ("statistics", "gradient"):
        if phase == "gradient":
            monkeypatch.setattr(linear_loss, "gather_stats", lambda own, tp: torch.stack(stats))
        for rank, part in enumerate(parts):
            inputs.hidden.grad = part.grad = None
            tp = shard.TensorParallel(None, rank, size, edges[rank], widest)
            loss = linear_loss.linear_loss(
                inputs.hidden,
                part,
                inputs.targets,
                token_loss(terms, inputs.rows),
                rows=inputs.rows,
                tp=tp,
                entropy="grad",
                scratch_bytes=1 << 40,
            )
            loss.backward()
            if phase == "gradient":
                d_hidden += inputs.hidden.grad
    assert relative(d_hidden, truth.d_hidden) < 8e-3
    joined = torch.cat([part.grad for part in parts])
    assert relative(joined, truth.d_weight) < 8e-3
    assert float(loss) == pytest.approx(truth.loss, rel=1e-3, abs=1e-3)


class _Local:
    def __init__(self, d_hidden, tp, *, sequence_parallel) -> None:
        self._d_hidden = d_hidden

    def wait(self) -> torch.Tensor:
        return self._d_hidden


def rows_of_logits(dtype: torch.dtype) -> tuple[torch.Tensor, RowSpec]:
    """Padded row stride, NaN from n_valid on; a row shifted by 300, one by −300, one with −inf."""
    tokens, n = (24, VOCAB - 137) if TINY else (512, VOCAB - 137)
    width = -(-VOCAB // 16) * 16 + 32
    logits = torch.full((tokens, width), math.nan, device=DEVICE, dtype=dtype)[:, :VOCAB]
    logits[:, :n] = (3.0 * normal(tokens, n, seed=11)).to(dtype)
    logits[1, :n] += 300.0
    logits[2, :n] -= 300.0
    logits[3, 100 : VOCAB // 2] = -math.inf
    generator = torch.Generator(device=DEVICE).manual_seed(3)
    targets = torch.randint(0, n, (tokens,), device=DEVICE, generator=generator)
    targets[3] = 5
    targets[::9] = -100
    return logits, RowSpec(targets, (0.5 * normal(tokens, seed=12)).exp(), 0, n)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("entropy", [False, True])
def test_row_kernels(dtype, entropy):
    logits, spec = rows_of_logits(dtype)
    n, kept = spec.n_valid, spec.targets != -100
    kept[1:3] = False  # shifted rows: a rounding of the shifted logit itself, checked apart
    z = logits[:, :n].double() * spec.inv_temperature.double().unsqueeze(1)
    logs = torch.log_softmax(z, -1)
    p, finite = logs.exp(), torch.where(logs > -math.inf, logs, 0.0)
    at = spec.targets.clamp(min=0).unsqueeze(1)
    stats = ops.ce_stats(logits, spec, entropy=entropy)
    logp, found, _, peak, total = ops.merge_stats(stats.unsqueeze(0), spec.targets, -100).unbind(0)
    truth, value = logs.gather(1, at).squeeze(1), -(p * finite).sum(1)
    assert (logp.double() - truth)[kept].abs().max() < 1e-5
    assert (logp.double() - truth)[1:3].abs().max() < 3e-4
    if entropy:
        assert (found.double() - value)[kept].abs().max() < 1e-5
    g, h = normal(len(logits), seed=13), normal(len(logits), seed=14)
    g[5] = h[5] = 0.0
    real = spec.targets != -100
    gg, hh = (torch.where(real, v, 0.0).double().unsqueeze(1) for v in (g, h))
    want = -gg * p - (hh * p * (finite + value.unsqueeze(1)) if entropy else 0.0)
    want = want.scatter_add(1, at, gg) * spec.inv_temperature.double().unsqueeze(1)
    upstream = RowGrad(peak, total, found, g, h if entropy else None)
    for out_dtype in {dtype, BF16}:
        apart = torch.full((len(logits), logits.stride(0)), 7.0, device=DEVICE, dtype=out_dtype)
        apart = apart[:, :VOCAB]
        ops.ce_backward(logits, spec, upstream, apart)
        assert relative(apart[kept][:, :n], want[kept]) < 6e-3
        for zeros in (apart[:, n:], apart[~real], apart[5]):
            assert torch.count_nonzero(zeros) == 0
        over = torch.empty_strided(logits.shape, logits.stride(), dtype=dtype, device=DEVICE)
        over.copy_(logits)
        if dtype.itemsize == out_dtype.itemsize and dtype != out_dtype:
            continue
        place = over if dtype == out_dtype else over.view(out_dtype)[:, :VOCAB]
        ops.ce_backward(over, spec, upstream, place)
        assert torch.equal(place, apart), "over the logits and apart: the same bits"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rows_beyond_two_gigaelements(dtype):
    """The last rows have the bits that they have alone."""
    rows, tail = (40, 8) if TINY else (14_400, 64)
    logits = torch.empty(rows, VOCAB // 16 * 16, device=DEVICE, dtype=dtype)
    for block in logits.split(1024):
        block.normal_(std=3.0)
    targets = torch.randint(0, logits.shape[1], (rows,), device=DEVICE)
    spec = RowSpec(targets, torch.ones(1, device=DEVICE), 0, logits.shape[1])
    last, small = spec.rows(slice(rows - tail, rows)), logits[-tail:].clone()
    stats, alone = (ops.ce_stats(x, s, entropy=True) for x, s in ((logits, spec), (small, last)))
    assert torch.equal(stats[:, -tail:], alone)
    g = normal(rows, seed=1)

    def gradient(x, s, own, slope):
        _, entropy, _, peak, total = ops.merge_stats(own.unsqueeze(0), s.targets, -100).unbind(0)
        out = x if dtype == BF16 else x.view(BF16)[:, : x.shape[1]]
        return ops.ce_backward(x, s, RowGrad(peak, total, entropy, slope, slope), out)

    one = gradient(logits, spec, stats, g)[-tail:]
    assert torch.equal(one, gradient(small, last, alone, g[-tail:]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_gradient_over_its_logits_has_no_race(dtype):
    """Thirty times from the same logits: always the same bits."""
    tokens = 16 if TINY else 1056
    base = (3.0 * normal(tokens, VOCAB // 16 * 16, seed=40)).to(dtype)
    targets = torch.randint(0, base.shape[1], (tokens,), device=DEVICE)
    spec = RowSpec(targets, torch.ones(1, device=DEVICE), 0, base.shape[1])
    g = normal(tokens, seed=2)
    first = None
    for _ in range(3 if TINY else 30):
        work = base.clone()
        stats = ops.ce_stats(work, spec, entropy=True)
        _, entropy, _, peak, total = ops.merge_stats(stats.unsqueeze(0), targets, -100).unbind(0)
        out = work if dtype == BF16 else work.view(BF16)[:, : work.shape[1]]
        found = ops.ce_backward(work, spec, RowGrad(peak, total, entropy, g, g), out)
        first = found.clone() if first is None else first
        assert torch.equal(found, first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_other_weight_types(dtype):
    if TINY and dtype == torch.float16:
        pytest.skip("no float16 product on this CPU")
    inputs = Inputs.make(FEW // 4, seed=8, dtype=dtype, hidden=HIDDEN // 4)
    truth = truth_of(inputs, lambda old: loss_terms("sft", inputs, old))
    terms = token_loss(loss_terms("sft", inputs, truth.logp), inputs.rows)
    loss = linear_loss.linear_loss(
        inputs.hidden, inputs.weight, inputs.targets, terms, rows=inputs.rows
    )
    loss.backward()
    check(inputs, truth, None, loss.detach())


@pytest.mark.parametrize("tokens", [0, 1])
def test_no_token_and_one(tokens):
    inputs = Inputs.make(tokens, seed=8)
    terms = token_loss(lambda logp, entropy, rows: -logp, torch.arange(tokens, device=DEVICE))
    linear_loss.linear_loss(inputs.hidden, inputs.weight, inputs.targets, terms).backward()
    linear_logprob(inputs.hidden, inputs.weight, inputs.targets).logp.sum().backward()
    assert torch.isfinite(inputs.hidden.grad).all()


def test_no_active_row_gives_zeros():
    inputs = Inputs.make(16, seed=8)
    nothing = torch.arange(0, device=DEVICE)
    terms = token_loss(lambda logp, entropy, rows: -logp, nothing)
    loss = linear_loss.linear_loss(
        inputs.hidden, inputs.weight, inputs.targets, terms, rows=nothing
    )
    loss.backward()
    assert loss == 0
    assert torch.count_nonzero(inputs.hidden.grad) == 0
    assert torch.count_nonzero(inputs.weight.grad) == 0


def test_side_stream_and_graph_give_the_same_bits():
    if TINY:
        pytest.skip("needs CUDA streams")
    inputs = Inputs.make(2048, seed=50, hidden=2048)
    weight = inputs.with_main_grad()
    terms = token_loss(lambda logp, entropy, rows: -logp, inputs.rows)

    def step():
        inputs.hidden.grad = None
        weight.main_grad.zero_()
        loss = linear_loss.linear_loss(
            inputs.hidden, weight, inputs.targets, terms, rows=inputs.rows, scratch_bytes=4 << 30
        )
        loss.backward()
        weight.grad = None
        return loss.detach().clone(), inputs.hidden.grad, weight.main_grad

    expected = [values.clone() for values in step()]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = [values.clone() for values in step()]
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    weight.main_grad.fill_(5.0)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, captured, strict=True))


def test_a_step_never_waits_for_the_device():
    """Forward and backward under torch's own watch over synchronising calls."""
    if TINY:
        pytest.skip("needs CUDA")
    inputs = Inputs.make(2048, seed=50, hidden=2048)
    weight = inputs.with_main_grad()
    terms = token_loss(lambda logp, entropy, rows: -logp, inputs.rows)

    def step() -> None:
        linear_loss.linear_loss(
            inputs.hidden, weight, inputs.targets, terms, rows=inputs.rows
        ).backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert TYPE == BF16
