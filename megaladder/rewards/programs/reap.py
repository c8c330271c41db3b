"""Runs a command and ends everything that it started, also what left its session and its parent.

    python -I -S reap.py COMMAND ARGUMENT…

Descendants whose parents end are handed to this process (Linux: child subreaper), so none can get
away. SIGTERM ends the command early; if this process's own parent ends, SIGTERM comes by itself.
The command's exit status is ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time

_PDEATHSIG, _SUBREAPER = 1, 36


def main(command: list[str]) -> int:
    libc = ctypes.CDLL(None)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    child = os.fork()
    if child == 0:
        _start(command)
    signal.signal(signal.SIGTERM, lambda *_: _kill(child))
    status = 1
    while True:
        try:
            status = os.waitpid(child, 0)[1]
            break
        except ChildProcessError:
            break
    end_descendants()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _start(command: list[str]) -> None:
    os.setsid()
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        os._exit(127)


def end_descendants() -> None:
    """Kills children until there is none: a killed one's own children become ours."""
    while True:
        for child in _children():
            _kill(child)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # none is left, ended ones included
            return
        time.sleep(0.001)


def _children() -> list[int]:
    """Our children that still run, from the process table."""
    own, found = str(os.getpid()), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="latin-1") as file:
            state, parent = file.read().rsplit(")", 1)[1].split()[:2]
            if parent == own and state != "Z":
                found.append(int(name))
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
