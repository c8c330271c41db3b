"""Hugging Face folder → megatron-core dist_checkpointing folder, without building the model.

One tensor in memory at a time.

The result can be loaded at any TP × PP (see dist_checkpoint.py) and carries the model's config and
tokenizer in `hf/`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from megaladder.checkpoint import store
from megaladder.checkpoints_conv.dist_checkpoint import DistCheckpointWriter
from megaladder.checkpoints_conv.families import Entry, NameTable, Stacked, listed, name_table
from megaladder.checkpoints_conv.reader import INCOMPLETE_NAME, HFReader, auxiliary_files
from megaladder.checkpoints_conv.writer import config_with_dtype, prepare_folder, room_needed
from megaladder.errors import ConversionError
from megaladder.files.sums import refuse_damaged
from megaladder.model.hf_config import model_shape, read_config_json

# Modules whose state dict has an `_extra_state` (None here: FP8 scales come with training).
# megatron-core asks for them when it loads; of models with experts only we load, and do not ask.
_EXTRA_STATE_MODULES = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
_EXTRA_STATE_MODULES_TE = (
    "self_attention.core_attention",
    "self_attention.q_layernorm",
    "self_attention.k_layernorm",
)


def convert_to_megatron(
    hf_dir: Path,
    out_dir: Path,
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> int:
    """Writes `out_dir`; returns the bytes of its tensors.

    `dtype` None keeps each tensor's own; `on_bytes` is told of progress.

    Raises:
        ModelError: the HF folder can't be read. ConversionError: names or shapes do not fit, or
        `out_dir` can't take it.
    """
    refuse_damaged(hf_dir)
    table = name_table(model_shape(read_config_json(hf_dir)))
    with HFReader(hf_dir) as reader:
        table.check_source(reader)
        if dtype is None:
            _check_dtypes(table, reader)
        total = sum(_num_bytes(entry, reader, dtype) for entry in table.entries())
        prepare_folder(out_dir, total, force=force, is_model_file=is_megatron_file)
        (out_dir / INCOMPLETE_NAME).write_text(
            "a conversion into this folder is running, or was killed\n", encoding="utf-8"
        )
        with room_needed(out_dir):
            copy_hf_files(hf_dir, out_dir / "hf", dtype)
        writer = DistCheckpointWriter(out_dir)
        _add_extra_states(writer, table)
        for entry in table.entries():
            tensor = entry.mapping.from_hf(reader, dtype=dtype)
            writer.add_tensor(entry.checkpoint_key, tensor, entry.stacked)
            on_bytes(tensor.numel() * tensor.element_size())
    writer.commit(
        {
            "source": "hf-to-megatron",
            "family": table.family.title,
            "num_layers": table.shape.num_layers,
        }
    )
    (out_dir / INCOMPLETE_NAME).unlink()
    return total


def copy_hf_files(hf_dir: Path, target: Path, dtype: torch.dtype | None) -> None:
    """Config and tokenizer files, so that the folder converts back by itself."""
    store.copy_files(auxiliary_files(hf_dir), target)
    config = target / "config.json"
    config.write_bytes(config_with_dtype(config.read_bytes(), dtype))


def is_megatron_file(path: Path) -> bool:
    """Files of an earlier conversion or checkpoint in a folder.

    The marker sorts first in `prepare_folder` and so goes first."""
    names = (
        ".metadata",
        "common.pt",
        "metadata.json",
        store.INTEGRITY,
        store.MARKER,
        store.TRAINER,
        INCOMPLETE_NAME,
        "hf",
    )
    return path.name in names or path.suffix == ".distcp"


def _check_dtypes(table: NameTable, reader: HFReader) -> None:
    """Refuses parts of different dtypes that become one tensor.

    Keeping it would round some of them."""
    by_key: dict[str, dict[torch.dtype, str]] = {}
    for entry in table.entries():
        for name in entry.mapping.hf_names:
            by_key.setdefault(entry.checkpoint_key, {}).setdefault(reader.tensors[name].dtype, name)
    mixed = [
        ", ".join(f"{name} {dtype}" for dtype, name in found.items())
        for found in by_key.values()
        if len(found) > 1
    ]
    if mixed:
        raise ConversionError(
            f"{reader.folder}: tensors stored as one have different dtypes; fix: --dtype"
            + listed("mixed", mixed)
        )


def _num_bytes(entry: Entry, reader: HFReader, dtype: torch.dtype | None) -> int:
    stored = dtype or reader.tensors[entry.mapping.hf_names[0]].dtype
    return torch.Size(entry.mapping.local_shape()).numel() * stored.itemsize


def _add_extra_states(writer: DistCheckpointWriter, table: NameTable) -> None:
    num_layers = table.shape.num_layers
    if table.shape.moe is not None:
        return
    for layer in range(num_layers):
        for module in _EXTRA_STATE_MODULES + _EXTRA_STATE_MODULES_TE:
            writer.add_empty_object(
                f"decoder.layers.{module}._extra_state", Stacked((layer,), (num_layers,))
            )
    writer.add_empty_object("decoder.final_layernorm._extra_state")
