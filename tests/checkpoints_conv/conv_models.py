"""Tiny random HF models for the conversion tests: names, shapes and files come from transformers
itself, not from our tables."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CASES = ("qwen3", "qwen3-tied", "qwen2", "llama3")
_SIZES = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_LLAMA_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def hf_config(case: str):
    """The transformers configuration of a case. Vocabularies 517 and 1031 divide by no TP size."""
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    common = {**_SIZES, "max_position_embeddings": 256}
    return {
        "qwen3": lambda: Qwen3Config(
            **common, head_dim=16, vocab_size=517, tie_word_embeddings=False, dtype="bfloat16"
        ),
        "qwen3-tied": lambda: Qwen3Config(
            **common, head_dim=16, vocab_size=1031, tie_word_embeddings=True, dtype="float32"
        ),
        "qwen2": lambda: Qwen2Config(
            **common, vocab_size=512, tie_word_embeddings=False, dtype="float32"
        ),
        "llama3": lambda: LlamaConfig(
            **common,
            vocab_size=517,
            tie_word_embeddings=False,
            rope_parameters=_LLAMA_ROPE,
            dtype="float32",
        ),
    }[case]()


def make_hf_folder(case: str, folder: Path, *, max_shard_size: str = "100KB") -> Path:
    """A random model of `case`, saved by transformers: every tensor random (norms and biases too),
    several shards, a tokenizer file."""
    from transformers import AutoModelForCausalLM

    config = hf_config(case)
    torch.manual_seed(len(case))
    model = AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, str(config.dtype).removeprefix("torch."))
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.1 * noise)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    (folder / "tokenizer_config.json").write_text(json.dumps({"case": case}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "LICENSE").write_text("licence text\n")
    return folder


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


def differences(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    """Names that are not bit-identical (dtype included) on both sides."""
    names = sorted(set(left) | set(right))
    return [
        n
        for n in names
        if n not in left
        or n not in right
        or left[n].dtype != right[n].dtype
        or not torch.equal(left[n], right[n])
    ]
