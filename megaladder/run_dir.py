"""The run folder, everything that a run writes.

A kill at any byte leaves something that can be read and resumed.

    run_dir/config.yaml        the resolved config (atomic)
    run_dir/config_history.jsonl   every config that a start began with, and what had changed
    run_dir/fingerprint.json   what the run was made of: versions, hashes of tokenizer and data
                               (atomic)
    run_dir/model_files/       configuration and tokenizer as they travel with the weights
    run_dir/metrics.jsonl      one object a step (append-only, torn tail repaired on open)
    run_dir/held_out.jsonl     held-out loss by step, the same way
    run_dir/evaluations.jsonl  score of a benchmark by step, the same way; best.json: the best step
    run_dir/evaluations/       its samples, step_N/BENCHMARK/
    run_dir/log.txt, checkpoints/, hf/, rollouts/, report.html
    run_dir/.lock              held by rank 0 of the one running process

Not here: checkpoints (`checkpoint.store`), and what is printed (`log`). No torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from megaladder.config.strict_yaml import load_yaml
from megaladder.errors import ConfigError, DataError
from megaladder.files import shared_memory
from megaladder.files.surroundings import environment
from megaladder.process import heartbeat, last_word
from megaladder.process.lock import RunLock
from megaladder.process.storage import (
    almost,
    fsync_folder,
    make_folder,
    naming,
    remove_temporaries,
    replacing,
    with_digest,
    without_digest,
)


def to_json(value: Any, sort_keys: bool = False, indent: int | None = None) -> str:
    """JSON text that every reader takes.

    NaN and ±Infinity become null, numpy scalars numbers, tuples lists; Unicode stays as it is."""
    return json.dumps(
        _plain(value), sort_keys=sort_keys, indent=indent, ensure_ascii=False, allow_nan=False
    )


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch scalars and arrays
        return _plain(value.tolist())
    raise TypeError(f"no JSON form for {type(value).__name__}: {value!r}")


def write_object(path: str | Path, value: Mapping[str, Any]) -> None:
    """A JSON object, atomically, whose last key is the digest of the others: see `read_object`."""
    atomic_write(path, to_json(with_digest(json.loads(to_json(value))), indent=1) + "\n")


def read_object(path: str | Path, fix: str) -> dict[str, Any]:
    """A JSON object that we wrote. fix: what to do where it cannot be used.

    Raises:
        DataError: no JSON, no object, or not what was written.
        FileNotFoundError: there is no such file.
    """
    try:
        found = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        found = f"{type(error).__name__}: {str(error)[:200]}"
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object, found {str(found)[:200]}; fix: {fix}")
    try:
        return without_digest(found)
    except ValueError as error:
        raise DataError(f"{path}: {error}; fix: {fix}") from None


def atomic_write(path: str | Path, data: str | bytes) -> None:
    """Old content or new content, never a mixture, also after a power cut.

    Temp file in the same folder, fsync, rename, fsync folder."""
    atomic_lines(path, [data.encode("utf-8") if isinstance(data, str) else data])


def atomic_lines(path: str | Path, lines: Iterable[bytes]) -> None:
    """The same for content that comes in pieces, of which one is in memory."""
    path = Path(path)
    make_folder(path.parent)
    with naming(path), replacing(path) as file:
        file.writelines(lines)


class JsonlFile:
    """Append-only JSON lines.

    A line counts once its newline is on disk; opening for append cuts a torn last line off first.
    Each line ends with its own digest, which `read_jsonl` compares.
    """

    def __init__(self, path: str | Path):
        self.path, self._named = Path(path), False
        make_folder(self.path.parent)
        self.repaired_bytes = repair_torn_tail(self.path)
        self._file = self.path.open("ab")

    def append(self, row: Mapping[str, Any], durable: bool = False) -> int:
        """One row, one write, safe from a kill (`durable`: a power cut too); where it begins."""
        line = sealed_line(row)
        with naming(self.path):
            self._file.write(line)
            self._file.flush()
            start = self._file.tell() - len(line)
        if durable:
            self.sync()
        return start

    def sync(self) -> None:
        """Waits until every row is on the disk: none is lost to a power cut."""
        with naming(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            if not self._named:  # the file itself may be new
                fsync_folder(self.path.parent)
                self._named = True

    def close(self) -> None:
        with naming(self.path):
            self._file.close()

    def __enter__(self) -> JsonlFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_HEADER_BYTES = 1 << 20
_YAML_DIGEST = "# sha256 of the lines below: "
_SEAL = b', "sha256": "'
_SEAL_BYTES = len(_SEAL) + 64 + len(b'"}')


def sealed_line(row: Mapping[str, Any]) -> bytes:
    """A row as it stands in a file of ours."""
    return _seal(to_json(row).encode("utf-8")) + b"\n"


def unsealed(line: bytes, where: str) -> bytes:
    """A line without its digest, where it has one. Raises DataError for one that has changed."""
    return _unseal(line, where) if almost(line[-_SEAL_BYTES:][: len(_SEAL)], _SEAL) else line


def _seal(line: bytes) -> bytes:
    """The row with a last key: the sha256 of the line without it."""
    return line[:-1] + _SEAL + hashlib.sha256(line).hexdigest().encode() + b'"}'


class DamagedRowError(DataError):
    """A row that has changed since it was written, or that a power cut took half of."""


def _unseal(line: bytes, where: str) -> bytes:
    """The line as it was before `_seal`; DamagedRowError when it is another one."""
    body = line[:-_SEAL_BYTES] + b"}"
    if _seal(body) != line:
        raise DamagedRowError(
            f"{where}: has changed since it was written (sha256 of the line); fix: delete that line,"
            " then it is made again"
        )
    return body


def refuse_changed_yaml(path: Path) -> None:
    """Raises ConfigError where a file that begins with its digest (config.yaml) has changed."""
    first, _, rest = path.read_bytes().partition(b"\n")
    if not almost(first[: len(_YAML_DIGEST)], _YAML_DIGEST.encode()):
        return
    if f"{_YAML_DIGEST}{hashlib.sha256(rest).hexdigest()}".encode() != first:
        raise ConfigError(
            f"{path}: its content has changed since it was written; fix: copy the file again, or"
            " delete its first line if you changed it yourself"
        )


def model_fingerprint(path: str, revision: str | None) -> dict[str, Any]:
    """What identifies the weights.

    For a folder, sha256 over its configs and, of each weight file, its size, first and last MiB.

    Reading 28 GB to notice a change is not worth it: training changes every tensor, so the ends of
    every file change.
    """
    folder = Path(path)
    if not folder.is_dir():
        return {"hub": path, "revision": revision}
    digest = hashlib.sha256()
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_HEADER_BYTES))
            stream.seek(max(0, size - _HEADER_BYTES))
            digest.update(stream.read(_HEADER_BYTES))
    return {"sha256": digest.hexdigest()}


def repair_torn_tail(path: str | Path) -> int:
    """Cuts what follows the last newline, where a writer was killed; the bytes removed."""
    path = Path(path)
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
    return size - end


def read_jsonl(path: str | Path, *, sealed: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of a file that we wrote.

    Only newlines separate rows; a torn last line is no row; anything else broken is an error.
    sealed: rows without a digest are refused too.
    """
    return (row for _, row in read_places(path, sealed=sealed))


