"""Invertible, tensor-parallel-aware mappings of parameters.

Each between one megatron-core parameter and the Hugging Face tensors that it is made of.

A mapping is a list of *pieces*: "these rows (or columns) of that HF tensor lie at this place of the
local shard". Reading runs the pieces one way, writing the other, so a mapping that covers every
element once is its own inverse. tests/checkpoints_conv proves it.

    HF folder --from_hf(reader, tp_rank, tp_size)--> local shard          reads only the slices that
    this rank holds all tp shards --to_hf([shard_0, …])--> {HF name: tensor}

Shapes: V vocabulary, H hidden, F feed-forward, G query groups (HF: key/value heads), N attention
heads, D head dim. With tp_size = 1 the "local shard" is the global tensor that a megatron-core
dist_checkpointing folder stores.

This file imports nothing of ours: a problem is a `ValueError` here and a `ConversionError` (same
base) one layer up. It does not know model families, files or process groups.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

Shape = tuple[int, ...]
# rows are padded to a multiple of lcm(8, tp): nothing to pad for the vocabularies of released
# models
_VOCAB_MULTIPLE = 8


def padded_vocab_size(vocab_size: int, tp_size: int = 1) -> int:
    """Rows of the embedding and of the output layer over all TP ranks.

    The next multiple of lcm(8, tp_size).

    >>> padded_vocab_size(151936, 8), padded_vocab_size(517, 2), padded_vocab_size(517, 3)
    (151936, 520, 528)
    """
    multiple = math.lcm(_VOCAB_MULTIPLE, tp_size)
    return -(-vocab_size // multiple) * multiple


class TensorReader(Protocol):
    """Where HF tensors come from.

    A folder of safetensors (`reader.HFReader`), or a dict in tests."""

    def read(
        self, name: str, dim: int = 0, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        """Rows (dim 0) or columns (dim 1) `start:stop` of a tensor.

        May be a view of mapped memory: never modified by the caller."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """`hf_name.narrow(dim, hf_start, length)` lies at `shard.narrow(dim, start, length)`."""

    hf_name: str
    dim: int
    hf_start: int
    start: int
    length: int


@dataclass(frozen=True)
class Mapping(ABC):
    """One megatron parameter.

    `hf_names` and `hf_shapes` belong together; `*` in a name stands for the layer index, `@` for an
    expert's.

    `tp_axis`: the axis along which TP ranks hold different parts (None: every rank holds the same).
    """

    hf_names: tuple[str, ...]
    hf_shapes: tuple[Shape, ...]
    tp_axis: ClassVar[int | None] = None

    @abstractmethod
    def local_shape(self, tp_size: int = 1) -> Shape:
        """Shape of the parameter on each of `tp_size` ranks."""

    @abstractmethod
    def pieces(self, tp_rank: int, tp_size: int) -> list[Piece]:
        """What this rank holds.

        Over all ranks every HF element appears exactly once (replicated parameters: once per rank).
        """

    def layout_problem(self, tp_size: int) -> str | None:
        """Why this parameter can't be split over `tp_size` ranks, with the way out.

        None when it can."""
        return None

    def fill(
        self, out: torch.Tensor, reader: TensorReader, tp_rank: int = 0, tp_size: int = 1
    ) -> None:
        """Writes this rank's shard into `out`, piece by piece.

        Any dtype and device, shape `local_shape(tp_size)`."""
        self._require(tp_size)
        assert tuple(out.shape) == self.local_shape(tp_size), (
            self.hf_names,
            tuple(out.shape),
            self.local_shape(tp_size),
        )
        pieces = self.pieces(tp_rank, tp_size)
        if sum(piece.length for piece in pieces) < out.shape[pieces[0].dim if pieces else 0]:
            out.zero_()  # vocabulary padding
        for piece in pieces:
            part = reader.read(
                piece.hf_name, piece.dim, piece.hf_start, piece.hf_start + piece.length
            )
            out.narrow(piece.dim, piece.start, piece.length).copy_(part)

    def from_hf(
        self,
        reader: TensorReader,
        tp_rank: int = 0,
        tp_size: int = 1,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """This rank's shard, contiguous, on the CPU; dtype of the first HF tensor unless given.

        A tensor that is stored exactly as it is wanted comes back as the reader gives it, without a
        copy: do not modify the result.
        """
        self._require(tp_size)
        first = reader.read(self.hf_names[0], 0, 0, 1).dtype
        shape, pieces = self.local_shape(tp_size), self.pieces(tp_rank, tp_size)
        if len(pieces) == 1 and shape == self.hf_shapes[0] and dtype in (None, first):
            return reader.read(self.hf_names[0]).contiguous()
        out = torch.empty(shape, dtype=dtype or first)
        self.fill(out, reader, tp_rank, tp_size)
        return out

    def to_hf(self, shards: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The HF tensors from the shards of all TP ranks, in rank order.

        May return views of the shards: clone what you keep."""
        tp_size = len(shards)
        self._require(tp_size)
        for rank, shard in enumerate(shards):
            if tuple(shard.shape) != self.local_shape(tp_size):
                found, expected = tuple(shard.shape), self.local_shape(tp_size)
                raise ValueError(
                    f"{', '.join(self.hf_names)}: shard {rank} of {tp_size} has shape {found},"
                    f" expected {expected}"
                )
        parts: dict[str, list[tuple[Piece, torch.Tensor]]] = {name: [] for name in self.hf_names}
        for rank, shard in enumerate(shards if self.tp_axis is not None else shards[:1]):
            for piece in self.pieces(rank, tp_size):
                parts[piece.hf_name].append(
                    (piece, shard.narrow(piece.dim, piece.start, piece.length))
                )
        return {
            name: _join(shape, parts[name])
            for name, shape in zip(self.hf_names, self.hf_shapes, strict=True)
        }

    def _require(self, tp_size: int) -> None:
        problem = self.layout_problem(tp_size)
        if problem is not None:
            raise ValueError(problem)


