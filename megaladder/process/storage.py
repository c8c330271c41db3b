"""What a failing disk means: one table from the system's error numbers to words and a way out.

Every one of them leaves what was committed before untouched, so the status is 3: repair the place,
start the same command again. Errors that are not in the table (a missing file, a folder where a
file should be) are somebody else's to explain.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from megaladder.errors import MegaladderError, StorageError

# error number -> what happened, what to do
MEANINGS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: (
        "no space left on the disk",
        "free some space, or write elsewhere (run_dir, --out)",
    ),
    errno.EDQUOT: ("the disk quota is used up", "free some space or ask for a larger quota"),
    errno.EFBIG: (
        "the file is too large for the file system or the process's limit (ulimit -f)",
        "raise the limit, or use another file system",
    ),
    errno.EROFS: (
        "the file system is read-only",
        "remount it for writing, or write elsewhere (run_dir, --out)",
    ),
    errno.EACCES: (
        "permission denied",
        "correct its permissions, or write elsewhere (run_dir, --out)",
    ),
    errno.EPERM: (
        "operation not permitted",
        "correct its permissions, or write elsewhere (run_dir, --out)",
    ),
    errno.EIO: (
        "the device reports an input/output error",
        "look at the kernel's log (dmesg); use another disk",
    ),
    errno.ESTALE: ("the network file system lost the file", "wait until the server is back"),
    errno.ETIMEDOUT: ("the file system does not answer", "wait until the server is back"),
    errno.EMFILE: ("too many open files in this process", "raise the limit: ulimit -n 65536"),
    errno.ENFILE: ("too many open files on this machine", "close some, or raise fs.file-max"),
    errno.ENOMEM: ("out of memory", "free some memory"),
    errno.ENOLCK: ("the file system has no locks left", "use another file system for run_dir"),
}
# torch's C++ writer drops the error number of a write that failed
_WRITER_WORDS = (
    *("unexpected pos", "PytorchStreamWriter failed", "file write failed"),
    *("open file failed with strerror", "iostream error"),
)


DIGEST = "own_sha256"


def with_digest(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a last key that tells whether the others have changed."""
    return {**value, DIGEST: _digest_of(value)}


def without_digest(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object as it was before `with_digest`; one that never had a digest passes.

    Raises:
        ValueError: it has changed.
    """
    plain = {key: found for key, found in value.items() if key != DIGEST}
    sealed = any(almost(key.encode("utf-8", "surrogatepass"), DIGEST.encode()) for key in value)
    if sealed and value.get(DIGEST) != _digest_of(plain):
        raise ValueError("its content has changed since it was written")
    return plain


def almost(found: bytes, expected: bytes) -> bool:
    """Whether at most one byte differs."""
    differ = sum(a != b for a, b in zip(found, expected, strict=False))
    return len(found) == len(expected) and differ <= 1


def _digest_of(value: Mapping[str, Any]) -> str:
    """sha256 of the values, whatever the layout of the file."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def storage_error(error: BaseException, place: Path | str | None = None) -> StorageError | None:
    """The error in words when a disk is behind it, else None.

    place: where was written, for errors that name no file. Looks through the causes too, and knows
    torch's own words for a write that was cut short.
    """
    causes = [cause for cause in _causes(error) if isinstance(cause, OSError)]
    known = [cause for cause in causes if cause.errno in MEANINGS]
    # closing a file whose write failed fails once more, without a name
    known.sort(key=lambda cause: not isinstance(cause.filename, str | os.PathLike))
    for cause in known[:1]:
        what, fix = MEANINGS[cause.errno or 0]
        where = cause.filename if isinstance(cause.filename, str | os.PathLike) else place
        if isinstance(where, str | os.PathLike) and _TEMPORARY.fullmatch(Path(where).name):
            where = _of_temporary(Path(where))
        return StorageError(_message(where, what, fix))
    if isinstance(error, MegaladderError) or not any(w in str(error) for w in _WRITER_WORDS):
        return None
    what = f"a file could not be written completely ({str(error).splitlines()[0]})"
    return StorageError(
        _message(place, what, "make room there, or write elsewhere (run_dir, --out)")
    )


def fails_by_itself(error: OSError) -> bool:
    """Whether a disk is to blame, not whoever chose a place that cannot be written."""
    chosen = (errno.EACCES, errno.EPERM, errno.EROFS)
    return error.errno in MEANINGS and error.errno not in chosen


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """The system names a file that it cannot open, not one that it cannot write.

    Errors of a block that writes `path` get its name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


# as `open_temporary` names them
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


def _of_temporary(temporary: Path) -> Path:
    """The file whose place it takes when it is complete; its name begins so."""
    return temporary.with_name(temporary.name.removeprefix(".").rsplit(".", 2)[0])


def open_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `path`, to be renamed to it; what killed writers of `path` left there goes.

    It is locked as long as it is open: one that nobody holds is nobody's.
    """
    start = f".{path.name[:100]}."
    remove_abandoned(path.parent, start)
    while True:
        temporary = path.parent / f"{start}{uuid.uuid4().hex}.tmp"
        file = temporary.open("xb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another start has just taken it for a killed writer's
            file.close()
            continue
        except OSError:  # a file system without locks, where nothing is removed either
            return temporary, file
        if temporary.exists():
            return temporary, file
        file.close()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that durably takes the place of `path` when the block ends well.

    It vanishes otherwise.
    """
    temporary, opened = open_temporary(path)
    try:
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # while it is locked: another start takes an unlocked one for a killed writer's
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def remove_abandoned(folder: Path, start: str = ".") -> None:
    """What killed writers left in a folder, of names that begin so. What a writer has open stays."""
    names = []
    with contextlib.suppress(OSError):  # told when a file is opened there
        names = os.listdir(folder)
    # no glob: each pattern stays in three caches of Python, and every step has a name of its own
    for name in names:
        if name.startswith(start) and _TEMPORARY.fullmatch(name):
            _remove_unlocked(folder / name)


def _remove_unlocked(path: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """What killed writers left below a folder. By the holder of its lock."""
    for path in folder.rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def make_folder(folder: str | Path) -> None:
    """The folder and those above it, where they are missing; their names survive a power cut."""
    missing = [path for path in (Path(folder), *Path(folder).parents) if not path.exists()]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path in missing:
        fsync_folder(path.parent)


def fsync_folder(folder: str | Path) -> None:
    """Makes renames and new names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _message(where: object, what: str, fix: str) -> str:
    return (
        f"{where or 'writing'}: {what}{_room(where)}; what was committed before is untouched; fix:"
        f" {fix}, then start the same command again"
    )


def _room(where: object) -> str:
    """` (1,234 bytes free)`, or nothing where that cannot be asked."""
    if not isinstance(where, str | os.PathLike):
        return ""
    try:
        folder = next(p for p in (Path(where), *Path(where).parents) if p.exists())
        return f" ({shutil.disk_usage(folder).free:,} bytes free)"
    except (OSError, StopIteration):
        return ""
