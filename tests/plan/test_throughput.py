"""The time model against hand arithmetic: FLOPs, bubble, traffic, monotonicity; GRPO phases."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from megaladder.errors import ConfigError
from megaladder.plan.grpo import (
    GrpoCalibration,
    Round,
    generation_time,
    kv_bytes_per_token,
    round_time,
)
from megaladder.plan.hardware import find_gpu, find_model, gpus
from megaladder.plan.layout import SOFTWARE, PlannedLayout, Work
from megaladder.plan.throughput import Calibration, Cluster, bubble_share, forward_time, step_time

PERFECT = Calibration(
    gemm_bf16=1.0,
    gemm_fp8=1.0,
    attention=1.0,
    memory=1.0,
    link=1.0,
    overlap=0.0,
    tp_overlap=0.0,
    layer_overhead_s=0.0,
    eager=1.0,
)
SHAPE, H200 = find_model("Qwen3-14B"), find_gpu("h200")
WORK = Work(seq_length=4096, global_batch_size=64)
MACHINE = Cluster(H200, fitted=PERFECT)


def test_products_take_their_flops_and_their_bytes() -> None:
    """One GPU, 64 rows of 4,096: 6 FLOPs a layer parameter and token at the measured peak, and
    every operand through the memory once."""
    part = step_time(SHAPE, PlannedLayout(), WORK, MACHINE).gemm
    matrices = 40 * (2 * 5120 * 5120 + 2 * 5120 * 1024 + 3 * 5120 * 17408)
    flops = 6 * matrices * WORK.tokens / H200.matmul("bf16")
    widths = [(5120, 7168), (5120, 5120), (5120, 34816), (17408, 5120)]
    moved = sum(2 * (4096 * a + a * b + 4096 * b) for a, b in widths) * 3 * 40 * 64 / 4.8e12
    assert part == pytest.approx(flops + moved, rel=1e-9)


def test_recompute_and_lora_change_products_as_they_should() -> None:
    plain, again, lora = (
        step_time(SHAPE, PlannedLayout(recompute=mode), replace(WORK, lora=frozen), MACHINE)
        for mode, frozen in (("none", False), ("full", False), ("none", True))
    )
    assert again.gemm == pytest.approx(plain.gemm * 4 / 3)
    assert again.head == plain.head
    assert lora.gemm == pytest.approx(plain.gemm * 2 / 3)
    assert (lora.dp_comm, lora.optimizer) == (0, 0)
    core = step_time(SHAPE, PlannedLayout(recompute="selective"), WORK, MACHINE)
    assert (core.gemm, core.attention) == (plain.gemm, pytest.approx(plain.attention * 4.5 / 3.5))


def test_attention_follows_the_samples_not_the_rows() -> None:
    """Packed samples attend to themselves only: 2 · T · context · A FLOPs forward, 2.5 times that
    backward."""
    whole, packed = (
        step_time(
            SHAPE,
            PlannedLayout(),
            replace(WORK, global_batch_size=count, sample_length=length),
            MACHINE,
        )
        for count, length in ((64, None), (256, 1024))
    )
    assert whole.gemm == packed.gemm
    assert whole.attention == pytest.approx(4 * packed.attention)
    assert whole.attention == pytest.approx(3.5 * 2 * 64 * 4096 * 4096 * 5120 * 40 / 740e12)


@pytest.mark.parametrize(
    ("pp", "vpp", "count", "share"),
    [(1, None, 8, 0), (4, None, 8, 3 / 8), (4, 5, 8, 3 / 40), (8, 10, 64, 7 / 640)],
)
def test_bubble_formula(pp: int, vpp: int | None, count: int, share: float) -> None:
    assert bubble_share(pp, vpp, count) == pytest.approx(share)


def test_the_bubble_is_that_share_of_a_step() -> None:
    step = step_time(SHAPE, PlannedLayout(pp=4, dp=2), WORK, MACHINE)
    busy = step.total - step.bubble - step.dp_comm - step.optimizer
    assert step.bubble == pytest.approx(busy * 3 / 32)


def test_micro_batches_round_up_to_what_the_pipeline_takes() -> None:
    assert Work(4096, 100).micro_batches(PlannedLayout(dp=8)) == 13
    assert Work(4096, 100).micro_batches(PlannedLayout(dp=8, pp=4, vpp=2)) == 16
    assert Work(4096, 100, sample_length=1024).micro_batches(PlannedLayout(dp=8)) == 4


def test_tensor_parallel_traffic_by_hand() -> None:
    """Four collectives forward, four backward and two more for weight gradients, each 3/4 of T·H·2
    bytes over NVLink."""
    step = step_time(SHAPE, PlannedLayout(tp=4), WORK, MACHINE)
    assert step.tp_comm == pytest.approx(10 * 40 * 64 * 0.75 * 2 * 4096 * 5120 / 450e9)
    machine = replace(
        MACHINE, software=SOFTWARE["megatron"], fitted=replace(PERFECT, tp_overlap=0.8)
    )
    overlapped = step_time(SHAPE, PlannedLayout(tp=4), WORK, machine)
    assert overlapped.tp_comm == pytest.approx(step.tp_comm * 0.2)


def test_data_parallel_traffic_crosses_the_network_with_all_adapters_of_a_node() -> None:
    """fp32 gradients out, bf16 parameters in: 6 bytes a parameter. Eight GPUs a node share eight
    adapters; one GPU of eight brings one."""
    inside, across = (
        step_time(SHAPE, PlannedLayout(dp=dp), replace(WORK, global_batch_size=64), MACHINE).dp_comm
        for dp in (8, 64)
    )
    assert inside == pytest.approx(6 * SHAPE.num_parameters * 7 / 8 / 450e9)
    bandwidth_only = 6 * SHAPE.num_parameters * 63 / 64 / 400e9
    assert bandwidth_only < across < 1.3 * bandwidth_only
    assert H200.link_bytes_per_s(64, 8) == 50e9
    assert H200.link_bytes_per_s(64, 2) == 200e9
    assert H200.link_bytes_per_s(8, 1) == 450e9


def test_more_gpus_make_a_step_shorter_and_never_more_efficient() -> None:
    work = Work(8192, 4096)
    steps = [
        step_time(SHAPE, PlannedLayout(tp=2, dp=gpus // 2), work, Cluster(H200)).total
        for gpus in (8, 16, 64, 256, 1024, 4096)
    ]
    assert steps == sorted(steps, reverse=True)
    spent = [
        seconds * count for seconds, count in zip(steps, (8, 16, 64, 256, 1024, 4096), strict=True)
    ]
    assert spent == sorted(spent)


@pytest.mark.parametrize("change", [{"seq_length": 8192}, {"global_batch_size": 128}])
def test_more_work_takes_longer(change: dict) -> None:
    assert (
        step_time(SHAPE, PlannedLayout(tp=4, pp=2), replace(WORK, **change), Cluster(H200)).total
        > step_time(SHAPE, PlannedLayout(tp=4, pp=2), WORK, Cluster(H200)).total
    )


def test_fp8_is_faster_on_products_only() -> None:
    bf16, fp8 = (
        step_time(SHAPE, PlannedLayout(), replace(WORK, precision=precision), Cluster(H200))
        for precision in ("bf16", "fp8")
    )
    assert 1.5 < bf16.gemm / fp8.gemm < 2.0
    assert (fp8.attention, fp8.head) == (bf16.attention, bf16.head)
    assert fp8.elementwise > bf16.elementwise  # the casts
    with pytest.raises(ConfigError, match="no FP8 units"):
        step_time(SHAPE, PlannedLayout(), replace(WORK, precision="fp8"), Cluster(find_gpu("a800")))


def test_a_forward_pass_is_about_a_third() -> None:
    step = step_time(SHAPE, PlannedLayout(dp=8), WORK, MACHINE)
    share = forward_time(SHAPE, PlannedLayout(dp=8), WORK, MACHINE) / (
        step.gemm + step.attention + step.elementwise + step.head
    )
    assert 0.3 < share < 0.36


def test_hardware_is_consistent_and_agrees_with_the_trainers_mfu() -> None:
    from megaladder.platform import _PEAK_FLOPS

    for name, gpu in gpus().items():
        assert gpu.source
        assert 0.7 < gpu.matmul_bf16_tflops / gpu.bf16_tflops < 0.9, name
        assert gpu.flash2_tflops <= gpu.attention_tflops < gpu.bf16_tflops
    for name in ("H100", "H200", "B200"):
        assert find_gpu(name).peak("bf16") == pytest.approx(_PEAK_FLOPS[name], rel=1e-3)


ROUND = Round(
    prompts=64,
    n=16,
    mini_batches=4,
    prompt_length=200,
    response_length=2000,
    max_response_length=8000,
    seq_length=8192,
    engine_tp=2,
    engine_gpus=8,
)
RL = GrpoCalibration(decode_memory=1.0, decode_step_s=0.0, tail=3.0, update=1.0, round_s=0.0)


def test_generation_by_hand() -> None:
    """4 engines of TP2, 256 completions each: 3 · 2,000 steps that read the weights, and every
    token its keys, values and FLOPs."""
    assert kv_bytes_per_token(SHAPE) == 2 * 2 * 40 * 8 * 128
    budget = 400e9  # all completions fit at once
    steps = 6000 * (2 * SHAPE.num_parameters / 2 / 4.8e12 + 2 * 40 * 1e-5)
    tokens = 256 * 2000
    reads = tokens * (200 + 1000) * kv_bytes_per_token(SHAPE) / 2 / 4.8e12
    flops = (tokens + 16 * 200) * 2 * SHAPE.num_parameters / 2 / H200.matmul("bf16")
    assert generation_time(SHAPE, ROUND, MACHINE, budget, RL) == pytest.approx(
        steps + reads + flops, rel=1e-9
    )
    cut = replace(ROUND, max_response_length=3000)
    assert generation_time(SHAPE, cut, MACHINE, budget, RL) == pytest.approx(
        steps / 2 + reads + flops, rel=1e-9
    )


def test_generation_runs_in_turns_when_the_cache_is_small() -> None:
    roomy, tight = (generation_time(SHAPE, ROUND, MACHINE, budget, RL) for budget in (400e9, 60e9))
    assert tight > roomy
    with pytest.raises(ConfigError, match="no room"):
        generation_time(SHAPE, ROUND, MACHINE, 15e9, RL)


def test_round_phases_add_up_and_overlap_hides_the_shorter_side() -> None:
    layout = PlannedLayout(tp=2, dp=4)
    turns = round_time(SHAPE, layout, ROUND, MACHINE, 60e9, RL)
    assert turns.total == pytest.approx(sum(getattr(turns, field.name) for field in fields(turns)))
    assert turns.waiting == 0
    assert turns.update == pytest.approx(
        4 * step_time(SHAPE, layout, ROUND.update_work(), MACHINE).total
    )
    beside = round_time(SHAPE, layout, replace(ROUND, overlapped=True), MACHINE, 60e9, RL)
    assert beside.total == pytest.approx(
        max(turns.generation, turns.update + turns.logprobs) + beside.sync + beside.other
    )
    assert replace(ROUND, logprob_passes=2).samples == 1024