def _join(shape: Shape, parts: list[tuple[Piece, torch.Tensor]]) -> torch.Tensor:
    """One HF tensor from its pieces; a single piece is returned as it is."""
    if len(parts) == 1 and tuple(parts[0][1].shape) == shape:
        return parts[0][1]
    out = torch.empty(shape, dtype=parts[0][1].dtype, device=parts[0][1].device)
    for piece, part in parts:
        out.narrow(piece.dim, piece.hf_start, piece.length).copy_(part)
    return out


def _indivisible(name: str, what: str, size: int, tp_size: int) -> str | None:
    if size % tp_size == 0:
        return None
    return (
        f"{name}: {what} = {size} can't be split over tp = {tp_size}; fix: choose a parallel.tp"
        f" that divides {size}"
    )


@dataclass(frozen=True)
class Replicated(Mapping):
    """Norm weights: every TP rank holds the whole tensor."""

    def local_shape(self, tp_size: int = 1) -> Shape:
        return self.hf_shapes[0]

    def pieces(self, tp_rank: int, tp_size: int) -> list[Piece]:
        return [Piece(self.hf_names[0], 0, 0, 0, self.hf_shapes[0][0])]


@dataclass(frozen=True)
class _Split(Mapping):
    """One HF tensor cut into equal parts along `tp_axis`."""

    tp_axis: ClassVar[int]

    def local_shape(self, tp_size: int = 1) -> Shape:
        shape = list(self.hf_shapes[0])
        shape[self.tp_axis] //= tp_size
        return tuple(shape)

    def pieces(self, tp_rank: int, tp_size: int) -> list[Piece]:
        length = self.hf_shapes[0][self.tp_axis] // tp_size
        return [Piece(self.hf_names[0], self.tp_axis, tp_rank * length, 0, length)]

    def layout_problem(self, tp_size: int) -> str | None:
        what = "rows" if self.tp_axis == 0 else "columns"
        return _indivisible(self.hf_names[0], what, self.hf_shapes[0][self.tp_axis], tp_size)


@dataclass(frozen=True)
class ColumnParallel(_Split):
    """A weight [out, in] (or bias [out]) whose output features are split: dim 0."""

    tp_axis: ClassVar[int] = 0


@dataclass(frozen=True)
class RowParallel(_Split):
    """A weight [out, in] whose input features are split: dim 1 (attention output, MLP down)."""

    tp_axis: ClassVar[int] = 1


