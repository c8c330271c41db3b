"""megatron-core dist_checkpointing folder → Hugging Face folder.

A trainer's checkpoint, or a conversion; one tensor in memory at a time.

Strict: the model's keys must be exactly the family's, whole. What belongs to training (optimizer,
RNG) is left out and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import cpu_count
from pathlib import Path

import torch

from megaladder.checkpoint import store
from megaladder.checkpoints_conv.adapters.checkpoint import (
    AdapterCheckpoint,
    holds_adapters,
    merge_checkpoint,
)
from megaladder.checkpoints_conv.dist_checkpoint import DistCheckpointReader
from megaladder.checkpoints_conv.families import Entry, NameTable, listed, name_table
from megaladder.checkpoints_conv.mapping import Vocabulary
from megaladder.checkpoints_conv.writer import HFWriter, TensorSpec, WriteOptions
from megaladder.errors import CheckpointError, ConversionError
from megaladder.model.hf_config import model_shape, read_config_json

_MODEL_PREFIXES = ("embedding.", "decoder.", "output_layer.")


@dataclass(frozen=True, slots=True)
class Exported:
    """What a conversion wrote, and what it left out (first part of the key → number of entries)."""

    num_bytes: int
    left_out: dict[str, int]


class MegatronModel:
    """The model inside a checkpoint folder, as HF tensors.

    Raises:
        CheckpointError: not a committed folder, a damaged file. ConversionError: keys or shapes are
        not those of the model in `hf/`.
    """

    def __init__(self, folder: Path, *, check_hashes: bool = True):
        self.folder, self.hf_files = folder, folder / "hf"
        self.reader = DistCheckpointReader(folder)
        if check_hashes:
            check_integrity(folder)
        if not (self.hf_files / "config.json").is_file():
            raise CheckpointError(
                f"{self.hf_files / 'config.json'}: missing, so the model's sizes are not known;"
                " fix: copy the model's config.json and tokenizer files there"
            )
        self.table = name_table(model_shape(read_config_json(self.hf_files)))
        _check_keys(self.table, self.reader, folder)

    def dtype(self, entry: Entry) -> torch.dtype:
        return self.reader.tensors[entry.checkpoint_key].properties.dtype

    def read(self, entry: Entry) -> torch.Tensor:
        """One parameter as a global tensor.

        Vocabulary padding as `mapping.padded_vocab_size(…, 1)`, whatever TP wrote it."""
        mapping = entry.mapping
        if not isinstance(mapping, Vocabulary):
            return self.reader.read(entry.checkpoint_key, mapping.local_shape(), entry.stacked)
        rows = self.reader.read(entry.checkpoint_key, mapping.hf_shapes[0])
        padding = mapping.local_shape()[0] - rows.shape[0]
        return rows if padding == 0 else torch.nn.functional.pad(rows, (0, 0, 0, padding))

    def hf_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(HF name, tensor) in model order."""
        for entry in self.table.entries():
            yield from entry.mapping.to_hf([self.read(entry)]).items()

    @property
    def left_out(self) -> dict[str, int]:
        """Keys that are not the model's, counted by their first part."""
        others = [
            k
            for k in (*self.reader.tensors, *self.reader.objects)
            if not k.startswith(_MODEL_PREFIXES)
        ]
        return dict(Counter(key.split(".")[0].split("/")[0] for key in others))


def convert_to_hf(
    megatron_dir: Path,
    out_dir: Path,
    options: WriteOptions = WriteOptions(),
    on_bytes: Callable[[int], None] = lambda n: None,
) -> Exported:
    """Writes `out_dir` as an HF folder. `options.dtype` None keeps the checkpoint's.

    A checkpoint of adapters becomes the model that they belong to, merged with them.
    """
    if holds_adapters(megatron_dir):
        check_integrity(megatron_dir)
        return Exported(merge_checkpoint(megatron_dir, out_dir, options, on_bytes), {})
    model = MegatronModel(megatron_dir)
    specs = [
        TensorSpec(name, shape, options.dtype or model.dtype(entry))
        for entry in model.table.entries()
        for name, shape in zip(entry.mapping.hf_names, entry.mapping.hf_shapes, strict=True)
    ]
    dtypes = {spec.dtype for spec in specs}
    config_dtype = dtypes.pop() if len(dtypes) == 1 else None
    with HFWriter(out_dir, specs, replace(options, dtype=config_dtype)) as writer:
        for name, tensor in model.hf_tensors():
            writer.write(name, tensor)
            on_bytes(tensor.numel() * tensor.element_size())
        writer.commit(model.hf_files)
    return Exported(sum(spec.num_bytes for spec in specs), model.left_out)


def model_bytes(checkpoint: Path) -> int:
    """At least what `convert_to_hf` writes of a checkpoint."""
    folder = (
        AdapterCheckpoint(checkpoint).base_folder() if holds_adapters(checkpoint) else checkpoint
    )
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_integrity(folder: Path) -> None:
    """Hashes every file on all cores and compares.

    CheckpointError names the first one that changed."""
    parts = min(8, cpu_count() or 1)
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(lambda part: store.verify(folder, part=part, parts=parts), range(parts)))


def _check_keys(table: NameTable, reader: DistCheckpointReader, folder: Path) -> None:
    wanted: dict[str, tuple[int, ...]] = {}
    for entry in table.entries():
        wanted[entry.checkpoint_key] = (*entry.stacked.sizes, *entry.mapping.local_shape())
    vocabulary = {
        e.checkpoint_key: e.mapping.hf_shapes[0]
        for e in table.entries()
        if isinstance(e.mapping, Vocabulary)
    }
    found = {
        key: tuple(stored.size)
        for key, stored in reader.tensors.items()
        if key.startswith(_MODEL_PREFIXES)
    }
    missing = [key for key in wanted if key not in found]
    unknown = [key for key in found if key not in wanted]
    unknown += [
        key
        for key in reader.objects
        if key.startswith(_MODEL_PREFIXES) and "._extra_state/" not in key
    ]
    wrong = [
        f"{k}: {found[k]}, expected {wanted[k]}"
        for k in wanted
        if k in found and not _fits(found[k], wanted[k], vocabulary.get(k))
    ]
    if missing or unknown or wrong:
        raise ConversionError(
            f"{folder} does not hold the {table.family.title} model that its hf/config.json"
            " describes"
            + listed("missing", missing)
            + listed("unknown", unknown)
            + listed("wrong shape", wrong)
        )


def _fits(
    found: tuple[int, ...], wanted: tuple[int, ...], vocabulary: tuple[int, ...] | None
) -> bool:
    """Equal shapes; a vocabulary may have been padded for another TP size."""
    return found == wanted or (
        vocabulary is not None and found[0] >= vocabulary[0] and found[1:] == vocabulary[1:]
    )
