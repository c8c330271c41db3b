"""System calls of a process and all that it starts, held by the kernel until we have answered each
(seccomp user notification; Linux 5.19 or later on x86_64 and aarch64).

    listener = listen()                        in the process whose calls are to be held
    while (held := receive(listener)) …        in another one, which got `listener`
        answer(listener, held, error=28)       or go_on(listener, held)

A process that is forked or executed inherits the filter; the listener ends (POLLHUP) when the last
of them is gone. Layouts and numbers: linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megaladder.rewards import seccomp

_USER_NOTIFY = 0x7FC00000
_SET_FILTER, _NEW_LISTENER = 1, 1 << 3
# a call that we have seen is not interrupted by a signal, as one of a local disk is not
_WAIT_KILLABLE = 1 << 5
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_GO_ON = 1
_HELD = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_SYSCALL = {"x86_64": 317, "aarch64": 277}
_GET_FD = 438
_CREATES = os.O_CREAT | os.O_TRUNC
# what gloo and the standard library write to sockets with, and nothing of ours to files
_TO_SOCKETS = ("sendto", "writev")

# name: number; sendmsg is left out, by it the listener itself travels
CALLS: dict[str, dict[str, int]] = {
    "x86_64": {
        "write": 1,
        "open": 2,
        "pwrite64": 18,
        "writev": 20,
        "sendfile": 40,
        "sendto": 44,
        "fsync": 74,
        "fdatasync": 75,
        "truncate": 76,
        "ftruncate": 77,
        "rename": 82,
        "mkdir": 83,
        "rmdir": 84,
        "link": 86,
        "unlink": 87,
        "symlink": 88,
        "openat": 257,
        "mkdirat": 258,
        "unlinkat": 263,
        "renameat": 264,
        "linkat": 265,
        "symlinkat": 266,
        "fallocate": 285,
        "pwritev": 296,
        "renameat2": 316,
        "copy_file_range": 326,
    },
    "aarch64": {
        "mkdirat": 34,
        "unlinkat": 35,
        "symlinkat": 36,
        "linkat": 37,
        "renameat": 38,
        "truncate": 45,
        "ftruncate": 46,
        "fallocate": 47,
        "openat": 56,
        "write": 64,
        "writev": 66,
        "pwrite64": 68,
        "pwritev": 70,
        "sendfile": 71,
        "fsync": 82,
        "fdatasync": 83,
        "sendto": 206,
        "renameat2": 276,
        "copy_file_range": 285,
    },
}
_FLAGS_AT = {"open": 1, "openat": 2}
_AT_FDCWD = -100


@dataclass(frozen=True, slots=True)
class Held:
    """A call that waits for its answer: by which thread, its name and its six arguments."""

    id: int
    pid: int
    name: str
    arguments: tuple[int, ...]

    def paths(self) -> list[str]:
        """The absolute paths of what it changes: of its file, or the one or two that it names."""
        kind = self.name.rstrip("2").removesuffix("at")
        if kind in ("rename", "link", "symlink"):
            return self._two_paths(kind)
        if self.name in ("open", "mkdir", "rmdir", "unlink", "truncate"):
            return [self._named(_AT_FDCWD, self.arguments[0])]
        if self.name.endswith("at"):
            return [self._named(self.arguments[0], self.arguments[1])]
        target = self.arguments[2] if self.name == "copy_file_range" else self.arguments[0]
        return [self.file(target)]

    def _two_paths(self, kind: str) -> list[str]:
        first, second, third, fourth, *_ = self.arguments
        if kind == "symlink":
            place = (second, third) if "at" in self.name else (_AT_FDCWD, second)
            return [self._named(*place)]
        if "at" in self.name:
            return [self._named(first, second), self._named(third, fourth)]
        return [self._named(_AT_FDCWD, first), self._named(_AT_FDCWD, second)]

    def file(self, descriptor: int) -> str:
        """What an open file of the process is: a path, `pipe:[…]`, `socket:[…]`."""
        return os.readlink(f"/proc/{self.pid}/fd/{descriptor}")

    def _named(self, folder: int, pointer: int) -> str:
        text = os.fsdecode(self.memory(pointer, 4096).split(b"\0", 1)[0])
        if os.path.isabs(text):
            return os.path.normpath(text)
        folder = ctypes.c_int(folder).value
        where = f"/proc/{self.pid}/cwd" if folder == _AT_FDCWD else f"/proc/{self.pid}/fd/{folder}"
        return os.path.normpath(os.path.join(os.readlink(where), text))

    def memory(self, pointer: int, size: int) -> bytes:
        """Up to `size` bytes of the process's memory."""
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            found, step = b"", 1
            while len(found) < size and step:
                # to the end of a page: the next one may not be there
                step = min(size - len(found), 4096 - (pointer + len(found)) % 4096)
                memory.seek(pointer + len(found))
                try:
                    piece = memory.read(step)
                except OSError:
                    break
                found, step = found + piece, len(piece)  # none: the process is gone
            return found

    def take_file(self, descriptor: int) -> int:
        """The process's open file as one of ours: the same offset, the same end of a pipe."""
        process = os.pidfd_open(process_of(self.pid))
        try:
            taken = ctypes.CDLL(None, use_errno=True).syscall(_GET_FD, process, descriptor, 0)
            if taken < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
            return taken
        finally:
            os.close(process)


