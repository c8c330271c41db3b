"""Tiny random models, one or more for each family that opens: made and saved by transformers, so
that names, shapes and numbers are not ours.

`CASES` is the list that the tests of conversion, parity and layouts go through; a new family is an
entry here. Sizes divide by two ranks in every direction; vocabularies 517 and 1031 by none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def _scaled(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **values}


_LLAMA3 = _scaled(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
_YARN = _scaled("yarn", factor=16.0, original_max_position_embeddings=16)
# model_type and what differs from SIZES. Sequences of the tests are longer than windows of 5
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {"vocab_size": 517, "head_dim": 32, "dtype": "bfloat16"}),
    "qwen3-tied": ("qwen3", {"vocab_size": 1031, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-moe": (
        "qwen3_moe",
        {
            "vocab_size": 517,
            "head_dim": 32,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 96,
            "norm_topk_prob": True,
        },
    ),
    "qwen3-moe-mixed": (  # dense and sparse layers; scores as they are
        "qwen3_moe",
        {
            "vocab_size": 512,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "num_hidden_layers": 8,
        },
    ),
    "qwen2-window": (
        "qwen2",
        {
            "vocab_size": 512,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 2,
        },
    ),
    "llama-llama3": ("llama", {"vocab_size": 517, "rope_parameters": _LLAMA3}),
    "llama-linear": (
        "llama",
        {"vocab_size": 512, "rope_parameters": _scaled("linear", factor=2.0)},
    ),
    "llama-dynamic": (
        "llama",
        {"vocab_size": 512, "head_dim": 24, "rope_parameters": _scaled("dynamic", factor=2.0)},
    ),
    "qwen2-yarn": ("qwen2", {"vocab_size": 512, "rope_parameters": _YARN}),
    "mistral-nemo": ("mistral", {"vocab_size": 512, "head_dim": 32, "sliding_window": None}),
    "mistral-window": ("mistral", {"vocab_size": 512, "sliding_window": 5}),
    "internlm2": (
        "internlm2",
        {"vocab_size": 512, "rope_parameters": _scaled("dynamic", factor=2.0)},
    ),
    "phi3-window": ("phi3", {"vocab_size": 512, "sliding_window": 5}),
    "phi3-partial": (
        "phi3",
        {"vocab_size": 512, "partial_rotary_factor": 0.75, "tie_word_embeddings": True},
    ),
    "glm": ("glm", {"vocab_size": 512, "head_dim": 32, "attention_bias": True}),
    "glm4": ("glm4", {"vocab_size": 512, "head_dim": 32, "attention_bias": False}),
    "glm4-moe": (
        "glm4_moe",
        {
            "vocab_size": 512,
            "head_dim": 32,
            "attention_bias": True,
            "use_qk_norm": True,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 96,
            "n_shared_experts": 2,
            "first_k_dense_replace": 2,
            "routed_scaling_factor": 1.5,
            "num_mtp_layers": 0,
        },
    ),
    "olmo2": ("olmo2", {"vocab_size": 512}),
    "olmo3": ("olmo3", {"vocab_size": 512, "sliding_window": 5, "rope_scaling": _YARN}),
    "gemma3": (
        "gemma3_text",
        {
            "vocab_size": 512,
            "head_dim": 32,
            "sliding_window": 5,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 24,
            "tie_word_embeddings": True,
        },
    ),
}


def make_folder(case: str, folder: Path, *, max_shard_size: str = "100KB", **sizes: int) -> Path:
    """The model of `case`, every tensor random (norms and biases too), several shards. `sizes`:
    instead of the case's own."""
    kind, _ = CASES[case]
    model = random_model(case, **sizes)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if kind in _REPACKED:
        _REPACKED[kind](folder)
    return folder


def random_model(case: str, **sizes: int) -> Any:
    """transformers' model of `case`; of a family that comes with its own code, its Llama form."""
    from transformers import AutoModelForCausalLM

    config = transformers_config(case, **sizes)
    torch.manual_seed(len(case))
    dtype = getattr(torch, str(config.dtype or "float32").removeprefix("torch."))
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    offset = 0.0 if config.model_type.startswith("gemma") else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if "norm" in name:  # initial zeros and ones would hide a mistake
                parameter.copy_(offset + 0.3 * noise)
            else:
                parameter.copy_(noise * (0.3 if noise.dim() == 1 else noise.shape[1] ** -0.5))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.1 * torch.randn(buffer.shape))
    return model


def transformers_config(case: str, **sizes: int) -> Any:
    """Its configuration object, made by transformers' own class."""
    from transformers import AutoConfig

    kind, differences = CASES[case]
    values = {**SIZES, "dtype": "float32", **differences, **sizes}
    return AutoConfig.for_model("llama" if kind in _REPACKED else kind, **values)


def reference_logits(case: str, sequences: list[Any]) -> torch.Tensor:
    """[T, V] of each sequence for itself, by transformers, in fp32."""
    model = random_model(case).float().eval()
    with torch.no_grad():
        logits = [model(torch.as_tensor(tokens)[None]).logits[0] for tokens in sequences]
    return torch.cat(logits)


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of an HF folder, read by safetensors."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        found.update(load_file(path))
    return found


def rewrite_single(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replaces the weights of a folder by one file with exactly `tensors`."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def _as_internlm2(folder: Path) -> None:
    """A Llama folder under InternLM2's names: `wqkv` holds, for each query group, its queries, its
    key and its value (InternLM's tools/convert2llama.py, the other way round)."""
    config = json.loads((folder / "config.json").read_text())
    groups, layers = config["num_key_value_heads"], config["num_hidden_layers"]
    head_dim = config["head_dim"]
    tensors, renamed = read_all(folder), {}
    for layer in range(layers):
        parts = [tensors.pop(f"model.layers.{layer}.self_attn.{x}_proj.weight") for x in "qkv"]
        grouped = [part.view(groups, -1, head_dim, part.shape[1]) for part in parts]
        packed = torch.cat(grouped, dim=1).flatten(0, 2)
        renamed[f"model.layers.{layer}.attention.wqkv.weight"] = packed
    for name, tensor in tensors.items():
        for llama, internlm in INTERNLM2_NAMES.items():
            name = name.replace(llama, internlm)
        renamed[name] = tensor
    rewrite_single(folder, renamed)
    rope = config.pop("rope_parameters")
    config |= {
        "model_type": "internlm2",
        "architectures": ["InternLM2ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
        "bias": False,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": rope["rope_type"], "factor": rope["factor"]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_internlm2.py").write_text(_INTERNLM2_CODE)


_INTERNLM2_CODE = """
from transformers import PreTrainedConfig


class InternLM2Config(PreTrainedConfig):
    model_type = "internlm2"
"""
INTERNLM2_NAMES = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}
# families whose code comes with the weights: their folder is made from the Llama that they equal
_REPACKED: dict[str, Callable[[Path], None]] = {"internlm2": _as_internlm2}
