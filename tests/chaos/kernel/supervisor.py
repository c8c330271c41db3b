"""Runs a function in a fork and answers for the kernel: counts its mutating calls, in all processes
that it starts, and lets faults happen at chosen ones.

    ended = run(program, root, [Fault(12, "ENOSPC")], said, limits)
    ended.status, ended.size, ended.hit, ended.left
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import select
import signal
import socket
import stat
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos.kernel import notify
from chaos.kernel.faults import CLOCK, CLOCK_JUMP_S, SIGNALS, SOCKET, STICKY, Fault, Size, can_meet
from chaos.kernel.notify import Held
from waiting import wait_until

_PR_SET_CHILD_SUBREAPER = 36
_OFFSET = struct.Struct("d")


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: for a start, on a machine that does other things as well; then for helpers of the
    process that has ended. wired: calls that write to sockets are held too."""

    patience_s: float
    grace_s: float
    wired: bool = False


@dataclass(slots=True)
class Ended:
    """A start that is over. status: exit status, or minus the signal that ended it; hit: faults
    that happened; left: processes that were still there afterwards; hung: it had to be killed."""

    status: int = 0
    size: Size = field(default_factory=Size)
    hit: list[Fault] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    hung: bool = False


def run(
    program: Callable[[], int], root: Path, faults: Sequence[Fault], said: Path, limits: Limits
) -> Ended:
    """One start of `program` in a session of its own; what it prints goes to `said`."""
    clock = mmap.mmap(-1, mmap.PAGESIZE)
    ours, theirs = socket.socketpair()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ours.close()
            _prepare(theirs, said, clock, limits.wired)
            status = program()
        finally:
            os._exit(status)
    theirs.close()
    with ours:
        _, listeners, _, _ = socket.recv_fds(ours, 1, 1)
    watch = _Watch(pid, listeners[0], os.path.realpath(root), faults, clock)
    try:
        return watch.until_the_end(limits)
    finally:
        os.close(listeners[0])
        clock.close()


def run_undisturbed(program: Callable[[], int], said: Path, limits: Limits) -> Ended:
    """One start that the kernel does not hold: on a busy machine each held call waits for two
    turns."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _begin_session(said)
            status = program()
        finally:
            os._exit(status)
    process, ended = os.pidfd_open(pid), Ended()
    ended.hung = not select.select([process], [], [], limits.patience_s)[0]
    if ended.hung:
        os.killpg(pid, signal.SIGKILL)
    ended.status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(process)
    try:
        wait_until(_nobody_left, "the end of its helpers", limits.grace_s)
    except AssertionError:
        ended.left = [_words(one) for one in _descendants(os.getpid())]
        _kill_descendants()
    return ended


def _nobody_left() -> bool:
    """Collects what has ended. Who has no child has no other descendant either, for what loses its
    parent is handed to us; a look at all processes of a machine would take longer than a start."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def _kill_descendants() -> None:
    while mine := _descendants(os.getpid()):
        for pid in mine:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _nobody_left()


def _prepare(theirs: socket.socket, said: Path, clock: mmap.mmap, wired: bool) -> None:
    _begin_session(said)
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + _OFFSET.unpack_from(clock)[0]
    time.time_ns = lambda: real_ns() + int(_OFFSET.unpack_from(clock)[0]) * 10**9
    listener = notify.listen(wired)
    socket.send_fds(theirs, [b"l"], [listener])
    os.close(listener)
    theirs.close()


