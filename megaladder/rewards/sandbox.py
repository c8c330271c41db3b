"""What a worker process takes away from itself before it reads the first model text. Linux.

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

from megaladder.rewards import seccomp

# wall-clock time of a sample that uses no CPU time: so generous that only a hang takes it
HANG_S, HANG_FACTOR = 60.0, 30.0


class _Calls(TypedDict):
    """Syscall numbers of an architecture; a call that it lacks is left out."""

    openat: int
    open: NotRequired[int]
    process: tuple[int, ...]
    socket: tuple[int, ...]
    write: tuple[int, ...]


_CALLS: dict[str, _Calls] = {
    "x86_64": {
        "openat": 257,
        "open": 2,
        # fork, exec, kill, ptrace, process_vm, pidfd, io_uring
        "process": (57, 58, 59, 322, 62, 200, 101, 310, 311, 424, 425),
        "socket": (41, 42, 49, 53),
        "write": (
            *(85, 437, 83, 258, 133, 259, 82, 264, 316, 87, 84, 263),
            *(86, 265, 88, 266, 76, 90, 268, 92, 260, 161, 165),
        ),
    },
    "aarch64": {
        "openat": 56,
        "process": (221, 281, 129, 130, 117, 270, 271, 424, 425),
        "socket": (198, 199, 200, 203),
        "write": (437, 34, 33, 38, 276, 35, 37, 36, 45, 53, 54, 51, 40),
    },
}


@dataclass(frozen=True, slots=True)
class Limits:
    """`timeout_s`: CPU seconds a sample.

    `memory_bytes`: address space beyond what the process has when it enters."""

    timeout_s: float
    memory_bytes: int

    @property
    def wall_s(self) -> float:
        """Wall-clock seconds after which a sample hangs, whatever the machine is busy with."""
        return HANG_S + HANG_FACTOR * self.timeout_s


def enter(limits: Limits) -> list[str]:
    """Applies everything to this process, for good.

    Returns what holds: "memory", "files", "seccomp", "processes"."""
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


def limit_batch(limits: Limits, num_samples: int) -> None:
    """What a batch may take in CPU seconds, if its samples' own timers should not hold."""
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    cpu_s = usage.ru_utime + usage.ru_stime + num_samples * limits.timeout_s
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(cpu_s) + 2, hard))


def start_clock(limits: Limits) -> None:
    """The sample's own end, by timers with the default action: they hold even in a C-level hang.

    The limit is CPU time, which no busy machine shortens; wall-clock time ends what only waits, one
    second later than the parent's kill.
    """
    signal.setitimer(signal.ITIMER_REAL, limits.wall_s + 1.0)
    signal.setitimer(signal.ITIMER_PROF, limits.timeout_s)


def stop_clock() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.setitimer(signal.ITIMER_PROF, 0.0)


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _filter_syscalls() -> bool:
    """Installs the filter; False where the kernel or the architecture does not have it."""
    if not seccomp.supported():
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return seccomp.forbid_new_privileges(libc) and seccomp.install(
        libc, _instructions(platform.machine())
    )


def _instructions(machine: str) -> list[seccomp.Instruction]:
    calls = _CALLS[machine]
    code = seccomp.start(machine)
    for number in (*calls["process"], *calls["socket"], *calls["write"]):
        code += seccomp.verdict(number, seccomp.EPERM)
    opening = {calls["openat"]: 2} | ({calls["open"]: 1} if "open" in calls else {})
    for number, flags_argument in opening.items():
        code += seccomp.if_flags(
            *(number, flags_argument, seccomp.OPEN_FOR_WRITING),
            hit=seccomp.EPERM,
            miss=seccomp.ALLOW,
        )
    return code + seccomp.end(seccomp.ALLOW)
