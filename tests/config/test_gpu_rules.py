"""FP8, overlap, offload and context parallelism: each combination that cannot work is refused with
its reason and a way out.

The tables below are the list of rules; docs/fp8.md repeats them for people.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_cases import transformers_config
from pydantic import ValidationError

from megaladder.capabilities import FP8_BLOCK, Machine, fp8_format, fp8_problem, token_alignment
from megaladder.config.grpo import GrpoConfig
from megaladder.config.rules.layout import check_platform, validate_layout
from megaladder.config.sft import SftConfig
from megaladder.errors import ConfigError
from megaladder.model.hf_config import model_shape
from megaladder.plan.hardware import find_model

REQUIRED = {"model": {"path": "m"}, "data": {"path": "d"}}
QWEN3_14B = find_model("Qwen3-14B")
H200 = Machine(True, "NVIDIA H200", (9, 0), (13, 0), (2, 12), None)
B200 = Machine(True, "NVIDIA B200", (10, 0), (13, 0), (2, 12), None)
RTX_5090 = Machine(True, "NVIDIA GeForce RTX 5090", (12, 0), (13, 0), (2, 12), None)
L40S = Machine(True, "NVIDIA L40S", (8, 9), (13, 0), (2, 12), None)
A100 = Machine(True, "NVIDIA A100", (8, 0), (13, 0), (2, 12), None)
LAPTOP = Machine()


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
        (
            {"train": {"fp8": "tensorwise", "precision": "fp32"}},
            "train.fp8 tensorwise computes from bf16 weights",
        ),
        ({"gpu": {"first_last_layers_bf16": True}}, "only means something with train.fp8"),
        (
            {"train": {"fp8": "delayed"}, "gpu": {"first_last_layers_bf16": True}},
            "does not go with train.fp8 delayed",
        ),
        (
            {
                "train": {"fp8": "tensorwise"},
                "gpu": {
                    "first_last_layers_bf16": True,
                    "num_layers_at_start_in_bf16": 0,
                    "num_layers_at_end_in_bf16": 0,
                },
            },
            "0 layers at the start and at the end keeps none",
        ),
        ({"gpu": {"fp8_param_gather": True}}, "gpu.fp8_param_gather needs train.fp8"),
        (
            {
                "train": {"fp8": "tensorwise"},
                "gpu": {
                    "fp8_param_gather": True,
                    "optimizer_cpu_offload": True,
                    "precision_aware_optimizer": True,
                },
            },
            "the host's Adam writes no FP8 weights",
        ),
        (
            {"parallel": {"cp": 2}, "train": {"precision": "fp32"}},
            "needs Transformer Engine's packed attention, which takes no fp32",
        ),
        ({"parallel": {"cp": 3}}, "data.seq_length 2048 is not a multiple of 2·cp = 6"),
        (
            {
                "train": {"fp8": "blockwise"},
                "parallel": {"tp": 4, "pp": 2},
                "data": {"seq_length": 2176},
            },
            (
                "2176 tokens is not a multiple of 512, which train.fp8 blockwise, tp 4 with"
                " sequence_parallel and cp 1 need"
            ),
        ),
        (
            {
                "train": {"fp8": "tensorwise"},
                "parallel": {"tp": 2},
                "gpu": {"tp_comm_overlap": True},
                "data": {"seq_length": 2050},
            },
            "is not a multiple of 32, which train.fp8 tensorwise",
        ),
        (
            {"gpu": {"tp_comm_overlap": True}},
            "gpu.tp_comm_overlap overlaps the gathers of sequence_parallel",
        ),
        (
            {"gpu": {"tp_comm_overlap": True}, "parallel": {"tp": 2, "sequence_parallel": False}},
            "which is off or without effect (tp 2)",
        ),
        (
            {"gpu": {"overlap_grad_reduce": False}},
            "gpu.overlap_param_gather needs gpu.overlap_grad_reduce",
        ),
        (
            {"gpu": {"exp_avg_dtype": "bf16"}},
            "gpu.exp_avg_dtype bf16 needs gpu.precision_aware_optimizer",
        ),
        (
            {"gpu": {"exp_avg_sq_dtype": "fp8"}},
            "gpu.exp_avg_sq_dtype fp8 needs gpu.precision_aware_optimizer",
        ),
        (
            {"gpu": {"main_params_dtype": "fp16"}},
            "gpu.main_params_dtype fp16 needs gpu.precision_aware_optimizer",
        ),
        (
            {"gpu": {"precision_aware_optimizer": True}, "train": {"precision": "fp32"}},
            "needs bf16 weights, train.precision is fp32",
        ),
        (
            {"gpu": {"optimizer_cpu_offload": True}},
            "gpu.optimizer_cpu_offload needs gpu.precision_aware_optimizer",
        ),
        (
            {"gpu": {"activation_offload_layers": 2}, "parallel": {"pp": 2}},
            "does not go with pipeline stages (pp 2)",
        ),
        (
            {"gpu": {"activation_offload_layers": 2}, "train": {"recompute": "full"}},
            "does not go with train.recompute full",
        ),
        ({"train": {"recompute_modules": ["norms"]}}, "train.recompute_modules norms: not known"),
        ({"train": {"recompute_modules": []}}, "train.recompute_modules empty: not known"),
        ({"train": {"profile_steps": [0, 3]}}, "train.profile_steps [0] never happen"),
        (
            {"train": {"profile_steps": [30], "max_steps": 20}},
            "train.profile_steps [30] never happen (steps run from 1 to 20)",
        ),
        (
            {"train": {"profile_ranks": [4]}, "parallel": {"ranks": 4}},
            "train.profile_ranks [4] are not ranks",
        ),
    ],
)
def test_refused_with_a_fix(sections: dict, message: str) -> None:
    for config_class in (SftConfig, GrpoConfig):
        with pytest.raises(ValidationError) as caught:
            config_class(
                **{
                    name: {**REQUIRED.get(name, {}), **sections.get(name, {})}
                    for name in {*REQUIRED, *sections}
                }
            )
        assert message in str(caught.value)
        assert "fix:" in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [{"train": {"fp8": recipe}, "gpu": {"fp8_param_gather": True}} for recipe in FP8_BLOCK]
    + [
        {
            "train": {"fp8": "blockwise"},
            "gpu": {"first_last_layers_bf16": True, "num_layers_at_end_in_bf16": 2},
        },
        {
            "gpu": {
                "precision_aware_optimizer": True,
                "exp_avg_dtype": "bf16",
                "exp_avg_sq_dtype": "fp8",
                "optimizer_cpu_offload": True,
            }
        },
        {"parallel": {"tp": 2, "cp": 4}, "gpu": {"tp_comm_overlap": True}},
        {"parallel": {"cp": 8, "pp": 2}, "train": {"fp8": "blockwise"}},
        {"gpu": {"activation_offload_layers": 4}},
        {"train": {"recompute": "selective", "recompute_modules": "core_attn,mlp"}},
    ],
)
def test_what_goes_together_is_allowed(sections: dict) -> None:
    sft(**sections)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"train": {"fp8": "blockwise"}, "parallel": {"tp": 8}},
            None,
        ),  # 17408 / 8 = 2176 = 17 · 128
        ({"train": {"fp8": "blockwise"}}, None),
        (
            {
                "train": {"fp8": "tensorwise"},
                "gpu": {"first_last_layers_bf16": True, "num_layers_at_start_in_bf16": 21},
                "parallel": {"pp": 2},
            },
            "gpu.num_layers_at_start_in_bf16 21 is more than the 20 layers of a pipeline stage",
        ),
        (
            {"gpu": {"activation_offload_layers": 40}},
            "is not below the model's 40 layers; fix: at most 39",
        ),
        (
            {"parallel": {"tp": 4, "cp": 4}, "gpu": {"cp_comm_type": "a2a"}},
            "tp 4 × cp 4 = 16 does not divide the model's 8",
        ),
        ({"parallel": {"tp": 4, "cp": 4}}, None),
    ],
)
def test_what_the_model_decides(sections: dict, message: str | None) -> None:
    config = sft(**sections)
    if message is None:
        validate_layout(config, QWEN3_14B)
        return
    with pytest.raises(ConfigError, match="fix:") as caught:
        validate_layout(config, QWEN3_14B)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("model", "sections", "message"),
    [
        ("olmo2", {"train": {"fp8": "tensorwise"}}, "fp8 tensorwise needs Transformer Engine's"),
        ("glm4", {"parallel": {"cp": 2}}, "parallel.cp 2 (attention"),
        ("gemma3", {"parallel": {"cp": 2}}, "norms after attention and MLP"),
        ("mistral-window", {"parallel": {"cp": 2}}, "sliding_window 5; fix: parallel.cp 1"),
        ("llama-dynamic", {"data": {"seq_length": 512}}, "max_position_embeddings 256 depend on"),
        ("llama-dynamic", {"data": {"seq_length": 256}}, None),
        ("qwen2-yarn", {"data": {"seq_length": 512}, "train": {"fp8": "tensorwise"}}, None),
        ("mistral-window", {"train": {"fp8": "tensorwise"}}, None),
    ],
)
def test_what_the_kind_of_model_decides(model: str, sections: dict, message: str | None) -> None:
    shape = model_shape(transformers_config(model).to_dict())
    if message is None:
        validate_layout(sft(**sections), shape)
        return
    with pytest.raises(ConfigError, match="fix:") as caught:
        validate_layout(sft(**sections), shape)
    assert message in str(caught.value)


def test_features_that_fp8_cannot_block() -> None:
    odd = replace(QWEN3_14B, ffn_hidden_size=17408 + 16)
    validate_layout(sft(train={"fp8": "tensorwise"}), odd)
    with pytest.raises(
        ConfigError,
        match=(
            r"feed-forward size / tp 1 = 17424 to be a multiple of 128; fix: .* tensorwise \(16\)"
        ),
    ):
        validate_layout(sft(train={"fp8": "blockwise"}), odd)


REASONS = {
    ("tensorwise", H200): None,
    ("blockwise", H200): None,
    ("delayed", H200): None,
    ("mxfp8", H200): (
        "compute capability 9.0; MXFP8's blocks of 32 with shared exponents are scaled inside"
        " Blackwell's tensor cores"
    ),
    ("mxfp8", B200): None,
    ("tensorwise", B200): None,
    ("blockwise", B200): None,
    ("delayed", B200): None,
    ("mxfp8", RTX_5090): "no MXFP8 products for all layouts on 12.x",
    ("tensorwise", L40S): None,
    ("delayed", L40S): None,
    ("blockwise", L40S): "block-scaled products start at 9.0",
    ("tensorwise", A100): "compute capability 8.0; FP8 units start at 8.9",
    ("blockwise", A100): "FP8 units start at 8.9",
    ("tensorwise", LAPTOP): "this machine has no CUDA",
    ("mxfp8", LAPTOP): "this machine has no CUDA",
    (
        "blockwise",
        Machine(True, "NVIDIA H200", (9, 0), (12, 8), (2, 12), None),
    ): "torch's CUDA is 12.8; cuBLAS has block-scaled products",
    (
        "blockwise",
        Machine(True, "NVIDIA H200", (9, 0), (13, 0), (2, 2), None),
    ): "Transformer Engine is 2.2; this recipe needs 2.3",
    (
        "tensorwise",
        Machine(True, "NVIDIA H200", (9, 0), (13, 0), (2, 1), None),
    ): "Transformer Engine is 2.1; this recipe needs 2.2",
    (
        "tensorwise",
        Machine(True, "NVIDIA H200", (9, 0), (13, 0), None, "no module named transformer_engine"),
    ): "no module named",
}


@pytest.mark.parametrize(
    ("recipe", "machine"),
    REASONS,
    ids=lambda value: value if isinstance(value, str) else value.device,
)
def test_why_a_recipe_runs_or_not(recipe: str, machine: Machine) -> None:
    expected, found = REASONS[recipe, machine], fp8_problem(recipe, machine)
    assert found is None if expected is None else expected in found


@pytest.mark.parametrize(
    ("sections", "machine", "message"),
    [
        (
            {"train": {"fp8": "blockwise"}},
            LAPTOP,
            r"train.fp8 blockwise: it needs Transformer Engine on a CUDA .* fix: train.fp8 null",
        ),
        (
            {"train": {"fp8": "mxfp8"}},
            H200,
            (
                r"train.fp8 mxfp8: NVIDIA H200 has .* fix: train.fp8 tensorwise or blockwise or"
                r" delayed"
            ),
        ),
        (
            {"parallel": {"cp": 2}},
            LAPTOP,
            (
                r"parallel.cp 2 \(attention .* needs Transformer Engine on CUDA; this machine has"
                r" no CUDA; fix"
            ),
        ),
        (
            {"parallel": {"cp": 2}},
            Machine(True, "H200", (9, 0), (13, 0), None, "not installed"),
            "needs .* on CUDA; not installed",
        ),
        (
            {"parallel": {"tp": 2}, "gpu": {"tp_comm_overlap": True}},
            LAPTOP,
            r"gpu.tp_comm_overlap \(user buffers\)",
        ),
        (
            {"gpu": {"precision_aware_optimizer": True}},
            LAPTOP,
            r"gpu.precision_aware_optimizer \(its fused Adam\)",
        ),
        (
            {"gpu": {"precision_aware_optimizer": True}},
            Machine(True, "H200", (9, 0), (13, 0), (2, 0), None),
            "needs .* Engine 2.1",
        ),
        ({"gpu": {"activation_offload_layers": 1}}, LAPTOP, "gpu.activation_offload_layers"),
        (
            {"train": {"profile_steps": [3], "profiler": "nsys"}},
            LAPTOP,
            "train.profiler nsys marks ranges on a CUDA device",
        ),
    ],
)
def test_refused_where_it_cannot_run(sections: dict, machine: Machine, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_platform(sft(**sections), machine)


def test_every_reason_is_told_at_once_and_nothing_is_asked_of_the_defaults() -> None:
    check_platform(sft(), LAPTOP)
    check_platform(
        sft(
            train={"fp8": "blockwise"}, parallel={"cp": 2}, gpu={"precision_aware_optimizer": True}
        ),
        H200,
    )
    with pytest.raises(ConfigError) as caught:
        check_platform(
            sft(
                train={"fp8": "blockwise"},
                parallel={"cp": 2},
                gpu={"precision_aware_optimizer": True},
            ),
            LAPTOP,
        )
    assert str(caught.value).count("fix:") == 3


def test_fp8_formats() -> None:
    expected = {"tensorwise": "hybrid", "delayed": "hybrid", "blockwise": "e4m3", "mxfp8": "e4m3"}
    assert {recipe: fp8_format(recipe, "auto") for recipe in FP8_BLOCK} == expected
    assert fp8_format("blockwise", "hybrid") == "hybrid"


def alignment_of(config: SftConfig) -> int:
    layout = config.parallel
    return token_alignment(
        tp=layout.tp,
        cp=layout.cp,
        sequence_parallel=layout.uses_sequence_parallel,
        fp8=config.train.fp8,
    )


@pytest.mark.parametrize(
    ("layout", "recipe", "align"),
    [
        ({}, None, 1),
        ({"tp": 4}, None, 4),
        ({"tp": 4, "sequence_parallel": False}, None, 1),
        ({"cp": 2}, None, 4),
        ({"cp": 2, "tp": 2}, None, 4),
        ({}, "tensorwise", 16),
        ({}, "mxfp8", 32),
        ({}, "blockwise", 128),
        ({"tp": 4}, "blockwise", 512),
        ({"tp": 4, "sequence_parallel": False}, "blockwise", 128),
        ({"tp": 4, "cp": 2}, "blockwise", 1024),
        ({"tp": 8}, "tensorwise", 128),
        ({"cp": 4}, "delayed", 64),
    ],
)
def test_token_alignment(layout: dict, recipe: str | None, align: int) -> None:
    config = sft(parallel=layout, train={"fp8": recipe}, data={"seq_length": 4096})
    assert alignment_of(config) == align


@given(
    st.sampled_from([None, *FP8_BLOCK]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4, 8]),
    st.booleans(),
    st.integers(1, 50),
)
def test_every_part_of_an_aligned_batch_can_be_quantised(
    recipe: str | None, tp: int, cp: int, parallel: bool, many: int
) -> None:
    """What Transformer Engine asserts (`is_quantizable`): the tokens that a rank quantises are
    whole blocks."""
    config = sft(
        parallel={"tp": tp, "cp": cp, "sequence_parallel": parallel or tp == 1},
        train={"fp8": recipe},
        data={"seq_length": 65536},
    )
    tokens, block = many * alignment_of(config), FP8_BLOCK.get(recipe, 1)
    shards = cp * (tp if config.parallel.uses_sequence_parallel else 1)
    assert tokens % shards == 0
    assert (tokens // shards) % block == 0
    assert tokens % (2 * cp if cp > 1 else 1) == 0


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"train": {"logits": "bf16"}}, "train.logits bf16 is a choice for bf16 weights"),
        ({"train": {"logits": "fp32"}}, "train.logits fp32 is a choice for bf16 weights"),
        ({"gpu": {"overlap_param_gather": False}}, "gpu.overlap_param_gather false"),
    ],
)
def test_keys_that_would_do_nothing_here_are_refused(sections: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_platform(sft(**sections), LAPTOP)
    check_platform(sft(**sections), H200)
    check_platform(sft(train={"logits": "fp32", "precision": "bf16"}), LAPTOP)


def test_recipes_and_machines_are_all_covered() -> None:
    assert {recipe for recipe, _ in REASONS} == set(FP8_BLOCK)
    assert all(
        any((recipe, machine) in REASONS for recipe in FP8_BLOCK)
        for machine in (H200, B200, LAPTOP)
    )
    assert all(fp8_problem(recipe, LAPTOP) for recipe, _ in product(FP8_BLOCK, [0]))
