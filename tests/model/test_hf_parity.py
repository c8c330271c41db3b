"""fp32 logits through megatron-core equal transformers' at every layout, for every family we
name."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import run_ranks
from model.parity_worker import packed_tokens

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LAYOUTS = {
    1: [{"name": "tp1"}],
    2: [
        {"name": "tp2", "tp": 2},
        {"name": "tp2sp", "tp": 2, "sp": True},
        {"name": "pp2", "pp": 2},
        {"name": "pp2vpp2", "pp": 2, "vpp": 2},
    ],
    4: [{"name": "tp2pp2", "tp": 2, "pp": 2, "sp": True}],
}
TOLERANCE = 1e-4


def _models(folder: Path) -> dict[str, Path]:
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    torch.manual_seed(0)
    models = {
        "qwen3-untied": Qwen3ForCausalLM(
            Qwen3Config(**SIZES, vocab_size=512, head_dim=32, tie_word_embeddings=False)
        ),
        "qwen3-tied-odd-vocabulary": Qwen3ForCausalLM(
            Qwen3Config(**SIZES, vocab_size=517, head_dim=16, tie_word_embeddings=True)
        ),
        "qwen2-bias": Qwen2ForCausalLM(
            Qwen2Config(**SIZES, vocab_size=512, tie_word_embeddings=False)
        ),
        "llama3-rope-scaling": LlamaForCausalLM(
            LlamaConfig(
                **SIZES, vocab_size=1031, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=False
            )
        ),
    }
    for name, model in models.items():
        for parameter_name, parameter in model.named_parameters():
            # initial zeros and ones would hide a mistake
            if parameter_name.endswith("bias") or "norm" in parameter_name:
                torch.nn.init.normal_(
                    parameter, mean=0.0 if parameter_name.endswith("bias") else 1.0, std=0.3
                )
            elif parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))
        model.save_pretrained(folder / name)
    return {name: folder / name for name in models}


def _transformers_logits(folder: Path) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sequences, _ = packed_tokens(model.config.vocab_size)
    with torch.no_grad():
        return torch.cat(
            [model(torch.tensor(tokens)[None]).logits[0] for tokens in sequences]
        ).numpy()


@pytest.fixture(scope="module")
def logits(tmp_path_factory):
    """(model, layout) → our logits; model → transformers' logits."""
    folder = tmp_path_factory.mktemp("parity")
    models = _models(folder)
    for world_size, layouts in LAYOUTS.items():
        cases = [
            {**layout, "name": f"{model}@{layout['name']}", "model": str(path)}
            for model, path in models.items()
            for layout in layouts
        ]
        run_ranks("model/parity_worker.py", world_size, json.dumps(cases), str(folder))
    ours = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    return ours, {model: _transformers_logits(path) for model, path in models.items()}


def test_logits_equal_transformers_at_every_layout(logits):
    ours, theirs = logits
    names = [layout["name"] for layouts in LAYOUTS.values() for layout in layouts]
    worst = {
        f"{model}@{name}": float(np.abs(ours[f"{model}@{name}"] - theirs[model]).max())
        for model in theirs
        for name in names
    }
    assert len(worst) == 4 * 6
    assert max(worst.values()) <= TOLERANCE, worst
    # the logits are no zeros
    assert min(float(np.abs(value).max()) for value in theirs.values()) > 1.0
