"""What an evaluation has so far.

One line per graded sample in `journal.jsonl`, under one fingerprint. Survives a kill at any byte.

<out>/<model>/<benchmark>/journal.jsonl       appended as samples finish; the truth
                          fingerprint.json    what the samples were made with; another one is
                          refused samples_<benchmark>.jsonl, results_<benchmark>.json, summary.json
                          written from it (`lm_eval_format`)
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from megaladder.errors import ConfigError, DataError
from megaladder.process.faults import fault_point
from megaladder.process.storage import make_folder, remove_temporaries
from megaladder.run_dir import (
    DamagedRowError,
    JsonlFile,
    RunLock,
    read_object,
    read_places,
    read_row,
    set_damaged_aside,
    to_json,
    write_object,
)


@dataclass(frozen=True, slots=True)
class Record:
    """One graded sample.

    `response` is the text that was graded; `response_ids` what the engine sampled (with forced
    tokens, in budgets).

    `correct` is None for judged benchmarks: a judge comes later. `num_thinking_tokens` is set by
    budget forcing.
    """

    id: str
    sample: int
    response: str
    response_ids: list[int]
    finish_reason: str
    correct: bool | None
    answer: str | None
    reason: str
    detail: str = ""
    num_thinking_tokens: int | None = None
    tries: int = 1  # draws that rejection sampling took

    @property
    def key(self) -> tuple[str, int]:
        return self.id, self.sample

    @property
    def num_tokens(self) -> int:
        return len(self.response_ids)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What stays in memory of a sample, whatever its length: a record without its text.

    `start`: the byte of the journal at which its row begins."""

    start: int
    num_tokens: int
    finish_reason: str
    correct: bool | None
    answer: str | None
    reason: str
    num_thinking_tokens: int | None

    @classmethod
    def of(cls, record: Record, start: int) -> Self:
        answer = None if record.answer is None else sys.intern(record.answer)
        return cls(
            start,
            record.num_tokens,
            sys.intern(record.finish_reason),
            record.correct,
            answer,
            sys.intern(record.reason),
            record.num_thinking_tokens,
        )


Sample = Record | Verdict  # for what needs no text


def fingerprint_of(parts: Mapping[str, Any]) -> str:
    """16 hex digits over canonical JSON."""
    return hashlib.sha256(to_json(parts, sort_keys=True).encode()).hexdigest()[:16]


Entry = TypeVar("Entry")
Kept = TypeVar("Kept")


class SampleJournal(Generic[Entry, Kept]):
    """Samples in a file under one fingerprint, opened for appending.

    `Entry` is what is appended, `Kept` what stays in memory of it, by (problem id, sample). Raises
    ConfigError for another fingerprint, DataError for a foreign row.
    """

    def __init__(self, folder: str | Path, parts: Mapping[str, Any]):
        self.folder, self.parts = Path(folder), dict(parts)
        self.fingerprint = fingerprint_of(parts)
        make_folder(self.folder)
        self._lock = RunLock(self.folder)
        try:
            remove_temporaries(self.folder)
            self._check_fingerprint()
            self._file = JsonlFile(self.path)  # cuts a torn last line off
            self.records: dict[tuple[str, int], Kept] = self._undamaged()
        except BaseException:
            self._lock.release()
            raise
        self.num_resumed = len(self.records)

    @property
    def path(self) -> Path:
        return self.folder / "journal.jsonl"

    @property
    def repaired_bytes(self) -> int:
        """Bytes of a torn last line that were cut off."""
        return self._file.repaired_bytes

    def append(self, record: Entry) -> None:
        """One finished sample; on disk when this returns (a kill loses nothing before it)."""
        raise NotImplementedError

    def _read(self) -> dict[tuple[str, int], Kept]:
        raise NotImplementedError

    def _undamaged(self) -> dict[tuple[str, int], Kept]:
        """What the file holds.

        Rows that a power cut or a bad disk changed are set aside: their samples are made again.
        """
        try:
            return self._read()
        except DamagedRowError:
            self._file.close()
            set_damaged_aside(self.path)
        self._file = JsonlFile(self.path)
        return self._read()

    def missing(self, problem_id: str, num_samples: int) -> list[int]:
        """Sample indices below `num_samples` that a problem still lacks."""
        return [sample for sample in range(num_samples) if (problem_id, sample) not in self.records]

    def close(self) -> None:
        """Once it is closed, its samples survive a power cut too."""
        self._file.sync()
        self._file.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_fingerprint(self) -> None:
        path = self.folder / "fingerprint.json"
        if path.exists():
            try:
                stored = read_object(path, "delete this folder, or use another --out")
            except DataError as error:
                raise ConfigError(str(error)) from None
            if stored.get("fingerprint") != self.fingerprint:
                changes = (
                    "; ".join(_differences(stored.get("parts", {}), self.parts))
                    or "nothing that can be named"
                )
                raise ConfigError(
                    f"{self.folder}: holds samples made with other settings, which must not be"
                    f" mixed: {changes}; fix: the old settings to resume, or another --out (or"
                    " --name) for the new ones"
                )
        elif self.path.exists() and self.path.stat().st_size:
            raise ConfigError(
                f"{self.folder}: has samples but no fingerprint.json; fix: use another --out"
            )
        else:
            write_object(path, {"fingerprint": self.fingerprint, "parts": self.parts})


class Journal(SampleJournal[Record, Verdict]):
    """The samples of one benchmark: verdicts in `records`, texts in the file (`stored`)."""

    def append(self, record: Record) -> None:
        assert record.key not in self.records, f"sample {record.key} is there already"
        fault_point("before_append")
        start = self._file.append({**asdict(record), "fingerprint": self.fingerprint})
        self.records[sys.intern(record.id), record.sample] = Verdict.of(record, start)
        fault_point("after_append")

    @property
    def stored(self) -> Mapping[tuple[str, int], Record]:
        """Every sample as it was appended, read from the file when it is asked for."""
        return _Stored(self.path, self.records)

    def _read(self) -> dict[tuple[str, int], Verdict]:
        records: dict[tuple[str, int], Verdict] = {}
        for number, (start, row) in enumerate(read_places(self.path, sealed=True), start=1):
            if row.pop("fingerprint", None) != self.fingerprint:
                raise DataError(
                    f"{self.path}:{number}: was made with other settings than its folder says; fix:"
                    " use another --out"
                )
            record = Record(**row)
            if record.key in records:
                raise DataError(
                    f"{self.path}:{number}: sample {record.sample} of problem {record.id!r} again;"
                    " fix: delete the line"
                )
            records[sys.intern(record.id), record.sample] = Verdict.of(record, start)
        return records


class _Stored(Mapping[tuple[str, int], Record]):
    """See `Journal.stored`."""

    def __init__(self, path: Path, verdicts: Mapping[tuple[str, int], Verdict]):
        self._path, self._verdicts = path, verdicts

    def __getitem__(self, key: tuple[str, int]) -> Record:
        start = self._verdicts[key].start
        with self._path.open("rb") as file:
            row = read_row(file, start, self._path, sealed=True)
        del row["fingerprint"]
        return Record(**row)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._verdicts)

    def __len__(self) -> int:
        return len(self._verdicts)


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    """`decoding.temperature 0.6 → 1.0`, for every leaf that changed."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            line
            for name in keys
            for line in _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    plain = json.loads(to_json(new))
    return [] if old == plain else [f"{key} {_short(old)} → {_short(plain)}"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
