"""Stop signals: SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (Slurm's pre-emption and time limit).

`listen` is the first thing a resumable verb does. What a signal then means depends on what goes on,
so it is an action that can be replaced: while a run starts there is nothing to save and the process
ends (`process.ending`), in the loop the step is finished first (`StopRequest`), the launcher hands
it on to its ranks.

The action runs in a thread of its own, told by the C handler through a socket: at once, also while
the main thread waits in a collective or loads a library. Forked helpers (writers, workers) neither
die of a signal nor pass it on; programs that are started get the system's defaults.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# One key press may arrive twice: from the terminal and from a launcher that hands it on
SAME_PRESS_S = 0.3
Action = Callable[[int], None]

_PR_SET_PDEATHSIG = 1
_action: Action | None = None
_sender: socket.socket | None = None


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler has to exist for the C handler to write to the socket."""


def listen(action: Action) -> None:
    """Every stop signal from now on calls `action(number)`, in another thread. Main thread only."""
    global _action, _sender
    _action = action
    if _sender is None:
        receiver, _sender = socket.socketpair()
        _sender.setblocking(False)
        threading.Thread(target=_hear, args=(receiver,), name="signals", daemon=True).start()
        os.register_at_fork(after_in_child=_forget)
    signal.set_wakeup_fd(_sender.fileno(), warn_on_full_buffer=False)
    for number in STOP_SIGNALS:
        signal.signal(number, _nothing)


def listening() -> bool:
    """Whether `listen` was called in this process."""
    return _action is not None


def replace_action(action: Action) -> None:
    """What a stop signal does from now on. `listen` comes first."""
    global _action
    assert _sender is not None, "listen() comes first"
    _action = action


def ignore() -> None:
    """Stop signals mean nothing any more: the work is done, only the process has to end.

    (While Python ends it puts the default handlers back, and a late signal would turn a run that
    has saved into one that was killed.)"""
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _hear(receiver: socket.socket) -> None:
    while numbers := receiver.recv(16):
        for number in numbers:
            if number in STOP_SIGNALS and _action is not None:
                _action(number)


def _forget() -> None:
    """In a fork: its signals are not its parent's. It may listen for itself."""
    global _action, _sender
    _action = _sender = None
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


def deaf_helper(parent: int) -> None:
    """In a forked helper of process `parent`.

    It finishes its work whatever signal asks for a stop, and the kernel ends it when its parent is
    gone (Linux)."""
    ignore()
    die_with_parent(parent)


def die_with_parent(parent: int) -> None:
    """Has the kernel end this process when `parent`, which started it, is gone (Linux)."""
    if sys.platform.startswith("linux"):
        _at_parents_death(signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call above
            os.kill(os.getpid(), signal.SIGKILL)


def go_on_without_parent() -> None:
    """Has the kernel continue this process, should it be stopped, when its parent is gone (Linux).

    For one that has more to end than itself: SIGKILL would leave its own children behind. The kernel
    takes the end of the thread that started it for its parent's; then this signal does no harm."""
    if sys.platform.startswith("linux"):
        _at_parents_death(signal.SIGCONT)


def _at_parents_death(number: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)


class StopRequest:
    """An action that remembers. A second Ctrl-C does not wait.

    said: called once, with the first signal. now: called for a second SIGINT.
    """

    def __init__(self, said: Action, now: Action) -> None:
        self._said, self._now = said, now
        self._since = 0.0
        self.number: int | None = None

    def __call__(self, number: int) -> None:
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            self._said(number)
        elif number == signal.SIGINT and time.monotonic() - self._since > SAME_PRESS_S:
            self._now(number)
