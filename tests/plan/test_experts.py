"""What layers with experts take, against hand arithmetic: products, all-to-all, permutation, floor;
layouts that the search finds for them; the shipped recipes fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megaladder.cli import main
from megaladder.config.grpo import GrpoConfig
from megaladder.config.resolve import from_yaml
from megaladder.config.sft import SftConfig
from megaladder.errors import ConfigError
from megaladder.plan.experts import ExpertCalibration, sent_bytes
from megaladder.plan.hardware import find_gpu, find_model
from megaladder.plan.layout import OURS, PlannedLayout, Work
from megaladder.plan.search import Pins, Task, predict, search
from megaladder.plan.throughput import Calibration, Cluster, StepTime, step_time
from megaladder.preflight.check import planned

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "configs"
SHAPE, H200 = find_model("Qwen3-30B-A3B"), find_gpu("h200")
PERFECT = Calibration(1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0)
EXPERTS = ExpertCalibration(1.0, 1.0, 0.0, 1.0, 0.0)
MACHINE = Cluster(H200, OURS, PERFECT, EXPERTS)
WORK = Work(seq_length=4096, global_batch_size=8)  # one micro-batch a rank
LAYOUT = PlannedLayout(dp=8, ep=8)


def time_of(layout: PlannedLayout = LAYOUT, work: Work = WORK, **software: bool) -> StepTime:
    return step_time(SHAPE, layout, work, replace(MACHINE, software=replace(OURS, **software)))


def test_products_are_those_of_active_weights() -> None:
    """6 FLOPs for each weight that a token meets, and every operand through the memory: an expert's
    2,048 of the 32,768 tokens that 8 ranks send to 16 of 128."""
    tokens, each = 4096, 4096 * 8 * 8 // 128
    attention = [(2048, 5120), (4096, 2048)]
    expert = [(2048, 1536), (768, 2048)]
    matrices = sum(a * b for a, b in attention) + 8 * sum(a * b for a, b in expert)
    flops = 6 * 48 * tokens * matrices / H200.matmul("bf16")
    router = 6 * 48 * tokens * 2048 * 128 / H200.matmul("fp32")

    def moved(rows: int, sizes: list[tuple[int, int]]) -> int:
        return sum(2 * (rows * a + a * b + rows * b) for a, b in sizes)

    per_layer = moved(tokens, attention) + 16 * moved(each, expert) + moved(tokens, [(2048, 128)])
    assert time_of().gemm == pytest.approx(flops + router + 3 * 48 * per_layer / 4.8e12, rel=1e-9)


def test_all_to_all_by_hand() -> None:
    """t·K·H in bf16, four times a layer (there and back, and their gradients), 7/8 of it over
    NVLink; at ep 16 half of it over the network, which takes longer."""
    whole = sent_bytes(SHAPE, LAYOUT, WORK)
    assert whole == 2 * 4096 * 8 * 2048
    assert time_of().ep_comm == pytest.approx(4 * 48 * whole * 7 / 8 / 450e9)
    two_nodes = PlannedLayout(dp=16, ep=16)
    work = replace(WORK, global_batch_size=16)
    assert time_of(two_nodes, work).ep_comm == pytest.approx(4 * 48 * whole / 2 / 50e9)
    # once for the other node instead of for each expert there
    fused = time_of(two_nodes, work, fused_dispatch=True).ep_comm
    assert fused == pytest.approx(4 * 48 * whole * (1 - 0.5**8) / 8 / 50e9)
    assert time_of(PlannedLayout(dp=8)).ep_comm == 0
    again = time_of(replace(LAYOUT, recompute="full")).ep_comm
    assert again == pytest.approx(time_of().ep_comm * 3 / 2)


def test_tensor_parallel_ranks_route_their_own_tokens() -> None:
    """tp 2, one micro-batch for two ranks: half the tokens each, so half the bytes; the experts'
    part asks for no gather of [T, H] (a dense layer asks for twice as many)."""
    layout = PlannedLayout(tp=2, dp=4, ep=8)
    assert sent_bytes(SHAPE, layout, WORK) == sent_bytes(SHAPE, LAYOUT, WORK) / 2
    work = replace(WORK, global_batch_size=4)
    whole = 2 * 4096 * 2048
    assert time_of(layout, work).tp_comm == pytest.approx(48 * 5 * whole / 2 / 450e9)


def test_a_busy_rank_and_a_waiting_one() -> None:
    """Half as many tokens again on the busiest rank: half as many bytes again. Below the floor the
    layer takes the floor, and more of it under overlap."""
    busy = time_of(work=replace(WORK, imbalance=1.5))
    assert busy.ep_comm == pytest.approx(1.5 * time_of().ep_comm)
    assert busy.gemm > 1.2 * time_of().gemm
    slow = replace(MACHINE, fitted_experts=replace(EXPERTS, host_s=0.1, overlap_host=1.5))
    step = step_time(SHAPE, LAYOUT, WORK, slow)
    parts = step.by_part()
    layers = sum(parts[name] for name in ("gemm", "attention", "elementwise", "ep_comm"))
    assert layers + parts["overhead"] == pytest.approx(48 * 0.1)
    overlapped = replace(slow, software=replace(OURS, ep_overlap=True))
    assert step_time(SHAPE, LAYOUT, WORK, overlapped).total > step.total
    assert step_time(SHAPE, LAYOUT, WORK, MACHINE).overhead == 0


def test_search_shares_experts_out_and_names_what_does_not_divide() -> None:
    task = Task(SHAPE, H200, 8, Work(8192, 64))
    best = search(task)[0]
    assert best.layout.ep > 1 and best.layout.gpus == 8
    assert {plan.layout.ep for plan in search(task, Pins(ep=4))} == {4}
    for plan in search(task):
        assert plan.layout.tp * plan.layout.dp % plan.layout.ep == 0
        assert plan == predict(task, plan.layout)
    with pytest.raises(ConfigError, match=r"--ep 3 .* 128 experts.*; fix:"):
        search(task, Pins(ep=3))
    with pytest.raises(ConfigError, match=r"--ep 16 .* 8 GPUs of a pipeline stage; fix:"):
        search(task, Pins(ep=16))


@pytest.mark.parametrize(("name", "ranks"), [("sft", 8), ("sft", 16), ("grpo", 8), ("grpo", 16)])
def test_the_shipped_recipes_fit_h200(name: str, ranks: int) -> None:
    """With the activations of their full rows; under GRPO the engine sleeps beside them."""
    kind = {"sft": SftConfig, "grpo": GrpoConfig}[name]
    config = from_yaml(kind, str(EXAMPLES / f"{name}_qwen3_30b_a3b.yaml"))
    layout, work, software = planned(config, SHAPE, ranks, "bf16")
    assert (layout.ep, layout.gpus) == (8, ranks)
    task = Task(SHAPE, H200, ranks, work, None, name == "grpo", software)
    found = predict(task, layout)
    assert found.memory.total <= 0.9 * H200.memory_bytes
    assert found.memory.states / 1024**3 == pytest.approx(71.5 if ranks == 8 else 50.2, abs=0.5)
    # and the engine's weights and cache beside the trainer's states, as the recipe shares them out
    if isinstance(config, GrpoConfig):
        share = config.rollout.gpu_memory_utilization * H200.memory_bytes
        assert found.memory.states + share <= H200.memory_bytes
        assert share > 2 * SHAPE.num_parameters / config.rollout.tp


def test_plan_says_what_is_active_and_what_it_takes_for_granted(capsys) -> None:
    ask = ["plan", "--model", "Qwen3-30B-A3B", "--gpus", "8", "--seq-length", "8192"]
    assert main([*ask, "--global-batch-size", "64", "--top", "3"]) == 0
    said = capsys.readouterr().out
    assert "30.53 G parameters, 3.35 G active" in said and "ep_comm" in said
    assert "--imbalance" in said
    assert main([*ask, "--global-batch-size", "64", "--imbalance", "1.3", "--ep", "8"]) == 0
    assert "note: every expert" not in capsys.readouterr().out
    dense = ["plan", "--model", "Qwen3-8B", "--gpus", "8", "--seq-length", "8192", "--ep", "2"]
    assert main([*dense, "--global-batch-size", "64"]) == 2
    assert "--ep 2 is read for a mixture of experts only" in capsys.readouterr().err
