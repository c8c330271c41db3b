"""Programs as forks of a process that stays as it was: whatever the one that asks has done since.

with Nursery() as nursery, forked_programs(nursery.popen("megaladder.rollout.vllm_engine")):
    …    # python -m megaladder.rollout.vllm_engine forks, out of the state of the first line

A trainer starts its engine from a thread, when it computes and holds groups of its own: a fork of it
would find all of that. This one is a fork of what it was before. It is a child of the one that asked
none the less, as the product's is: it came from a process that ended at once. What is said here goes
by calls that the harness does not hold, so that no fault meets it.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

from chaos.programs.forked import Forked, become, run_words

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_NUMBER = struct.Struct("<q")
_MAX_BYTES, _MAX_FILES = 1 << 18, 16
_HIGH = 256  # above the numbers that a program's own files may have


class Nursery:
    """See the module. Lives until the end of the block, or of the process that made it."""

    def __enter__(self) -> Nursery:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._asking, answering = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._asking, answering):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._one_at_a_time = threading.Lock()
        mother = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            self._asking.close()
            _serve(answering, mother)
        answering.close()
        return self

    def __exit__(self, *_error: object) -> None:
        self._asking.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def start(self, request: dict[str, Any], files: dict[int, int]) -> int:
        """The process id of a new child. files: number there → number here."""
        raw = json.dumps({**request, "numbers": list(files)}).encode()
        with self._one_at_a_time:
            socket.send_fds(self._asking, [raw], list(files.values()))
            found = self._asking.recv(_NUMBER.size)
        if not found:
            raise OSError("the nursery has ended")
        return int(_NUMBER.unpack(found)[0])

    def popen(self, module: str) -> type[subprocess.Popen[bytes]]:
        """A `subprocess.Popen` of which `python -m module` comes from here; others fork as usual."""
        nursery = self

        class Born(Forked):
            def _execute_child(self, args: Any, *rest: Any) -> None:
                words = list(args)
                if words[:3] != [sys.executable, "-m", module]:
                    return super()._execute_child(args, *rest)
                _, _, _, pass_fds, cwd, env, _, _, _, *pipes = rest
                streams, new_session = pipes[:6], pipes[11]
                request = {"words": words, "env": env, "cwd": cwd, "new_session": new_session}
                files = {number: number for number in pass_fds}
                for stream, descriptor in enumerate((streams[0], streams[3], streams[5])):
                    files[stream] = stream if descriptor == -1 else descriptor
                self.pid = nursery.start(request, files)
                self._child_created = True
                self._close_pipe_fds(*streams)
                return None

        return Born


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _serve(answering: socket.socket, mother: int) -> None:
    """In the nursery. Signals to the group of those that ask are not for it."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == mother:
        raw, files, _, _ = socket.recv_fds(answering, _MAX_BYTES, _MAX_FILES)
        if not raw:
            break
        between = os.fork()
        if between == 0:
            _bear(answering, json.loads(raw), files, mother)
        os.waitpid(between, 0)
        for number in files:
            os.close(number)
    os._exit(0)


def _bear(
    answering: socket.socket, request: dict[str, Any], files: Sequence[int], mother: int
) -> None:
    """In a process between: forks the program and ends, which makes it a child of `mother`."""
    between = os.pidfd_open(os.getpid())
    if os.fork() != 0:
        os._exit(0)
    status = 1
    try:
        select.select([between], [], [])
        if os.getppid() != mother:
            os._exit(1)
        telling = fcntl.fcntl(answering.fileno(), fcntl.F_DUPFD, _HIGH)
        _place(dict(zip(request["numbers"], files, strict=True)))
        kept = [*(number for number in request["numbers"] if number > 2), telling]
        become([-1] * 6, kept, request["new_session"], request["env"], request["cwd"])
        with socket.socket(fileno=telling) as told:
            told.sendmsg([_NUMBER.pack(os.getpid())])
        status = run_words(request["words"][1:])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _place(files: dict[int, int]) -> None:
    """Open files under the numbers that they are asked for by."""
    aside = {number: fcntl.fcntl(file, fcntl.F_DUPFD, _HIGH) for number, file in files.items()}
    for number, file in aside.items():
        os.dup2(file, number)
