"""Tokenised samples as flat arrays: in memory, or memory-mapped from a folder that was written once
and never changes.

A folder `data-<key>/` holds `<array>.bin` (little endian, no header), `names.json` (sample ids)
and, written last, `meta.json` (version, fingerprint, array sizes, report). The folder appears under
its name by one rename, so a reader sees all of it or nothing. How rows become samples is
`store_build`; this module only stores, opens, selects and splits.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from megaladder.errors import ConfigError, DataError
from megaladder.process.storage import naming
from megaladder.run_dir import atomic_write, fsync_folder, to_json
from megaladder.types import TokenSample

if TYPE_CHECKING:
    from megaladder.data.mixture import Mixture

FORMAT_VERSION = 2
HOLDOUT_STREAM = 0x401D  # keeps the holdout draw apart from other uses of the same seed
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
# array → (dtype, one entry per). "token": as many as there are tokens; "sample": one a sample;
# "bound": samples + 1
ARRAYS = {
    "ids": ("<i4", "token"),
    "mask": ("?", "token"),
    "offsets": ("<i8", "bound"),
    "loss_lengths": ("<i4", "sample"),
    "advantages": ("<f4", "sample"),
    "old_logprobs": ("<f4", "token"),
}
# array → field of TokenSample
OPTIONAL = {"advantages": "advantage", "old_logprobs": "old_logprobs_n"}


class DamagedStoreError(DataError):
    """Tokenised data that is not what was written. It can be made again from the data file."""


@dataclass(frozen=True, slots=True)
class DataReport:
    """What became of a data file. rows = samples + all dropped + all bad rows, unless `split` made
    several samples of a row.

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
    token_quantiles: dict[str, int] = field(default_factory=dict)

    @property
    def loss_token_share(self) -> float:
        return self.num_loss_tokens / self.num_tokens if self.num_tokens else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "loss_token_share": self.loss_token_share}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DataReport:
        return cls(**{key: value for key, value in data.items() if key != "loss_token_share"})


def length_quantiles(lengths: np.ndarray) -> dict[str, int]:
    """Sample lengths at QUANTILES, e.g. {"p0": 40, …, "p100": 900}; observed values, no
    interpolation."""
    values = np.quantile(lengths, QUANTILES, method="nearest") if len(lengths) else []
    return {
        f"p{quantile * 100:g}": int(value)
        for quantile, value in zip(QUANTILES, values, strict=False)
    }


