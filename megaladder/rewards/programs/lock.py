"""Locks this process, for good.

What a generated program can still do is compute, read the Python installation, and write to the
descriptors it was given. Linux.

* seccomp, an allow-list (x86_64 and aarch64): no process is made or signalled, no socket, nothing
  opened for writing, no limit raised; anything else fails with EPERM
* Landlock: files outside the Python installation cannot be read. Where the kernel lacks it, nothing
  can be opened at all; modules that are usual in solutions are imported before
* limits: address space, CPU seconds, output bytes, descriptors, no core dump

No privilege is needed. A kernel bug is a way out, and time can be measured: for programs of people
who want to harm you, put a virtual machine around it.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import platform
import resource
import struct
import sys
from collections.abc import Sequence
from typing import TypedDict

from megaladder.rewards import seccomp

_PDEATHSIG = 1
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# access rights that a Landlock version knows: bits of files; from version 4 on TCP bind and connect
_FILE_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}

PRELOADED = (
    *("array", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal"),
    *("enum", "fractions", "functools", "heapq", "io", "itertools", "json", "math", "numbers"),
    *("operator", "queue", "random", "re", "statistics", "string", "threading", "time", "typing"),
)


class _Calls(TypedDict):
    """Syscall numbers of an architecture."""

    allowed: tuple[int, ...]
    open: dict[int, int]
    fcntl: int


# numbers of calls, per architecture; what is not here does not exist for a program
_X86_64 = (
    *(0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23, 24),
    *(25, 28, 32, 33, 35, 36, 37, 38, 39, 60, 63, 78, 79, 89, 95, 96, 97, 98, 99, 100, 102),
    *(104, 107, 108, 110, 111, 131, 137, 138, 158, 186, 201, 202, 204, 217, 218, 219, 228, 229),
    *(230, 231, 257, 262, 267, 269, 270, 271, 273, 292, 293, 309, 318, 324, 332, 334, 439),
)
_AARCH64 = (
    *(17, 23, 24, 43, 44, 48, 57, 59, 61, 62, 63, 64, 65, 66, 67, 72, 73, 78, 79, 80),
    *(93, 94, 96, 98, 99, 101, 102, 103, 113, 114, 115, 123, 124, 128, 132, 134, 135, 139, 153),
    *(155, 160, 165, 168, 169, 172, 173, 174, 175, 176, 177, 178, 179, 214, 215, 216, 222, 226),
    *(233, 278, 283, 291, 293, 439),
)
_CALLS: dict[str, _Calls] = {
    # open and openat: which argument holds the flags
    "x86_64": {"allowed": _X86_64, "open": {2: 1, 257: 2}, "fcntl": 72},
    "aarch64": {"allowed": _AARCH64, "open": {56: 2}, "fcntl": 25},
}
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; F_SETOWN could make the kernel send signals
_FCNTL_COMMANDS = (0, 1, 2, 3, 1030)


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when its parent ends; at once if that has happened already."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, 9, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def limit(cpu_s: int, memory_bytes: int, output_bytes: int) -> None:
    """Resource limits, soft and hard alike: a soft one alone could be caught or raised."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    spent = resource.getrusage(resource.RUSAGE_SELF)
    wanted = {
        resource.RLIMIT_AS: used + memory_bytes,
        resource.RLIMIT_CPU: math.ceil(spent.ru_utime + spent.ru_stime + cpu_s),
        resource.RLIMIT_FSIZE: output_bytes,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def lock(readable: Sequence[str]) -> None:
    """Landlock and seccomp. `readable`: folders whose files may still be read.

    Raises:
        OSError: this machine has no seccomp filter that we know; nothing may be run then.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not seccomp.forbid_new_privileges(libc):
        raise OSError(ctypes.get_errno(), "no_new_privs was refused")
    confined = landlock_version() > 0 and _confine_files(libc, readable)
    if not confined:
        for name in PRELOADED:
            importlib.import_module(name)
    _filter_calls(libc, may_open=confined)


def landlock_version() -> int:
    """The kernel's Landlock version, 0 where there is none."""
    return max(0, ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, 1))


def missing() -> list[str]:
    """What this machine cannot isolate, in words; empty where all holds."""
    found = []
    if not seccomp.supported():
        found.append(f"no system call filter for {platform.machine()}: nothing is run")
    if landlock_version() == 0:
        found.append("no Landlock: programs cannot open any file, imports included")
    return found


def _confine_files(libc: ctypes.CDLL, readable: Sequence[str]) -> bool:
    version = landlock_version()
    files = (1 << _FILE_BITS[min(version, 5)]) - 1
    network = 0b11 if version >= 4 else 0
    scoped = 0b11 if version >= 6 else 0
    attributes = struct.pack("QQQ", files, network, scoped)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(_CREATE_RULESET, attributes[:size], size, 0)
    if ruleset < 0:
        return False
    for path in readable:
        if not os.path.isdir(path):
            continue
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", _READ_FILE | _READ_DIR, folder)
        libc.syscall(_ADD_RULE, ruleset, 1, rule, 0)
        os.close(folder)
    done = libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return done


def _filter_calls(libc: ctypes.CDLL, may_open: bool) -> None:
    if not seccomp.supported() or sys.byteorder != "little":
        raise OSError(f"no system call filter for {platform.machine()}")
    if not seccomp.install(libc, _instructions(platform.machine(), may_open)):
        raise OSError(ctypes.get_errno(), "the system call filter was refused")


def _instructions(machine: str, may_open: bool) -> list[seccomp.Instruction]:
    calls = _CALLS[machine]
    code = seccomp.start(machine)
    code += seccomp.if_one_of(calls["fcntl"], 1, _FCNTL_COMMANDS)
    for number, flags_argument in calls["open"].items():
        code += seccomp.if_flags(
            *(number, flags_argument, seccomp.OPEN_FOR_WRITING),
            hit=seccomp.EPERM,
            miss=seccomp.ALLOW if may_open else seccomp.EPERM,
        )
    for number in calls["allowed"]:
        if number not in calls["open"]:
            code += seccomp.verdict(number, seccomp.ALLOW)
    return code + seccomp.end(seccomp.EPERM)
