"""A config.json with values that no model has is refused by the key's name, whatever they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from model_cases import CASES, SIZES

from megaladder.config.rules.model import require_model
from megaladder.config.strict_yaml import load_yaml
from megaladder.errors import ModelError
from megaladder.model.families.table import FAMILIES
from megaladder.model.hf_config import ModelShape, model_shape
from megaladder.model.moe.shape import MoeShape

GOOD = {
    "model_type": "qwen3",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}
COUNTS = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "head_dim")
NO_COUNT = (-1, 0, "x", 1.5, True, [1], {})
NO_NUMBER = (-1, 0, "x", float("nan"), float("inf"), True, [1])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in COUNTS for value in NO_COUNT),
        *((key, value) for key in ("rms_norm_eps", "rope_theta") for value in NO_NUMBER),
        ("num_hidden_layers", 2**31),  # a list of a bool a layer would take gigabytes
        ("num_attention_heads", "x"),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", -2),
        ("rope_scaling", [1]),
        ("rope_parameters", "yarn"),
    ],
)
def test_impossible_values_are_named(key, value):
    with pytest.raises(ModelError, match=key):
        model_shape({**GOOD, key: value})


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_missing_sizes_are_named(key):
    with pytest.raises(ModelError, match=f"{key} should be a whole number above 0, found nothing"):
        model_shape({name: value for name, value in GOOD.items() if name != key})


def test_nulls_and_absent_optional_keys_take_the_defaults():
    shape = model_shape({**GOOD, "head_dim": None, "num_key_value_heads": None})
    assert (shape.head_dim, shape.num_query_groups) == (16, 4)
    assert (shape.norm_eps, shape.rope.theta) == (1e-6, 10000.0)


# what published files leave out now and then; sizes without a default of ours are not among them
OPTIONAL = (
    "head_dim",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_theta",
    "partial_rotary_factor",
    "attention_bias",
    "sliding_window",
    "max_window_layers",
    "sliding_window_pattern",
    "query_pre_attn_scalar",
    "rope_local_base_freq",
    "rope_scaling",
)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES = (
    {"type": "linear", "factor": 2.0},
    {"type": "dynamic", "factor": 2.0},
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.8, "beta_fast": 16.0},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.2, "truncate": False},
    LLAMA3,
    {**LLAMA3, "original_max_position_embeddings": 4096},
)


def published(kind: str, **values: object) -> dict:
    """A config.json in the older spelling, with a value for every optional key of the family."""
    given = {
        "model_type": kind,
        **{key: value for key, value in SIZES.items() if not key.endswith("_id")},
        "num_attention_heads": 64,
        "num_key_value_heads": 16,
        "hidden_size": 2048,
        "head_dim": 48,
        "vocab_size": 512,
        "rms_norm_eps": 3e-5,
        "rope_theta": 20000.0,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": kind != "gemma3_text",
        "use_sliding_window": kind != "qwen3_moe",
        "sliding_window": 77,
        "max_window_layers": 3,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 99,
        "rope_local_base_freq": 12345.0,
        "attention_bias": kind.startswith("glm"),
        **values,
    }
    if kind.startswith("glm"):
        given["partial_rotary_factor"] = 0.25
    return given


def as_transformers_reads(raw: dict) -> ModelShape:
    """The same file after transformers' configuration class has filled in what it takes it for."""
    from transformers import AutoConfig

    values = {key: value for key, value in raw.items() if key != "model_type"}
    read = AutoConfig.for_model(raw["model_type"], **values).to_dict()
    return replace(model_shape(read), torch_dtype="float32")


KINDS = sorted(set(FAMILIES) - {"internlm2"})  # its class comes with the weights


