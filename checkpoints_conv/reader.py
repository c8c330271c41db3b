"""Reads a Hugging Face model folder.

One `model.safetensors`, or shards listed by `model.safetensors.index.json`.

Opening checks everything that can be checked without reading the weights: every file's header
against its length, the index against the files both ways. Reading then touches only the rows or
columns that are asked for. Every failure names the file and the way out.

It does not know model families (families.py), and reads no pickle files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megaladder.errors import ModelError
from megaladder.files.models import no_model

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
INCOMPLETE_NAME = ".incomplete"  # lies in a folder while the writer is at work
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_STACKED_EXPERTS = re.compile(r"(?P<experts>.*\.experts)\.(?P<kind>gate_up_proj|down_proj)$")
# Pages of a mapped file count as our memory until the mapping goes: files are mapped anew after
# this many bytes.
_REMAP_AFTER_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies, and what it is.

    stacked: the tensor of all experts that it is a part of, its expert, and its first row there."""

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    stacked: tuple[str, int, int] | None = None

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class HFReader:
    """The tensors of one folder, by name. Also a `mapping.TensorReader`.

    Experts that are stored as one tensor (transformers 5 may save them so) have the names and
    shapes that they have one by one.

    Raises:
        ModelError: no weights, a missing or truncated or corrupt file, an index that does not fit
        the files.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._handles: dict[str, Any] = {}
        self._bytes_mapped = 0
        self.tensors: dict[str, StoredTensor] = {}
        if (self.folder / INCOMPLETE_NAME).exists():
            raise ModelError(
                f"{self.folder}: an export into this folder did not finish; fix: run it again, or"
                " use another folder"
            )
        weight_map = self._weight_map()
        for file in sorted(set(weight_map.values())):
            self._scan(file)
        self._check_index(weight_map)
        self.tensors = {
            name: stored
            for whole, found in self.tensors.items()
            for name, stored in _apart(whole, found)
        }

    def __enter__(self) -> HFReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops the file mappings; reading again opens them anew."""
        self._handles.clear()
        self._bytes_mapped = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, stored in self.tensors.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.num_bytes for stored in self.tensors.values())

    def read(
        self, name: str, dim: int = 0, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        """Rows (dim 0) or columns (dim 1) `start:stop`; a read-only view of mapped memory.

        Valid after `close`."""
        stored = self.tensors[name]
        stop = stored.shape[dim] if stop is None else stop
        if self._bytes_mapped > _REMAP_AFTER_BYTES:
            self.close()
        self._bytes_mapped += stored.num_bytes * (stop - start) // max(1, stored.shape[dim])
        if stored.stacked is not None:
            whole, expert, first = stored.stacked
            part = self._open(stored.file).get_slice(whole)[expert : expert + 1]
            return part[0].narrow(0, first, stored.shape[0]).narrow(dim, start, stop - start)
        window = self._open(stored.file).get_slice(name)
        return window[start:stop] if dim == 0 else window[:, start:stop]

    def _open(self, file: str) -> Any:
        if file not in self._handles:
            try:
                self._handles[file] = safe_open(self.folder / file, framework="pt", device="cpu")
            except FileNotFoundError:
                raise ModelError(
                    f"{self.folder / file}: missing, though {INDEX_NAME} lists it; fix: copy the"
                    " whole folder again"
                ) from None
            except (SafetensorError, OSError) as error:
                size = (self.folder / file).stat().st_size
                raise ModelError(
                    f"{self.folder / file}: truncated or corrupt ({error}; {size:,} bytes on disk);"
                    " fix: download or copy this file again"
                ) from None
        return self._handles[file]

    def _scan(self, file: str) -> None:
        handle = self._open(file)
        for name in handle.keys():  # noqa: SIM118 (not a dict)
            window = handle.get_slice(name)
            if name in self.tensors:
                raise ModelError(
                    f"{self.folder}: tensor {name} is stored twice, in {self.tensors[name].file}"
                    f" and in {file}"
                )
            dtype = SAFETENSORS_DTYPES.get(window.get_dtype())
            if dtype is None:
                raise ModelError(
                    f"{self.folder / file}: tensor {name} has dtype {window.get_dtype()}, which is"
                    " not supported"
                )
            self.tensors[name] = StoredTensor(file, tuple(window.get_shape()), dtype)

    def _weight_map(self) -> dict[str, str]:
        """Tensor name → file from the index; for a single file, a map with that file only.

        An index beside a single file is a leftover, as it is for transformers."""
        index = self.folder / INDEX_NAME
        if (self.folder / SINGLE_NAME).exists():
            return {"": SINGLE_NAME}
        if not index.exists():
            raise ModelError(f"{self.folder}: {_no_weights(self.folder)}")
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            if not isinstance(weight_map, dict) or not all(
                isinstance(v, str) and "/" not in v for v in weight_map.values()
            ):
                raise TypeError("weight_map must map names to files of this folder")
            # half of a surrogate pair is a string that no file name and no message can hold
            "".join((*weight_map, *weight_map.values())).encode()
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelError(
                f"{index}: not a safetensors index ({type(error).__name__}: {error}); fix: copy the"
                " file again"
            ) from None
        return weight_map

    def _check_index(self, weight_map: dict[str, str]) -> None:
        if "" in weight_map:
            return
        problems = [
            f"{name}: listed in {file}, "
            + (f"found in {self.tensors[name].file}" if name in self.tensors else "not there")
            for name, file in weight_map.items()
            if name not in self.tensors or self.tensors[name].file != file
        ] + [
            f"{name}: in {stored.file}, not in the index"
            for name, stored in self.tensors.items()
            if name not in weight_map
        ]
        if problems:
            more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
            raise ModelError(
                f"{self.folder / INDEX_NAME} does not fit the files ({len(problems)} tensors); fix:"
                " copy the whole folder again\n  " + "\n  ".join(problems[:20]) + more
            )


def _apart(name: str, stored: StoredTensor) -> Iterator[tuple[str, StoredTensor]]:
    """Each expert's matrices of a tensor of all experts; any other tensor as it is.

    `gate_up_proj` [E, 2F, H], `down_proj` [E, H, F]."""
    match = _STACKED_EXPERTS.match(name)
    if match is None or len(stored.shape) != 3:
        yield name, stored
        return
    num_experts, rows, columns = stored.shape
    parts = ("gate_proj", "up_proj") if match["kind"] == "gate_up_proj" else ("down_proj",)
    height = rows // len(parts)
    for expert in range(num_experts):
        for index, part in enumerate(parts):
            place = (name, expert, index * height)
            found = StoredTensor(stored.file, (height, columns), stored.dtype, place)
            yield f"{match['experts']}.{expert}.{part}.weight", found


def _no_weights(folder: Path) -> str:
    if folder.is_file():
        return f"{no_model(folder)}"
    if not folder.is_dir():
        return (
            "no such folder; fix: give a local Hugging Face folder (a hub id: `hf download ORG/NAME"
            " --local-dir DIR` first)"
        )
    if any(folder.glob("pytorch_model*.bin")):
        return (
            "only pickle weights (pytorch_model*.bin), which are not read because unpickling runs"
            " code; fix: save the model once with transformers' save_pretrained, which writes"
            " safetensors"
        )
    if other := no_model(folder):
        return f"neither {SINGLE_NAME} nor {INDEX_NAME}: {other}"
    return (
        f"neither {SINGLE_NAME} nor {INDEX_NAME}; fix: give a folder that holds the model's weights"
    )


# configuration, tokenizers of every kind, templates, licence; the code of a family that
# transformers has no class for (never run here)
_AUXILIARY = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|chat_template|processor_config|preprocessor_config)\.json"
    r"|merges\.txt|vocab\.txt|tokenizer\.model(\.v\d)?|spiece\.model|sentencepiece\.bpe\.model"
    r"|[\w.-]+\.(jinja|tiktoken)"
    r"|(configuration|modeling|tokenization)_\w+\.py"
    r"|LICEN[CS]E[\w.-]*",
    re.IGNORECASE,
)


def auxiliary_files(folder: Path) -> Iterator[Path]:
    """Files of a model folder that travel with its weights, by name; config.json comes last.

    Raises:
        ModelError: one of them is a link to somewhere else: what lies there is not the model's.
    """
    for path in sorted(folder.iterdir(), key=lambda p: (p.name == "config.json", p.name)):
        if _AUXILIARY.fullmatch(path.name) and path.is_file():
            if path.is_symlink() and not _leads_home(path, folder):
                raise ModelError(
                    f"{path}: is a link to {path.resolve()}, outside of the model's folder; fix:"
                    " put a copy of the file there if it belongs to the model"
                )
            yield path


def _leads_home(link: Path, folder: Path) -> bool:
    """Links stay in the folder, or lead to the blobs beside a snapshot of the hub's cache."""
    home = folder.resolve()
    homes = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    return any(link.resolve().is_relative_to(place) for place in homes)
