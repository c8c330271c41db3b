"""Adapters for tests, and a model that has them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch

from megaladder.checkpoints_conv.adapters.tensors import AdapterTable, load_adapters
from megaladder.config.sections.shared import LoraSection
from megaladder.model.hf_config import ModelShape
from megaladder.model.lora.adapter import attach
from megaladder.model.lora.peft_config import lora_spec


class TrainedAdapters:
    """A source of adapters whose B is not zero: both matrices have a gradient from the first step,
    and the model computes something else than its base."""

    def __init__(self, table: AdapterTable, scale: float = 0.1) -> None:
        self.shapes, self.folder, self._scale = table.shapes, "trained adapters of a test", scale

    def read(
        self, name: str, dim: int = 0, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(self.shapes[name], generator=generator) * self._scale
        return values.narrow(dim, start, (values.shape[dim] if stop is None else stop) - start)


def give_adapters(
    chunks: Sequence[Any], shape: ModelShape, targets: str = "all", rank: int = 4
) -> AdapterTable:
    """Bare chunks with `TrainedAdapters`. targets: names with commas, or all."""
    given = {} if targets == "all" else {"targets": targets}
    spec = lora_spec(LoraSection(rank=rank, alpha=8.0, **given), shape)
    table = AdapterTable(shape, spec)
    attach(chunks, shape, spec)
    load_adapters(chunks, table, TrainedAdapters(table))
    return table
