"""Hugging Face folder ⇄ the GPTModel chunks of a running job, at any TP × PP × VPP × EP layout.

`load_hf_into_chunks`: every rank reads only the slices that it holds. `iter_hf_tensors`: the
reverse, tensor by tensor in model order, on every rank in lockstep, for export and for weight sync
alike; never more than one parameter is gathered at a time. `export_hf` writes a folder from it.
Accounting is strict both ways: parameters without a name in the table, names without a parameter,
wrong shapes raise.

Both layer specifications work (see `families.PORTABLE_NAMES`). Not here: files' formats (reader.py,
writer.py), optimizer state; after loading into a model whose optimizer exists already, call the
optimizer's `reload_model_params()`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megaladder import parallel
from megaladder.checkpoints_conv.families import (
    Entry,
    NameTable,
    TensorSource,
    canonical_name,
    listed,
    name_table,
)
from megaladder.checkpoints_conv.reader import HFReader
from megaladder.checkpoints_conv.writer import HFWriter, TensorSpec, WriteOptions
from megaladder.errors import ConversionError, MegaladderError
from megaladder.model.families.table import Family
from megaladder.model.hf_config import ModelShape
from megaladder.model.lora.adapter import ADAPTER, has_adapters
from megaladder.model.weights import is_quantized, plain_weight, set_weight
from megaladder.process.storage import storage_error


class Table(Protocol):
    """Parameters by name: the model's (`families.NameTable`), or its adapters' (`adapters.tensors`)."""

    family: Family
    shape: ModelShape

    def entries(self) -> Iterator[Entry]: ...

    @property
    def by_name(self) -> dict[str, Entry]: ...


# canonical global name → its entry and this rank's parameter, or a buffer that is a weight to HF
Held = dict[str, tuple[Entry, torch.Tensor]]
_T = TypeVar("_T")
_LOCAL_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
_LOCAL_EXPERT = re.compile(
    r"mlp\.experts\.local_experts\.(?P<expert>\d+)\.(?P<linear>\w+)\.weight$"
)
_GROUPED_EXPERT = re.compile(r"mlp\.experts\.(?P<linear>linear_fc\d)\.weight(?P<expert>\d+)$")


def load_hf_into_chunks(
    chunks: Sequence[torch.nn.Module], hf_dir: str | Path, shape: ModelShape
) -> int:
    """Fills the parameters of this rank's model chunks (bare, or wrapped by DDP) from an HF folder.

    Returns the bytes written here.

    Every rank of the job must call it. Values are cast to the parameters' dtype; vocabulary padding
    becomes zero.

    Raises:
        ModelError: the folder can't be read. ConversionError: names or shapes do not fit; the
        message lists them.
    """
    with _on_all_ranks(lambda: HFReader(hf_dir)) as reader:
        return load_tensors_into_chunks(chunks, reader, shape)


def load_tensors_into_chunks(
    chunks: Sequence[torch.nn.Module], source: TensorSource, shape: ModelShape
) -> int:
    """The same from any source of HF tensors, such as a random initialisation."""
    table = name_table(shape)

    def account() -> Held:
        table.check_layout(Split.of(None).size, Split.of(0).size)
        table.check_source(source)
        return _held(table, chunks)

    held = _on_all_ranks(account)
    _check_complete(table, held)
    for entry, parameter in held.values():
        split = Split.of(entry.expert)
        if is_quantized(parameter):  # slices of it are no views: fill a plain tensor, then quantise
            values = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
            entry.mapping.fill(values, source, split.rank, split.size)
            set_weight(parameter, values)
        else:
            entry.mapping.fill(parameter.data, source, split.rank, split.size)
    return sum(parameter.numel() * parameter.element_size() for _, parameter in held.values())


def _on_all_ranks(action: Callable[[], _T]) -> _T:
    """Runs `action`; where it fails on one rank, every rank raises.

    One that raised alone would leave the others waiting for it."""
    result: Any = None
    failure: MegaladderError | None = None
    try:
        result = action()
    except MegaladderError as error:
        failure = error
    if parallel.any_rank(failure is not None):
        follows = ConversionError("another rank could not load the model; its message says why")
        follows.told_elsewhere = True
        raise failure or follows
    return result


def iter_hf_tensors(
    chunks: Sequence[torch.nn.Module], shape: ModelShape, *, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """(HF name, full tensor on this rank's device), in model order.

    Vocabulary padding trimmed, tied output layer left out.

    Collective over each replica (`parallel.weight_replica`: a TP × PP grid, or what holds all
    experts): all of its ranks must iterate to the end, in lockstep; inside
    `model.weights.gathered`, which spans DP, where updates are gathered lazily. Replicas are
    independent of each other, so a caller may let only some of them iterate. A tensor may be a view
    of a live parameter: use it before the next step, or clone it.
    """
    table = name_table(shape)
    for name, tensor in iter_held(table, _held(table, chunks), chunks):
        yield name, tensor if dtype is None else tensor.to(dtype)


def iter_held(
    table: Table, held: Held, chunks: Sequence[torch.nn.Module]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of any table, of which `held` is this rank's part.

    Collective as `iter_hf_tensors`.
    """
    owners = _check_complete(table, held)
    device = next(chunks[0].parameters()).device
    for entry in table.entries():
        parameter = held[entry.megatron][1] if entry.megatron in held else None
        shards = _all_shards(entry, parameter, owners[entry.megatron], device)
        yield from entry.mapping.to_hf(shards).items()


def export_hf(
    chunks: Sequence[torch.nn.Module],
    shape: ModelShape,
    out_dir: str | Path,
    *,
    source_dir: str | Path,
    options: WriteOptions = WriteOptions(),
    writers: Sequence[int] = (0,),
) -> None:
    """Writes the model as an HF folder.

    Configuration and tokenizer files are copied from `source_dir`. Every rank must call it.

    The ranks in `writers` write, each to its own `out_dir` (on several machines: a copy on each).
    The replicas that they belong to gather, all at the same time: no replica waits for another.
    A failure of a writer (disk full, …) is raised on every rank.
    """
    failure: MegaladderError | None = None
    if in_gathering_replica(writers):
        stream = iter_hf_tensors(chunks, shape, dtype=options.dtype)
        if parallel.rank() in writers:
            options = replace(options, dtype=options.dtype or next(chunks[0].parameters()).dtype)
            failure = _write_and_drain(
                stream, name_table(shape), Path(out_dir), Path(source_dir), options
            )
        else:
            for _ in stream:
                pass
    if tuple(writers) == (0,):
        failure = parallel.broadcast(failure)
    else:
        failure = next((found for found in parallel.all_gather(failure) if found is not None), None)
    if failure is not None:
        raise failure


def in_gathering_replica(writers: Sequence[int]) -> bool:
    """Whether this rank's replica is one that a rank in `writers` belongs to. Collective."""
    replica = parallel.weight_replica()
    if tuple(writers) == (0,):
        return replica == 0
    return replica in {
        found for index, found in enumerate(parallel.all_gather(replica)) if index in writers
    }


def _write_and_drain(
    stream: Iterator[tuple[str, torch.Tensor]],
    table: NameTable,
    out_dir: Path,
    source_dir: Path,
    options: WriteOptions,
) -> MegaladderError | None:
    """Writes the stream, and goes on gathering after a failure.

    The other ranks are waiting in the collectives."""
    try:
        specs = [TensorSpec(name, size, options.dtype) for name, size in table.hf_shapes.items()]
        with HFWriter(out_dir, specs, options) as writer:
            for name, tensor in stream:
                writer.write(name, tensor)
            writer.commit(source_dir)
        return None
    except (MegaladderError, OSError) as error:
        for _ in stream:
            pass
        if isinstance(error, MegaladderError):
            return error
        return storage_error(error, out_dir) or ConversionError(f"{out_dir}: {error}")


@dataclass(frozen=True, slots=True)
class Split:
    """The ranks that a parameter is split over, and this one's place among them."""

    rank: int
    size: int
    group: dist.ProcessGroup

    @classmethod
    def of(cls, expert: int | None) -> Split:
        """Of an expert's parameters, or (None) of all others."""
        group = (
            parallel_state.get_tensor_model_parallel_group()
            if expert is None
            else parallel_state.get_expert_tensor_parallel_group()
        )
        return cls(dist.get_rank(group), dist.get_world_size(group), group)


def _unwrap(chunk: Any) -> Any:
    """The GPTModel inside DistributedDataParallel, Float16Module and the like."""
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


def _global_name(chunk: Any, local_name: str) -> str:
    """Local indices → those over all ranks, either spec → canonical name.

    megatron-core numbers its layers from 1 over the whole model; an EP rank holds experts that
    follow each other."""
    match = _LOCAL_LAYER.match(local_name)
    if match:
        module = chunk.decoder.layers[int(match[1])]
        rest = _global_expert(module, local_name[match.end() :])
        local_name = f"decoder.layers.{module.layer_number - 1}.{rest}"
    return canonical_name(local_name)


def _global_expert(layer: Any, name: str) -> str:
    """An expert's parameter under its global index, as SequentialMLP or TEGroupedMLP names it."""
    match = _LOCAL_EXPERT.match(name) or _GROUPED_EXPERT.match(name)
    if match is None:
        return name
    expert = layer.mlp.local_expert_indices[int(match["expert"])]
    return f"mlp.experts.experts.{expert}.{match['linear']}.weight"


def _held(table: NameTable, chunks: Sequence[torch.nn.Module]) -> Held:
    """What this rank holds.

    Raises:
        ConversionError: a parameter that the family's table does not know.
    """
    found: Held = {}
    unknown = []
    for wrapped in chunks:
        chunk = _unwrap(wrapped)
        for local_name, parameter in (*chunk.named_parameters(), *_router_biases(chunk)):
            if has_adapters(chunk) and ADAPTER in local_name:
                continue
            name = _global_name(chunk, local_name)
            entry = table.by_name.get(name)
            if entry is None and name == "output_layer.weight" and table.shape.tied:
                entry = table.tied_output()  # the last pipeline stage's copy of a tied embedding
            if entry is None:
                unknown.append(local_name)
            else:
                found[name] = (entry, parameter)
    if unknown:
        raise ConversionError(
            f"the model holds parameters that the {table.family.title} table does not know"
            + listed("unknown", unknown)
        )
    return found


def _router_biases(chunk: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """They have no gradient: a step moves them by what it counted."""
    return ((name, one) for name, one in chunk.named_buffers() if name.endswith(".expert_bias"))


@dataclass(frozen=True, slots=True)
class _Owner:
    """Where a parameter is exported from: pipeline stage, EP rank (None: all have it), dtype."""

    stage: int
    ep_rank: int | None
    dtype: torch.dtype


def _check_complete(table: Table, held: Held) -> dict[str, _Owner]:
    """Checks shapes here, and that the pipeline's stages together hold every parameter.

    Returns where each one is.

    One exchange of names over the pipeline group, and one over the EP group, so that a problem of
    one rank raises on all of them.
    """
    expected = {
        name: entry.mapping.local_shape(Split.of(entry.expert).size)
        for name, (entry, _) in held.items()
    }
    wrong = [
        f"{n}: {tuple(p.shape)}, expected {expected[n]}"
        for n, (_, p) in held.items()
        if tuple(p.shape) != expected[n]
    ]
    ep_group = parallel_state.get_expert_model_parallel_group()
    mine = {
        name: _Owner(
            parallel_state.get_pipeline_model_parallel_rank(),
            None if entry.expert is None else dist.get_rank(ep_group),
            parameter.dtype,
        )
        for name, (entry, parameter) in held.items()
    }
    everyone = [
        found
        for part in _exchanged((mine, wrong), parallel_state.get_pipeline_model_parallel_group())
        for found in (_exchanged(part, ep_group) if table.shape.moe else [part])
    ]
    owners: dict[str, _Owner] = {}
    for held_there, _ in everyone:
        for name, owner in held_there.items():
            owners.setdefault(name, owner)
    missing = [name for name in table.by_name if name not in owners]
    wrong = [problem for _, problems in everyone for problem in problems]
    if missing or wrong:
        what = (
            f"the model's parameters are not those of {table.family.title} at tp ="
            f" {Split.of(None).size}"
        )
        raise ConversionError(what + listed("missing", missing) + listed("wrong shape", wrong))
    return owners


def _exchanged(value: Any, group: dist.ProcessGroup) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def _all_shards(
    entry: Entry, parameter: torch.Tensor | None, owner: _Owner, device: torch.device
) -> list[torch.Tensor]:
    """Every TP rank's shard of one parameter, on every rank of the replica.

    Broadcast to the EP ranks of its stage, then along the pipeline, then gathered over TP."""
    split = Split.of(entry.expert)
    pp_group = parallel_state.get_pipeline_model_parallel_group()
    ep_group = parallel_state.get_expert_model_parallel_group()
    here = dist.get_rank(pp_group) == owner.stage
    if here and owner.ep_rank in (None, dist.get_rank(ep_group)):
        assert parameter is not None, f"{entry.megatron}: not held by the rank that owns it"
        local = plain_weight(parameter)
    else:
        local = torch.empty(entry.mapping.local_shape(split.size), dtype=owner.dtype, device=device)
    if here and owner.ep_rank is not None and dist.get_world_size(ep_group) > 1:
        dist.broadcast(local, dist.get_global_rank(ep_group, owner.ep_rank), group=ep_group)
    if dist.get_world_size(pp_group) > 1:
        dist.broadcast(local, dist.get_global_rank(pp_group, owner.stage), group=pp_group)
    if split.size == 1 or entry.mapping.tp_axis is None:
        return [local] * split.size
    shards = [torch.empty_like(local) for _ in range(split.size)]
    dist.all_gather(shards, local.contiguous(), group=split.group)
    return shards