def read_places(path: str | Path, *, sealed: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same with the byte at which each row begins."""
    start = 0
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            yield start, _row(line, f"{path}:{number}", sealed)
            start += len(line)


def read_row(file: IO[bytes], start: int, path: str | Path, *, sealed: bool) -> dict[str, Any]:
    """The row of an open file that begins at byte `start`."""
    file.seek(start)
    return _row(file.readline(), f"{path}, byte {start:,}", sealed)


def _row(line: bytes, where: str, sealed: bool) -> dict[str, Any]:
    line = line.removesuffix(b"\n")
    line = _unseal(line, where) if sealed else unsealed(line, where)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a JSON object ({error}); fix: delete that line") from None
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise DataError(f"{where}: expected an object, found {kind}; fix: delete that line")
    return row


def drop_rows_after(path: str | Path, step: int) -> int:
    """Takes the rows above `step` out of a metrics file, for a resumed run; how many went."""
    path = Path(path)
    if not path.exists():
        return 0
    repair_torn_tail(path)
    kept, _, num_rows = split_rows(path, step)
    if len(kept) < num_rows:
        atomic_lines(path, map(sealed_line, kept))
    return num_rows - len(kept)


def split_rows(path: Path, step: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Rows up to `step`, rows beyond it, and how many there are.

    Rows are on the disk for certain when their step's checkpoint is: what a power cut damaged lies
    beyond it, and is left out.

    Raises:
        DataError: a damaged row among those up to `step`.
    """
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    damage: DataError | None = None
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = _row(line, f"{path}:{number}", sealed=False)
                later = _step_of(row, path, number) > step
            except DataError as error:
                damage = damage or error
                continue
            if damage is not None and not later:
                raise damage
            rows[later].append(row)
    return *rows, number


def set_damaged_aside(path: Path) -> None:
    """Moves rows that have changed out of a file of sealed rows, to FILE.damaged, and says so."""
    if not path.exists():
        return
    kept: list[tuple[int, int]] = []
    damaged: list[bytes] = []
    with path.open("rb") as file:
        for line in file:
            try:
                _unseal(line.removesuffix(b"\n"), "")
                kept.append((file.tell() - len(line), len(line)))
            except DamagedRowError:
                damaged.append(line)
        if not damaged:
            return
        aside = path.with_name(f"{path.name}.damaged")
        with aside.open("ab") as target:
            target.writelines(damaged)
        atomic_lines(path, (os.pread(file.fileno(), size, start) for start, size in kept))
    print(
        f"warning: {path}: {len(damaged)} lines have changed since they were written (a power cut,"
        f" or a bad disk): they are in {aside.name} now, and are made again",
        file=sys.stderr,
    )


def _step_of(row: Mapping[str, Any], path: Path, number: int) -> int:
    """The row's step; DataError when it has none that counts."""
    step = row.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        raise DataError(
            f"{path}:{number}: expected an integer `step`, found {step!r}; fix: delete that line"
        )
    return step


class RunDir:
    """Paths and small files of one run.

    Only the writer (rank 0) holds the lock and writes; other ranks just ask for paths.

    >>> run = RunDir("runs/a", writer=True)    # doctest: +SKIP
    >>> run.write_config("model: …"); run.write_fingerprint({"data_sha256": "…"}); run.close()    #
    doctest: +SKIP
    """

    def __init__(self, path: str | Path, writer: bool):
        self.path = Path(path)
        self._lock: RunLock | None = None
        if not writer:
            last_word.begin(self.path, writer=False)
            return
        existed = self.path.is_dir()
        try:
            make_folder(self.path)
            self._lock = RunLock(self.path)
            last_word.begin(self.path, writer=True)
            heartbeat.forget_earlier(self.path)
            remove_temporaries(self.path)
            shared_memory.sweep()
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(
                f"run_dir {path}: is a file, expected a folder; fix: another run_dir"
            ) from None
        except PermissionError as error:
            # a folder of an earlier start was writable then: the disk's fault, and nothing is lost
            if existed:
                raise
            raise ConfigError(
                f"run_dir {path}: cannot be written ({error.strerror}); fix: another run_dir, or"
                " its permissions"
            ) from None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def held_out(self) -> Path:
        return self.path / "held_out.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def evaluation_rows(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def best(self) -> Path:
        return self.path / "best.json"

    @property
    def log_text(self) -> Path:
        return self.path / "log.txt"

    @property
    def model_files(self) -> Path:
        return self.path / "model_files"

    def hf_folder(self, step: int) -> Path:
        return self.path / "hf" / f"step_{step}"

    def rollouts(self, step: int) -> Path:
        return self.path / "rollouts" / f"step_{step}.jsonl"

    def read_config(self) -> dict[str, Any] | None:
        """The resolved config of an earlier start in this folder; None if there was none."""
        path = self.path / "config.yaml"
        if not path.exists():
            return None
        try:
            refuse_changed_yaml(path)
            return load_yaml(path).values
        except ConfigError as error:
            raise ConfigError(
                f"{error}; or delete the file if this run may start anew, or use another run_dir"
            ) from None

    def write_config(self, resolved_yaml: str) -> None:
        self._assert_writer()
        digest = hashlib.sha256(resolved_yaml.encode("utf-8")).hexdigest()
        atomic_write(self.path / "config.yaml", f"{_YAML_DIGEST}{digest}\n{resolved_yaml}")

    def append_history(self, step: int, changes: Sequence[str], config: Mapping[str, Any]) -> None:
        """One row of config_history.jsonl: what a start after `step` steps began with."""
        self._assert_writer()
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        with JsonlFile(self.path / "config_history.jsonl") as history:
            history.append(
                {"after_step": step, "time": now, "changes": list(changes), "config": config},
                durable=True,
            )

    def write_fingerprint(self, parts: Mapping[str, Any]) -> None:
        """`parts` (hashes of model, tokenizer, data) beside `environment()`."""
        self._assert_writer()
        write_object(self.path / "fingerprint.json", {**parts, "environment": environment()})

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _assert_writer(self) -> None:
        assert self._lock is not None, (
            f"{self.path}: only the writer, before close(), may write here"
        )
