"""Tokenised samples as flat arrays.

In memory, or in a folder that was written once and never changes.

A folder `data-<key>/` holds `<array>.bin` (little endian, no header) and, written last, `meta.json`
(version, fingerprint, digests, report). The folder appears under its name by one rename, so a
reader sees all of it or nothing. Of millions of samples only numbers per sample are ever in memory:
tokens and ids are read from the files piece by piece. How rows become samples is `store_build`;
this module only stores, opens, selects and splits.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from megaladder.errors import ConfigError, DataError
from megaladder.process.storage import fsync_folder, naming
from megaladder.run_dir import atomic_write, to_json
from megaladder.types import TokenSample

if TYPE_CHECKING:
    from megaladder.data.mixture import Mixture

FORMAT_VERSION = 3
HOLDOUT_STREAM = 0x401D  # keeps the holdout draw apart from other uses of the same seed
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
# array → (dtype, one entry per). "token": as many as there are tokens; "sample": one a sample;
# "bound": samples + 1; "byte": of the sample ids, UTF-8
ARRAYS = {
    "ids": ("<i4", "token"),
    "mask": ("?", "token"),
    "offsets": ("<i8", "bound"),
    "lengths": ("<i4", "sample"),
    "loss_lengths": ("<i4", "sample"),
    "names": ("u1", "byte"),
    "name_offsets": ("<i8", "bound"),
    "advantages": ("<f4", "sample"),
    "old_logprobs": ("<f4", "token"),
}
# array → field of TokenSample
OPTIONAL = {"advantages": "advantage", "old_logprobs": "old_logprobs_n"}


class DamagedStoreError(DataError):
    """Tokenised data that is not what was written. It can be made again from the data file."""


@dataclass(frozen=True, slots=True)
class DataReport:
    """What became of a data file.

    rows = samples + all dropped + all bad rows, unless `split` made several samples of a row.

    `bad_rows` and `dropped` count by reason. Lengths in tokens; `token_quantiles` maps "p50" and so
    on to a sample length.
    """

    path: str = ""
    schema: str = ""
    rows: int = 0
    samples: int = 0
    bad_rows: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    truncated: int = 0  # samples cut to seq_length and kept
    duplicate_rows: int = 0  # rows that repeat an earlier one
    duplicates: str = "keep"  # what became of them
    # samples whose last loss token is no end-of-turn or end-of-sequence token (templates without
    # one)
    no_end_of_turn: int = 0
    num_tokens: int = 0
    num_loss_tokens: int = 0
    largest_token_id: int = 0
    token_quantiles: dict[str, int] = field(default_factory=dict)

    @property
    def loss_token_share(self) -> float:
        return self.num_loss_tokens / self.num_tokens if self.num_tokens else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "loss_token_share": self.loss_token_share}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DataReport:
        return cls(**{key: value for key, value in data.items() if key != "loss_token_share"})


def length_quantiles(lengths: np.ndarray | Counter[int]) -> dict[str, int]:
    """Lengths at QUANTILES, e.g. {"p0": 40, …, "p100": 900}; observed values, no interpolation.

    `lengths`: one each (int, not negative), or how many there are of each."""
    if isinstance(lengths, Counter):
        values = np.array(sorted(lengths), np.int64)
        counts = np.array([lengths[int(value)] for value in values], np.int64)
    else:
        counts = np.bincount(lengths) if len(lengths) else np.empty(0, np.int64)
        values = np.arange(len(counts))
    ends = np.cumsum(counts)
    if not len(ends):
        return {}
    # of the lengths in ascending order, the one nearest to the quantile's place
    places = np.rint(np.array(QUANTILES) * (ends[-1] - 1)).astype(np.int64)
    found = values[np.searchsorted(ends, places, side="right")]
    return {
        f"p{quantile * 100:g}": int(value) for quantile, value in zip(QUANTILES, found, strict=True)
    }


class FileArray:
    """A flat array in a file, of which slices are read: memory does not grow with it."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def __getitem__(self, piece: slice) -> np.ndarray:
        size = self._dtype.itemsize
        count = (piece.stop - piece.start) * size
        return np.frombuffer(os.pread(self._file, count, piece.start * size), self._dtype)


Arrays = dict[str, np.ndarray | FileArray]