@pytest.mark.parametrize("kind", KINDS)
def test_absent_keys_mean_what_transformers_takes_them_for(kind: str) -> None:
    raw = published(kind)
    assert model_shape(raw) == as_transformers_reads(raw)
    for key in OPTIONAL:
        without = {name: value for name, value in raw.items() if name != key}
        assert model_shape(without) == as_transformers_reads(without), key


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "phi3"])
@pytest.mark.parametrize("scaling", ROPES, ids=str)
def test_scaled_rotary_embeddings_are_read_as_transformers_reads_them(
    kind: str, scaling: dict
) -> None:
    raw = published(kind, rope_scaling=dict(scaling))
    if FAMILIES[kind].layer_ropes is not None and "type" in scaling:
        with pytest.raises(ModelError, match=r"rope_scaling\.type"):
            model_shape(raw)
        return
    shape = model_shape(raw)
    assert shape == as_transformers_reads(raw)
    assert shape.rope.kind == scaling.get("type", scaling.get("rope_type"))
    moved = {name: value for name, value in raw.items() if name not in ("rope_scaling",)}
    if FAMILIES[kind].layer_ropes is None:  # transformers 5 writes this
        assert (
            model_shape({**moved, "rope_parameters": {**scaling, "rope_theta": 20000.0}}) == shape
        )


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        ("llama", {"rope_scaling": {"type": "longrope"}}, "longrope"),
        ("llama", {"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor"),
        ("llama", {"attention_bias": True}, "attention_bias true"),
        ("llama", {"mlp_bias": True}, "mlp_bias true"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("qwen3", {"attention_bias": True}, "attention_bias true"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ("qwen2", {"max_window_layers": -1}, "max_window_layers"),
        ("mistral", {"sliding_window": 0}, "sliding_window"),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "longrope"),
        ("phi3", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "yarn"),
        ("internlm2", {}, "bias true"),
        ("olmo3", {"rope_parameters": {"rope_type": "default"}}, r"rope_parameters\.rope_type"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"hidden_activation": "silu"}, "hidden_activation 'silu'"),
        ("gemma3", {}, "model_type 'gemma3'"),
        ("deepseek_v3", {}, "model_type 'deepseek_v3'"),
        ("qwen3_moe", {"use_sliding_window": True}, "use_sliding_window true"),
        ("qwen3_moe", {"mlp_only_layers": "all"}, "mlp_only_layers"),
        ("qwen3_moe", {"mlp_only_layers": [0, 1, 2, 3]}, "no layer has experts"),
        ("qwen3_moe", {"num_experts": 4}, "num_experts_per_tok 8 is more than the 4"),
        ("glm4_moe", {"norm_topk_prob": False}, "norm_topk_prob false"),
        ("glm4_moe", {"n_group": 4, "topk_group": 1}, "n_group 4 with topk_group 1"),
    ],
)
def test_what_cannot_be_done_exactly_is_refused_by_the_fields_name(
    kind: str, values: dict, named: str
) -> None:
    with pytest.raises(ModelError, match=named):
        model_shape(published(kind, **values))


def test_every_family_has_a_case() -> None:
    assert {kind for kind, _ in CASES.values()} == set(FAMILIES)


def test_a_folder_has_no_commit_and_a_hub_id_needs_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    require_model(str(tmp_path), None)
    require_model("Qwen/Qwen3-0.6B", "a" * 40)
    with pytest.raises(ModelError, match=r"model\.revision a{40} is a commit.*a folder here; fix:"):
        require_model(str(tmp_path), "a" * 40)
    with pytest.raises(ModelError, match=r"as a hub id it needs model\.revision"):
        require_model("Qwen/Qwen3-0.6B", None)


PUBLISHED = load_yaml(Path(__file__).with_name("published_configs.yaml")).values


@pytest.mark.parametrize(
    ("name", "dense", "active", "moe"),
    [
        ("Qwen3-30B-A3B", 0, 3.3, MoeShape((True,) * 48, 128, 8, 768)),
        (
            "GLM-4.5-Air",
            1,
            12,
            MoeShape(
                (False, *[True] * 45), 128, 8, 1408, "sigmoid", bias=True, shared_ffn_size=1408
            ),
        ),
        (
            "GLM-4.7",
            3,
            32,
            MoeShape(
                *((False,) * 3 + (True,) * 89, 160, 8, 1536, "sigmoid"),
                scale=2.5,
                bias=True,
                shared_ffn_size=1536,
            ),
        ),
    ],
)
def test_published_mixtures_of_experts_are_read(name, dense, active, moe):
    """active: billions of parameters that a token passes, as the models' makers say them."""
    shape = model_shape(PUBLISHED[name])
    assert shape.moe == moe and shape.num_dense == dense
    assert shape.forward_flops(1, 0, 1) / 2e9 == pytest.approx(active, rel=0.1)
    assert shape.qkv_bias == name.startswith("GLM") and shape.qk_norm_size == (
        0 if name == "GLM-4.5-Air" else 256
    )


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantization_config \(fp8\)"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantization"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "architectures Qwen3ForSeq"),
        ({"architectures": ["Qwen3Model"]}, "architectures Qwen3Model"),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, "architectures LlamaForCausalLMEagle3"),
        # huggingface/transformers#40750, NovaSky-AI/SkyRL#97
        (
            {"architectures": ["FSDPQwen3ForCausalLM"]},
            r'fix: "architectures": \["Qwen3ForCausalLM"\]',
        ),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 1 layers"),
        (
            {"model_type": "llama", "layer_types": ["sliding_attention", "full_attention"]},
            "layer_types has 1 layers",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}}},
            "rope_parameters.full_attention",
        ),
    ],
)
def test_what_would_be_another_model_is_refused_by_its_key(changed, named):
    """Keys as in vLLM's and MLX's quantised folders, Skywork's reward models, speculators' drafts
    and Qwen3-Next, which a family's model_type alone does not tell apart."""
    with pytest.raises(ModelError, match=named):
        model_shape({**GOOD, **changed})


def test_a_base_that_only_the_rotary_object_has_counts():
    """marin-community/marin: rope_theta null beside rope_parameters, as levanter wrote it."""
    raw = {**GOOD, "rope_theta": None, "rope_parameters": {"rope_theta": 1e6}}
    assert model_shape(raw).rope.theta == 1e6
    with pytest.raises(ModelError, match="rope_theta"):
        model_shape({**GOOD, "rope_theta": None})
    agreed = {"layer_types": ["full_attention"] * 2, "architectures": None}
    assert model_shape({**GOOD, **agreed, "quantization_config": None}) == model_shape(GOOD)
