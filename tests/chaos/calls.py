"""Stands between a program and the file system and writes down its mutating calls below one folder,
for power cuts. (Faults are the kernel's: `kernel.supervisor`.)

    with Calls(folder, log) as calls: …

In the process itself and in its forks, at the level of Python's raw files and of `os`. What C++
writes by itself (torch.save to a path) is not seen; such a file is written down as it is when
somebody syncs it.
"""

from __future__ import annotations

import builtins
import io
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Call:
    """One mutating call: `name` of it, the absolute path, and what it carried (target of a rename,
    offset and bytes of a write, length of a truncation, a mark's name)."""

    name: str
    path: str
    detail: Any = None


class Calls:
    """See the module."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root, self._log = os.path.realpath(root), log
        self._real: list[tuple[Any, str, Any]] = []

    # --- what is done at each call

    def mark(self, name: str) -> None:
        """Writes down that the program has promised something."""
        self._write_down(Call("mark", name))

    def through(self, call: Call, action: Callable[[], Any]) -> Any:
        """Lets the call happen and writes it down."""
        result = action()
        if self._is_ours(call.path):
            self._write_down(call)
        return result

    def write(self, path: str, offset: int, data: Any, action: Callable[[Any], int]) -> int:
        """`through` for a write."""
        raw = bytes(data)
        written = action(raw)
        if self._is_ours(path):
            self._write_down(Call("write", path, (offset, raw[:written])))
        return written

    def _is_ours(self, path: str) -> bool:
        return path.startswith(self.root) and path[len(self.root) : len(self.root) + 1] in ("/", "")

    def _write_down(self, call: Call) -> None:
        raw = pickle.dumps(call)
        descriptor = _os_open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            _os_write(descriptor, len(raw).to_bytes(8, "big") + raw)
        finally:
            _os_close(descriptor)

    # --- where it stands

    def __enter__(self) -> Calls:
        self._patch(io, "open", self._open)
        self._patch(builtins, "open", self._open)
        self._patch(os, "open", self._os_open)
        self._patch(os, "write", self._os_write)
        self._patch(os, "pwrite", self._os_pwrite)
        for name in ("fsync", "fdatasync"):
            self._patch(os, name, self._sync(getattr(os, name)))
        for name in ("replace", "rename", "link"):
            self._patch(os, name, self._two_paths(name, getattr(os, name)))
        for name in ("unlink", "remove", "rmdir", "mkdir"):
            self._patch(os, name, self._one_path(name, getattr(os, name)))
        for name in ("truncate", "ftruncate"):
            self._patch(os, name, self._truncate(getattr(os, name)))
        self._patch(shutil, "_USE_CP_SENDFILE", False)
        return self

    def __exit__(self, *exc: object) -> None:
        for module, name, real in reversed(self._real):
            setattr(module, name, real)
        self._real.clear()

    def _patch(self, module: Any, name: str, stand_in: Any) -> None:
        self._real.append((module, name, getattr(module, name)))
        setattr(module, name, stand_in)

    def _open(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        writes = any(letter in mode for letter in "wax+")
        if isinstance(file, int) or not writes or not self._is_ours(_absolute(file)):
            return _io_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _Raw(self, file, mode.replace("t", "").replace("b", ""), opener)
        if "b" in mode and buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        text = io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)
        text.mode = mode
        return text

    def _os_open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None):
        if not flags & (os.O_CREAT | os.O_TRUNC):
            return _os_open(path, flags, mode, dir_fd=dir_fd)
        call = Call("open", _absolute(path, dir_fd), bool(flags & os.O_TRUNC))
        return self.through(call, lambda: _os_open(path, flags, mode, dir_fd=dir_fd))

    def _os_write(self, descriptor: int, data: Any) -> int:
        path = _path_of(descriptor)
        if not self._is_ours(path):
            return _os_write(descriptor, data)
        flags = _flags(descriptor)
        at_end = flags & os.O_APPEND
        offset = os.fstat(descriptor).st_size if at_end else os.lseek(descriptor, 0, os.SEEK_CUR)
        return self.write(path, offset, data, lambda raw: _os_write(descriptor, raw))

    def _os_pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        path = _path_of(descriptor)
        return self.write(path, offset, data, lambda raw: _os_pwrite(descriptor, raw, offset))

    def _sync(self, real: Any) -> Callable[..., Any]:
        def sync(file: Any) -> None:
            descriptor = file if isinstance(file, int) else file.fileno()
            path = _path_of(descriptor)
            seen = None
            if self._is_ours(path) and os.path.isfile(path):
                with _io_open(path, "rb") as whole:
                    seen = whole.read()
            self.through(Call("fsync", path, seen), lambda: real(descriptor))

        return sync

    def _two_paths(self, name: str, real: Any) -> Callable[..., Any]:
        def call(src: Any, dst: Any, **how: Any) -> None:
            given = Call("link" if name == "link" else "rename", _absolute(src), _absolute(dst))
            self.through(given, lambda: real(src, dst, **how))

        return call

    def _one_path(self, name: str, real: Any) -> Callable[..., Any]:
        plain = "unlink" if name == "remove" else name

        def call(path: Any, *args: Any, dir_fd: int | None = None, **how: Any) -> None:
            where = Call(plain, _absolute(path, dir_fd))
            self.through(where, lambda: real(path, *args, dir_fd=dir_fd, **how))

        return call

    def _truncate(self, real: Any) -> Callable[..., Any]:
        def truncate(file: Any, length: int) -> None:
            path = _path_of(file) if isinstance(file, int) else _absolute(file)
            self.through(Call("truncate", path, length), lambda: real(file, length))

        return truncate


class _Raw(io.FileIO):
    """A raw file whose creation, writes and truncations are counted."""

    def __init__(self, calls: Calls, file: Any, mode: str, opener: Any) -> None:
        self._calls, self._path, self._appends = calls, _absolute(file), "a" in mode
        opened = Call("open", self._path, "w" in mode)
        start = super().__init__
        calls.through(opened, lambda: start(file, mode, True, opener))

    def write(self, data: Any) -> int:  # type: ignore[override]
        offset = os.fstat(self.fileno()).st_size if self._appends else self.tell()
        real = super().write
        return self._calls.write(_path_of(self.fileno()), offset, data, lambda raw: real(raw) or 0)

    def truncate(self, size: int | None = None) -> int:
        length, real = self.tell() if size is None else size, super().truncate
        found: int = self._calls.through(Call("truncate", self._path, length), lambda: real(length))
        return found


_io_open, _os_open, _os_write, _os_pwrite, _os_close = (
    io.open,
    os.open,
    os.write,
    os.pwrite,
    os.close,
)


def _absolute(path: Any, dir_fd: int | None = None) -> str:
    text = os.fsdecode(path)
    if dir_fd is not None and not os.path.isabs(text):
        text = os.path.join(_path_of(dir_fd), text)
    folder, name = os.path.split(os.path.abspath(text))
    return os.path.join(os.path.realpath(folder), name)


def _path_of(descriptor: int) -> str:
    """Where an open file lies now; ` (deleted)` is the kernel's word for nowhere."""
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _flags(descriptor: int) -> int:
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_GETFL)


def read_log(log: Path) -> list[Call]:
    """The calls of a log, in order."""
    found = []
    with log.open("rb") as file:
        while head := file.read(8):
            found.append(pickle.loads(file.read(int.from_bytes(head, "big"))))
    return found