class StoreWriter:
    """Collects samples one by one: in memory (`folder` None), or in files of `folder`.

    `finish` closes it and returns the arrays."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._sinks: dict[str, BinaryIO] = {}
        self._first = ""
        self._optional: tuple[str, ...] = ()
        self._num_tokens = self._num_name_bytes = 0
        self._largest_token_id = 0
        for array in ("offsets", "name_offsets"):
            self._write(array, [0])

    def add(self, sample: TokenSample) -> None:
        """Appends.

        Raises DataError when advantage or old log-probs are there for some samples only."""
        has = tuple(array for array, name in OPTIONAL.items() if getattr(sample, name) is not None)
        if not self._num_tokens:
            self._first, self._optional = sample.id, has
        elif has != self._optional:
            raise DataError(
                f"sample {sample.id}: expected"
                f" {list(self._optional) or 'no advantage or old log-probs'} as in sample"
                f" {self._first}, found {list(has) or 'none'}; fix: give them to all rows or to"
                " none"
            )
        name = np.frombuffer(sample.id.encode("utf-8"), np.uint8)
        self._num_tokens += sample.num_tokens
        self._num_name_bytes += len(name)
        self._largest_token_id = max(self._largest_token_id, int(sample.input_ids.max()))
        with naming(self._folder or "memory"):
            self._write("ids", sample.input_ids)
            self._write("mask", sample.loss_mask)
            self._write("offsets", [self._num_tokens])
            self._write("lengths", [sample.num_tokens])
            self._write("loss_lengths", [sample.num_loss_tokens])
            self._write("names", name)
            self._write("name_offsets", [self._num_name_bytes])
            for array in has:
                self._write(array, np.atleast_1d(getattr(sample, OPTIONAL[array])))

    def _write(self, array: str, values: Any) -> None:
        if array not in self._sinks:
            in_memory = self._folder is None
            self._sinks[array] = io.BytesIO() if in_memory else self._open(f"{array}.bin")
        self._sinks[array].write(np.ascontiguousarray(values, ARRAYS[array][0]).tobytes())

    def _open(self, name: str) -> BinaryIO:
        assert self._folder is not None
        return (self._folder / name).open("wb")

    def finish(self, report: DataReport) -> tuple[Arrays, DataReport]:
        """Flushes to disk. The arrays, and `report` with the counts of tokens filled in."""
        for sink in self._sinks.values():
            if not isinstance(sink, io.BytesIO):
                with naming(sink.name):
                    sink.flush()
                    os.fsync(sink.fileno())
                sink.close()
        arrays: Arrays = {
            array: np.frombuffer(sink.getbuffer(), ARRAYS[array][0])
            for array, sink in self._sinks.items()
            if isinstance(sink, io.BytesIO)
        }
        if self._folder is not None:
            arrays = open_arrays(self._folder, self._sinks)
        lengths, loss_lengths = np.asarray(arrays["lengths"]), np.asarray(arrays["loss_lengths"])
        totals = replace(
            report,
            samples=len(lengths),
            num_tokens=int(lengths.sum(dtype=np.int64)),
            num_loss_tokens=int(loss_lengths.sum(dtype=np.int64)),
            largest_token_id=self._largest_token_id,
            token_quantiles=length_quantiles(lengths),
        )
        return arrays, totals


def open_arrays(folder: Path, names: Iterable[str]) -> Arrays:
    """The arrays of a folder.

    What grows with tokens or ids as slices of files, numbers per sample memory-mapped."""
    arrays: Arrays = {}
    for array in names:
        path, (dtype, entry) = folder / f"{array}.bin", ARRAYS[array]
        per_sample = entry in ("sample", "bound") and path.stat().st_size
        arrays[array] = np.memmap(path, dtype, "r") if per_sample else FileArray(path, dtype)
    return arrays


class SampleStore:
    """Random access to tokenised samples, or to a selection of them.

    `fingerprint` says which samples these are (data bytes, tokenizer, template, options,
    selection): equal fingerprints, equal samples. `lengths`, `loss_lengths`: int32 [n], tokens and
    loss tokens of each sample. `mixture`: the shares of its parts, where it has several.
    """

    mixture: Mixture | None = None

    def __init__(
        self, arrays: Arrays, fingerprint: str, report: DataReport, rows: np.ndarray | None = None
    ) -> None:
        self._arrays, self.fingerprint, self.report, self._rows = (
            arrays,
            fingerprint,
            report,
            rows,
        )
        every = slice(None) if rows is None else rows
        self.lengths: np.ndarray = self._per_sample("lengths")[every]
        self.loss_lengths: np.ndarray = self._per_sample("loss_lengths")[every]

    def _per_sample(self, array: str) -> np.ndarray:
        found = self._arrays[array]
        assert isinstance(found, np.ndarray), array
        return found

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenSample:
        """Sample `index`, 0 ≤ index < len. Arrays are read-only."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        row = int(index if self._rows is None else self._rows[index])
        tokens = self._slice("offsets", row)
        advantages, old_logprobs = self._arrays.get("advantages"), self._arrays.get("old_logprobs")
        return TokenSample(
            id=self._arrays["names"][self._slice("name_offsets", row)].tobytes().decode("utf-8"),
            input_ids=self._arrays["ids"][tokens],
            loss_mask=self._arrays["mask"][tokens],
            advantage=None if advantages is None else float(self._per_sample("advantages")[row]),
            old_logprobs_n=None if old_logprobs is None else old_logprobs[tokens],
        )

    def _slice(self, bounds: str, row: int) -> slice:
        begin, end = self._per_sample(bounds)[row : row + 2].tolist()
        return slice(begin, end)

    @property
    def largest_token_id(self) -> int:
        """Over all samples of the underlying data."""
        return self.report.largest_token_id

    @property
    def has_advantages(self) -> bool:
        return "advantages" in self._arrays

    @property
    def has_old_logprobs(self) -> bool:
        return "old_logprobs" in self._arrays

    def select(self, indices: np.ndarray, label: str) -> SampleStore:
        """The samples at `indices` in that order, sharing memory.

        `label` tells two selections apart in the fingerprint."""
        chosen = np.asarray(indices, np.int64)
        if self._rows is not None:
            chosen = self._rows[chosen]
        digest = hashlib.sha256(
            f"{self.fingerprint}|{label}|".encode() + chosen.tobytes()
        ).hexdigest()
        return SampleStore(self._arrays, digest, self.report, chosen)

    @classmethod
    def open(cls, folder: str | Path) -> SampleStore:
        """Opens a folder that `commit` wrote, and compares every file with its digest.

        Raises:
            DamagedStoreError: a file is missing, cut short or changed, or of another format.
        """
        folder = Path(folder)
        fix = f"fix: delete the folder {folder}, it is rebuilt from the data file"
        try:
            meta = json.loads((folder / "meta.json").read_text("utf-8"))
            if meta["version"] != FORMAT_VERSION:
                raise DamagedStoreError(
                    f"{folder}: expected tokenised data of version {FORMAT_VERSION}, found"
                    f" {meta['version']}; {fix}"
                )
            if meta.pop("digest") != _digest_of(meta):
                raise DamagedStoreError(f"{folder / 'meta.json'}: its content has changed; {fix}")
            for name, digest in meta["sha256"].items():
                if _sha256(folder / name) != digest:
                    raise DamagedStoreError(
                        f"{folder / name}: its content has changed since it was written; {fix}"
                    )
            arrays = open_arrays(folder, meta["arrays"])
            return cls(arrays, meta["fingerprint"], DataReport.from_dict(meta["report"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedStoreError(
                f"{folder}: expected complete tokenised data, found {type(error).__name__}:"
                f" {error}; {fix}"
            ) from error


def _digest_of(meta: dict[str, Any]) -> str:
    """sha256 of the values, whatever the layout of the file."""
    return hashlib.sha256(to_json(meta, sort_keys=True).encode("utf-8")).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit(
    writer: StoreWriter, temporary: Path, target: Path, fingerprint: str, report: DataReport
) -> None:
    """Finishes `writer` (whose folder is `temporary`) and renames the folder to `target`.

    All of it appears at once, or nothing."""
    arrays, report = writer.finish(report)
    meta = {
        "version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "arrays": list(arrays),
        "sha256": {f"{name}.bin": _sha256(temporary / f"{name}.bin") for name in arrays},
        "report": report.as_dict(),
    }
    meta["digest"] = _digest_of(meta)
    atomic_write(temporary / "meta.json", to_json(meta, sort_keys=True, indent=1))
    if target.exists():
        shutil.rmtree(target)
    os.replace(temporary, target)
    fsync_folder(target.parent)


def split_holdout(
    store: SampleStore, holdout: int | float, seed: int
) -> tuple[SampleStore, SampleStore]:
    """(training, held-out) samples.

    `holdout`: a number of samples (int) or a share of them (float in (0, 1), at least one sample).

    Which samples are held out is a pure function of (number of samples, holdout, seed). Both parts
    keep file order.
    """
    total = len(store)
    count = holdout if isinstance(holdout, int) else max(1, round(total * holdout))
    if not 0 < count < total:
        raise ConfigError(
            f"data.holdout {holdout} would hold out {count} of {total} samples; fix: at least one,"
            " and fewer than all"
        )
    keys = np.random.PCG64(np.random.SeedSequence((HOLDOUT_STREAM, seed))).random_raw(total)
    held = np.zeros(total, bool)
    held[np.argsort(keys, kind="stable")[:count]] = True
    return store.select(np.flatnonzero(~held), "train"), store.select(
        np.flatnonzero(held), "holdout"
    )
