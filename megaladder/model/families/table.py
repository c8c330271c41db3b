"""One row for each model family: what its config.json means, and what its tensors are called.

How to add a family: a row here, and a tiny random model of it in tests/model_cases.py; all tests of
conversion, parity, layouts and plans then run on it. `*` in a name is the layer index, `@` that of
an expert. Defaults are those of transformers' configuration class (5.x), for keys that published
files leave out.

A role is a parameter of the model: checkpoints_conv/families.py says which megatron-core parameter
it is and how tensor parallelism cuts it. Norms are told by their place: `input_norm` and `mlp_norm`
before attention and MLP, `attention_post_norm` and `mlp_post_norm` on what they return, before it
is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megaladder.errors import ModelError
from megaladder.model.families.fields import Fields
from megaladder.model.families.rope import FULL, KINDS, SLIDING
from megaladder.model.moe.shape import MoeShape, glm4_moe, qwen3_moe

Names = dict[str, tuple[str, ...]]
Windows = tuple[int | None, tuple[bool, ...]]
_LAYER = "model.layers.*."


def _names(**roles: str) -> Names:
    """Role → its HF tensors: `a|b` are two of them, `.x` one of a layer's."""
    return {
        role: tuple(_LAYER + n[1:] if n.startswith(".") else n for n in names.split("|"))
        for role, names in roles.items()
    }


_LLAMA = _names(
    embedding="model.embed_tokens.weight",
    input_norm=".input_layernorm.weight",
    qkv=".self_attn.q_proj.weight|.self_attn.k_proj.weight|.self_attn.v_proj.weight",
    attention_out=".self_attn.o_proj.weight",
    mlp_norm=".post_attention_layernorm.weight",
    gate_up=".mlp.gate_proj.weight|.mlp.up_proj.weight",
    down=".mlp.down_proj.weight",
    final_norm="model.norm.weight",
    output="lm_head.weight",
)
_QKV_BIAS = _names(qkv_bias=".self_attn.q_proj.bias|.self_attn.k_proj.bias|.self_attn.v_proj.bias")
_QK_NORM = _names(q_norm=".self_attn.q_norm.weight", k_norm=".self_attn.k_norm.weight")
_INTERNLM2 = _names(
    embedding="model.tok_embeddings.weight",
    input_norm=".attention_norm.weight",
    grouped_qkv=".attention.wqkv.weight",
    attention_out=".attention.wo.weight",
    mlp_norm=".ffn_norm.weight",
    gate_up=".feed_forward.w1.weight|.feed_forward.w3.weight",
    down=".feed_forward.w2.weight",
    final_norm="model.norm.weight",
    output="output.weight",
)


_PACKED = _names(qkv=".self_attn.qkv_proj.weight", gate_up=".mlp.gate_up_proj.weight")
_POST_NORMS = _names(  # OLMo: no norms before attention and MLP
    attention_post_norm=".post_attention_layernorm.weight",
    mlp_post_norm=".post_feedforward_layernorm.weight",
)
_EXPERTS = _names(
    router=".mlp.gate.weight",
    expert_gate_up=".mlp.experts.@.gate_proj.weight|.mlp.experts.@.up_proj.weight",
    expert_down=".mlp.experts.@.down_proj.weight",
)
_SHARED_EXPERT = _names(
    router_bias=".mlp.gate.e_score_correction_bias",
    shared_gate_up=".mlp.shared_experts.gate_proj.weight|.mlp.shared_experts.up_proj.weight",
    shared_down=".mlp.shared_experts.down_proj.weight",
)
_FOUR_NORMS = _names(
    input_norm=".input_layernorm.weight",
    attention_post_norm=".post_attention_layernorm.weight",
    mlp_norm=".pre_feedforward_layernorm.weight",
    mlp_post_norm=".post_feedforward_layernorm.weight",
)
_GLM4_NORMS = _names(
    attention_post_norm=".post_self_attn_layernorm.weight",
    mlp_post_norm=".post_mlp_layernorm.weight",
)


def _without(names: Names, *roles: str) -> Names:
    return {role: found for role, found in names.items() if role not in roles}


def no_windows(_fields: Fields, num_layers: int) -> Windows:
    """Every layer attends to the whole sequence."""
    return None, (False,) * num_layers


def all_layers(fields: Fields, num_layers: int) -> Windows:
    """Every layer slides where `sliding_window` is a number (Mistral, Phi-3)."""
    window = fields.get("sliding_window")
    if window is None:
        return no_windows(fields, num_layers)
    return fields.count("sliding_window"), (True,) * num_layers


