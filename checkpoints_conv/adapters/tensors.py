"""The adapters of a running job as PEFT's tensors, at any TP × PP × VPP layout.

Filled, and gathered.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch

from megaladder.checkpoints_conv.families import Entry, TensorSource
from megaladder.checkpoints_conv.live_model import Held, Split, iter_held
from megaladder.checkpoints_conv.mapping import ColumnParallel, Mapping, Replicated, RowParallel
from megaladder.model.hf_config import ModelShape
from megaladder.model.lora.adapter import linear_adapters
from megaladder.model.lora.spec import LoraSpec, Site, sites


class AdapterTable:
    """The adapters' tensors by name, each with how tensor parallelism cuts it."""

    def __init__(self, shape: ModelShape, spec: LoraSpec):
        self.family, self.shape, self.spec = shape.family, shape, spec

    def entries(self) -> Iterator[Entry]:
        """Every tensor, layer after layer, A before B. Its name is PEFT's on both sides."""
        for site in sites(self.shape, self.spec):
            yield from _entries(site, self.spec.rank)

    @cached_property
    def by_name(self) -> dict[str, Entry]:
        return {entry.megatron: entry for entry in self.entries()}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Whole tensors."""
        return {name: entry.mapping.hf_shapes[0] for name, entry in self.by_name.items()}


def _entries(site: Site, rank: int) -> tuple[Entry, Entry]:
    a_name, b_name = site.tensor("A"), site.tensor("B")
    a_shape, b_shape = ((rank, site.projection.columns),), ((site.projection.rows, rank),)
    a: Mapping
    b: Mapping
    if site.linear.split == "column":
        a, b = Replicated((a_name,), a_shape), ColumnParallel((b_name,), b_shape)
    else:
        a, b = RowParallel((a_name,), a_shape), Replicated((b_name,), b_shape)
    return (
        Entry(a_name, site.layer, a, a_name, expert=site.expert),
        Entry(b_name, site.layer, b, b_name, expert=site.expert),
    )


class FreshAdapters:
    """Stands in for a folder of adapters that start anew.

    B zero, A uniform in ±1/√columns, as PEFT draws them (Kaiming with a = √5).

    The values depend on (seed, tensor name) only, so every layout starts from the same adapters.
    """

    def __init__(self, table: AdapterTable, seed: int) -> None:
        self.shapes, self.folder, self._seed = table.shapes, f"new adapters (seed {seed})", seed

    def read(
        self, name: str, dim: int = 0, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        """The slice [start, stop) along `dim`; the whole tensor is drawn, then cut."""
        shape = self.shapes[name]
        values = torch.zeros(shape)
        if ".lora_A." in name:
            digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            bound = 1 / math.sqrt(shape[1])
            values.uniform_(-bound, bound, generator=generator)
        return values.narrow(dim, start, (shape[dim] if stop is None else stop) - start)


def held_adapters(table: AdapterTable, chunks: Sequence[Any]) -> Held:
    """This rank's part of the adapters, by PEFT's names."""
    found: Held = {}
    for chunk in chunks:
        for layer, adapter in linear_adapters(chunk):
            for name, parameter in adapter.tensors(layer):
                found[name] = (table.by_name[name], parameter)
    return found


def load_adapters(chunks: Sequence[Any], table: AdapterTable, source: TensorSource) -> None:
    """Fills this rank's adapters. Every rank calls it; `source` holds what `table` names."""
    for entry, parameter in held_adapters(table, chunks).values():
        split = Split.of(entry.expert)
        entry.mapping.fill(parameter.data, source, split.rank, split.size)


def iter_adapters(chunks: Sequence[Any], table: AdapterTable) -> Iterator[tuple[str, torch.Tensor]]:
    """(PEFT's name, whole tensor), as `live_model.iter_hf_tensors` gives the model's.

    Collective over each TP × PP grid, in lockstep.
    """
    return iter_held(table, held_adapters(table, chunks), chunks)
