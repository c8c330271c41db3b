"""Forks engine processes that have vLLM imported already; started by `forked_engines`.

    python vllm_server.py SOCKET

Each message on SOCKET is JSON of an environment, with three descriptors: the engine's end of its
socket pair, its log, and a pipe on which its process id and then its exit status come.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import struct
import sys

from megaladder.rollout.replica import SOCKET_VARIABLE

NUMBER = struct.Struct("<q")
MAX_BYTES = 1 << 20


def serve(path: str) -> None:
    """Until the end of the process that started this one."""
    signal.signal(signal.SIGCHLD, reap)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(path)
        listening.listen()
        print("ready", flush=True)
        while True:
            asking, _ = listening.accept()
            with asking:
                message, descriptors, _, _ = socket.recv_fds(asking, MAX_BYTES, 3)
            if os.fork() == 0:
                listening.close()
                keep(json.loads(message), *descriptors)
            for number in descriptors:
                os.close(number)


def reap(*_signal: object) -> None:
    """Waits for what has ended, so that its seconds count among this process's children's."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def keep(environment: dict[str, str], end: int, log: int, told: int) -> None:
    """The engine's parent: tells its process id, waits, tells its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(told)
        run(environment, end, log)
    os.close(end)
    os.write(told, NUMBER.pack(pid))
    _, status = os.waitpid(pid, 0)
    os.write(told, NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def run(environment: dict[str, str], end: int, log: int) -> None:
    """What `python -m megaladder.rollout.vllm_engine` does."""
    status = 1
    try:
        for stream in (1, 2):
            os.dup2(log, stream)
        os.environ.clear()
        os.environ.update(environment, **{SOCKET_VARIABLE: str(end)})
        from megaladder.rollout.vllm_engine import main

        status = main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def preload() -> None:
    """All that a start imports; nothing is computed, so there is one thread to fork."""
    gc.disable()
    import vllm
    import vllm.v1.worker.cpu_model_runner
    import vllm.v1.worker.cpu_worker
    from vllm.engine.arg_utils import EngineArgs  # noqa: F401
    from vllm.platforms import current_platform  # noqa: F401

    import megaladder.rollout.vllm_engine
    import megaladder.rollout.worker_extension  # noqa: F401

    _ = vllm.LLM
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads: forks may wait for ever"
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    preload()
    serve(sys.argv[1])
