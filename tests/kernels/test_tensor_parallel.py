"""Two gloo ranks: values, gradients and the number of collectives of the loss head, against one
rank that holds the whole vocabulary."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megaladder.kernels.linear_logprob import linear_logprob
from megaladder.kernels.linear_loss import TokenTerms, linear_loss
from megaladder.kernels.shard import TensorParallel, valid_columns
from megaladder.kernels.vocab_logprob import vocab_logprob

TOKENS, HIDDEN, VOCAB = 24, 8, 37
# stored columns of each rank; 37 are valid in all
WIDTHS = {"even": (20, 20), "uneven": (29, 8), "empty": (37, 6)}
GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
SCATTER = (
    "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
)
COLLECTIVES = (GATHER, SCATTER, "all_reduce", "all_gather", "broadcast", "all_to_all_single")


def _data() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    data = {
        "hidden": torch.randn(TOKENS, HIDDEN, dtype=torch.float64, generator=random),
        "weight": torch.randn(48, HIDDEN, dtype=torch.float64, generator=random),
        "targets": torch.randint(0, VOCAB, (TOKENS,), generator=random),
        "scale": torch.rand(TOKENS, dtype=torch.float64, generator=random) + 0.5,
        "g": torch.randn(TOKENS, dtype=torch.float64, generator=random),
        "h": torch.randn(TOKENS, dtype=torch.float64, generator=random),
        "old": -3.0 + torch.randn(TOKENS, dtype=torch.float64, generator=random),
    }
    data["targets"][:8] = torch.tensor([0, 19, 20, 28, 29, 36, -100, -100])  # shard edges
    data["g"][8:11], data["h"][8:11] = 0.0, 0.0
    return data


def clipped_loss(d: dict[str, torch.Tensor]):
    """Weighted, clipped ratio with an entropy bonus; ignored tokens weigh nothing."""
    weight = d["scale"] * (d["targets"] >= 0)

    def terms(logp, entropy, block) -> TokenTerms:
        with torch.enable_grad():
            leaves = [values.detach().requires_grad_() for values in (logp, entropy)]
            ratio = (leaves[0] - d["old"][block]).exp()
            objective = torch.minimum(ratio * d["g"][block], ratio.clamp(0.8, 1.28) * d["g"][block])
            loss = -(weight[block] * (objective + 0.01 * leaves[1])).sum()
            return TokenTerms(loss.detach(), *torch.autograd.grad(loss, leaves))

    return terms


def _run(
    tp: TensorParallel | None, start: int, width: int, sequence_parallel: bool = False
) -> dict[str, torch.Tensor]:
    """Every head on one shard; returns values and gradients."""
    d = _data()
    v_valid = max(0, min(width, VOCAB - start))
    shared = {"tp": tp, "n_valid": v_valid, "inv_temperature": d["scale"]}
    out: dict[str, torch.Tensor] = {}
    logits = (d["hidden"] @ d["weight"][start : start + width].t()).requires_grad_()
    got = vocab_logprob(logits, d["targets"], entropy="grad", **shared)
    (got.logp * d["g"] + got.entropy * d["h"]).sum().backward()
    out |= {"v_logp": got.logp, "v_entropy": got.entropy, "v_grad": logits.grad}

    share = TOKENS // tp.size if sequence_parallel else TOKENS
    mine = slice(tp.rank * share, (tp.rank + 1) * share) if sequence_parallel else slice(None)
    options = {**shared, "scratch_bytes": 8 * 48 * 7, "sequence_parallel": sequence_parallel}
    hidden, weight = (
        d["hidden"][mine].clone().requires_grad_(),
        d["weight"][start : start + width].clone().requires_grad_(),
    )
    got = linear_logprob(hidden, weight, d["targets"], entropy="grad", **options)
    (got.logp * d["g"] + got.entropy * d["h"]).sum().backward()
    out |= {"l_logp": got.logp, "l_hidden": hidden.grad, "l_weight": weight.grad}

    hidden, weight = (
        d["hidden"][mine].clone().requires_grad_(),
        d["weight"][start : start + width].clone().requires_grad_(),
    )
    factor = torch.tensor(2.5, dtype=torch.float64)
    loss = linear_loss(
        hidden, weight, d["targets"], clipped_loss(d), factor=factor, entropy="grad", **options
    )
    loss.backward()
    out |= {"p_loss": loss, "p_hidden": hidden.grad, "p_weight": weight.grad}
    return {name: value.detach() for name, value in out.items()}


def _count_collectives(call) -> dict[str, int]:
    counts = dict.fromkeys(COLLECTIVES, 0)
    originals = {name: getattr(dist, name) for name in COLLECTIVES}

    def counting(name):
        def wrapper(*args, **kwargs):
            counts[name] += 1
            return originals[name](*args, **kwargs)

        return wrapper

    for name in COLLECTIVES:
        setattr(dist, name, counting(name))
    try:
        call()
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return {name: count for name, count in counts.items() if count}


def _counts(tp: TensorParallel) -> dict[str, dict[str, int]]:
    d, start = _data(), tp.vocab_start
    plain = {"tp": tp, "n_valid": valid_columns(VOCAB, 20, tp), "inv_temperature": 1.0}

    def leaf(name: str) -> torch.Tensor:
        return (
            (d["weight"][start : start + 20] if name == "weight" else d["hidden"])
            .clone()
            .requires_grad_()
        )

    def materialised():
        logits = (d["hidden"] @ leaf("weight").t()) * 1
        got = vocab_logprob(logits, d["targets"], entropy="grad", **plain)
        (got.logp + got.entropy).sum().backward()

    def linear(sequence_parallel: bool):
        hidden = leaf("hidden").detach()
        hidden = (
            (hidden.chunk(2)[tp.rank] if sequence_parallel else hidden).clone().requires_grad_()
        )
        got = linear_logprob(
            hidden,
            leaf("weight"),
            d["targets"],
            sequence_parallel=sequence_parallel,
            scratch_bytes=1300,
            **plain,
        )
        got.logp.sum().backward()

    return {
        "vocab": _count_collectives(materialised),
        "linear": _count_collectives(lambda: linear(False)),
        "linear_sp": _count_collectives(lambda: linear(True)),
    }


def _all_ignored(tp: TensorParallel) -> float:
    """Micro-batches without a single target happen; ranks must still agree on their collectives."""
    d = _data()
    hidden, weight = (
        d["hidden"].clone().requires_grad_(),
        d["weight"][tp.vocab_start : tp.vocab_start + 20].clone().requires_grad_(),
    )
    targets = torch.full((TOKENS,), -100)
    valid = valid_columns(VOCAB, 20, tp)
    linear_logprob(hidden, weight, targets, tp=tp, n_valid=valid).logp.sum().backward()
    rows = torch.arange(0)
    everything = {"tp": tp, "n_valid": valid, "entropy": "grad", "rows": rows}
    linear_loss(hidden, weight, targets, clipped_loss(d), **everything).backward()
    linear_logprob(hidden, weight, targets, **everything).logp.sum().backward()
    return hidden.grad.abs().sum().item() + weight.grad.abs().sum().item()


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    # a file instead of a port, which another process could take in between
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    results = {}
    for name, widths in WIDTHS.items():
        start = 0 if rank == 0 else widths[0]
        results[name] = _run(
            TensorParallel(dist.group.WORLD, rank, 2, start, widest=max(widths)),
            start,
            widths[rank],
        )
    start = rank * 20
    results["sequence_parallel"] = _run(
        TensorParallel(dist.group.WORLD, rank, 2, start), start, 20, sequence_parallel=True
    )
    results["ignored"] = _all_ignored(TensorParallel.even(dist.group.WORLD, 20))
    results["counts"] = _counts(TensorParallel.even(dist.group.WORLD, 20))
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(_worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    return _run(None, 0, VOCAB)


@pytest.mark.parametrize("case", [*WIDTHS, "sequence_parallel"])
def test_two_ranks_equal_one_in_values_and_gradients(ranks, whole, case):
    """float64, so agreement means 1e-12: log-prob, entropy, loss; d logits, d hidden,
    d weight."""
    widths = WIDTHS.get(case, (20, 20))
    for rank in (0, 1):
        got = ranks[rank][case]
        for name in ("v_logp", "v_entropy", "l_logp", "p_loss"):
            torch.testing.assert_close(
                got[name], whole[name], rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
            )
        for name in ("l_hidden", "p_hidden"):
            expected = whole[name].chunk(2)[rank] if case == "sequence_parallel" else whole[name]
            torch.testing.assert_close(
                got[name], expected, rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
            )
    for name, dim in (("v_grad", 1), ("l_weight", 0), ("p_weight", 0)):
        joined = torch.cat([ranks[0][case][name], ranks[1][case][name]], dim)
        torch.testing.assert_close(joined.narrow(dim, 0, VOCAB), whole[name], rtol=0, atol=1e-12)
        assert joined.shape[dim] == sum(widths)
        assert torch.count_nonzero(joined.narrow(dim, VOCAB, sum(widths) - VOCAB)) == 0, (
            "padding columns must get exactly zero"
        )


def test_no_target_at_all_gives_zero_gradients_on_every_rank(ranks):
    assert [rank["ignored"] for rank in ranks] == [0.0, 0.0]


def test_collectives_are_one_gather_forward_and_one_reduction_backward(ranks):
    """vocab_logprob: 1 in all. linear: + d hidden once. Sequence parallelism: + hidden gathered
    once."""
    for counts in (ranks[0]["counts"], ranks[1]["counts"]):
        assert counts["vocab"] == {GATHER: 1}
        assert counts["linear"] == {GATHER: 1, "all_reduce": 1}
        assert counts["linear_sp"] == {GATHER: 2, SCATTER: 1}
