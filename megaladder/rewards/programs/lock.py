"""Locks this process, for good: what a generated program can still do is compute, read the Python
installation, and write to the descriptors it was given. Linux; the standard library only.

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

_NO_NEW_PRIVS, _SECCOMP, _FILTER_MODE, _PDEATHSIG = 38, 22, 2, 1
_LOAD, _JUMP_EQUAL, _JUMP_IF_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
_CLONE_THREAD = 0x10000
_OPEN_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# access rights that a Landlock version knows: bits of files; from version 4 on TCP bind and connect
_FILE_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}

PRELOADED = (
    *("array", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal"),
    *("enum", "fractions", "functools", "heapq", "io", "itertools", "json", "math", "numbers"),
    *("operator", "queue", "random", "re", "statistics", "string", "threading", "time", "typing"),
)

# name → number, per architecture; what is not here does not exist for a program
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
_ARCHITECTURES = {
    "x86_64": {
        "audit": 0xC000003E,
        "allowed": _X86_64,
        "open": {2: 1, 257: 2},  # open and openat: which argument holds the flags
        "clone": 56,
        "fcntl": 72,
    },
    "aarch64": {
        "audit": 0xC00000B7,
        "allowed": _AARCH64,
        "open": {56: 2},
        "clone": 220,
        "fcntl": 25,
    },
}
_CLONE3 = 435
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; F_SETOWN could make the kernel send signals
_FCNTL_COMMANDS = (0, 1, 2, 3, 1030)


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("operand", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


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
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
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
    if platform.machine() not in _ARCHITECTURES:
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
    machine = platform.machine()
    if machine not in _ARCHITECTURES or sys.byteorder != "little":
        raise OSError(f"no system call filter for {machine}")
    instructions = _instructions(_ARCHITECTURES[machine], may_open)
    array = (_Instruction * len(instructions))(*instructions)
    program = _Program(len(instructions), array)
    if libc.prctl(_SECCOMP, _FILTER_MODE, ctypes.byref(program)) != 0:
        raise OSError(ctypes.get_errno(), "the system call filter was refused")


def _instructions(architecture: dict, may_open: bool) -> list[_Instruction]:
    """Classic BPF over `struct seccomp_data`: number at byte 0, architecture at 4, arguments (64
    bits each) from 16."""
    code = [
        _Instruction(_LOAD, 0, 0, 4),
        _Instruction(_JUMP_EQUAL, 1, 0, architecture["audit"]),
        _Instruction(_RETURN, 0, 0, _EPERM),
        _Instruction(_LOAD, 0, 0, 0),
    ]
    # glibc then falls back to clone, whose flags a filter can read
    code += _verdict(_CLONE3, _ENOSYS)
    code += _if_flags(architecture["clone"], 0, _CLONE_THREAD, hit=_ALLOW, miss=_EPERM)
    code += _if_one_of(architecture["fcntl"], 1, _FCNTL_COMMANDS)
    for number, argument in architecture["open"].items():
        allowed = _ALLOW if may_open else _EPERM
        code += _if_flags(number, argument, _OPEN_FOR_WRITING, hit=_EPERM, miss=allowed)
    for number in architecture["allowed"]:
        if number not in architecture["open"]:
            code += _verdict(number, _ALLOW)
    return [*code, _Instruction(_RETURN, 0, 0, _EPERM)]


def _verdict(number: int, verdict: int) -> list[_Instruction]:
    return [_Instruction(_JUMP_EQUAL, 0, 1, number), _Instruction(_RETURN, 0, 0, verdict)]


def _if_flags(number: int, argument: int, flags: int, hit: int, miss: int) -> list[_Instruction]:
    """For one call: `hit` if any of `flags` is set in the argument, else `miss`."""
    return [
        _Instruction(_JUMP_EQUAL, 0, 4, number),
        _Instruction(_LOAD, 0, 0, 16 + 8 * argument),
        _Instruction(_JUMP_IF_BITS, 0, 1, flags),
        _Instruction(_RETURN, 0, 0, hit),
        _Instruction(_RETURN, 0, 0, miss),
    ]


def _if_one_of(number: int, argument: int, values: Sequence[int]) -> list[_Instruction]:
    """For one call: allowed if the argument is one of `values`, else EPERM."""
    code = [_Instruction(_LOAD, 0, 0, 16 + 8 * argument)]
    for value in values:
        code += _verdict(value, _ALLOW)
    code.append(_Instruction(_RETURN, 0, 0, _EPERM))
    return [_Instruction(_JUMP_EQUAL, 0, len(code), number), *code]
