"""ce_stats, merge_stats, ce_backward: twin and interpreted Triton kernel against float64 autograd,
over ragged and split vocabularies.

`|kernel − fp64| ≤ |same-type log_softmax − fp64| + tolerance`: a kernel may be as wrong as plain
PyTorch in the same type, and little more.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from megaladder.kernels.reference import RowGrad, RowSpec, accumulator

TYPES = (torch.float64, torch.float32, torch.bfloat16)
RELAXED = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


def random_case(
    seed: int, tokens: int, columns: int, dtype: torch.dtype, spread: float = 4.0
) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    wide = accumulator(dtype)
    case = {
        "logits": (
            (torch.randn(tokens, columns, generator=random, dtype=torch.float64) * spread).to(dtype)
        ),
        "targets": torch.randint(0, columns, (tokens,), generator=random),
        "scale": torch.rand(tokens, generator=random, dtype=wide) + 0.5,
        "g": torch.randn(tokens, generator=random, dtype=wide),
        "h": torch.randn(tokens, generator=random, dtype=wide),
    }
    case["targets"][torch.rand(tokens, generator=random) < 0.2] = -100
    return case


def split_run(
    implementation,
    case: dict[str, torch.Tensor],
    widths: list[int],
    padding: int = 0,
    poison: float = math.nan,
):
    """Log-prob, entropy and d logits [T, sum(widths)] through shards of `widths` columns, each with
    poisoned padding columns and stride."""
    logits, targets = case["logits"], case["targets"]
    starts = [sum(widths[:i]) for i in range(len(widths))]
    shards, specs, parts = [], [], []
    for start, width in zip(starts, widths, strict=True):
        stored = torch.full((logits.shape[0], width + padding + 3), poison, dtype=logits.dtype)
        shard = stored[:, : width + padding]
        shard[:, :width] = logits[:, start : start + width]
        spec = RowSpec(targets, case["scale"], start, width)
        shards.append(shard)
        specs.append(spec)
        parts.append(implementation.ce_stats(shard, spec, entropy=True))
    logp, entropy, _, peak, total = implementation.merge_stats(
        torch.stack(parts), targets, -100
    ).unbind(0)
    grads = []
    for shard, spec in zip(shards, specs, strict=True):
        implementation.ce_backward(
            shard, spec, RowGrad(peak, total, entropy, case["g"], case["h"]), shard
        )
        assert torch.count_nonzero(shard[:, spec.n_valid :]) == 0, "padding columns"
        assert torch.count_nonzero(shard[targets == -100]) == 0, "ignored rows"
        grads.append(shard[:, : spec.n_valid])
    return logp, entropy, torch.cat(grads, 1)


def assert_as_good_as_torch(
    got: torch.Tensor, same_type: torch.Tensor, truth: torch.Tensor, tolerance: float
) -> None:
    allowed = (same_type.double() - truth).abs().max() + tolerance if truth.numel() else 0.0
    error = (got.double() - truth).abs().max() if truth.numel() else 0.0
    assert error <= allowed, (
        f"error {error:.3g}, plain torch {allowed - tolerance:.3g} + {tolerance:.0e}"
    )


def check_against_oracle(
    implementation, oracle, case: dict[str, torch.Tensor], widths: list[int], padding: int = 0
) -> None:
    logits = case["logits"]
    arguments = (case["targets"], case["scale"], case["g"], case["h"])
    truth, same = (
        oracle(logits.double(), *arguments),
        oracle(logits.to(accumulator(logits.dtype)), *arguments),
    )
    logp, entropy, grad = split_run(implementation, case, widths, padding)
    tolerance = 1e-9 if logits.dtype == torch.float64 else 1e-5
    if implementation.__name__.endswith("triton_kernels") and logits.numel():
        # x·c − peak is one fused operation on the GPU; the interpreter rounds the product first
        product = (logits.double().abs().amax() * case["scale"].max()).item() / math.log(2.0)
        upstream = 1.0 + (case["scale"] * (case["g"].abs() + case["h"].abs())).max().item()
        tolerance += torch.finfo(accumulator(logits.dtype)).eps * product * upstream
    assert_as_good_as_torch(logp, same.logp, truth.logp, tolerance)
    assert_as_good_as_torch(entropy, same.entropy, truth.entropy, tolerance)
    largest = truth.d_logits.abs().max().item() if truth.d_logits.numel() else 0.0
    # one ulp: the interpreter truncates to bfloat16
    rounding = 2**-7 * largest if logits.dtype == torch.bfloat16 else 0.0
    assert_as_good_as_torch(grad, same.d_logits, truth.d_logits, tolerance + rounding)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("columns", [1, 7, 256, 700])
def test_values_and_gradients(implementation, oracle, dtype, columns):
    check_against_oracle(
        implementation, oracle, random_case(1, 6, columns, dtype), [columns], padding=5
    )


@pytest.mark.parametrize("ranks", range(1, 9))
def test_any_split_of_the_vocabulary_gives_the_same(implementation, oracle, ranks):
    """Uneven shards, an empty one among them from three ranks on; targets on every shard edge."""
    columns = 613
    case = random_case(ranks, 2 * ranks + 2, columns, torch.float32)
    cuts = sorted(
        torch.randperm(columns - 1, generator=torch.Generator().manual_seed(ranks))[: ranks - 1]
        .add(1)
        .tolist()
    )
    edges = [0, *cuts, columns]
    if ranks >= 3:
        edges[1] = edges[2]
    widths = [b - a for a, b in itertools.pairwise(edges)]
    on_edges = [e for edge in edges for e in (edge - 1, edge) if 0 <= e < columns][
        : case["targets"].numel()
    ]
    case["targets"][: len(on_edges)] = torch.tensor(on_edges)
    check_against_oracle(implementation, oracle, case, widths, padding=2)


@settings(max_examples=15, **RELAXED)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(0, 5),
    columns=st.integers(1, 400),
    dtype=st.sampled_from(TYPES),
    ranks=st.integers(1, 8),
    shift=st.sampled_from([0.0, 300.0, -300.0]),
    temperature=st.sampled_from([1.0, 0.05, 20.0]),
)
@example(seed=0, tokens=0, columns=5, dtype=torch.float32, ranks=2, shift=0.0, temperature=1.0)
@example(seed=0, tokens=1, columns=1, dtype=torch.bfloat16, ranks=1, shift=300.0, temperature=0.05)
def test_any_shape_shift_and_temperature(
    implementation, oracle, seed, tokens, columns, dtype, ranks, shift, temperature
):
    case = random_case(seed, tokens, columns, dtype)
    case["logits"] = (case["logits"].double() + shift).to(dtype)
    case["scale"] = case["scale"] / temperature
    share = -(-columns // ranks)
    widths = [max(0, min(share, columns - rank * share)) for rank in range(ranks)]
    check_against_oracle(implementation, oracle, case, widths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shards_and_columns_at_minus_infinity(implementation, oracle, dtype):
    """Masked columns: a whole shard, a whole vector of a lane, single ones; entropy must not become
    NaN."""
    case = random_case(3, 5, 700, dtype)
    case["targets"] = torch.tensor([0, 10, 255, -100, 20])
    for where in (slice(300, 700), slice(32, 64), slice(128, 129)):
        case["logits"][:, where] = -math.inf
    logp, entropy, grad = split_run(implementation, case, [300, 400])
    kept = torch.cat([torch.arange(0, 32), torch.arange(64, 128), torch.arange(129, 300)])
    small = dict(case, logits=case["logits"][:, kept].clone())
    lookup = torch.full((700,), -1).index_copy(0, kept, torch.arange(kept.numel()))
    small["targets"] = torch.where(
        case["targets"] == -100, -100, lookup[case["targets"].clamp(min=0)]
    )
    truth = oracle(small["logits"].double(), small["targets"], case["scale"], case["g"], case["h"])
    torch.testing.assert_close(logp.double(), truth.logp, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy.double(), truth.entropy, rtol=0, atol=1e-5)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(grad[:, kept].double(), truth.d_logits, rtol=0, atol=tolerance)
    assert torch.count_nonzero(grad[:, 300:]) == 0


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("column", [3, 390], ids=["in a whole block", "in the tail"])
def test_a_nan_logit_stays_visible(implementation, entropy, column):
    """The guards against −inf must not swallow NaN: a broken model shows itself in the loss."""
    case = random_case(3, 2, 400, torch.float32)
    case["targets"], case["logits"][0, column] = torch.tensor([1, 1]), math.nan
    stats = implementation.ce_stats(
        case["logits"], RowSpec(case["targets"], case["scale"], 0, 400), entropy=entropy
    )
    logp = implementation.merge_stats(stats.unsqueeze(0), case["targets"], -100)[0]
    assert logp.isnan().tolist() == [True, False]


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("columns", [1, 40, 700])
def test_a_16_bit_gradient_over_float32_logits(implementation, entropy, columns):
    """The row's first half holds the bits that a buffer of its own would; other rows and padding
    columns are those of that buffer."""
    case = random_case(3, 9, columns, torch.float32)
    case["g"][2] = case["h"][2] = 0.0
    width = columns + 5
    stored = torch.full((9, width), 777.0)
    stored[:, :columns] = case["logits"]
    spec = RowSpec(case["targets"], case["scale"], 0, columns)
    stats = implementation.ce_stats(stored, spec, entropy=entropy)
    _, value, _, peak, total = implementation.merge_stats(
        stats.unsqueeze(0), spec.targets, -100
    ).unbind(0)
    upstream = RowGrad(peak, total, value, case["g"], case["h"] if entropy else None)
    apart = torch.full((9, width), 777.0, dtype=torch.bfloat16)
    implementation.ce_backward(stored, spec, upstream, apart)
    over = stored.view(torch.bfloat16)[:, :width]
    implementation.ce_backward(stored, spec, upstream, over)
    assert torch.equal(over, apart)
    assert torch.count_nonzero(over[:, columns:]) == torch.count_nonzero(over[2]) == 0


def test_invariants(implementation):
    """Σ d logits = 0 without entropy gradient; 0 ≤ H ≤ ln V; log-prob ≤ 0; permuting the vocabulary
    changes nothing."""
    case = random_case(5, 9, 500, torch.float32)
    case["h"] = torch.zeros(9)
    logp, entropy, grad = split_run(implementation, case, [500])
    assert grad.sum(1).abs().max() < 2e-6
    assert (logp <= 0).all()
    assert ((entropy >= 0) & (entropy <= math.log(500))).all()
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    back = torch.argsort(order)
    shuffled = dict(
        case,
        logits=case["logits"][:, order],
        targets=torch.where(case["targets"] < 0, -100, back[case["targets"].clamp(min=0)]),
    )
    again = split_run(implementation, shuffled, [123, 377])
    torch.testing.assert_close(again[0], logp, rtol=0, atol=2e-6)
    torch.testing.assert_close(again[2][:, back], grad, rtol=0, atol=2e-6)


def test_a_row_alone_gives_the_same_as_in_a_batch(implementation):
    """The same bits from the Triton kernel, which sums each row by itself. The twin is PyTorch,
    which may sum a tensor of another shape in another order."""
    rounding = 0.0 if implementation.__name__.endswith("triton_kernels") else 2e-6
    case = random_case(6, 8, 700, torch.float32)
    together = implementation.ce_stats(
        case["logits"], RowSpec(case["targets"], case["scale"], 0, 700), entropy=True
    )
    for row in range(8):
        if case["targets"][row] < 0:
            continue
        one = slice(row, row + 1)
        alone = implementation.ce_stats(
            case["logits"][one],
            RowSpec(case["targets"][one], case["scale"][one], 0, 700),
            entropy=True,
        )
        torch.testing.assert_close(alone[:, 0], together[:, row], rtol=rounding, atol=rounding)


def test_target_outside_the_vocabulary_is_minus_infinity_not_a_plausible_number(implementation):
    case = random_case(7, 3, 40, torch.float32)
    case["targets"] = torch.tensor([41, -5, 3])
    stats = implementation.ce_stats(
        case["logits"], RowSpec(case["targets"], case["scale"], 0, 40), entropy=False
    )
    logp = implementation.merge_stats(stats.unsqueeze(0), case["targets"], -100)[0]
    assert logp[:2].tolist() == [-math.inf, -math.inf]
    assert logp[2] > -math.inf


def test_gradients_of_any_upstream_pass_gradcheck():
    """float64 numerical differentiation through the public function, entropy and per-token
    temperature included."""
    from megaladder.kernels.vocab_logprob import vocab_logprob

    case = random_case(8, 4, 11, torch.float64, spread=1.0)

    def both(logits):
        out = vocab_logprob(
            logits * 1,
            case["targets"],
            n_valid=9,
            inv_temperature=case["scale"],
            entropy="grad",
            overwrite_logits=False,
        )
        return out.logp.clamp(min=-50.0), out.entropy

    case["targets"] = case["targets"].clamp(max=8)
    assert torch.autograd.gradcheck(both, case["logits"].requires_grad_())


def test_row_offsets_are_64_bit(kernels):
    """A stride of 2^30 elements under an offset buffer: row 2 then starts at 2^31, where a 32-bit
    offset wraps to −2^31.

    The storage is one row per stride only in name: the kernel's pointer arithmetic is compared with
    where the row would be.
    """
    import numpy as np
    import triton
    import triton.language as tl

    @triton.jit
    def where_rows_start(out_ptr, row_stride):
        row = tl.program_id(0).to(tl.int64)
        tl.store(out_ptr + row, row * row_stride)

    @triton.jit
    def where_rows_start_32(out_ptr, row_stride):
        row = tl.program_id(0)
        tl.store(out_ptr + row, (row * row_stride).to(tl.int64))

    out, wrapped = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    where_rows_start[(3,)](out, 2**30)
    with np.errstate(over="ignore"):
        where_rows_start_32[(3,)](wrapped, 2**30)
    assert out.tolist() == [0, 2**30, 2**31]
    assert wrapped.tolist() == [0, 2**30, -(2**31)]


def test_rows_two_gigaelements_apart_are_read_and_written(kernels):
    """The real kernels over a sparse mapping: two rows 2^31 + 16 elements apart in address space, a
    few pages in memory."""
    import mmap

    stride, columns = 2**31 + 16, 300
    pages = mmap.mmap(
        -1,
        2 * (stride + columns),
        flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0),
    )
    logits = torch.frombuffer(pages, dtype=torch.bfloat16).as_strided((2, columns), (stride, 1))
    case = random_case(9, 2, columns, torch.bfloat16)
    case["targets"] = torch.tensor([5, 299])
    logits.copy_(case["logits"])
    spec = RowSpec(case["targets"], case["scale"], 0, columns)
    stats = kernels.ce_stats(logits, spec, entropy=True)
    assert torch.equal(stats, kernels.ce_stats(case["logits"], spec, entropy=True))
    _, entropy, _, peak, total = kernels.merge_stats(
        stats.unsqueeze(0), case["targets"], -100
    ).unbind(0)
    dense = case["logits"].clone()
    kernels.ce_backward(dense, spec, RowGrad(peak, total, entropy, case["g"]), dense)
    kernels.ce_backward(logits, spec, RowGrad(peak, total, entropy, case["g"]), logits)
    assert torch.equal(logits, dense)


TRITON = "kernels/triton_kernels"
MUTATIONS = {  # what is dropped → file, code, its mutilated form
    "rescale of the sum": (
        f"{TRITON}/ce_stats.py",
        "total = total * shrink + tl.sum(",
        "total = total + tl.sum(",
    ),
    "rescale of the entropy sum": (
        f"{TRITON}/ce_stats.py",
        "(spread + total * step) * shrink",
        "spread * shrink",
    ),
    "mask of columns": (
        f"{TRITON}/ce_stats.py",
        "mask=columns < n_valid",
        "mask=columns < n_valid + 3",
    ),
    "temperature in the statistics": (
        f"{TRITON}/ce_stats.py",
        "PER_TOKEN).to(ACC) * LOG2E",
        "PER_TOKEN).to(ACC) * 0 + LOG2E",
    ),
    "minus one at the target": (
        f"{TRITON}/ce_backward.py",
        "tl.where(columns == local, slope, 0.0)",
        "0.0 * slope",
    ),
    "temperature of the gradient": (
        f"{TRITON}/ce_backward.py",
        "tl.load(d_logp_ptr + row).to(ACC) * scale",
        "tl.load(d_logp_ptr + row).to(ACC)",
    ),
    "entropy in its gradient": (
        f"{TRITON}/ce_backward.py",
        "(offset - tl.log2(total))",
        "(0.0 - tl.log2(total))",
    ),
    "ignored rows": (
        f"{TRITON}/ce_backward.py",
        "kept = target != ignore_index",
        "kept = target == target",
    ),
    "zero padding": (f"{TRITON}/ce_backward.py", "mask=at < n_columns", "mask=at < n_valid"),
    "order of the merge": (
        f"{TRITON}/merge_stats.py",
        "total += part_total * share",
        "total += part_total",
    ),
    "twin: sum": ("kernels/reference.py", "total = (sums * share).sum(0)", "total = sums.sum(0)"),
    "twin: minus one": (
        "kernels/reference.py",
        "torch.where(owned, at_target, torch.zeros_like(at_target))",
        "torch.zeros_like(at_target)",
    ),
    "twin: temperature": ("kernels/reference.py", "below.mul_(scale)", "below.mul_(1.0)"),
    "twin: padding": ("kernels/reference.py", "out[block, spec.n_valid :].zero_()", "pass"),
}


def load_mutant(path: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("what", MUTATIONS)
def test_mutants_are_killed(kernels, oracle, repository, tmp_path, what):
    """Dropping any one of these terms must make the comparison with the oracle fail; the original
    passes the same comparison."""
    file, code, mutilated = MUTATIONS[what]
    source = (repository / file).read_text()
    assert code in source, f"{file} no longer says {code!r}: update the mutation"
    path = tmp_path / f"mutant_{Path(file).name}"
    path.write_text(source.replace(code, mutilated))
    mutant = load_mutant(path, f"megaladder_mutant_{path.stem}_{list(MUTATIONS).index(what)}")
    names = ("ce_stats", "merge_stats", "ce_backward")
    original = (
        importlib.import_module("megaladder.kernels.reference") if "reference" in file else kernels
    )
    mixed = SimpleNamespace(
        __name__="triton_kernels",
        **{
            n: getattr(mutant if n in path.stem or "reference" in file else original, n)
            for n in names
        },
    )
    case = random_case(1, 6, 700, torch.float32)
    case["targets"][3] = -100
    unharmed = SimpleNamespace(
        __name__="triton_kernels", **{n: getattr(original, n) for n in names}
    )
    check_against_oracle(
        unharmed, oracle, dict(case, logits=case["logits"].clone()), [300, 400], padding=5
    )
    with pytest.raises(AssertionError):
        check_against_oracle(
            mixed, oracle, dict(case, logits=case["logits"].clone()), [300, 400], padding=5
        )
