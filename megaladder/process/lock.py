"""One run per folder: a lock that the kernel drops with its process, or a guard without locks.

A POSIX record lock on `.lock` where the file system has them. Where it has not (Lustre without
flock, NFS without lockd), a file `.guard` that is created exclusively, names its holder (host,
process, when that started) and is touched every few seconds: it counts while it is touched, and on
the holder's own machine only while that process lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Protocol

from megaladder.errors import ConfigError
from megaladder.process.ranks import host, process_start

HELD = (errno.EAGAIN, errno.EACCES)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
TOUCH_S = 10.0
STALE_S = 60.0  # several touches, for a file system that is slow to tell


class _Holding(Protocol):
    def release(self) -> None: ...


class RunLock:
    """Held from construction to `release`, or to the end of the process.

    Forked helpers do not inherit it.

    Raises:
        ConfigError: another process, or this one, has the folder in use.
        OSError: the folder cannot be written.
    """

    _held: set[str] = set()  # noqa: RUF012  (of this process, which the kernel's lock cannot see)

    def __init__(self, folder: str | Path) -> None:
        self._key = str(Path(folder).resolve())
        if self._key in RunLock._held:
            raise ConfigError(f"{folder}: this process already runs in it; fix: another run_dir")
        self._holding: _Holding | None = _hold(Path(folder))
        RunLock._held.add(self._key)

    def release(self) -> None:
        if self._holding is not None:
            self._holding.release()
            self._holding = None
            RunLock._held.discard(self._key)


def _hold(folder: Path) -> _Holding:
    try:
        return _KernelLock(folder)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(
            f"megaladder: {folder}: the file system has no locks ({error.strerror}); {folder}/"
            f"{_Guard.NAME} guards the folder instead, touched every {TOUCH_S:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        return _Guard(folder)


def _in_use(folder: Path, holder: str) -> ConfigError:
    return ConfigError(
        f"{folder}: in use by {holder}; fix: wait for it to end, stop it, or choose another run_dir"
    )


class _KernelLock:
    """fcntl on `.lock`, whose content names the holder."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{_holder_in_words(_myself())}\n".encode())
        except OSError as error:
            said = os.read(self._descriptor, 500).decode("utf-8", "replace").strip()
            os.close(self._descriptor)
            if error.errno in HELD:
                raise _in_use(folder, said or "another process") from None
            raise

    def release(self) -> None:
        os.close(self._descriptor)


class _Guard:
    """See the module."""

    NAME = ".guard"

    def __init__(self, folder: Path) -> None:
        self._path = folder / self.NAME
        self._done = threading.Event()
        holder = self._take()
        if holder is not None and _is_dead(holder, self._age_s(folder)):
            self._path.unlink(missing_ok=True)
            holder = self._take()
        if holder is not None:
            raise _in_use(folder, _holder_in_words(holder))
        threading.Thread(target=self._touch, name="run lock", daemon=True).start()

    def _take(self) -> dict[str, object] | None:
        """None when it is ours now, else who has it.

        Complete from the first moment: a link, made to a finished file, is exclusive on network
        file systems too."""
        finished = self._path.with_name(f"{self.NAME}.{uuid.uuid4().hex}.tmp")
        finished.write_text(json.dumps(_myself()))
        try:
            os.link(finished, self._path)
            return None
        except FileExistsError:
            return _read_holder(self._path)
        finally:
            finished.unlink(missing_ok=True)

    def _age_s(self, folder: Path) -> float:
        """Seconds since the guard was touched, by the file system's own clock."""
        probe = folder / f"{self.NAME}.{uuid.uuid4().hex}.tmp"
        probe.touch()
        try:
            return probe.stat().st_mtime - self._path.stat().st_mtime
        except FileNotFoundError:
            return float("inf")
        finally:
            probe.unlink(missing_ok=True)

    def _touch(self) -> None:
        while not self._done.wait(TOUCH_S):
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def release(self) -> None:
        self._done.set()
        self._path.unlink(missing_ok=True)


def _myself() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "host": host(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "started": process_start(os.getpid()),
    }


_KINDS = {"pid": int, "host": str, "since": str, "started": str}


def _holder_in_words(holder: dict[str, object]) -> str:
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"


def _read_holder(path: Path) -> dict[str, object]:
    unknown: dict[str, object] = {"pid": "?", "host": "?", "since": "?", "started": None}
    try:
        said = json.loads(path.read_text(encoding="utf-8")).items()
    except (OSError, ValueError, RecursionError, AttributeError):
        return unknown
    return {**unknown, **{key: one for key, one in said if isinstance(one, _KINDS.get(key, ()))}}


def _is_dead(holder: dict[str, object], age_s: float) -> bool:
    """On our machine we look at the process, elsewhere at the guard's age."""
    if holder["host"] == host() and holder["started"] is not None:
        return process_start(holder["pid"]) != holder["started"]
    return age_s > STALE_S