def upper_layers(fields: Fields, num_layers: int) -> Windows:
    """Qwen's layers with a sliding window.

    With `use_sliding_window` those from `max_window_layers` on, unless `layer_types` says which."""
    if not fields.flag("use_sliding_window") or fields.get("sliding_window") is None:
        return no_windows(fields, num_layers)
    first = fields.get("max_window_layers")
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        raise ModelError(
            f"config.json: max_window_layers should be a whole number from 0, found {first!r}"
        )
    given = _layer_types(fields, num_layers)
    sliding = given or tuple(layer >= first for layer in range(num_layers))
    return fields.count("sliding_window"), sliding


def every_nth_full(period: int, key: str | None = None) -> Callable[[Fields, int], Windows]:
    """All but every `period`-th layer slide (OLMo-3, Gemma-3).

    Another period stands under `key`; `layer_types`, where it is there, says which."""

    def windows(fields: Fields, num_layers: int) -> Windows:
        nth = period if key is None else fields.count(key, period)
        given = _layer_types(fields, num_layers)
        sliding = given or tuple((layer + 1) % nth != 0 for layer in range(num_layers))
        return fields.count("sliding_window"), sliding

    return windows


def check_layer_types(fields: Fields, sliding: tuple[bool, ...]) -> None:
    """Refuses `layer_types` that say otherwise than the keys by which the family's layers slide."""
    if (given := _layer_types(fields, len(sliding))) and given != sliding:
        kinds = sorted({SLIDING if one else FULL for one in sliding})
        raise ModelError(
            f"config.json: layer_types has {sum(given)} layers of {SLIDING}, and the other keys of"
            f" windows (sliding_window, use_sliding_window) say {' and '.join(kinds)}; fix: the keys"
            " that the model was trained with"
        )


def _layer_types(fields: Fields, num_layers: int) -> tuple[bool, ...]:
    """Which layers slide, by name; empty where the file does not say it."""
    given = fields.get("layer_types")
    if given is None:
        return ()
    known = {FULL: False, SLIDING: True}
    if not isinstance(given, list) or len(given) != num_layers or set(given) - set(known):
        raise ModelError(
            f"config.json: layer_types should name {FULL} or {SLIDING} for each of {num_layers}"
            f" layers, found {given!r}"
        )
    return tuple(known[name] for name in given)


