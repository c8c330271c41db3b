"""Seccomp filters as short lists of instructions, for the processes that grade and run programs.

Linux on x86_64 and aarch64; the standard library only. A filter is a program of classic BPF over
`struct seccomp_data`: the call's number at byte 0, the architecture at byte 4, arguments of 64 bits
each from byte 16. Values are those of linux/seccomp.h, linux/bpf_common.h and linux/audit.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_LOAD, _RETURN = 0x20, 0x06
_JUMP_EQUAL, _JUMP_IF_AT_LEAST, _JUMP_IF_BITS = 0x15, 0x35, 0x45
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
CLONE_THREAD = 0x10000
OPEN_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
# x86_64 kernels may take the same calls a second time, under numbers with this bit (the x32 ABI)
_X32_BIT = 0x40000000


class Instruction(ctypes.Structure):
    """`struct sock_filter`."""

    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("operand", ctypes.c_uint),
    )


class Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(Instruction)))


def forbid_new_privileges(libc: ctypes.CDLL) -> bool:
    """Sets no_new_privs, without which an unprivileged process may not filter its calls."""
    return libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0


def install(libc: ctypes.CDLL, instructions: Sequence[Instruction]) -> bool:
    """Filters this process's system calls from now on; False where the kernel refuses."""
    array = (Instruction * len(instructions))(*instructions)
    program = Program(len(instructions), array)
    return libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program)) == 0


def start(machine: str) -> list[Instruction]:
    """The beginning of a filter: calls of another architecture are refused, and new processes.

    Threads may be made. clone3 does not exist for the process: glibc then falls back to clone,
    whose flags a filter can read.
    """
    code = [
        Instruction(_LOAD, 0, 0, 4),
        Instruction(_JUMP_EQUAL, 1, 0, _AUDIT[machine]),
        Instruction(_RETURN, 0, 0, EPERM),
        Instruction(_LOAD, 0, 0, 0),
    ]
    if machine == "x86_64":
        code += [Instruction(_JUMP_IF_AT_LEAST, 0, 1, _X32_BIT), Instruction(_RETURN, 0, 0, EPERM)]
    code += verdict(_CLONE3, ENOSYS)
    return code + if_flags(_CLONE[machine], 0, CLONE_THREAD, hit=ALLOW, miss=EPERM)


def end(result: int) -> list[Instruction]:
    """The end of a filter: what happens to a call that no rule named."""
    return [Instruction(_RETURN, 0, 0, result)]


def verdict(number: int, result: int) -> list[Instruction]:
    """Rule for one call: always `result`."""
    return [Instruction(_JUMP_EQUAL, 0, 1, number), Instruction(_RETURN, 0, 0, result)]


def if_flags(number: int, argument: int, flags: int, hit: int, miss: int) -> list[Instruction]:
    """Rule for one call: `hit` if any of `flags` is set in the argument, else `miss`."""
    return [
        Instruction(_JUMP_EQUAL, 0, 4, number),
        Instruction(_LOAD, 0, 0, 16 + 8 * argument),
        Instruction(_JUMP_IF_BITS, 0, 1, flags),
        Instruction(_RETURN, 0, 0, hit),
        Instruction(_RETURN, 0, 0, miss),
    ]


def if_one_of(number: int, argument: int, values: Sequence[int]) -> list[Instruction]:
    """Rule for one call: allowed if the argument is one of `values`, else EPERM."""
    code = [Instruction(_LOAD, 0, 0, 16 + 8 * argument)]
    for value in values:
        code += verdict(value, ALLOW)
    code += end(EPERM)
    return [Instruction(_JUMP_EQUAL, 0, len(code), number), *code]


def supported() -> bool:
    """Whether there are tables for this machine's architecture."""
    return platform.machine() in _AUDIT
