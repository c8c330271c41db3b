"""Forks engine processes that have vLLM imported already; started by `forked_engines`.

    python vllm_server.py SOCKET

Each message on SOCKET is JSON of an environment, with three descriptors: the engine's end of its
socket pair, its log, and a pipe on which its process id and then its exit status come.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import struct
import sys
import tempfile

from megaladder.rollout.replica import SOCKET_VARIABLE

NUMBER = struct.Struct("<q")
MAX_BYTES = 1 << 20
# what an engine imports while it starts and answers
_ON_THE_WAY = (
    *("vllm.engine.arg_utils", "vllm.platforms", "vllm.lora.resolver"),
    *("vllm.v1.worker.cpu_model_runner", "vllm.v1.worker.cpu_worker"),
    *("vllm.v1.attention.backends.cpu_attn", "vllm.v1.core.sched.scheduler"),
    *("vllm.distributed.elastic_ep.elastic_execute", "vllm.utils.cpu_triton_utils"),
    *("vllm.model_executor.models.qwen3", "vllm.plugins.lora_resolvers.filesystem_resolver"),
    *("vllm.entrypoints.launchers.cli_args", "vllm.v1.pool.flash_maxsim"),
)


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
        tempfile.tempdir = None  # it is asked for again
        os.environ.clear()
        os.environ.update(environment, **{SOCKET_VARIABLE: str(end)})
        from megaladder.rollout.vllm_engine import main

        status = main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def override_kernels() -> None:
    """What a worker does first: looks through all modules for kernels that a CPU has not. Once."""
    from vllm.platforms import current_platform

    current_platform.register_triton_kernel_overrides()
    type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)


def preload() -> None:
    """All that a start imports; nothing is computed, so there is one thread to fork."""
    gc.disable()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch comes
    import vllm

    import megaladder.rollout.vllm_engine
    import megaladder.rollout.worker_extension  # noqa: F401

    _ = vllm.LLM
    for name in _ON_THE_WAY:
        importlib.import_module(name)
    override_kernels()
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads: forks may wait for ever"
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    preload()
    serve(sys.argv[1])