def process_of(thread: int) -> int:
    """The process that a thread belongs to."""
    with open(f"/proc/{thread}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Tgid:"))


def supported() -> bool:
    """Whether this machine's architecture has a table."""
    return platform.machine() in CALLS


def listen(wired: bool) -> int:
    """Holds this process's mutating calls from now on; the file on which they arrive.

    wired: those that write to sockets too; two ranks make thousands of them in a step.
    """
    machine = platform.machine()
    code = [seccomp.Instruction(0x20, 0, 0, 0)]
    numbers = CALLS[machine]
    for name, number in numbers.items():
        if name not in _FLAGS_AT and (wired or name not in _TO_SOCKETS):
            code += seccomp.verdict(number, _USER_NOTIFY)
    for name, argument in _FLAGS_AT.items():
        if name in numbers:
            code += seccomp.if_flags(
                numbers[name], argument, _CREATES, hit=_USER_NOTIFY, miss=seccomp.ALLOW
            )
    code += seccomp.end(seccomp.ALLOW)
    libc = ctypes.CDLL(None, use_errno=True)
    assert seccomp.forbid_new_privileges(libc)
    array = (seccomp.Instruction * len(code))(*code)
    program = seccomp.Program(len(code), array)
    flags = _NEW_LISTENER | _WAIT_KILLABLE
    listener = libc.syscall(_SYSCALL[machine], _SET_FILTER, flags, ctypes.byref(program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp with a listener")
    return listener


def receive(listener: int) -> Held | None:
    """The next held call; None when its process was killed meanwhile."""
    raw = bytearray(_HELD.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, raw)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    identity, pid, _, number, _, _, *arguments = _HELD.unpack(raw)
    return Held(identity, pid, _names()[number], tuple(arguments))


def go_on(listener: int, held: Held) -> None:
    """Lets the kernel carry the call out."""
    _send(listener, _ANSWER.pack(held.id, 0, 0, _GO_ON))


def answer(listener: int, held: Held, value: int = 0, error: int = 0) -> None:
    """The call is over: with this value, or this error number."""
    _send(listener, _ANSWER.pack(held.id, value, -error, 0))


def _send(listener: int, raw: bytes) -> None:
    try:
        fcntl.ioctl(listener, _SEND, raw)
    except OSError as error:
        if error.errno != errno.ENOENT:  # killed meanwhile
            raise


def _names(_found: dict[int, str] = {}) -> Mapping[int, str]:  # noqa: B006  (made once)
    if not _found:
        _found |= {number: name for name, number in CALLS[platform.machine()].items()}
    return _found


def to_kernel(name: str) -> bool:
    """Whether a `socket:[…]` asks the kernel (netlink: a machine's addresses).

    Nobody else holds its other end, so nothing garbles, halves or cuts it."""
    if not name.startswith("socket:["):
        return False
    inode = name.removeprefix("socket:[").removesuffix("]")
    rows = Path("/proc/net/netlink").read_text().splitlines()[1:]
    return any(row.split()[-1] == inode for row in rows)
