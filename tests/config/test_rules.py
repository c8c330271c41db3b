"""Cross-field rules: each violation is refused with the values and a fix that really is one."""

from __future__ import annotations

from math import lcm

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from megaladder.config.grpo import GrpoConfig
from megaladder.config.rules.layout import (
    batch_line,
    batch_problems,
    check_world,
    data_parallel_size,
    validate_layout,
)
from megaladder.config.sft import SftConfig
from megaladder.errors import ConfigError
from megaladder.plan.hardware import find_model

REQUIRED = {"model": {"path": "m"}, "data": {"path": "d"}}
QWEN3_14B = find_model("Qwen3-14B")


def sft(**sections: dict) -> SftConfig:
    return SftConfig(
        **{
            name: {**REQUIRED.get(name, {}), **sections.get(name, {})}
            for name in {*REQUIRED, *sections}
        }
    )


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"path": ""}}, "model.path is empty"),
        ({"data": {"path": ""}}, "data.path is empty"),
        ({"parallel": {"vpp": 2}}, "fix: pp ≥ 2, or vpp null"),
        (
            {"parallel": {"tp": 3}},
            (
                "data.seq_length 2048 is not a multiple of tp 3, which sequence_parallel needs;"
                " fix: seq_length 2049"
            ),
        ),
        (
            {"parallel": {"tp": 2, "pp": 2, "ranks": 6}},
            "parallel.ranks 6 is not a multiple of tp 2 × pp 2 × cp 1 = 4; fix: ranks 8",
        ),
        ({"parallel": {"ranks": 64}}, "train.global_batch_size 32 is smaller than dp 64"),
        (
            {
                "parallel": {"ranks": 4},
                "data": {"packing": False},
                "train": {"global_batch_size": 30, "micro_batch_size": 2},
            },
            (
                "size 30 is not a multiple of dp 4 × micro_batch_size 2 = 8 (data.packing is off);"
                " fix: global_batch_size 24 or 32"
            ),
        ),
        ({"optim": {"min_lr": 1.0}}, "optim.min_lr 1 is above optim.lr 5e-05"),
        (
            {"optim": {"schedule": "wsd", "warmup_ratio": 0.5, "wsd_decay_ratio": 0.6}},
            "take more than all steps",
        ),
        ({"optim": {"warmup_steps": 9}, "train": {"max_steps": 8}}, "fix: fewer warm-up steps"),
        ({"data": {"holdout": 0.6}}, "fix: a share in (0, 0.5]"),
        ({"data": {"holdout": 0}}, "data.holdout 0 holds nothing out"),
        ({"train": {"eval_every": 5}}, "train.eval_every 5 needs data.holdout"),
        ({"checkpoint": {"keep_best": 1}}, "checkpoint.keep_best 1 needs a held-out loss"),
        (
            {"checkpoint": {"keep_steps": [0, 5]}},
            "checkpoint.keep_steps [0]: steps are counted from 1",
        ),
    ],
)
def test_refused_with_a_fix(sections: dict, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        sft(**sections)
    assert message in str(caught.value)
    assert "fix:" in str(caught.value)


def test_every_violation_is_listed() -> None:
    with pytest.raises(ValidationError) as caught:
        SftConfig(parallel={"vpp": 2, "tp": 3}, train={"eval_every": 1})
    assert sum("fix:" in line for line in str(caught.value).splitlines()) == 5


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rollout": {"n": 1}}, "groups of one"),
        (
            {"grpo": {"mini_batches": 3}},
            "grpo.mini_batches 3 does not divide prompts_per_step 16 × n 16 = 256",
        ),
        ({"rollout": {"max_tokens": 2048}}, "leaves no room for a prompt"),
        ({"rollout": {"temperature": 0}}, "a temperature above 0"),
        ({"rollout": {"engine": "replay"}}, "needs rollout.replay_dir"),
        ({"grpo": {"correction_low": 2.5}}, "is not below correction_high 2"),
        (
            {"reward": {"terms": [{"name": "overlong", "tokens": 600}]}},
            "reward.terms overlong 600 tokens is more than rollout.max_tokens 512",
        ),
        ({"reward": {"terms": ["a.py:f", "b.py:f"]}}, "reward.terms has f more than once"),
        ({"reward": {"terms": []}}, "reward.terms is empty"),
        ({"parallel": {"vpp": 2}}, "fix: pp ≥ 2"),
    ],
)
def test_grpo_refused_with_a_fix(sections: dict, message: str) -> None:
    with pytest.raises(ValidationError, match="fix:") as caught:
        GrpoConfig(**REQUIRED, **sections)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (
            {"tp": 16},
            (
                "parallel.tp 16 does not divide the model's 40 attention heads; fix: tp one of [1,"
                " 2, 4, 8]"
            ),
        ),
        (
            {"tp": 5, "sequence_parallel": False},
            "does not divide the model's 8 key/value groups; fix: tp one of [1, 2, 4, 8]",
        ),
        (
            {"pp": 3},
            (
                "parallel.pp 3 = 3 chunks do not divide the model's 40 layers; fix: pp·vpp one of"
                " [1, 2, 4, 5, 8, 10, 20, 40]"
            ),
        ),
        (
            {"pp": 4, "vpp": 3},
            "parallel.pp 4 × vpp 3 = 12 chunks do not divide the model's 40 layers",
        ),
    ],
)
def test_layouts_that_do_not_fit_the_model(parallel: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_layout(sft(parallel=parallel), QWEN3_14B)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "parallel", [{"tp": 4, "pp": 2}, {"tp": 8}, {"pp": 4, "vpp": 5}, {"tp": 2, "pp": 8}]
)
def test_layouts_that_fit(parallel: dict) -> None:
    validate_layout(sft(parallel=parallel), QWEN3_14B)


def test_world_size_and_batch_arithmetic() -> None:
    config = sft(
        parallel={"tp": 2},
        data={"packing": False},
        train={"global_batch_size": 256, "micro_batch_size": 2},
    )
    assert check_world(config, 8) == data_parallel_size(config, 8) == 4
    assert batch_line(config, 8) == "global batch 256 = dp 4 × micro 2 × accum 32"
    with pytest.raises(ConfigError, match="start 8 ranks"):
        check_world(config, 7)
    with pytest.raises(
        ConfigError,
        match=r"parallel\.ranks is 4, but 8 ranks were started; fix: --parallel\.ranks 8",
    ):
        check_world(sft(parallel={"ranks": 4}), 8)
    assert "as they fill" in batch_line(sft(), 1)


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_batch_rule_is_exact_and_its_fix_works(
    global_batch: int, micro: int, dp: int, packing: bool
) -> None:
    problems = batch_problems(global_batch, micro, dp, packing)
    assert bool(problems) == (
        (global_batch < dp) if packing else (global_batch % lcm(dp * micro) != 0)
    )
    if problems and not packing:
        fixes = problems[0].split("fix: global_batch_size ")[1].split(",")[0].split(" or ")
        assert all(
            not batch_problems(int(fix), micro, dp, packing) and int(fix) > 0 for fix in fixes
        )


def test_sequence_parallel_means_nothing_at_tp_1() -> None:
    with pytest.raises(ValidationError, match=r"sequence_parallel false is read with parallel\.tp"):
        sft(parallel={"sequence_parallel": False})
    assert not sft().parallel.uses_sequence_parallel
    assert sft(parallel={"tp": 2}).parallel.uses_sequence_parallel
