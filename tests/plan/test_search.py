"""The search: layouts divide the model, fit, and are ranked; what is said when none does; the
shipped recipes are its answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megaladder.config.grpo import GrpoConfig
from megaladder.config.resolve import from_yaml
from megaladder.config.rules.layout import shape_problems
from megaladder.config.sft import SftConfig
from megaladder.errors import ConfigError
from megaladder.plan.grpo import Round
from megaladder.plan.hardware import find_gpu, find_model
from megaladder.plan.layout import PlannedLayout, Work
from megaladder.plan.search import Pins, Task, predict, search
from megaladder.tools.study.plan_page import grpo_task, sft_task

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "configs"
TASK = Task(find_model("Qwen3-14B"), find_gpu("h200"), 16, Work(8192, 256))


def test_every_layout_divides_fits_and_uses_all_gpus() -> None:
    plans = search(TASK)
    assert len(plans) > 50
    assert len({plan.layout for plan in plans}) == len(plans)
    for plan in plans:
        layout = plan.layout
        assert layout.gpus == 16
        assert shape_problems(TASK.shape, layout.tp, layout.pp, layout.vpp) == []
        assert layout.tp <= TASK.gpu.gpus_per_node
        assert (layout.vpp is None) or layout.pp > 1
        assert TASK.work.global_batch_size >= layout.dp
        assert plan.memory.total <= TASK.gpu.memory_bytes
        assert plan == predict(TASK, layout)


def test_ranking_is_by_time_and_among_equals_by_simplicity_and_memory() -> None:
    plans = search(TASK)
    fastest = min(plan.seconds for plan in plans)
    equal = [plan for plan in plans if plan.seconds <= 1.01 * fastest]
    assert plans[: len(equal)] == sorted(
        equal, key=lambda plan: (plan.layout.chunks, plan.memory.total)
    )
    rest = [plan.seconds for plan in plans[len(equal) :]]
    assert rest == sorted(rest)


def test_pins_are_kept() -> None:
    plans = search(TASK, Pins(tp=4, pp=2, vpp=5, micro_batch_size=2, recompute="full"))
    assert [plan.layout for plan in plans] == [PlannedLayout(4, 2, 5, 1, 2, 2, "full")]


def test_mfu_is_the_logs() -> None:
    """Model FLOPs per token (causal attention) · tokens/s/GPU over the data sheet's bf16 peak, in
    FP8 too."""
    for precision in ("bf16", "fp8"):
        plan = search(replace(TASK, work=Work(8192, 256, precision)))[0]
        assert plan.mfu == pytest.approx(
            TASK.shape.flops_per_token(8192) * plan.tokens_per_s_gpu / 989.4e12
        )


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        (
            Pins(tp=3),
            "--tp 3 does not divide the model's 40 attention heads; fix: tp one of [1, 2, 4, 8]",
        ),
        (Pins(pp=3), "--pp 3 = 3 chunks do not divide the model's 40 layers"),
        (Pins(pp=4, vpp=3), "--pp 4 × vpp 3 = 12 chunks do not divide the model's 40 layers"),
        (Pins(vpp=2, pp=1), "--vpp 2 needs pipeline stages"),
        (Pins(tp=8, pp=4), "tp 8 × pp 4 × cp 1 = 32 does not divide 16 GPUs"),
    ],
)
def test_pins_that_cannot_be(pins: Pins, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        search(TASK, pins)
    assert message in str(error.value)
    assert "fix:" in str(error.value)


def test_a_batch_smaller_than_every_data_parallel_size() -> None:
    with pytest.raises(
        ConfigError,
        match="--global-batch-size 2 is smaller than the data-parallel size of every layout",
    ):
        search(replace(TASK, gpus=4096, work=Work(8192, 2)))


def test_nothing_fits_names_the_shortfall_and_what_helps() -> None:
    tight = Task(find_model("Qwen3-32B"), find_gpu("h100"), 8, Work(20480, 256))
    with pytest.raises(ConfigError) as error:
        search(tight)
    text = str(error.value)
    assert (
        "no layout fits 8 × H100 SXM 80 GB: the nearest (tp 8 pp 1 dp 1 mbs 1 recompute full) needs"
        in text
    )
    assert "GiB short" in text
    fix = text.split("fix: ")[1]
    assert fix.split(" or ") == ["--gpus 16", "--gpu h100-500w", "--seq-length 10240"]
    for change in (
        replace(tight, gpus=16),
        replace(tight, gpu=find_gpu("h200")),
        replace(tight, work=Work(10240, 256)),
    ):
        assert search(change)


def test_a_pinned_size_that_does_not_fit_is_told_to_be_left_open() -> None:
    with pytest.raises(ConfigError, match="leave --tp, --pp"):
        search(replace(TASK, gpus=8), Pins(tp=1, pp=1, cp=1, recompute="none"))


def test_gpus_that_no_pipeline_size_divides() -> None:
    """126 layers: 4,096 GPUs leave two stages at most, which do not fit; 4,088 = 7 stages · 8 · 73
    do, and that is said."""
    task = Task(find_model("Llama-3.1-405B"), find_gpu("h100"), 4096, Work(8192, 2048, "fp8"))
    with pytest.raises(ConfigError, match="fix: --gpus 4088"):
        search(task)
    assert search(replace(task, gpus=4088))


def test_behind_a_longer_generation_the_faster_trainer_comes_first() -> None:
    asked = Round(
        64,
        8,
        1,
        200,
        2000,
        6000,
        8192,
        engine_tp=0,
        engine_gpus=8,
        colocated=False,
        overlapped=True,
    )
    plans = search(Task(TASK.shape, TASK.gpu, 24, asked.update_work(), asked))
    best = plans[0]
    assert best.phases.generation > best.phases.update
    assert best.step.total == min(plan.step.total for plan in plans if plan.seconds == best.seconds)
    assert best.layout.recompute == "none"


def test_context_parallelism_is_tried_where_nothing_fits_without_it(monkeypatch) -> None:
    from megaladder.plan import search as module

    monkeypatch.setattr(module, "context_parallel_sizes", lambda: (1, 2, 4, 8, 16))
    assert {plan.layout.cp for plan in search(TASK)} == {1}
    long = replace(TASK, gpus=64, work=Work(1 << 22, 64))
    assert min(plan.layout.cp for plan in search(long)) > 1
    assert search(TASK, Pins(cp=4))[0].layout.cp == 4


def test_the_shipped_sft_recipe_is_the_plan_for_eight_h200() -> None:
    config = from_yaml(SftConfig, str(EXAMPLES / "sft_qwen3_14b.yaml"))
    best = search(sft_task(8))[0].layout
    parallel = config.parallel
    assert (parallel.tp, parallel.pp, parallel.vpp, parallel.cp, parallel.ranks) == (
        best.tp,
        best.pp,
        best.vpp,
        best.cp,
        8,
    )
    assert (config.train.micro_batch_size, config.train.recompute) == (
        best.micro_batch_size,
        best.recompute,
    )
    assert (config.data.seq_length, config.train.global_batch_size) == (20480, 256)


def test_the_shipped_grpo_recipe_is_the_plan_for_eight_h200() -> None:
    config, task = from_yaml(GrpoConfig, str(EXAMPLES / "grpo_qwen3_14b.yaml")), grpo_task(8)
    plan = search(task)[0]
    best, parallel = plan.layout, config.parallel
    assert (parallel.tp, parallel.pp, parallel.vpp, parallel.cp, parallel.ranks) == (
        best.tp,
        best.pp,
        best.vpp,
        best.cp,
        8,
    )
    assert (config.train.micro_batch_size, config.train.recompute) == (
        best.micro_batch_size,
        best.recompute,
    )
    assert config.rollout.tp == plan.engine_tp
    asked = (
        task.round.prompts,
        task.round.n,
        task.round.mini_batches,
        task.round.max_response_length,
        task.round.seq_length,
    )
    assert (
        config.grpo.prompts_per_step,
        config.rollout.n,
        config.grpo.mini_batches,
        config.rollout.max_tokens,
        config.data.seq_length,
    ) == asked
