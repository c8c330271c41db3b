"""Writes a Hugging Face model folder as a stream: memory for one tensor, whatever the model's size.

All names, shapes and dtypes are known before the first tensor arrives, so every shard's header and
every tensor's place are fixed at the start and tensors may come in any order. What makes the folder
look complete comes last, each by an atomic rename: shards get their name when their last tensor is
in, then the index, then tokenizer files, then config.json, then SHA256SUMS; a file `.incomplete`
lies there until the end.

File format: https://github.com/huggingface/safetensors (8 bytes of header length, JSON header,
tensors without gaps). A folder that looks complete is so after a power cut too. Not here: which
tensors a model has (families.py).
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from megaladder.checkpoint import store
from megaladder.checkpoints_conv.reader import (
    INCOMPLETE_NAME,
    INDEX_NAME,
    SAFETENSORS_DTYPES,
    SINGLE_NAME,
    auxiliary_files,
)
from megaladder.errors import ConversionError, StorageError
from megaladder.files.sums import SUMS, export_damage, write_sums
from megaladder.process.storage import fsync_folder, make_folder, remove_temporaries, storage_error
from megaladder.run_dir import atomic_write

_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
_COMPLETENESS = ("config.json", store.MARKER)  # what makes a folder look complete: removed first
_MAX_WRITE_BYTES = 2**30  # one write call takes at most 2 GiB on Linux


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """`dtype`: cast on the way (None: as it is).

    `force`: replace the model that lies in a non-empty folder; other files stay. `digests`: write
    SHA256SUMS (not for an engine that reads the folder at once)."""

    dtype: torch.dtype | None = None
    max_shard_bytes: int = 5 * 10**9
    force: bool = False
    digests: bool = True


@dataclass(slots=True)
class _Shard:
    final_name: str
    specs: list[TensorSpec]
    fd: int = -1
    remaining: int = 0


class HFWriter:
    """Writes a Hugging Face folder, tensor by tensor.

    Usage: `with HFWriter(out, specs, options) as w: w.write(name, tensor) …; w.commit(source_dir)`.

    Leaving the block without `commit` leaves the folder marked incomplete: `HFReader` and
    transformers refuse it.

    Raises:
        ConversionError: the folder is not empty, the disk too small, a tensor unknown, twice,
        missing, or of the wrong shape.
    """

    def __init__(
        self, out_dir: Path, specs: Sequence[TensorSpec], options: WriteOptions = WriteOptions()
    ):
        self.out_dir, self.options = Path(out_dir), options
        self._shards = _plan_shards(specs, options.max_shard_bytes)
        self._place: dict[str, tuple[_Shard, TensorSpec, int]] = {}
        self._written: set[str] = set()
        prepare_folder(
            self.out_dir,
            sum(s.num_bytes for s in specs),
            force=options.force,
            is_model_file=is_hf_model_file,
        )

    def __enter__(self) -> HFWriter:
        (self.out_dir / INCOMPLETE_NAME).write_text(
            "an export into this folder is running, or was killed\n", encoding="utf-8"
        )
        for shard in self._shards:
            self._open(shard)
        return self

    def __exit__(self, *exc: object) -> None:
        for shard in self._shards:
            if shard.fd >= 0:
                os.close(shard.fd)
                shard.fd = -1

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Writes one tensor (any device), cast to its spec's dtype."""
        if name not in self._place or name in self._written:
            raise ConversionError(
                f"{self.out_dir}: tensor {name} was "
                + ("written twice" if name in self._written else "not announced")
            )
        shard, spec, offset = self._place[name]
        if tuple(tensor.shape) != tuple(spec.shape):
            raise ConversionError(
                f"{self.out_dir}: tensor {name} has shape {tuple(tensor.shape)}, announced"
                f" {tuple(spec.shape)}"
            )
        data = (
            tensor.detach()
            .to(device="cpu", dtype=spec.dtype)
            .contiguous()
            .view(torch.uint8)
            .numpy()
        )
        with room_needed(self.out_dir):
            _write_at(shard.fd, data.data.cast("B"), offset)
        self._written.add(name)
        shard.remaining -= 1
        if shard.remaining == 0:
            if self.options.digests:  # else nobody needs it after a power cut
                with room_needed(self.out_dir):
                    os.fsync(shard.fd)
            os.close(shard.fd)
            shard.fd = -1
            os.replace(
                self.out_dir / f"{shard.final_name}.partial", self.out_dir / shard.final_name
            )

    def commit(self, source_dir: Path) -> None:
        """Writes what is left, and removes the marker.

        The index, tokenizer and configuration from `source_dir`, config.json last."""
        missing = [name for name in self._place if name not in self._written]
        if missing:
            raise ConversionError(
                f"{self.out_dir}: {len(missing)} tensors were never written, e.g. {missing[0]}"
            )
        names = [shard.final_name for shard in self._shards]
        with room_needed(self.out_dir):
            if len(self._shards) > 1:
                atomic_write(self.out_dir / INDEX_NAME, self._index())
                names.append(INDEX_NAME)
            for path in auxiliary_files(Path(source_dir)):
                text = path.read_bytes()
                if path.name == "config.json":
                    text = config_with_dtype(text, self.options.dtype)
                atomic_write(self.out_dir / path.name, text)
                names.append(path.name)
            if self.options.digests:
                write_sums(self.out_dir, names)
        (self.out_dir / INCOMPLETE_NAME).unlink()
        fsync_folder(self.out_dir)

    def _open(self, shard: _Shard) -> None:
        header, start = _header(shard.specs)
        path = self.out_dir / f"{shard.final_name}.partial"
        shard.fd, shard.remaining = (
            os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644),
            len(shard.specs),
        )
        _write_at(shard.fd, memoryview(header), 0)
        for spec in shard.specs:
            self._place[spec.name] = (shard, spec, start)
            start += spec.num_bytes

    def _index(self) -> bytes:
        weight_map = {spec.name: shard.final_name for shard in self._shards for spec in shard.specs}
        total = sum(spec.num_bytes for shard in self._shards for spec in shard.specs)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        return (json.dumps(index, indent=2) + "\n").encode()


