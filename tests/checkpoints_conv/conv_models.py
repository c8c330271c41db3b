"""HF folders for the conversion tests: the tiny models of tests/model_cases.py with the files that
lie beside published weights."""

from __future__ import annotations

import json
from pathlib import Path

import model_cases
import torch

# one for each dtype and vocabulary that matters to a converter: tried in every way
THOROUGH = ("qwen3", "qwen3-tied", "qwen2-window", "llama-llama3")
# and one for each further name table
CASES = (
    *THOROUGH,
    "mistral-nemo",
    "internlm2",
    "phi3-partial",
    "glm",
    "glm4",
    "olmo2",
    "olmo3",
    "gemma3",
)


def make_hf_folder(case: str, folder: Path, *, max_shard_size: str = "100KB") -> Path:
    """A random model of `case` in several shards, a tokenizer file."""
    model_cases.make_folder(case, folder, max_shard_size=max_shard_size)
    (folder / "tokenizer_config.json").write_text(json.dumps({"case": case}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "LICENSE").write_text("licence text\n")
    return folder


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
