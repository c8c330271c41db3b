"""What a worker process takes away from itself before it reads the first model text. Linux; the
standard library only.

* resource limits: address space, file size, core dumps, processes, CPU seconds per sample
* a seccomp filter (x86_64 and aarch64): no new process, no exec, no signals to others, no sockets
  and no file opened for writing, created, renamed or removed. Denied calls fail with EPERM, as on
  any locked-down machine.
* timers of CPU and wall-clock time whose default action ends the process: it ends even in a C-level
  hang, and even if the process that watched it is gone

`enter` returns the names of the parts that hold, so that a platform without seccomp is visible. It
is no virtual machine: do not run untrusted *code* here; model text is data, and this is the second
wall behind a grader that never evaluates it.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import resource
import signal
from dataclasses import dataclass
from typing import NotRequired, TypedDict

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_LOAD, _JUMP_EQUAL, _JUMP_IF_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
_CLONE_THREAD = 0x10000
# wall-clock time of a sample that uses no CPU time: so generous that only a hang takes it
HANG_S, HANG_FACTOR = 60.0, 30.0
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class _Calls(TypedDict):
    """Syscall numbers of an architecture; a call that it lacks is left out."""

    clone: int
    clone3: int
    openat: int
    open: NotRequired[int]
    process: tuple[int, ...]
    socket: tuple[int, ...]
    write: tuple[int, ...]


# machine → (audit architecture, its syscalls)
_ARCHITECTURES: dict[str, tuple[int, _Calls]] = {
    "x86_64": (
        0xC000003E,
        {
            "clone": 56,
            "clone3": 435,
            "openat": 257,
            "open": 2,
            "process": (
                57,
                58,
                59,
                322,
                62,
                200,
                101,
                310,
                311,
                424,
                425,
            ),  # fork, exec, kill, ptrace, process_vm, pidfd, io_uring
            "socket": (41, 42, 49, 53),
            "write": (
                85,
                437,
                83,
                258,
                133,
                259,
                82,
                264,
                316,
                87,
                84,
                263,
                86,
                265,
                88,
                266,
                76,
                90,
                268,
                92,
                260,
                161,
                165,
            ),
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "clone": 220,
            "clone3": 435,
            "openat": 56,
            "process": (221, 281, 129, 130, 117, 270, 271, 424, 425),
            "socket": (198, 199, 200, 203),
            "write": (437, 34, 33, 38, 276, 35, 37, 36, 45, 53, 54, 51, 40),
        },
    ),
}


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("operand", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


@dataclass(frozen=True, slots=True)
class Limits:
    """`timeout_s`: CPU seconds a sample. `memory_bytes`: address space beyond what the process has
    when it enters."""

    timeout_s: float
    memory_bytes: int

    @property
    def wall_s(self) -> float:
        """Wall-clock seconds after which a sample hangs, whatever the machine is busy with."""
        return HANG_S + HANG_FACTOR * self.timeout_s


def enter(limits: Limits) -> list[str]:
    """Applies everything to this process, for good. Returns what holds: "memory", "files",
    "seccomp", "processes"."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used_bytes = int(file.read().split()[0]) * resource.getpagesize()
    _lower(resource.RLIMIT_AS, used_bytes + limits.memory_bytes)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    active = ["memory", "files"]
    if _filter_syscalls():
        active.append("seccomp")
    _lower(resource.RLIMIT_NPROC, 0)
    if os.geteuid() != 0:  # root is exempt
        active.append("processes")
    return active


def start_clock(limits: Limits) -> None:
    """The sample's own end, by timers with the default action: they hold even in a C-level hang.

    The limit is CPU time, which no busy machine shortens; wall-clock time ends what only waits, one
    second later than the parent's kill.
    """
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limits.wall_s + 1.0)
    signal.setitimer(signal.ITIMER_PROF, limits.timeout_s)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    cpu_s = math.ceil(usage.ru_utime + usage.ru_stime + limits.timeout_s) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, hard))


def stop_clock() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.setitimer(signal.ITIMER_PROF, 0.0)


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _filter_syscalls() -> bool:
    """Installs the filter; False where the kernel or the architecture does not have it."""
    if platform.machine() not in _ARCHITECTURES:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    instructions = _program(platform.machine())
    array = (_Instruction * len(instructions))(*instructions)
    program = _Program(len(instructions), array)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program)) == 0


def _program(machine: str) -> list[_Instruction]:
    """Classic BPF over `struct seccomp_data`: number at byte 0, architecture at 4, arguments (64
    bits each) from 16."""
    architecture, calls = _ARCHITECTURES[machine]
    code = [
        _Instruction(_LOAD, 0, 0, 4),
        _Instruction(_JUMP_EQUAL, 1, 0, architecture),
        _Instruction(_RETURN, 0, 0, _EPERM),
        _Instruction(_LOAD, 0, 0, 0),
    ]
    # glibc then falls back to clone, whose flags a filter can read
    code += _deny(calls["clone3"], _ENOSYS)
    code += _if_flags(calls["clone"], 0, _CLONE_THREAD, hit=_ALLOW, miss=_EPERM)
    for number in calls["process"]:
        code += _deny(number, _EPERM)
    for number in (*calls["socket"], *calls["write"]):
        code += _deny(number, _EPERM)
    code += _if_flags(calls["openat"], 2, _WRITE_FLAGS, hit=_EPERM, miss=_ALLOW)
    if "open" in calls:
        code += _if_flags(calls["open"], 1, _WRITE_FLAGS, hit=_EPERM, miss=_ALLOW)
    return [*code, _Instruction(_RETURN, 0, 0, _ALLOW)]


def _deny(number: int, verdict: int) -> list[_Instruction]:
    return [_Instruction(_JUMP_EQUAL, 0, 1, number), _Instruction(_RETURN, 0, 0, verdict)]


def _if_flags(number: int, argument: int, flags: int, hit: int, miss: int) -> list[_Instruction]:
    """For one syscall: `hit` if any of `flags` is set in the argument, else `miss`."""
    return [
        _Instruction(_JUMP_EQUAL, 0, 4, number),
        _Instruction(_LOAD, 0, 0, 16 + 8 * argument),
        _Instruction(_JUMP_IF_BITS, 0, 1, flags),
        _Instruction(_RETURN, 0, 0, hit),
        _Instruction(_RETURN, 0, 0, miss),
    ]
