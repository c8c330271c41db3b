"""Folders in shared memory: a run's own, and those that killed runs left behind.

    /dev/shm/megaladder-NAME/        what the run keeps there
    /dev/shm/megaladder-NAME.lock    locked by its process; the kernel lets go however that ends

A folder whose lock nobody holds is nobody's: a killed run left it. A lock and not a process id,
because containers share the memory and not the ids.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/dev/shm")
PREFIX = "megaladder-"
LOCK = ".lock"
SPACE_MARGIN = 1.1


class SharedFolder:
    """An empty folder, readable by this user only, until `close` or the end of the process."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self._lock = path, lock
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)

    def close(self) -> None:
        """Removes it."""
        if self._lock >= 0:
            _remove(self.path, self._lock)
            self._lock = -1


def take(name: str) -> SharedFolder | None:
    """The folder of that name; None where there is no shared memory, or another process has it."""
    if not ROOT.is_dir() or not os.access(ROOT, os.W_OK):
        return None
    path = ROOT / (PREFIX + name)
    lock = _locked(path)
    return None if lock is None else SharedFolder(path, lock)


def free_bytes() -> int:
    """Room in shared memory."""
    return shutil.disk_usage(ROOT).free if ROOT.is_dir() else 0


def sweep() -> list[tuple[str, int]]:
    """Removes what killed runs of this user left; name and bytes of each folder."""
    removed = []
    for path in _own_folders():
        lock = _locked(path)
        if lock is not None:
            removed.append((path.name, _size(path)))
            _remove(path, lock)
    return removed


def in_use() -> list[tuple[str, int]]:
    """Folders of runs that live; after a `sweep` that is all of this user's."""
    return [(path.name, _size(path)) for path in _own_folders()]


def _own_folders() -> Iterator[Path]:
    """Those with a lock, of this user; links do not count."""
    for lock in sorted(ROOT.glob(f"{PREFIX}*{LOCK}")):
        try:
            found = os.lstat(lock)
        except FileNotFoundError:  # its run ended meanwhile
            continue
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid():
            yield lock.with_name(lock.name.removesuffix(LOCK))


def _locked(path: Path) -> int | None:
    """The open lock of a folder; None when another process holds it."""
    name = path.with_name(path.name + LOCK)
    while True:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(name)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its last holder has just removed it: another one counts now


def _remove(path: Path, lock: int) -> None:
    """The folder, then its lock: a folder always has one."""
    if not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    path.with_name(path.name + LOCK).unlink(missing_ok=True)
    os.close(lock)


def _size(path: Path) -> int:
    total = 0
    for file in path.rglob("*"):
        try:
            total += file.lstat().st_size
        except FileNotFoundError:  # its run goes on
            continue
    return total


def weight_folder(
    num_bytes: int, run_dir: Path, node: int = 0, shared_dir: Path | None = None
) -> SharedFolder | Path:
    """An empty folder for the weights, readable by this user only.

    In shared memory, or where that is too small (or `shared_dir` says so) a path.

    Named after the run (and the node: two may share a machine), so that a killed run's leftovers
    are replaced.
    """
    run = hashlib.sha256(f"{os.getuid()}:{run_dir.resolve()}".encode()).hexdigest()[:16]
    name = run + (f"-node{node}" if node else "")
    if shared_dir is None and (shared := take(name)) is not None:
        if free_bytes() > num_bytes * SPACE_MARGIN:
            return shared
        shared.close()
    folder = (
        shared_dir / f"megaladder-{name}"
        if shared_dir
        else run_dir / "engine" / ("weights" if node == 0 else f"weights_node{node}")
    )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    return folder