class StoreWriter:
    """Collects samples one by one: in memory (`folder` None), or in files of `folder`. `finish`
    closes it and returns the arrays."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._sinks: dict[str, BinaryIO] = {}
        self._names: list[str] = []
        self._offsets = [0]
        self._optional: tuple[str, ...] = ()

    def add(self, sample: TokenSample) -> None:
        """Appends. Raises DataError when advantage or old log-probs are there for some samples
        only."""
        has = tuple(array for array, name in OPTIONAL.items() if getattr(sample, name) is not None)
        if not self._names:
            self._optional = has
        elif has != self._optional:
            raise DataError(
                f"sample {sample.id}: expected"
                f" {list(self._optional) or 'no advantage or old log-probs'} as in sample"
                f" {self._names[0]}, found {list(has) or 'none'}; fix: give them to all rows or to"
                " none"
            )
        self._write("ids", sample.input_ids)
        self._write("mask", sample.loss_mask)
        self._write("loss_lengths", [sample.num_loss_tokens])
        for array in has:
            self._write(array, np.atleast_1d(getattr(sample, OPTIONAL[array])))
        self._names.append(sample.id)
        self._offsets.append(self._offsets[-1] + sample.num_tokens)

    def _write(self, array: str, values: Any) -> None:
        if array not in self._sinks:
            in_memory = self._folder is None
            self._sinks[array] = io.BytesIO() if in_memory else self._open(f"{array}.bin")
        with naming(self._folder or "memory"):
            self._sinks[array].write(np.ascontiguousarray(values, ARRAYS[array][0]).tobytes())

    def _open(self, name: str) -> BinaryIO:
        assert self._folder is not None
        return (self._folder / name).open("wb")

    def finish(self) -> tuple[dict[str, np.ndarray], list[str]]:
        """Flushes to disk and returns (arrays, sample ids)."""
        self._write("offsets", self._offsets)
        arrays = {}
        for array, sink in self._sinks.items():
            if isinstance(sink, io.BytesIO):
                arrays[array] = np.frombuffer(sink.getvalue(), ARRAYS[array][0])
            else:
                with naming(sink.name):
                    sink.flush()
                    os.fsync(sink.fileno())
            sink.close()
        if self._folder is not None:
            arrays = {
                array: _map_file(self._folder / f"{array}.bin", ARRAYS[array][0])
                for array in self._sinks
            }
        return arrays, self._names


def _map_file(path: Path, dtype: str) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


class SampleStore:
    """Random access to tokenised samples, or to a selection of them.

    `fingerprint` says which samples these are (data bytes, tokenizer, template, options,
    selection): equal fingerprints, equal samples. `lengths`, `loss_lengths`: int32 [n], tokens and
    loss tokens of each sample. `mixture`: the shares of its parts, where it has several.
    """

    mixture: Mixture | None = None

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        names: list[str],
        fingerprint: str,
        report: DataReport,
        rows: np.ndarray | None = None,
    ) -> None:
        self._arrays, self._names, self.fingerprint, self.report = (
            arrays,
            names,
            fingerprint,
            report,
        )
        self._rows = (
            np.arange(len(names), dtype=np.int64) if rows is None else np.asarray(rows, np.int64)
        )
        self.lengths: np.ndarray = np.diff(arrays["offsets"])[self._rows].astype(np.int32)
        self.loss_lengths: np.ndarray = np.asarray(arrays["loss_lengths"])[self._rows].astype(
            np.int32
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TokenSample:
        """Sample `index`, 0 ≤ index < len. Arrays are read-only views."""
        row = self._rows[index]
        begin, end = int(self._arrays["offsets"][row]), int(self._arrays["offsets"][row + 1])
        advantages, old_logprobs = self._arrays.get("advantages"), self._arrays.get("old_logprobs")
        return TokenSample(
            id=self._names[row],
            input_ids=np.asarray(self._arrays["ids"][begin:end]),
            loss_mask=np.asarray(self._arrays["mask"][begin:end]),
            advantage=None if advantages is None else float(advantages[row]),
            old_logprobs_n=None if old_logprobs is None else np.asarray(old_logprobs[begin:end]),
        )

    @property
    def sample_ids(self) -> list[str]:
        """The ids of the samples, in order."""
        return [self._names[row] for row in self._rows]

    @property
    def largest_token_id(self) -> int:
        """Over all samples of the underlying data; one pass."""
        return int(self._arrays["ids"].max())

    @property
    def has_advantages(self) -> bool:
        return "advantages" in self._arrays

    @property
    def has_old_logprobs(self) -> bool:
        return "old_logprobs" in self._arrays

    def select(self, indices: np.ndarray, label: str) -> SampleStore:
        """The samples at `indices` in that order, sharing memory. `label` tells two selections
        apart in the fingerprint."""
        chosen = self._rows[np.asarray(indices, np.int64)]
        digest = hashlib.sha256(
            f"{self.fingerprint}|{label}|".encode() + chosen.tobytes()
        ).hexdigest()
        return SampleStore(self._arrays, self._names, digest, self.report, chosen)

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
            names = json.loads((folder / "names.json").read_text("utf-8"))
            arrays = {
                array: _map_file(folder / f"{array}.bin", ARRAYS[array][0])
                for array in meta["arrays"]
            }
            return cls(arrays, names, meta["fingerprint"], DataReport.from_dict(meta["report"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
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


def with_totals(report: DataReport, arrays: dict[str, np.ndarray]) -> DataReport:
    """The report with token counts and length quantiles filled in."""
    lengths = np.diff(arrays["offsets"])
    totals = {
        "samples": len(lengths),
        "num_tokens": int(lengths.sum()),
        "num_loss_tokens": int(np.asarray(arrays["loss_lengths"]).sum(dtype=np.int64)),
        "token_quantiles": length_quantiles(lengths),
    }
    return DataReport.from_dict({**report.as_dict(), **totals})


def commit(
    writer: StoreWriter, temporary: Path, target: Path, fingerprint: str, report: DataReport
) -> None:
    """Finishes `writer` (whose folder is `temporary`) and renames the folder to `target`: all of it
    appears at once, or nothing."""
    arrays, names = writer.finish()
    atomic_write(temporary / "names.json", to_json(names))
    files = ["names.json", *(f"{array}.bin" for array in arrays)]
    meta = {
        "version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "arrays": list(arrays),
        "sha256": {name: _sha256(temporary / name) for name in files},
        "report": with_totals(report, arrays).as_dict(),
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
    """(training, held-out) samples. `holdout`: a number of samples (int) or a share of them (float
    in (0, 1), at least one sample).

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
