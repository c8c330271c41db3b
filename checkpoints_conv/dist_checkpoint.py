"""Streams tensors into and out of a megatron-core dist_checkpointing folder.

`torch_dist`, one process, one tensor in memory.

Layout of a folder: `__0_N.distcp` (tensors, each a torch.save record at a known offset),
`.metadata` (where each chunk of each global tensor lies), `common.pt`, `metadata.json`; ours adds
`hf/` (config and tokenizer), `integrity.json` and `COMMITTED` (checkpoint/store.py). Keys and
global shapes are those of `GPTModel.sharded_state_dict()`: the layers of one kind are stacked along
a first axis [L, …], experts along the next [L, E, …], so a folder written here can be loaded by
`dist_checkpointing.load` at any TP × PP × EP, and a trainer's checkpoint of any layout can be read
here.

`.metadata` is a pickle, read with an allow-list (`plain_data`), so a foreign checkpoint can't run
code. Not here: names (families.py), optimizers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megaladder.checkpoint import plain_data, store
from megaladder.checkpoints_conv.families import WHOLE, Stacked
from megaladder.checkpoints_conv.reader import INCOMPLETE_NAME
from megaladder.checkpoints_conv.writer import room_needed
from megaladder.errors import CheckpointError
from megaladder.process.storage import fsync_folder

_MAX_FILE_BYTES = 10**9  # several files, so that they can be hashed and read on several cores
_HASH_ASIDE_BYTES = 2**20  # larger writes are hashed by a second thread while the first one writes
Shape = tuple[int, ...]
_ALONE = Stacked((0,), (1,))  # the only shard of an object


class _HashingFile:
    """A file being written, its sha256 and its length."""

    def __init__(self, path: Path, pool: ThreadPoolExecutor):
        self._pool = pool
        self.name, self.num_bytes, self._sha256 = path.name, 0, hashlib.sha256()
        # torch.save turns an error of its file into one of its own
        self.failure: OSError | None = None
        self._file = path.open("wb")

    def write(self, data: Any) -> int:
        self.num_bytes += len(data)
        hashed = (
            self._pool.submit(self._sha256.update, data) if len(data) >= _HASH_ASIDE_BYTES else None
        )
        try:
            written = self._file.write(data)
        except OSError as error:
            self.failure = error
            raise
        if hashed is None:
            self._sha256.update(data)
        else:
            hashed.result()
        return written

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> dict[str, Any]:
        """Closes it, on the disk, and returns its entry of the integrity manifest."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"sha256": self._sha256.hexdigest(), "bytes": self.num_bytes}


class DistCheckpointWriter:
    """Writes an empty, existing folder.

    Complete only after `commit`; a killed writer leaves no `.metadata` and no marker."""

    def __init__(self, folder: Path, max_file_bytes: int = _MAX_FILE_BYTES):
        self.folder, self._max_file_bytes = folder, max_file_bytes
        self._metadata = Metadata(
            state_dict_metadata={}, storage_data={}, version=CURRENT_DCP_VERSION
        )
        self._manifest: dict[str, dict[str, Any]] = {}
        self._file: _HashingFile | None = None
        self._pool = ThreadPoolExecutor(1)

    def add_tensor(self, key: str, tensor: torch.Tensor, stacked: Stacked = WHOLE) -> None:
        """A whole global tensor, or with `stacked` one slice of a larger one.

        `tensor`: contiguous, on the CPU."""
        chunk = tensor[(None,) * len(stacked.index)]
        size = (*stacked.sizes, *tensor.shape)
        offset = [*stacked.index, *[0] * tensor.dim()]
        stored = self._metadata.state_dict_metadata.get(key)
        if stored is None:
            stored = TensorStorageMetadata(
                TensorProperties(dtype=tensor.dtype), torch.Size(size), []
            )
            self._metadata.state_dict_metadata[key] = stored
        # the keys of objects end in their shard's name, so no tensor's key is one of them
        assert isinstance(stored, TensorStorageMetadata), key
        assert (stored.size, stored.properties.dtype) == (torch.Size(size), tensor.dtype), (
            key,
            stored,
            size,
            tensor.dtype,
        )
        stored.chunks.append(ChunkStorageMetadata(torch.Size(offset), chunk.shape))
        self._store(MetadataIndex(key, torch.Size(offset), len(stored.chunks) - 1), chunk)

    def add_empty_object(self, key: str, stacked: Stacked = _ALONE) -> None:
        """A `ShardedObject` that holds None, under megatron-core's unique key."""
        shard = f"shard_{stacked.index[0]}_{stacked.sizes[0]}"
        self._metadata.state_dict_metadata[f"{key}/{shard}"] = BytesStorageMetadata()
        self._store(MetadataIndex(f"{key}/{shard}"), [None])

    def commit(self, content: dict[str, Any]) -> None:
        """Writes the small files, hashes them, then the manifest, then the marker.

        `content` describes the folder (in common.pt)."""
        with room_needed(self.folder):
            self._finish(content)
        self._pool.shutdown()

    def _finish(self, content: dict[str, Any]) -> None:
        self._roll()
        torch.save({"content_metadata": content}, self.folder / "common.pt")
        (self.folder / "metadata.json").write_text(json.dumps(plain_data.FORMAT), encoding="utf-8")
        with (self.folder / plain_data.METADATA).open("wb") as file:
            pickle.dump(self._metadata, file)
        files = (path for path in self.folder.rglob("*") if path.is_file())
        # notes of an earlier conversion are written anew after the commit
        for path in sorted(path for path in files if ".finished" not in path.parts):
            name = str(path.relative_to(self.folder))
            if name not in self._manifest and name != INCOMPLETE_NAME:
                store.sync_file(path)
                data = path.read_bytes()
                self._manifest[name] = {
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "bytes": len(data),
                }
        for folder in {(self.folder / name).parent for name in self._manifest}:
            fsync_folder(folder)
        store.write_json(self.folder / store.INTEGRITY, self._manifest)
        total = sum(entry["bytes"] for entry in self._manifest.values())
        store.write_json(self.folder / store.MARKER, {"files": len(self._manifest), "bytes": total})

    def _store(self, index: MetadataIndex, value: Any) -> None:
        if self._file is None:
            self._file = _HashingFile(self.folder / f"__0_{len(self._manifest)}.distcp", self._pool)
        start = self._file.num_bytes
        with room_needed(self.folder), _without_crc32():
            try:
                # torch.save asks no more of a file than `write` and `flush`
                torch.save(value, cast(IO[bytes], self._file))
            except (OSError, RuntimeError) as error:
                raise (self._file.failure or error) from None
        self._metadata.storage_data[index] = _StorageInfo(
            self._file.name, start, self._file.num_bytes - start
        )
        if self._file.num_bytes >= self._max_file_bytes:
            self._roll()

    def _roll(self) -> None:
        if self._file is not None:
            with room_needed(self.folder):
                self._manifest[self._file.name] = self._file.close()
            self._file = None


