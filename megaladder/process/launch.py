"""Starts the ranks of a distributed verb on this machine, and ends them together.

When nobody else (torchrun, Slurm) did.

One child process a rank, with the environment that torch.distributed reads. Rank 0's output passes
through; the other ranks' lines come on stderr with their rank in front. A rank that dies, or gives
no sign of life for `silent_s`, takes the others with it within seconds, so nothing hangs in a
collective, and is named. Not here: several machines (use torchrun or the Slurm examples), restarts
(start the same command again: it resumes).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from megaladder.process import ending, heartbeat, last_word, signals
from megaladder.process.gpu_stack import cudnn_environment
from megaladder.process.heartbeat import Beat
from megaladder.process.last_word import Ending
from megaladder.process.ranks import LAUNCHER_PID, STATUS_FILE, STORE_SOCKET, gloo_on_loopback, host

FAILED_GRACE_S = 3.0  # from a rank's crash to SIGKILL for the rest
# after a stop that all ranks agreed on everything is saved; closing an engine takes a while
STOPPED_GRACE_S = 60.0
POLL_S = 0.05
MAX_WAITING = 4096  # ranks that may knock at the store before rank 0 serves it


def hold_port(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A socket that keeps a TCP port until it is closed. port 0: a free one.

    The system gives the port to nobody else, but a program that is told its number may listen there
    meanwhile: torch's store and vLLM's server set SO_REUSEADDR, and this socket does not listen.

    Raises:
        OSError: the port is in use, or is not ours to take; no such address on this machine.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    held = socket.socket(family)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(address)
    except OSError:
        held.close()
        raise
    return held


def rank_environment(
    rank: int, num_ranks: int, port: int, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of one local rank.

    OMP_NUM_THREADS shares the cores out unless the user set it.

    What a torchrun above us set is left out: with its TORCHELASTIC_USE_AGENT_STORE every rank would
    wait for a store that nobody serves.
    """
    threads = max(1, available_cores() // num_ranks)
    own = {
        name: value
        for name, value in environ.items()
        if not name.startswith(("TORCHELASTIC_", "GROUP_", "ROLE_"))
    }
    return {
        "OMP_NUM_THREADS": str(threads),
        **own,
        **cudnn_environment(own),
        **gloo_on_loopback(own),
        "USE_HUB_KERNELS": "NO",  # transformers would download and run compiled code
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHER_PID: str(os.getpid()),
    }


def available_cores() -> int:
    """Cores this process may use (containers and taskset respected)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch_local(
    num_ranks: int, command: Sequence[str], run: Path | None = None, silent_s: float = float("inf")
) -> int:
    """Runs `command` as ranks 0 … num_ranks-1 and returns the exit status of the whole.

    0 if all ranks return 0; else that of the first rank that failed, where a death by a signal
    counts as 3. Stop signals go on to every rank; a second Ctrl-C ends them at once. run: the run
    folder, whose last word is written for ranks that cannot; silent_s: so long may a rank give no
    sign of life.
    """
    with tempfile.TemporaryDirectory(prefix="megaladder-ranks-") as notes:
        job = _Job(num_ranks, run, Path(notes), silent_s)
        if not signals.listening():
            signals.listen(job.forward)
        signals.replace_action(job.forward)
        try:
            job.start(command)
            return job.wait()
        finally:
            job.close()


@dataclass(frozen=True, slots=True)
class _Fault:
    """The rank that ends the job, how, and the last word's reason where it left none itself."""

    rank: int
    status: int
    how: str
    reason: str = "rank_failed"


class _Job:
    """The ranks of one launch."""

    def __init__(self, num_ranks: int, run: Path | None, notes: Path, silent_s: float) -> None:
        self._num_ranks, self._run, self._notes, self._silent_s = num_ranks, run, notes, silent_s
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._readers: list[threading.Thread] = []
        self._request = signals.StopRequest(self._hand_on, self._end_now)
        self._interrupted = False
        self._seen: dict[int, tuple[int, float]] = {}
        self._port = hold_port()
        self._port.listen(MAX_WAITING)

    def start(self, command: Sequence[str]) -> None:
        port = self._port.getsockname()[1]
        told = {
            STATUS_FILE: os.environ.get(STATUS_FILE) or str(self._notes / "status"),
            heartbeat.FOLDER_VARIABLE: str(self._notes),
            STORE_SOCKET: str(self._port.fileno()),
        }
        for rank in range(self._num_ranks):
            environ = rank_environment(rank, self._num_ranks, port) | told
            own = (self._port.fileno(),) if rank == 0 else ()
            self._ranks.append(_start(command, rank, environ, own))
        self._readers = [
            _prefix_output(rank, self._ranks[rank]) for rank in range(1, len(self._ranks))
        ]

    def forward(self, number: int) -> None:
        """The action of a stop signal."""
        self._request(number)

    def _hand_on(self, number: int) -> None:
        print(ending.stopping_line(number), file=sys.stderr, flush=True)
        self._send(number)

    def _end_now(self, number: int) -> None:
        self._interrupted = True
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        for child in self._ranks:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(number)

    def wait(self) -> int:
        """Waits for all; once one has failed, gives the rest their grace and then kills them.

        Returns the status of the whole."""
        fault: _Fault | None = None
        deadline, num_killed = float("inf"), 0
        while running := [child for child in self._ranks if child.poll() is None]:
            if fault is None and (fault := self._find_fault()) is not None:
                deadline = time.monotonic() + self._grace_s(fault)
                if fault.status == ending.RESUMABLE and fault.reason == "rank_failed":
                    self._send(signal.SIGTERM)  # whoever did not agree yet: it was asked to stop
            if time.monotonic() > deadline:
                num_killed = len(running)
                self._send(signal.SIGKILL)
            time.sleep(POLL_S)
        fault = fault or self._find_fault()
        if fault is None:
            return 0
        return self._report(fault, num_killed)

    def _find_fault(self) -> _Fault | None:
        """The rank that ended badly, else one that gives no sign of life.

        Killed ones come first, since the others fail because of them."""
        ended = [(child.poll(), rank) for rank, child in enumerate(self._ranks)]
        for status, rank in sorted((status, rank) for status, rank in ended if status):
            if status < 0:
                how = f"was killed by {signal.Signals(-status).name}{self._what_it_did(rank)}"
                return _Fault(rank, ending.RESUMABLE, how, "rank_died")
            return _Fault(rank, status, f"exited with status {status}")
        return self._silent_rank()

    def _silent_rank(self) -> _Fault | None:
        """By this process's own clock: how long a rank's file has not changed."""
        now = time.monotonic()
        for beat in heartbeat.read_beats(self._notes):
            number, since = self._seen.get(beat.rank, (-1, now))
            self._seen[beat.rank] = (number, since) if number == beat.number else (beat.number, now)
            silent_s = now - self._seen[beat.rank][1]
            if silent_s > self._silent_s and self._ranks[beat.rank].poll() is None:
                how = f"gave no sign of life for {silent_s:.0f} s{self._what_it_did(beat.rank)}"
                return _Fault(beat.rank, ending.RESUMABLE, how, "hang")
        return None

    def _beats(self) -> dict[int, Beat]:
        return {beat.rank: beat for beat in heartbeat.read_beats(self._notes)}

    def _what_it_did(self, rank: int) -> str:
        beat = self._beats().get(rank)
        return f" while {beat.doing} (process {beat.pid} on {beat.host})" if beat else ""

    def _grace_s(self, fault: _Fault) -> float:
        """Long only where all ranks agreed to stop: they have saved together and are closing."""
        word = last_word.read(self._run) if self._run else None
        agreed = fault.status == ending.RESUMABLE and fault.reason == "rank_failed"
        return STOPPED_GRACE_S if agreed and (word is None or word["saved"]) else FAILED_GRACE_S

    def _report(self, fault: _Fault, num_killed: int) -> int:
        """One line that names the rank which ended the run; its status."""
        how = "was ended by a second Ctrl-C" if self._interrupted else fault.how
        status = ending.RESUMABLE if self._interrupted else fault.status
        rest = (
            f"; the other {self._num_ranks - 1} ranks were stopped ({num_killed} by force)"
            if self._num_ranks > 1
            else ""
        )
        text = f"rank {fault.rank} of {self._num_ranks} {how}{rest}"
        self._leave_word(fault, text)
        print(f"megaladder: {text}{self._way_out(status)}", file=sys.stderr, flush=True)
        return status

    def _leave_word(self, fault: _Fault, text: str) -> None:
        """For a run whose ranks could not: they were killed, or stand still."""
        if self._run is None:
            return
        reason = "interrupted" if self._interrupted else fault.reason
        step = max((b.step for b in self._beats().values() if b.step is not None), default=None)
        saved_step = last_word.committed_step(self._run, step)
        here = {
            "rank": fault.rank,
            "host": host(),
            "pid": self._ranks[fault.rank].pid,
            "step": step,
            "saved_step": saved_step,
            "saved": step == saved_step,
        }
        with contextlib.suppress(OSError):
            last_word.leave_for(
                self._run,
                Ending(reason, fault.status, text),
                here,
                # the others of a killed rank fail with what looks like a bug
                instead_of=(last_word.RUNNING, *(["bug"] if reason == "rank_died" else [])),
            )

    def _way_out(self, status: int) -> str:
        """What is saved, and how the run goes on."""
        if status != ending.RESUMABLE:
            return ""
        word = last_word.read(self._run) if self._run else None
        saved = f"; {last_word.in_words(word)}" if word else ""
        fix = "start the same command again, it resumes from the last committed checkpoint"
        return f"{saved}; fix: {fix}"

    def close(self) -> None:
        self._send(signal.SIGKILL)
        for child in self._ranks:
            child.wait()
        for reader in self._readers:
            reader.join(timeout=2.0)
        self._port.close()


def _start(
    command: Sequence[str], rank: int, environ: dict[str, str], own: tuple[int, ...]
) -> subprocess.Popen[bytes]:
    """A session of its own, so that a terminal's Ctrl-C reaches a rank once: handed on.

    own: open files that it inherits."""
    pipe = None if rank == 0 else subprocess.PIPE
    merged = None if rank == 0 else subprocess.STDOUT
    return subprocess.Popen(
        list(command),
        env=environ,
        stdout=pipe,
        stderr=merged,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=own,
    )


def _prefix_output(rank: int, child: subprocess.Popen[bytes]) -> threading.Thread:
    def copy(source: IO[bytes]) -> None:
        for line in source:
            sys.stderr.write(f"[rank {rank}] {line.decode('utf-8', 'replace').rstrip()}\n")
            sys.stderr.flush()

    assert child.stdout is not None
    reader = threading.Thread(target=copy, args=(child.stdout,), daemon=True)
    reader.start()
    return reader
