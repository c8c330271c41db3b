"""What a path means: one file, the shards of a folder, the matches of a glob, a hub data set.

Paths go through fsspec, so a URL (`s3://…`, `hf://…`) is a file like any other; which files of a
folder belong to which split is resolved as `datasets` does it, a README's `configs` included. Not
here: reading the files (`text`, `tables`).
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megaladder.config.sections.data import MixturePart
from megaladder.data.sources.hub import is_commit
from megaladder.errors import DataError

FileKind = Literal["jsonl", "json", "csv", "parquet", "arrow", "text"]
SUFFIXES: dict[str, FileKind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """Which rows. `path`: a file, folder, glob, URL or hub id, or several of them, read in turn.

    `config`, `split`, `revision`: of a hub data set or a folder in its layout; null = the only
    configuration, the split train or the only one. `fields`: (name in use here, column of the
    file) pairs; a column inside another is written with a dot.
    """

    path: str | tuple[str, ...]
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    fields: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, part: MixturePart) -> SourceSpec:
        """The source that a configuration names."""
        fields = tuple(part.fields.items())
        return cls(part.source, part.config, part.split, part.revision, fields)

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def name(self) -> str:
        """For messages and reports."""
        return ", ".join(self.paths)


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file: a local path or a URL of fsspec. `compression` is fsspec's name, None = plain."""

    path: str
    kind: FileKind
    compression: str | None = None

    @property
    def is_local(self) -> bool:
        return "://" not in self.path

    def open(self) -> io.BufferedReader:
        """The content, decompressed. Raises DataError where it cannot be opened."""
        if self.is_local and self.compression is None:
            return open(self.path, "rb")
        import fsspec

        try:
            stream = fsspec.open(self.path, "rb", self.compression).open()
            # not every decompressor gives lines
            return io.BufferedReader(_Unpacked(self.path, stream) if self.compression else stream)
        except (OSError, ValueError, ImportError) as error:
            raise DataError(
                f"{self.path}: expected a file that can be opened, found {type(error).__name__}:"
                f" {error}; fix: the path, or what that error asks for"
            ) from error


class _Unpacked(io.RawIOBase):
    """A decompressor whose errors, each library's own, are a DataError that names the file."""

    def __init__(self, path: str, stream: Any) -> None:
        super().__init__()
        self._path, self._stream = path, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            found = self._stream.read(len(buffer))
        except Exception as error:
            raise DataError(
                f"{self._path}: expected a complete compressed file, found {type(error).__name__}:"
                f" {error}; fix: copy or download it again"
            ) from error
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._stream.close()
        super().close()


@dataclass(frozen=True, slots=True)
class SavedFolder:
    """A folder written by `datasets.save_to_disk`, or a hub data set at a commit."""

    path: str
    on_hub: bool = False


def find_files(spec: SourceSpec) -> list[DataFile | SavedFolder]:
    """What each path of `spec` stands for, in the order given.

    The shards of one path in name order. Raises DataError for a path that stands for nothing
    readable."""
    found: list[DataFile | SavedFolder] = []
    for path in spec.paths:
        found += _find(path, spec)
    if not found:
        raise DataError("no data path given; fix: a file, folder, glob or hub id")
    _refuse_unread(spec, found)
    return found


def _refuse_unread(spec: SourceSpec, found: list[DataFile | SavedFolder]) -> None:
    """A setting that none of the paths reads would be taken in silence."""
    on_hub = any(isinstance(item, SavedFolder) and item.on_hub for item in found)
    folder = on_hub or any(Path(path).is_dir() for path in spec.paths)
    read = {"config": folder, "split": folder, "revision": on_hub}
    unread = [name for name in read if getattr(spec, name) is not None and not read[name]]
    if unread:
        only = "a hub data set" if unread == ["revision"] else "a folder or a hub data set"
        raise DataError(
            f"{spec.name}: expected {only} where {' and '.join(unread)} is given, found other"
            f" files; fix: leave {', '.join(unread)} out"
        )


def _find(path: str, spec: SourceSpec) -> list[DataFile | SavedFolder]:
    if "://" in path:
        return [*_remote(path)]
    local = Path(path)
    if local.is_dir():
        return [*_folder(path, spec)]
    if local.is_file():
        return [_plain_file(path)]
    if any(mark in path for mark in "*?["):
        return [*_glob(path)]
    return [_on_hub(path, spec)]


