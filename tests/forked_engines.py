"""Engines for tests that cost no import of vLLM: forks of a server that has paid for it.

    def test_something(forked_engines):         every VllmEngine of this process from here on

The process, its socket, its signals and its end are those of the product; only the interpreter is
not a fresh one. A start that is itself the matter of a test takes the product's way.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from vllm_server import NUMBER

from megaladder.rollout import replica

TESTS = Path(__file__).resolve().parent


class ForkedProcess:
    """The part of `subprocess.Popen` that a replica uses, of a fork of the server."""

    def __init__(self, door: str, environment: dict[str, str], end: int, log: int) -> None:
        self._told, theirs = os.pipe()
        self._status: int | None = None
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            asking.connect(door)
            socket.send_fds(asking, [_as_json(environment)], [end, log, theirs])
        os.close(theirs)
        self.pid = self._number()

    def _number(self) -> int:
        found = os.read(self._told, NUMBER.size)
        return NUMBER.unpack(found)[0] if found else -9

    def poll(self) -> int | None:
        """The exit status, or minus the signal; None of a process that lives."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0.0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        if self._status is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("an engine", timeout or 0.0)
            self._status = self._number()
            os.close(self._told)
        return self._status


def _as_json(environment: dict[str, str]) -> bytes:
    return json.dumps(environment).encode()


def use(door: str) -> None:
    """Engines of this process come from the server at `door` from here on."""

    def start(
        command: Sequence[str],
        *,
        env: dict[str, str],
        pass_fds: tuple[int],
        stdout: IO[bytes],
        **_rest: Any,
    ) -> ForkedProcess:
        assert command[-1] == "megaladder.rollout.vllm_engine", command
        return ForkedProcess(door, env, pass_fds[0], stdout.fileno())

    replica.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=start, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )


@contextlib.contextmanager
def using(door: str) -> Iterator[None]:
    """`use`, and the product's way again at the end."""
    use(door)
    try:
        yield
    finally:
        replica.subprocess = subprocess


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A server that is ready; its door."""
    with tempfile.TemporaryDirectory(prefix="engines-") as folder:
        door = str(Path(folder) / "door")
        path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        serving = subprocess.Popen(
            [sys.executable, "-B", str(TESTS / "vllm_server.py"), door],
            env={**os.environ, "PYTHONPATH": path, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert serving.stdout is not None
            lines = (line.strip() for line in serving.stdout)
            assert b"ready" in lines, f"no server of engines: status {serving.wait()}"
            yield door
        finally:
            serving.kill()
            serving.wait()
            serving.stdout.close()