def _begin_session(said: Path) -> None:
    os.setsid()
    null, output = os.open(os.devnull, os.O_RDONLY), os.open(said, os.O_WRONLY | os.O_CREAT)
    os.ftruncate(output, 0)
    for descriptor, stream in ((null, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, stream)


class _Watch:
    """One start, seen from outside."""

    def __init__(
        self, pid: int, listener: int, root: str, faults: Sequence[Fault], clock: mmap.mmap
    ) -> None:
        self._pid, self._listener, self._root, self._clock = pid, listener, root, clock
        self._faults = {(fault.wire, fault.at): fault for fault in faults}
        self._files: list[str] = []
        self._wires: list[str] = []
        self._sticky: Fault | None = None
        self._ended = Ended()

    def until_the_end(self, limits: Limits) -> Ended:
        """Answers calls until the last process is gone."""
        process = os.pidfd_open(self._pid)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(process, select.POLLIN)
        deadline, running = time.monotonic() + limits.patience_s, True
        try:
            while True:
                wait_ms = 1000 if running else 20
                events = dict(poll.poll(wait_ms))
                if events.get(self._listener, 0) & select.POLLIN:
                    self._answer()
                elif self._listener in events:  # hung up: nobody is left
                    break
                if running and process in events:
                    poll.unregister(process)
                    running, deadline = False, time.monotonic() + limits.grace_s
                if not running:
                    self._reap()
                if time.monotonic() > deadline:
                    self._end_by_force(running)
                    deadline = float("inf")
            if running:
                self._reap(wait=True)
        finally:
            os.close(process)
        self._ended.size = Size(tuple(self._files), tuple(self._wires))
        return self._ended

    def _reap(self, wait: bool = False) -> None:
        """Collects the process, and what came to us from processes that are gone."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, how = os.waitpid(-1, 0 if wait else os.WNOHANG)
                if pid == self._pid:
                    self._ended.status = os.waitstatus_to_exitcode(how)
                if pid == 0:
                    return

    def _end_by_force(self, running: bool) -> None:
        self._ended.hung = running
        while mine := _descendants(os.getpid()):
            if not running:
                self._ended.left += [_words(pid) for pid in mine]
            for pid in mine:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            running = True
            self._reap()

    # --- one call

    def _answer(self) -> None:
        held = notify.receive(self._listener)
        if held is None:
            return
        try:
            fault = None if self._all_over else self._fault_of(held)
            if fault is None or not self._happens(held, fault):
                notify.go_on(self._listener, held)
        except (OSError, StopIteration):  # the process is gone
            notify.go_on(self._listener, held)

    @property
    def _all_over(self) -> bool:
        """Whether no fault can come any more: then it does not matter what a call would change."""
        if not self._faults or self._sticky is not None:  # without any, the calls are counted
            return False
        return all(at < len(self._wires if wire else self._files) for wire, at in self._faults)

    def _fault_of(self, held: Held) -> Fault | None:
        paths = held.paths()
        if any(self._is_ours(path) for path in paths):
            self._files.append(held.name)
            return self._faults.get((False, len(self._files) - 1), self._sticky)
        if paths[0].startswith(("pipe:", "socket:")) and not notify.to_kernel(paths[0]):
            end = SOCKET if paths[0].startswith("socket:") else ""
            self._wires.append(held.name + end)
            return self._faults.get((True, len(self._wires) - 1))
        return None

    def _is_ours(self, path: str) -> bool:
        return path.startswith(self._root) and path[len(self._root) : len(self._root) + 1] in "/"

    def _happens(self, held: Held, fault: Fault) -> bool:
        """Lets it happen; True when the call is answered by that."""
        if not can_meet(fault.kind, (self._wires if fault.wire else self._files)[-1]):
            return False
        answered = self._carry_out(held, fault)
        if answered is None:
            return False
        if fault is not self._sticky:
            self._ended.hit.append(fault)
        if fault.kind in STICKY:
            self._sticky = fault
        return answered

    def _carry_out(self, held: Held, fault: Fault) -> bool | None:
        """None: it cannot happen to this call."""
        if fault.kind in SIGNALS:
            return self._signal(held, fault)
        if fault.kind in CLOCK:
            jump = CLOCK_JUMP_S if fault.kind == "clock+" else -CLOCK_JUMP_S
            _OFFSET.pack_into(self._clock, 0, jump)
            return False
        if fault.kind in ("short", "torn", "garble", "half", "cut"):
            return self._tampered(held, fault)
        notify.answer(self._listener, held, error=fault.number)
        return True

    def _signal(self, held: Held, fault: Fault) -> bool:
        """Sends it; True where the call is over with that, or answered."""
        process = notify.process_of(held.pid)
        met = not fault.everyone or os.getpgid(process) == self._pid
        target = -self._pid if fault.everyone else process
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, fault.number)
        if fault.kind == "SIGSTOP":
            notify.go_on(self._listener, held)
            if met:
                # of the thread: others of the process may wait for an answer of ours
                wait_until(lambda: _state(held.pid) in "tTZX", "a stopped thread")
            os.kill(target, signal.SIGCONT)
            return True
        return fault.kind == "SIGKILL" and met  # not carried out: the signal came before it

    def _tampered(self, held: Held, fault: Fault) -> bool | None:
        if held.arguments[2] < 2:
            return None
        descriptor, pointer, size, at = held.arguments[:4]
        half = min(size // 2, 4096)
        data = held.memory(pointer, half)
        if fault.kind == "garble":
            data = random.Random(fault.at).randbytes(len(data))
        taken = held.take_file(descriptor)
        try:
            if fault.wire and not _takes(taken):
                return None
            done = os.pwrite(taken, data, at) if held.name == "pwrite64" else os.write(taken, data)
            self._afterwards(held, fault, taken, done)
        finally:
            os.close(taken)
        return True

    def _afterwards(self, held: Held, fault: Fault, taken: int, done: int) -> None:
        if fault.kind == "torn":
            os.kill(notify.process_of(held.pid), signal.SIGKILL)
        elif fault.kind == "half":  # and then the connection, or the process, breaks
            _shut(taken)
            notify.answer(self._listener, held, error=errno.EPIPE)
        elif fault.kind == "cut":
            _shut(taken)
            notify.answer(self._listener, held, error=errno.ECONNRESET)
        else:
            notify.answer(self._listener, held, value=done)


def _takes(descriptor: int) -> bool:
    """Whether a write would not wait."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def _shut(descriptor: int) -> None:
    """A socket, for both sides. A copy of a pipe's end would keep it open."""
    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "X"


def _descendants(pid: int) -> list[int]:
    """Living processes below `pid`."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{int(entry)}/stat").read_text().rsplit(")", 1)[1].split()
            if fields[0] not in "ZX":
                children.setdefault(int(fields[1]), []).append(int(entry))
    found = list(children.get(pid, ()))
    for one in found:
        found += children.get(one, ())
    return found


def _words(pid: int) -> str:
    with contextlib.suppress(OSError):
        raw = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        return f"{pid}: {raw.decode(errors='replace')[:200].strip()}"
    return str(pid)
