"""Adapters added to a model's weights: W' = W + s·B·A, in float64, rounded once to W's type.

In float32 the merged model computes what the adapted one does up to rounding of sums. In bfloat16
the rounding of W' loses what of s·B·A is below half a unit in W's last place (2⁻⁹ to 2⁻⁸ of an
element's size): the merged model is near the adapted one, not equal to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from megaladder.checkpoints_conv.adapters.peft_folder import open_peft
from megaladder.checkpoints_conv.adapters.tensors import AdapterTable
from megaladder.checkpoints_conv.families import TensorSource, name_table
from megaladder.checkpoints_conv.reader import HFReader
from megaladder.checkpoints_conv.writer import HFWriter, TensorSpec, WriteOptions
from megaladder.model.hf_config import model_shape, read_config_json
from megaladder.model.lora.spec import sites


def merge_folders(
    model_dir: Path,
    adapter_dir: Path,
    out_dir: Path,
    options: WriteOptions = WriteOptions(),
    on_bytes: Callable[[int], None] = lambda n: None,
) -> int:
    """Writes `out_dir` as a Hugging Face folder; returns its bytes. One tensor in memory at a time.

    Raises:
        ModelError, ConversionError: a folder that cannot be read, or adapters of another model.
    """
    shape = model_shape(read_config_json(model_dir))
    table, adapters = open_peft(adapter_dir, shape)
    return merge_into(model_dir, table, adapters, out_dir, options, on_bytes, model_dir)


def merge_into(
    model_dir: Path,
    table: AdapterTable,
    adapters: TensorSource,
    out_dir: Path,
    options: WriteOptions,
    on_bytes: Callable[[int], None],
    files_dir: Path,
) -> int:
    """The same for adapters from any source; configuration and tokenizer come from `files_dir`."""
    names = name_table(table.shape)
    with HFReader(model_dir) as reader:
        names.check_source(reader)
        specs = [
            TensorSpec(name, size, options.dtype or reader.tensors[name].dtype)
            for name, size in names.hf_shapes.items()
        ]
        dtypes = {spec.dtype for spec in specs}
        options = replace(options, dtype=dtypes.pop() if len(dtypes) == 1 else None)
        with HFWriter(out_dir, specs, options) as writer:
            for name, tensor in merged_tensors(reader, list(names.hf_shapes), table, adapters):
                writer.write(name, tensor)
                on_bytes(tensor.numel() * tensor.element_size())
            writer.commit(files_dir)
    return sum(spec.num_bytes for spec in specs)


def merged_tensors(
    reader: HFReader, names: list[str], table: AdapterTable, adapters: TensorSource
) -> Iterator[tuple[str, torch.Tensor]]:
    """(Name, tensor) of the merged model, in the order of `names`."""
    adapted = {f"{site.module}.weight": site for site in sites(table.shape, table.spec)}
    for name in names:
        weight = reader.read(name)
        if name in adapted:
            a, b = (adapters.read(adapted[name].tensor(matrix)) for matrix in ("A", "B"))
            delta = b.double() @ a.double() * table.spec.scaling
            weight = delta.add_(weight).to(weight.dtype)
        yield name, weight
