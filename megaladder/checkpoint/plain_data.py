"""Reads what megatron-core wrote without running any of it: a checkpoint may come from a stranger.

Three parts of a `torch_dist` folder are pickles: `.metadata`, the objects among the tensors (the
state of the random numbers), and `common.pt`. torch and megatron-core unpickle the first two as
they are, so a file that was made for it runs its command. Here all three are read with allow-lists:
classes of plain data, nothing that acts. The manifest's digests are no help against that, whoever
wrote the files wrote them too.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import torch as mcore_strategy
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from megaladder.errors import CheckpointError

METADATA = ".metadata"
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_DCP = "torch.distributed.checkpoint"
# module -> names that a checkpoint's metadata is made of; torch's dtypes come on top
_ALLOWED: dict[str, set[str]] = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict", "defaultdict"},
    "builtins": {"set", "list", "dict", "slice"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    f"{_DCP}.filesystem": {"_StorageInfo", "_StoragePrefix"},
    f"{_DCP}.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_DCP}.planner": {
        "BytesIOWriteData",
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
    },
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata", "MCoreSavePlan"},
}


_NEVER_USED = frozenset(
    [
        "BYTEARRAY8",
        "NEXT_BUFFER",
        "READONLY_BUFFER",
        "PERSID",
        "BINPERSID",
        "INST",
        "OBJ",
        "EXT1",
        "EXT2",
        "EXT4",
    ]
)


class _MetadataUnpickler(pickle.Unpickler):
    """Only the classes that a checkpoint's metadata is made of."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")


def read_metadata(folder: Path) -> Metadata:
    """Where each piece of each tensor of a checkpoint lies.

    Raises:
        CheckpointError: `.metadata` is missing, is no metadata, asks for more than plain data, or
        leads out of the folder.
    """
    path = folder / METADATA
    try:
        with path.open("rb") as file:
            return load_metadata(file)
    # bytes that are no metadata may raise anything on the way
    except Exception as error:  # noqa: BLE001
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}: {str(error)[:300]}); fix: copy the"
            " folder again; if it is not yours, do not trust it"
        ) from None


def load_metadata(file: IO[bytes]) -> Metadata:
    """The same from an open file; whatever is wrong is some exception."""
    raw = file.read()
    _check_opcodes(raw)
    metadata = _MetadataUnpickler(io.BytesIO(raw)).load()
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise pickle.UnpicklingError(f"it holds a {type(metadata).__name__}")
    for info in metadata.storage_data.values():
        name = info.relative_path if isinstance(info, _StorageInfo) else None
        if not isinstance(name, str) or name != Path(name).name or name.startswith("."):
            raise pickle.UnpicklingError(f"it names the file {name!r}, outside of the folder")
    return metadata


def _check_opcodes(raw: bytes) -> None:
    """A few bytes of a pickle can ask for any amount of memory.

    By the number of a place to remember something at. Counted before anything is built; about 0.1 s
    a megabyte."""
    for number, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
        if opcode.name in _NEVER_USED:
            raise pickle.UnpicklingError(f"it has the opcode {opcode.name}, which is not used")
        if opcode.name.endswith("PUT") and int(argument or 0) > number:
            raise pickle.UnpicklingError(f"it remembers something at place {argument:,}")


def check_format(folder: Path) -> None:
    """Other formats have other readers, which unpickle.

    Raises:
        CheckpointError: `metadata.json` does not name the format that we write.
    """
    path = folder / "metadata.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); fix: copy the folder again"
        ) from None
    if said != FORMAT:
        raise CheckpointError(
            f"{path}: expected {json.dumps(FORMAT)}, found {json.dumps(said)[:300]}; fix: save it"
            " with megatron-core's torch_dist format"
        )


class _PlainReader(FileSystemReader):
    """torch's reader with our metadata."""

    def __init__(self, folder: str | Path, cache_metadata: bool = False) -> None:
        super().__init__(folder)
        self._metadata: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._metadata is None:
            self._metadata = read_metadata(Path(self.path))
            self._metadata.storage_meta = self._metadata.storage_meta or StorageMeta()
            self._metadata.storage_meta.load_id = self.load_id
        return self._metadata


class _PlainPlanner(mcore_strategy.MCoreLoadPlanner):
    """megatron-core's planner; objects are tensors and plain Python values."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name, loaded = read_item.dest_index.fqn, torch.load(value, weights_only=True)
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], loaded)
        else:
            self.state_dict[name] = loaded


@contextmanager
def _plain_readers(folder: Path) -> Iterator[None]:
    """megatron-core reads `folder` with the classes above.

    What is no plain data becomes a CheckpointError."""
    check_format(folder)
    before = mcore_strategy._get_filesystem_reader, mcore_strategy.MCoreLoadPlanner
    mcore_strategy._get_filesystem_reader = _PlainReader
    mcore_strategy.MCoreLoadPlanner = _PlainPlanner
    try:
        yield
    except (CheckpointException, pickle.UnpicklingError) as error:
        raise _in_words(error, folder) from None
    finally:
        mcore_strategy._get_filesystem_reader, mcore_strategy.MCoreLoadPlanner = before


def _in_words(error: BaseException, folder: Path) -> BaseException:
    """torch collects what failed on which rank; the first of it counts."""
    while isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if not isinstance(error, pickle.UnpicklingError):
        return error
    return CheckpointError(
        f"{folder}: holds more than tensors and plain values ({_reason(error)}); nothing of it"
        " was run; fix: load checkpoints of this program only, exchange models as safetensors"
    )


def _reason(error: BaseException) -> str:
    """torch's message begins with advice on switching its check off."""
    advice = "Weights only load failed"
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith(advice)), advice)[:200]


def load(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`dist_checkpointing.load` with these readers. Collective.

    Raises:
        CheckpointError: damaged, of another model or layout, or not plain data.
    """
    with _plain_readers(folder):
        try:
            return dist_checkpointing.load(state, str(folder))
        except dist_checkpointing.core.CheckpointingException as error:
            raise CheckpointError(
                f"{folder}: does not fit this model or layout: {error}"
            ) from error


def stored_keys(folder: Path) -> set[str]:
    """Names of the tensors and objects in a checkpoint."""
    with _plain_readers(folder):
        found = dist_checkpointing.serialization.load_sharded_metadata(str(folder))
    return {value.key for value in found.values()}
