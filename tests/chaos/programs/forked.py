"""Python programs that the product starts, as forks of this process: their imports are paid once.

with forked_programs():
    …    # subprocess.Popen([sys.executable, "-m", "megaladder", …]) forks

What the program is, its pipes, environment, session and exit status are those that were asked for;
anything but Python is started as usual.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

_TAKES_A_VALUE = ("-X", "-W")


def in_fork(action: Callable[[], int | None]) -> None:
    """Does it in a fork, which leaves this process as it is: nothing imported, nothing patched."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = action() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, repr(action)


class Forked(subprocess.Popen):
    def _execute_child(self, args: Any, *rest: Any) -> None:
        words = [] if isinstance(args, (str, bytes)) else [os.fsdecode(word) for word in args]
        if not words or words[0] != sys.executable or "-c" in words[1:3]:
            return super()._execute_child(args, *rest)  # type: ignore[misc]
        _, preexec, _, pass_fds, cwd, env, _, _, _, *pipes = rest
        streams, new_session = pipes[:6], pipes[11]
        waiting, ready = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                become(streams, (*pass_fds, ready), new_session, env, cwd)
                if preexec is not None:
                    preexec()
                os.close(ready)
                status = run_words(words[1:])
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(ready)
        os.read(waiting, 1)  # as Popen: not before it is a program, in its own session
        os.close(waiting)
        self._child_created = True
        self._close_pipe_fds(*streams)
        return None


def become(
    streams: Sequence[int], pass_fds: Sequence[int], new_session: bool, env: Any, cwd: Any
) -> None:
    """Files, session, signals and environment of a program that was just started."""
    p2cread, _, _, c2pwrite, _, errwrite = streams
    if new_session:
        os.setsid()
    kept = sorted(pass_fds)
    for stream, descriptor in enumerate((p2cread, c2pwrite, errwrite)):
        if descriptor != -1:
            os.dup2(descriptor, stream)
    for first, last in zip([2, *kept], [*kept, os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(first + 1, last)
    signal.set_wakeup_fd(-1)
    resource_tracker._resource_tracker = tracker = resource_tracker.ResourceTracker()
    for name in ("ensure_running", "register", "unregister", "getfd"):  # a program starts its own
        setattr(resource_tracker, name, getattr(tracker, name))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if env is not None:
        os.environ.clear()
        os.environ.update({os.fsdecode(key): os.fsdecode(value) for key, value in env.items()})
    tempfile.tempdir = None  # it is asked for again
    if cwd is not None:
        os.chdir(cwd)


def run_words(words: list[str]) -> int:
    """`python words…`; its status."""
    sys.stdin, sys.stdout, sys.stderr = (
        open(stream, mode, closefd=False, encoding="utf-8")  # noqa: SIM115
        for stream, mode in enumerate("rww")
    )
    while words[0].startswith("-") and words[0] != "-m":
        del words[: 2 if words[0] in _TAKES_A_VALUE else 1]
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
    return status


@contextmanager
def forked_programs(popen: type[subprocess.Popen] = Forked) -> Iterator[None]:
    """See the module. popen: another one that does it."""
    before, subprocess.Popen = subprocess.Popen, popen  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen = before  # type: ignore[misc]
