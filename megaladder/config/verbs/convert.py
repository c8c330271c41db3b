"""Configuration of the conversion verbs and their bench. No torch.

`convert hf-to-megatron | megatron-to-hf | verify` and `bench convert`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from tyro.conf import arg

from megaladder.config.base import StrictModel
from megaladder.config.rules.unread import ReadIf, raise_all, unread_problems

Dtype = Literal["fp32", "bf16", "fp16"]


class HfToMegatronConfig(StrictModel):
    """Hugging Face folder → megatron-core checkpoint that loads at any TP × PP.

    Memory: one tensor, whatever the model's size."""

    hf: Path
    """Hugging Face folder: config.json, safetensors, tokenizer files."""
    out: Path
    """Folder to write. Must be empty or new, unless --force."""
    dtype: Dtype | None = None
    """Cast the weights on the way; null = keep each tensor's own."""
    force: bool = False
    """Replace the model in a folder that is not empty; files that are not a model's stay."""


class MegatronToHfConfig(StrictModel):
    """Megatron-core checkpoint → Hugging Face folder for transformers and vLLM.

    Of a run, or converted. Memory: one tensor."""

    megatron: Path
    """Checkpoint folder, e.g. RUN_DIR/checkpoints/step_100. It must be committed; its file hashes
    are checked."""
    out: Path
    """Folder to write. Must be empty or new, unless --force."""
    dtype: Dtype | None = None
    """Cast the weights on the way; null = keep the checkpoint's."""
    max_shard_gb: Annotated[float, Field(gt=0)] = 5.0
    """Largest weight file, in GB (10^9 bytes); one tensor is never split."""
    force: bool = False
    """Replace the model in a folder that is not empty; files that are not a model's stay."""


class AdapterConfig(StrictModel):
    """Checkpoint of a run with lora → PEFT folder for peft, vLLM and lora.start."""

    megatron: Path
    """Checkpoint folder of a run with lora, e.g. RUN_DIR/checkpoints/step_100."""
    out: Path
    """Folder to write. Must be empty or new, unless --force."""
    force: bool = False
    """Replace the adapter in a folder that is not empty; other files stay."""


class MergeConfig(StrictModel):
    """Model and PEFT adapter → model with the adapter merged in.

    W + s·B·A, summed in fp32 and rounded once. Memory: one tensor."""

    hf: Path
    """Hugging Face folder of the model that the adapter was trained on."""
    adapter: Path
    """PEFT folder: adapter_config.json, adapter_model.safetensors."""
    out: Path
    """Folder to write. Must be empty or new, unless --force."""
    dtype: Dtype | None = None
    """Cast the weights on the way; null = keep the model's."""
    max_shard_gb: Annotated[float, Field(gt=0)] = 5.0
    """Largest weight file, in GB (10^9 bytes); one tensor is never split."""
    force: bool = False
    """Replace the model in a folder that is not empty; files that are not a model's stay."""


class VerifyConfig(StrictModel):
    """Compares a Hugging Face folder with a megatron-core checkpoint.

    Every tensor bit by bit, then the logits of random tokens.

    Exit status 2 and a list when they differ.
    """

    hf: Path
    """Hugging Face folder."""
    megatron: Path
    """Checkpoint folder."""
    logits: bool = True
    """Also run both models on the CPU in fp32 (needs 4 bytes per parameter, one model at a
    time)."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    """Largest allowed |Δ logit|, relative to the largest |logit| where that is above 1."""
    seed: int = 42
    """Seed of the random tokens."""
    json_file: Annotated[Path | None, arg(name="json")] = None
    """Write the report as one JSON object."""

    @model_validator(mode="after")
    def _no_unread_key(self) -> VerifyConfig:
        logits: ReadIf[VerifyConfig] = ReadIf(
            ("tolerance", "seed"), lambda run: run.logits, "--logits true"
        )
        raise_all(unread_problems(self, [logits]))
        return self


class BenchConvertConfig(StrictModel):
    """Times both conversions of a random model against a plain copy.

    Of the same files, with peak memory. No GPU needed."""

    gb: Annotated[float, Field(gt=0)] = 1.0
    """Size of the random bf16 model, in GB (10^9 bytes)."""
    folder: Path | None = None
    """Where to work (about 4 × gb of space); null = a temporary folder. Removed afterwards."""
    repeats: Annotated[int, Field(ge=1)] = 3
    """Times that each step is run; the median is reported."""
    seed: int = 42
    """Seed of the weights."""
    json_file: Annotated[Path | None, arg(name="json")] = None
    """Write the figures as one JSON object."""