def is_exported(folder: Path, config: str = "config.json") -> bool:
    """Whether an export into it came to its end, and is still what was written.

    config: the file by which other programs take it for complete; SHA256SUMS is written after it.
    """
    if not (folder / config).is_file() or (folder / INCOMPLETE_NAME).exists():
        return False
    return export_damage(folder) is None


def _plan_shards(specs: Sequence[TensorSpec], max_shard_bytes: int) -> list[_Shard]:
    """Cuts the model into files in the given order.

    A tensor larger than the limit gets a file of its own."""
    groups: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if groups[-1] and size + spec.num_bytes > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(spec)
        size += spec.num_bytes
    if len(groups) == 1:
        return [_Shard(SINGLE_NAME, groups[0])]
    return [
        _Shard(f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors", group)
        for i, group in enumerate(groups)
    ]


def _header(specs: list[TensorSpec]) -> tuple[bytes, int]:
    """A shard's header bytes and where its tensors begin.

    Wide dtypes first, so that every tensor is aligned; reorders `specs`."""
    specs.sort(key=lambda spec: -spec.dtype.itemsize)
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        begin, end = end, end + spec.num_bytes
        entries[spec.name] = {
            "dtype": _DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, 8 + len(text)


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    while len(data):
        done = os.pwrite(fd, data[:_MAX_WRITE_BYTES], offset)
        data, offset = data[done:], offset + done


@contextmanager
def room_needed(out_dir: Path) -> Iterator[None]:
    """A disk that fails while we write is told with the folder, not as a traceback."""
    try:
        yield
    except OSError as error:
        words = storage_error(error, out_dir)
        if words is None:
            raise
        raise words from error


def config_with_dtype(text: bytes, dtype: torch.dtype | None) -> bytes:
    """config.json that says the dtype of the weights beside it.

    Unchanged where it says so already."""
    config = json.loads(text)
    key = "dtype" if "dtype" in config else "torch_dtype"
    if dtype is None or config.get(key) == str(dtype).removeprefix("torch."):
        return text
    config[key] = str(dtype).removeprefix("torch.")
    return (json.dumps(config, indent=2) + "\n").encode()


def is_hf_model_file(path: Path) -> bool:
    """Files that make up the weights of an HF folder, and config.json.

    That one makes it look complete."""
    name = path.name
    return (
        name in ("config.json", INDEX_NAME, INCOMPLETE_NAME, SUMS)
        or ".safetensors" in name
        or name.startswith("pytorch_model")
    )


def prepare_folder(
    out_dir: Path, num_bytes: int, *, force: bool, is_model_file: Callable[[Path], bool]
) -> None:
    """Makes an output folder.

    Refuses a non-empty one unless `force`, removes the old model's files, checks the disk.

    Leftovers of a killed conversion (marked by `.incomplete`) are replaced without being asked.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise ConversionError(f"--out {out_dir}: is a file; fix: give a folder")
    make_folder(out_dir)
    present = sorted(out_dir.iterdir(), key=lambda p: (p.name not in _COMPLETENESS, p.name))
    if present and not force and not (out_dir / INCOMPLETE_NAME).exists():
        raise ConversionError(
            f"--out {out_dir}: not empty ({present[0].name}, …, {len(present)} entries); fix:"
            " another folder, or --force"
        )
    for path in present:
        if is_model_file(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    remove_temporaries(out_dir)  # else they are taken for files that are to stay
    needed, free = num_bytes * 1.02, shutil.disk_usage(out_dir).free
    if free < needed:
        raise StorageError(
            f"{out_dir}: needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB free; fix: free"
            " space, or another disk, then start the same command again"
        )
