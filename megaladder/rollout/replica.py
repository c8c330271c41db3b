"""One engine that generates, as a process or a server.

Start it, talk to it, notice that it died, kill all of it.

`AnyReplica` is what `process_engine` needs of one; `Replica` is a child process on this machine,
others live in `remote/`. A child leads its own process group; ending it ends whatever it started.
If the parent dies, however it dies, the socket pair closes and the child kills its own group
(`vllm_engine`).
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megaladder.process.gpu_stack import cudnn_environment
from megaladder.process.ranks import StoppedProcesses, is_stopped, stopped_in_words
from megaladder.rollout.wire import TEMPORARY_VARIABLE, Channel, is_of_child

SOCKET_VARIABLE = "MEGALADDER_ENGINE_SOCKET"  # the child's end, as a file descriptor number
LOG_TAIL_BYTES = 20_000

Inbox = queue.SimpleQueue  # of (replica, incarnation, message or None at its end)


class AnyReplica(Protocol):
    """What a feeder of replicas may ask of one.

    Its messages go to the inbox that it was opened with, as (index, incarnation, message); None as
    message = it is gone. `node`: the machine whose files it reads, 0 = this one. The first message
    of an incarnation is "ready".

    None as message = it is gone. `node`: the machine whose files it reads, 0 = this one. The first
    message of an incarnation is "ready".
    """

    index: int
    node: int
    incarnation: int
    info: dict[str, Any]

    @property
    def pid(self) -> int | None: ...

    @property
    def alive(self) -> bool: ...

    @property
    def stopped(self) -> bool:
        """Whether its process has been found standing still (SIGSTOP); asked every second or so."""
        ...

    def start(self) -> None: ...

    def send(self, message: dict[str, Any]) -> bool: ...

    def kill(self) -> None: ...

    def stop(self, patience_s: float) -> None: ...

    def post_mortem(self) -> str: ...


class ReplicaSpec(Protocol):
    """How a replica comes about; `open` does not start it."""

    def open(self, index: int, inbox: Inbox) -> AnyReplica: ...


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A child process on this machine: command, its additions to the environment, where it logs."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    log_path: Path

    def open(self, index: int, inbox: Inbox) -> Replica:
        return Replica(index, inbox, self)


def child_environment(own: Mapping[str, str], socket_number: int) -> dict[str, str]:
    """This process's environment with the child's own additions.

    Without what torchrun told this rank: an engine that meets its workers over TCP would wait for
    torchrun's store for ever.
    """
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")
    }
    return {**inherited, **cudnn_environment(inherited), **own, SOCKET_VARIABLE: str(socket_number)}


def temporary_environment(folder: str) -> dict[str, str]:
    """What has a child's temporary files lie in a folder that goes when it does.

    vLLM's stay when it is killed. What torch has compiled is no such file: the next child uses it."""
    compiled = Path(tempfile.gettempdir()) / f"torchinductor_uid_{os.getuid()}"
    kept = {"TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(compiled))}
    return {**kept, "TMPDIR": folder, TEMPORARY_VARIABLE: folder}


class Replica:
    """One child process; see `AnyReplica`."""

    node = 0

    def __init__(self, index: int, inbox: Inbox, spec: ChildSpec):
        self.index, self._spec, self.log_path = index, spec, spec.log_path
        self.incarnation = 0
        self.info: dict[str, Any] = {}  # what its "ready" message said
        self._inbox = inbox
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._temporary = ""
        self._stopped = StoppedProcesses()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def stopped(self) -> bool:
        return self._stopped.too_long(self.pid)

    def start(self) -> None:
        """Starts a new incarnation.

        Its first message will be "ready". The log is appended to, never cut.
        """
        self.kill()
        self.incarnation += 1
        self.info = {}
        ours, theirs = socket.socketpair()
        # the child makes it: who ends just now leaves nothing
        self._temporary = f"{tempfile.gettempdir()}/megaladder-engine-{uuid.uuid4().hex}"
        own = {**self._spec.environment, **temporary_environment(self._temporary)}
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log, theirs:
            self._process = subprocess.Popen(
                list(self._spec.command),
                env=child_environment(own, theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._channel = Channel(ours)
        threading.Thread(
            target=self._read,
            args=(self._channel, self.incarnation),
            daemon=True,
            name=f"engine-{self.index}",
        ).start()

    def send(self, message: dict[str, Any]) -> bool:
        """Never waits for the child to read.

        False when it is gone; its end arrives in the inbox too.
        """
        assert self._channel is not None, "start() comes first"
        try:
            self._channel.post(message)
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """Ends the child and its whole process group; safe to call at any time."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)
        if self._channel is not None:
            self._channel.close()
        self._process = self._channel = None

    def stop(self, patience_s: float) -> None:
        """Asks the child to end and gives it `patience_s`, then kills what is left."""
        if self._process is not None and self._listens() and self.send({"op": "exit"}):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
        self.kill()

    def post_mortem(self) -> str:
        """How it ended and the engine's own words: `exit status -9; log FILE: last error line`."""
        if self._process is None:
            status = "not running"
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)
            code = self._process.poll()
            status = (
                self._what_it_does()
                if code is None
                else (
                    f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
                )
            )
        words = last_error(self.log_path)
        return f"replica {self.index} {status}; log {self.log_path}" + (
            f": {words}" if words else ""
        )

    def _listens(self) -> bool:
        """Whether asking it makes sense."""
        deaf = self._channel is None or self._channel.nonsense
        return not deaf and not is_stopped(self.pid or 0)

    def _what_it_does(self) -> str:
        """Of a process that has not ended."""
        if self._channel is not None and self._channel.nonsense:
            return f"said {self._channel.nonsense}"
        return stopped_in_words(self.pid) if self.stopped else "still running"

    def _read(self, channel: Channel, incarnation: int) -> None:
        while (message := channel.receive(is_of_child)) is not None:
            self._inbox.put((self.index, incarnation, message))
        self._inbox.put((self.index, incarnation, None))


def last_error(log_path: Path) -> str:
    """The last line of a log that names an error, at most 500 characters.

    `ValueError: …`, but in no warning: what failed there was done in another way. Else the last
    line of all.
    """
    try:
        with log_path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            lines = [
                line.strip()
                for line in file.read().decode("utf-8", "replace").splitlines()
                if line.strip()
            ]
    except OSError:
        return ""
    told = [line for line in lines if "WARNING " not in line]
    errors = [line for line in told if "Error:" in line or "Exception:" in line]
    return (errors or lines or [""])[-1][:500]
