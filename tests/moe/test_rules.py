"""What does not go with a mixture of experts, or with a model without one, is refused by name."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from megaladder.capabilities import Machine
from megaladder.config.rules.layout import check_platform, check_world, validate_layout
from megaladder.config.sections.shared import LoraSection
from megaladder.config.sft import SftConfig
from megaladder.errors import ConfigError
from megaladder.model.hf_config import model_shape
from megaladder.model.lora.peft_config import engine_adapters
from megaladder.model.lora.spec import LoraSpec
from megaladder.parallel import Layout
from megaladder.plan.hardware import find_model

EXPERTS = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "vocab_size": 512,
}


def config(**sections: dict) -> SftConfig:
    required = {"model": {"path": "m"}, "data": {"path": "d", "seq_length": 2048}}
    return SftConfig(**{**required, **sections})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"parallel": {"ep": 4}}, "parallel.ep 4 does not divide the model's 6 experts; fix: ep"),
        (
            {"parallel": {"etp": 5}},
            "parallel.etp 5 does not divide an expert's feed-forward size 4",
        ),
        (
            {"parallel": {"tp": 2, "sequence_parallel": False}},
            "parallel.tp 2 without sequence_parallel",
        ),
        ({"parallel": {"cp": 2}}, "parallel.cp 2 is not built for a mixture of experts"),
        (
            {"moe": {"bias_update_rate": 1e-3}},
            "moe.bias_update_rate 0.001: this model's router has",
        ),
        ({"lora": {"rank": 4}, "parallel": {"etp": 2}}, "parallel.etp 2 with lora: adapters of a"),
        (
            {"lora": {"rank": 4}, "moe": {"bias_update_rate": 1e-3}},
            "moe.bias_update_rate 0.001 with lora would move the model's own router",
        ),
    ],
    ids=str,
)
def test_what_the_experts_do_not_go_with_is_refused(sections: dict, message: str) -> None:
    shape = model_shape(EXPERTS)
    validate_layout(config(parallel={"ep": 3, "etp": 2}, moe={"aux_loss": "sequence"}), shape)
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate_layout(config(**sections), shape)


@pytest.mark.parametrize(
    ("recipe", "etp", "fix"),
    [("blockwise", 1, "train.fp8 null, or tensorwise (16)"), ("tensorwise", 2, "a smaller etp")],
)
def test_an_expert_that_fp8_blocks_do_not_divide_is_refused(
    recipe: str, etp: int, fix: str
) -> None:
    """48 features: three blocks of 16, no block of 128; of two ranks each has 24. An expert's
    tokens are padded by its layer."""
    shape = model_shape({**EXPERTS, "hidden_size": 128, "head_dim": 32})
    validate_layout(config(train={"fp8": "tensorwise", "precision": "bf16"}), shape)
    asked = config(train={"fp8": recipe, "precision": "bf16"}, parallel={"etp": etp})
    message = f"expert's feed-forward size / etp {etp} = {48 // etp} to be a multiple of"
    with pytest.raises(ConfigError, match=re.escape(message) + f".*fix: {re.escape(fix)}"):
        validate_layout(asked, shape)


def test_widths_that_no_layer_has_are_not_asked_for() -> None:
    """intermediate_size 131 is no layer's where every layer has experts, and divides nothing."""
    raw = {**EXPERTS, "hidden_size": 128, "head_dim": 32, "intermediate_size": 131}
    fp8 = config(train={"fp8": "tensorwise", "precision": "bf16"})
    for asked in (fp8, config(parallel={"tp": 2})):
        validate_layout(asked, model_shape(raw))
    mixed = model_shape({**raw, "mlp_only_layers": [0]})
    with pytest.raises(ConfigError, match="feed-forward size / tp 1 = 131 to be a multiple of 16"):
        validate_layout(fp8, mixed)
    with pytest.raises(ConfigError, match="tp 2 does not divide the model's feed-forward size 131"):
        validate_layout(config(parallel={"tp": 2}), mixed)


def test_shared_experts_are_cut_like_a_dense_layer() -> None:
    shape = model_shape(EXPERTS)
    assert shape.moe is not None
    tp2 = config(parallel={"tp": 2})
    validate_layout(tp2, replace(shape, moe=replace(shape.moe, shared_ffn_size=96)))
    message = "tp 2 does not divide the model's shared experts' feed-forward size 97"
    with pytest.raises(ConfigError, match=message):
        validate_layout(tp2, replace(shape, moe=replace(shape.moe, shared_ffn_size=97)))


def test_engines_get_the_adapters_of_a_model_with_experts_merged() -> None:
    section, dense = LoraSection(rank=4, targets=("q_proj", "o_proj")), find_model("Qwen3-0.6B")
    for shape in (dense, model_shape(EXPERTS)):
        assert engine_adapters(LoraSection(), shape, "rollout.sync", "auto") is None
    alone = engine_adapters(section, dense, "rollout.sync", "adapter")
    assert alone == LoraSpec(4, 32.0, ("q_proj", "o_proj"))
    assert engine_adapters(section, model_shape(EXPERTS), "rollout.sync", "auto") is None
    with pytest.raises(
        ConfigError, match=r"rollout\.sync adapter: engines take no adapters beside"
    ):
        engine_adapters(section, model_shape(EXPERTS), "rollout.sync", "adapter")


def test_a_stage_without_experts_is_refused() -> None:
    shape = model_shape({**EXPERTS, "mlp_only_layers": [0, 1]})
    validate_layout(config(parallel={"pp": 2, "vpp": 2}), shape)  # stage 0: layers 0 and 2
    with pytest.raises(ConfigError, match=r"parallel\.pp 2 gives stage 0 no layer with experts"):
        validate_layout(config(parallel={"pp": 2}), shape)


@pytest.mark.parametrize(
    "sections",
    [{"parallel": {"ep": 2}}, {"parallel": {"etp": 2}}, {"moe": {"aux_loss": "global_batch"}}],
    ids=str,
)
def test_a_dense_model_reads_none_of_it(sections: dict) -> None:
    ((section, values),) = sections.items()
    (key,) = values
    with pytest.raises(ConfigError, match=rf"{section}\.{key} .* this model has none; fix: leave"):
        validate_layout(config(**sections), find_model("Qwen3-0.6B"))


def test_a_coefficient_without_its_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"moe\.aux_loss_coef 0\.01 is read with moe\.aux_loss"):
        config(moe={"aux_loss_coef": 0.01})


def test_ranks_hold_whole_copies_of_model_and_experts() -> None:
    """tp 2, ep 3: six ranks of a stage hold three pairs of tp and two triples of ep."""
    wide = config(parallel={"tp": 2, "ep": 3, "pp": 2})
    assert wide.parallel.least_ranks == Layout(tp=2, pp=2, ep=3).least_ranks == 12
    assert check_world(wide, 12) == 3
    with pytest.raises(ConfigError, match="8 ranks do not divide into copies of 12, which tp 2"):
        check_world(wide, 8)
    with pytest.raises(ValueError, match=r"parallel\.ranks 8 is not a multiple of 12, which tp 2"):
        config(parallel={"tp": 2, "ep": 3, "pp": 2, "ranks": 8})


def test_expert_tensor_parallelism_needs_cuda() -> None:
    with pytest.raises(ConfigError, match=r"parallel\.etp 2 gathers unequal .* no CUDA; fix:"):
        check_platform(config(parallel={"etp": 2}), Machine())