def _plain_file(path: str) -> DataFile:
    file = as_data_file(path)
    if file is None:
        raise DataError(
            f"{path}: expected a file ending in {', '.join(SUFFIXES)} (each also with"
            f" {', '.join(COMPRESSIONS)}), found {Path(path).suffix!r}; fix: convert or rename it"
        )
    if Path(path).stat().st_size == 0:
        raise DataError(
            f"{path}: expected at least one row, found an empty file (0 bytes); fix: give a file"
            " with rows"
        )
    return file


def as_data_file(path: str) -> DataFile | None:
    """The file by its name; None for a suffix that holds no rows."""
    name = path.lower()
    packed = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    kind = SUFFIXES.get(Path(name.removesuffix(packed)).suffix)
    return None if kind is None else DataFile(path, kind, COMPRESSIONS.get(packed))


def _glob(pattern: str) -> list[DataFile]:
    import fsspec

    fs, inner = fsspec.core.url_to_fs(pattern)
    scheme = f"{pattern.split('://')[0]}://" if "://" in pattern else ""
    paths = sorted(f"{scheme}{path}" for path in fs.glob(inner))
    if not scheme and not Path(pattern).is_absolute():
        paths = [str(Path(path).relative_to(Path.cwd())) for path in paths]
    files = [file for file in map(as_data_file, paths) if file is not None]
    if not files:
        raise DataError(
            f"{pattern}: expected files that fit this pattern and end in {', '.join(SUFFIXES)},"
            f" found {len(paths)} files, none of them such; fix: the pattern"
        )
    return files


def _remote(path: str) -> list[DataFile]:
    if any(mark in path for mark in "*?["):
        return _glob(path)
    file = as_data_file(path.split("?")[0])
    if file is None:
        raise DataError(f"{path}: expected a URL ending in {', '.join(SUFFIXES)}; fix: the URL")
    return [DataFile(path, file.kind, file.compression)]


def _folder(path: str, spec: SourceSpec) -> list[DataFile] | list[SavedFolder]:
    folder = Path(path)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return [SavedFolder(path)]
    splits = _splits_of_folder(path, spec)
    names = splits[choose_split(path, list(splits), spec.split)]
    files = [file for file in map(as_data_file, names) if file is not None]
    if not files:
        raise DataError(
            f"{path}: expected files ending in {', '.join(SUFFIXES)}, found"
            f" {', '.join(Path(name).name for name in names[:5])}; fix: convert or rename them"
        )
    return files


def _splits_of_folder(path: str, spec: SourceSpec) -> dict[str, list[str]]:
    """Split → its files in name order, as `datasets` finds them."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(path, spec.config)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{path}: expected a folder with data files ({', '.join(SUFFIXES)}), found none that"
            f" datasets knows ({type(error).__name__}: {str(error).splitlines()[0]}); fix: give the"
            " file itself, or a glob"
        ) from error
    files = builder.config.data_files or {}
    return {str(split): sorted(map(str, names)) for split, names in files.items()}


def choose_split(path: str, splits: list[str], wanted: str | None) -> str:
    """The split asked for, else train, else the only one. Raises DataError naming them all."""
    if wanted in splits:
        return str(wanted)
    if wanted is None and ("train" in splits or len(splits) == 1):
        return "train" if "train" in splits else splits[0]
    asked = "a split called train" if wanted is None else f"the split {wanted!r}"
    raise DataError(
        f"{path}: expected {asked}, found {', '.join(sorted(splits)) or 'none'}; fix: data.split"
    )


def _on_hub(name: str, spec: SourceSpec) -> SavedFolder:
    if name == "-" or Path(name).exists():
        raise DataError(
            f"{name}: expected a file, found a pipe or device, and rows are read more than once;"
            " fix: write them to a file first (… > rows.jsonl), then give that"
        )
    if not HUB_ID.fullmatch(name) or as_data_file(name) is not None:
        raise DataError(
            f"{name}: expected a data file, a folder, a glob or a hub id, found nothing there; fix:"
            " the path (it counts from the folder you are in)"
        )
    if not is_commit(spec.revision):
        raise DataError(
            f"{name}: expected a file or folder, or the hub id of a data set with data.revision set"
            f" to a commit (40 hex digits), found no such path and revision {spec.revision}; fix:"
            " the path, data.revision, or `megaladder data get` for a published problem set"
        )
    return SavedFolder(name, on_hub=True)