@dataclass(frozen=True)
class Vocabulary(Mapping):
    """Embedding or output layer [V, H].

    Padded with zero rows to `padded_vocab_size`, then split by rows; padding is trimmed on export.
    """

    tp_axis: ClassVar[int | None] = 0

    def local_shape(self, tp_size: int = 1) -> Shape:
        rows, *rest = self.hf_shapes[0]
        return (padded_vocab_size(rows, tp_size) // tp_size, *rest)

    def pieces(self, tp_rank: int, tp_size: int) -> list[Piece]:
        local_rows, first = self.local_shape(tp_size)[0], tp_rank * self.local_shape(tp_size)[0]
        length = min(local_rows, self.hf_shapes[0][0] - first)
        return [Piece(self.hf_names[0], 0, first, 0, length)] if length > 0 else []


@dataclass(frozen=True)
class GatedMLP(Mapping):
    """`gate` and `up` [F, H] as one `linear_fc1` [2F, H].

    Apart, or as one tensor [gate; up] (Phi-3, GLM-4). Each rank holds its own [gate_r; up_r], not a
    slice of [gate; up]."""

    tp_axis: ClassVar[int | None] = 0

    @property
    def _rows(self) -> int:
        """F."""
        return sum(shape[0] for shape in self.hf_shapes) // 2

    def local_shape(self, tp_size: int = 1) -> Shape:
        return (2 * self._rows // tp_size, *self.hf_shapes[0][1:])

    def pieces(self, tp_rank: int, tp_size: int) -> list[Piece]:
        length = self._rows // tp_size
        return [
            Piece(name, 0, first + tp_rank * length, i * length, length)
            for i, (name, first) in enumerate(_parts(self, (self._rows, self._rows)))
        ]

    def layout_problem(self, tp_size: int) -> str | None:
        return _indivisible(self.hf_names[0], "intermediate_size", self._rows, tp_size)


def _parts(mapping: Mapping, rows: Sequence[int]) -> list[tuple[str, int]]:
    """HF tensor and first row of each part.

    Tensors of their own, or one after the other in a single tensor."""
    if len(mapping.hf_names) > 1:
        return [(name, 0) for name in mapping.hf_names]
    return [(mapping.hf_names[0], sum(rows[:i])) for i in range(len(rows))]


@dataclass(frozen=True)
class FusedQKV(Mapping):
    """q [N·D, H], k and v [G·D, H] as one `linear_qkv` [(N + 2G)·D, H].

    Apart, or as one tensor [q; k; v] (Phi-3); interleaved per query group: [q…q k v] [q…q k v] … .

    Also the biases (shapes without H). A rank holds whole groups, so tp must divide G:
    megatron-core could replicate key/value heads over ranks, but then a checkpoint would depend on
    tp.
    """

    num_query_groups: int = 1
    head_dim: int = 1
    tp_axis: ClassVar[int | None] = 0

    @property
    def _rows_per_group(self) -> tuple[int, int, int]:
        """Rows of q, k and v in one query group."""
        total = sum(shape[0] for shape in self.hf_shapes) // self.num_query_groups
        return (total - 2 * self.head_dim, self.head_dim, self.head_dim)

    def local_shape(self, tp_size: int = 1) -> Shape:
        return (
            sum(self._rows_per_group) * self.num_query_groups // tp_size,
            *self.hf_shapes[0][1:],
        )

    def pieces(self, tp_rank: int, tp_size: int) -> list[Piece]:
        groups, found, start = self.num_query_groups // tp_size, [], 0
        per_group = self._rows_per_group
        parts = _parts(self, [rows * self.num_query_groups for rows in per_group])
        for group in range(tp_rank * groups, (tp_rank + 1) * groups):
            for (name, first), rows in zip(parts, per_group, strict=True):
                found.append(Piece(name, 0, first + group * rows, start, rows))
                start += rows
        return found

    def layout_problem(self, tp_size: int) -> str | None:
        return _split_groups(self.hf_names[-1], self.num_query_groups, tp_size)


@dataclass(frozen=True)
class GroupedQKV(ColumnParallel):
    """q, k and v that the HF tensor holds as `linear_qkv` does.

    Group after group (InternLM2's `wqkv`)."""

    num_query_groups: int = 1

    def layout_problem(self, tp_size: int) -> str | None:
        return _split_groups(self.hf_names[0], self.num_query_groups, tp_size)


def _split_groups(name: str, groups: int, tp_size: int) -> str | None:
    if groups % tp_size == 0:
        return None
    return (
        f"{name}: num_key_value_heads = {groups} can't be split over tp = {tp_size}, each rank"
        f" holds whole query groups; fix: choose a parallel.tp that divides {groups} and use"
        " parallel.pp for the other ranks"
    )