@contextlib.contextmanager
def _without_crc32() -> Iterator[None]:
    """torch.save spends two thirds of its time on a checksum that torch.load never looks at.

    The manifest has sha256 instead."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


class DistCheckpointReader:
    """The tensors of a committed folder, by global key.

    Raises:
        CheckpointError: no such folder, not committed, or unreadable.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._metadata = _read_metadata(self.folder)
        self._files = FileSystemReader(str(self.folder))
        self._files.set_up_storage_reader(self._metadata, is_coordinator=True)
        entries = self._metadata.state_dict_metadata
        self.tensors: dict[str, TensorStorageMetadata] = {
            k: v for k, v in entries.items() if isinstance(v, TensorStorageMetadata)
        }
        self.objects = [key for key in entries if key not in self.tensors]

    def read(self, key: str, shape: Shape, stacked: Stacked = WHOLE) -> torch.Tensor:
        """The first `shape` elements of a global tensor, however it was sharded.

        With `stacked` of that slice of a larger one."""
        stored, index = self.tensors[key], stacked.index
        out = torch.empty((*[1] * len(index), *shape), dtype=stored.properties.dtype)
        offsets = [*index, *[0] * len(shape)]
        window = ChunkStorageMetadata(torch.Size(offsets), out.shape)
        items = create_read_items_for_chunk_list(key, stored, [window])
        if sum(item.lengths.numel() for item in items) != out.numel():
            raise CheckpointError(f"{self.folder}: {key} is stored with holes; fix: save it again")
        try:
            self._files.read_data(LoadPlan(items), _IntoTensor(out)).wait()
        # bytes that are no archive may raise anything on the way
        except Exception as error:
            raise CheckpointError(
                f"{self.folder}: {key} cannot be read ({error}); fix: copy the folder again"
            ) from error
        return out[(0,) * len(index)]


class _IntoTensor(LoadPlanner):
    """A load planner whose only target is one tensor."""

    def __init__(self, target: torch.Tensor):
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        view = self._target
        for dim, (start, length) in enumerate(
            zip(read_item.dest_offsets, read_item.lengths, strict=True)
        ):
            view = view.narrow(dim, start, length)
        return view

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """The data went into a view of the target: nothing to do."""

    def _unused(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("only read_data is used, and only for tensors")

    set_up_planner = create_local_plan = create_global_plan = finish_plan = load_bytes = _unused


def _read_metadata(folder: Path) -> Metadata:
    if not (folder / store.MARKER).is_file():
        raise CheckpointError(f"{folder}: {_not_committed(folder)}")
    return plain_data.read_metadata(folder)


def _not_committed(folder: Path) -> str:
    for root in (folder, folder / "checkpoints"):
        steps = store.committed_steps(root)
        if steps:
            return (
                "holds the checkpoints of a run; fix: name one, such as"
                f" {store.step_dir(root, steps[-1])}"
            )
    if not folder.is_dir():
        return "no such folder; fix: give a checkpoint folder, such as RUN_DIR/checkpoints/step_100"
    if os.path.exists(folder / "metadata.json") or any(folder.glob("*.distcp")):
        return (
            f"no {store.MARKER} marker: the save or conversion was cut short; fix: run it again, or"
            " use another step"
        )
    return "no megatron checkpoint (dist_checkpointing folder) in it"
