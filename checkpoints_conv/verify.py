"""Does a megatron-core checkpoint hold the same model as a Hugging Face folder?.

Every tensor bit by bit, then the logits.

Tensors are streamed in pairs. Logits: random token ids, two sequences in one packed batch, through
transformers and through our portable GPTModel, both in fp32 on the CPU and one after the other, so
that one fp32 model is in memory at a time.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megaladder.checkpoints_conv.families import name_table
from megaladder.checkpoints_conv.megatron_to_hf import MegatronModel
from megaladder.checkpoints_conv.reader import HFReader
from megaladder.errors import ConversionError
from megaladder.model.hf_config import ModelShape, model_shape, read_config_json

_LENGTHS = (48, 16)  # tokens of the two sequences


@dataclass(frozen=True, slots=True)
class TensorComparison:
    """`differences`: a line for each tensor that is not equal. `recast`.

    Tensors of another dtype that are equal after rounding to it."""

    num_tensors: int
    num_bytes: int
    differences: list[str] = field(default_factory=list)
    recast: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogitComparison:
    """How far apart the logits are.

    Largest |Δ logit| and largest |logit| of transformers over `num_tokens` positions × the
    vocabulary."""

    max_difference: float
    max_logit: float
    num_tokens: int

    def within(self, tolerance: float) -> bool:
        return self.max_difference <= tolerance * max(1.0, self.max_logit)  # False for NaN


def compare_tensors(
    hf_dir: Path, megatron_dir: Path, on_bytes: Callable[[int], None] = lambda n: None
) -> TensorComparison:
    """Compares every tensor of two models; differences are returned.

    Raises ModelError, CheckpointError or ConversionError when a side can't be read or is not a
    whole model."""
    table = name_table(model_shape(read_config_json(hf_dir)))
    model = MegatronModel(megatron_dir)
    with HFReader(hf_dir) as reader:
        table.check_source(reader)
        left, right = table.hf_shapes, model.table.hf_shapes
        differences = [
            f"{name}: shape {left.get(name, 'absent')} in --hf, {right.get(name, 'absent')} in"
            " --megatron"
            for name in {**left, **right}
            if left.get(name) != right.get(name)
        ]
        recast: dict[str, int] = {}
        num_tensors = num_bytes = 0
        for name, tensor in model.hf_tensors():
            if left.get(name) != tuple(tensor.shape):
                continue
            want = reader.read(name)
            if want.dtype != tensor.dtype:
                key = f"{_short(want.dtype)} → {_short(tensor.dtype)}"
                recast[key] = recast.get(key, 0) + 1
                want = want.to(tensor.dtype)
            problem = _difference(want, tensor)
            differences += [f"{name}: {problem}"] if problem else []
            num_tensors, num_bytes = (
                num_tensors + 1,
                num_bytes + tensor.numel() * tensor.element_size(),
            )
            on_bytes(tensor.numel() * tensor.element_size())
    return TensorComparison(num_tensors, num_bytes, differences, recast)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _difference(want: torch.Tensor, found: torch.Tensor) -> str | None:
    """None when bit-identical, else how many elements differ and by how much.

    A NaN equals itself."""
    if torch.equal(want.contiguous().view(torch.uint8), found.contiguous().view(torch.uint8)):
        return None
    unequal = want.contiguous().view(torch.uint8).view(
        -1, want.element_size()
    ) != found.contiguous().view(torch.uint8).view(-1, found.element_size())
    largest = (want.double() - found.double()).abs().max().item()
    return (
        f"{int(unequal.any(dim=1).sum()):,} of {want.numel():,} elements differ, largest |Δ|"
        f" {largest:.3g}"
    )


def compare_logits(hf_dir: Path, megatron_dir: Path, seed: int = 42) -> LogitComparison:
    """Runs both models.

    The process must not have used a GPU yet: it is kept on the CPU from here on.

    Raises:
        ConversionError: not enough free memory for one fp32 model, or transformers has no such
        model.
    """
    shape = model_shape(read_config_json(hf_dir))
    _require_class(shape)
    _require_memory(shape)
    generator = np.random.default_rng(seed)
    sequences = [generator.integers(0, shape.vocab_size, length) for length in _LENGTHS]
    want = _transformers_logits(hf_dir, sequences)
    found = _megatron_logits(shape, megatron_dir, sequences)
    return LogitComparison(
        (want - found).abs().max().item(), want.abs().max().item(), sum(_LENGTHS)
    )


def _require_class(shape: ModelShape) -> None:
    from transformers import CONFIG_MAPPING

    if shape.hf_family not in CONFIG_MAPPING:
        raise ConversionError(
            f"the tensors are compared, but transformers has no class of its own for"
            f" {shape.family.title} to compare logits with, and code beside weights is never run;"
            " fix: --no-logits"
        )


def _require_memory(shape: ModelShape) -> None:
    import psutil

    needed, free = 4 * shape.num_parameters * 1.2, psutil.virtual_memory().available
    if free < needed:
        raise ConversionError(
            f"the tensors are compared, but the logits need {needed / 1e9:.1f} GB of memory and"
            f" {free / 1e9:.1f} GB are free; fix: --no-logits, or a machine with more memory"
        )


@torch.no_grad()
def _transformers_logits(hf_dir: Path, sequences: list[np.ndarray]) -> torch.Tensor:
    """[T, V] over all sequences."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.float32).eval()
    return torch.cat([model(input_ids=torch.from_numpy(ids)[None]).logits[0] for ids in sequences])


@torch.no_grad()
def _megatron_logits(
    shape: ModelShape, megatron_dir: Path, sequences: list[np.ndarray]
) -> torch.Tensor:
    """[T, V] of the two sequences packed into one batch."""
    # before the model code is imported: on a GPU machine it would choose the TE spec
    os.environ["MEGALADDER_PLATFORM"] = "cpu"
    with warnings.catch_warnings():
        # megatron-core and torch warn about each other while a checkpoint is read
        warnings.simplefilter("ignore")
        from megaladder import parallel

        # after `build`, which prepares megatron-core  # isort: skip
        from megaladder.checkpoint.checkpointer import load_model_only
        from megaladder.model.batch import to_device
        from megaladder.model.build import BuildOptions, build_chunks

        layout = parallel.Layout()
        with parallel.session(layout):
            chunks: list[Any] = build_chunks(shape, layout, BuildOptions(precision="fp32"))
            load_model_only(megatron_dir, chunks)
            return chunks[0].eval().logits(to_device(_packed(sequences)))


def _packed(sequences: list[np.ndarray]) -> Any:
    from megaladder.types import IGNORE_INDEX, PackedBatch

    num_tokens = sum(len(ids) for ids in sequences)
    return PackedBatch(
        input_ids_t=np.concatenate(sequences),
        labels_t=np.full(num_tokens, IGNORE_INDEX),
        position_ids_t=np.concatenate([np.arange(len(ids)) for ids in sequences]),
        cu_seqlens=np.cumsum([0, *(len(ids) for ids in sequences)]).astype(np.int32),
        max_seqlen=max(len(ids) for ids in sequences),
        sample_index=np.arange(len(sequences)),
        num_tokens=num_tokens,
    )