@dataclass(frozen=True, slots=True)
class Family:
    """A row.

    `defaults`: keys that a published config.json may leave out. `fixed`: keys that must have one of
    these values, since anything else would compute another function.

    architecture: transformers' class, as `architectures` names it. qkv_bias: always, never, or the
    key that decides. qk_norm: over each head or over the whole projection, where the key
    `qk_norm_key` does not say false. layer_ropes: sliding layers have a rotary embedding of their
    own, with this base or the one under this key. norm_offset: norms multiply by 1 + weight.
    scaled_embedding: by √hidden_size. activation: the key that names the gate's function.
    score_scalar: the key that stands for the head's size where scores are scaled. experts: reads
    the numbers of a mixture of experts. prediction_layers: published folders hold layers past the
    last one, which predict further tokens; they are neither trained nor exported.
    """

    title: str
    architecture: str
    names: Names
    defaults: dict[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    qkv_bias: str | bool = False
    qk_norm: str | None = None
    qk_norm_key: str | None = None
    windows: Callable[[Fields, int], Windows] = no_windows
    layer_ropes: str | float | None = None
    rotary_interleaved: bool = False
    norm_offset: bool = False
    scaled_embedding: bool = False
    activation: str = "hidden_act"
    gate: str = "silu"
    score_scalar: str | None = None
    experts: Callable[[Fields, int], MoeShape] | None = None
    prediction_layers: bool = False
    rope_kinds: tuple[str, ...] = KINDS


LAYER_NORMS = ("input_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")
# of every configuration class, unless a row says otherwise
COMMON_DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
_OUTPUT_BIAS = {"attention_bias": (False,)}
_QWEN = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_GLM = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-7,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
}
_OLMO = {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "attention_bias": False}
FAMILIES = {  # by config.json's model_type
    "qwen3": Family(
        "Qwen3",
        "Qwen3ForCausalLM",
        _LLAMA | _QK_NORM,
        defaults=_QWEN | {"head_dim": 128, "attention_bias": False},
        fixed=_OUTPUT_BIAS,
        qk_norm="head",
        windows=upper_layers,
    ),
    "qwen2": Family(
        "Qwen2 / Qwen2.5",
        "Qwen2ForCausalLM",
        _LLAMA | _QKV_BIAS,
        defaults=_QWEN,
        qkv_bias=True,
        windows=upper_layers,
    ),
    "qwen3_moe": Family(
        "Qwen3-MoE",
        "Qwen3MoeForCausalLM",
        _LLAMA | _QK_NORM | _EXPERTS,
        defaults={
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 768,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
        },
        fixed=_OUTPUT_BIAS | {"use_sliding_window": (False, None)},
        qk_norm="head",
        experts=qwen3_moe,
    ),
    "llama": Family(
        "Llama 2 / 3",
        "LlamaForCausalLM",
        _LLAMA,
        defaults={"max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
        fixed=_OUTPUT_BIAS | {"mlp_bias": (False,)},
    ),
    "mistral": Family(
        "Mistral",
        "MistralForCausalLM",
        _LLAMA,
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        windows=all_layers,
    ),
    "internlm2": Family(
        "InternLM2 / 2.5",
        "InternLM2ForCausalLM",
        _INTERNLM2,
        # of the configuration class that comes with the weights
        defaults={"max_position_embeddings": 2048, "bias": True},
        fixed={"bias": (False,)},
    ),
    "phi3": Family(
        "Phi-3 / Phi-4",
        "Phi3ForCausalLM",
        _LLAMA | _PACKED,
        defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
        windows=all_layers,
        rope_kinds=("default",),
    ),
    "glm": Family(
        "GLM-4 (before 0414)",
        "GlmForCausalLM",
        _without(_LLAMA, "gate_up") | _QKV_BIAS | _names(gate_up=".mlp.gate_up_proj.weight"),
        defaults=_GLM,
        qkv_bias="attention_bias",
        rotary_interleaved=True,
    ),
    "glm4": Family(
        "GLM-4-0414",
        "Glm4ForCausalLM",
        _LLAMA | _QKV_BIAS | _GLM4_NORMS | _names(gate_up=".mlp.gate_up_proj.weight"),
        defaults=_GLM,
        qkv_bias="attention_bias",
        rotary_interleaved=True,
    ),
    "glm4_moe": Family(
        "GLM-4.5",
        "Glm4MoeForCausalLM",
        _LLAMA | _QKV_BIAS | _QK_NORM | _EXPERTS | _SHARED_EXPERT,
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
            "partial_rotary_factor": 0.5,
            "use_qk_norm": False,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 1408,
            "num_experts_per_tok": 8,
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.0,
            "norm_topk_prob": True,
        },
        # megatron-core always divides sigmoid scores by their sum
        fixed={"norm_topk_prob": (True,)},
        qkv_bias="attention_bias",
        qk_norm="head",
        qk_norm_key="use_qk_norm",
        experts=glm4_moe,
        prediction_layers=True,
    ),
    "olmo2": Family(
        "OLMo-2",
        "Olmo2ForCausalLM",
        _without(_LLAMA, "input_norm", "mlp_norm") | _QK_NORM | _POST_NORMS,
        defaults=_OLMO,
        fixed=_OUTPUT_BIAS,
        qk_norm="projection",
    ),
    "olmo3": Family(
        "OLMo-3",
        "Olmo3ForCausalLM",
        _without(_LLAMA, "input_norm", "mlp_norm") | _QK_NORM | _POST_NORMS,
        defaults=_OLMO
        | {"rope_theta": 500000.0, "rope_local_base_freq": 500000.0, "sliding_window": 4096},
        fixed=_OUTPUT_BIAS,
        qk_norm="projection",
        windows=every_nth_full(4),
        layer_ropes=500000.0,
    ),
    "gemma3_text": Family(
        "Gemma-3 (text)",
        "Gemma3ForCausalLM",
        _LLAMA | _QK_NORM | _FOUR_NORMS,
        defaults={
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": False,
            "use_bidirectional_attention": False,
        },
        fixed=_OUTPUT_BIAS
        | {
            "use_bidirectional_attention": (False, None),
            "final_logit_softcapping": (None,),
            "attn_logit_softcapping": (None,),
        },
        qk_norm="head",
        windows=every_nth_full(6, "sliding_window_pattern"),
        layer_ropes="rope_local_base_freq",
        norm_offset=True,
        scaled_embedding=True,
        activation="hidden_activation",
        gate="gelu_pytorch_tanh",
        score_scalar="query_pre_attn_scalar",
    ),
}
