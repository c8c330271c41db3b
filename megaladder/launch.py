"""Starts the ranks of a distributed verb on this machine when nobody else (torchrun, Slurm) did,
and ends them together.

One child process a rank, with the environment that torch.distributed reads. Rank 0's output passes
through; the other ranks' lines come on stderr with their rank in front. A rank that dies takes the
others with it within `FAILED_GRACE_S`, so nothing hangs in a collective. Of several ranks that fail
with a user error one speaks (`may_speak`) and leaves its exit status for whoever started the ranks.
Not here: several machines (use torchrun or the Slurm examples), restarts (start the same command
again: it resumes).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

FAILED_GRACE_S = 3.0  # from a rank's crash to SIGKILL for the rest
# the same after status 3: the others may still be writing their part of a checkpoint
STOPPED_GRACE_S = 600.0
POLL_S = 0.05
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LAUNCHER_PID = "MEGALADDER_LAUNCHER_PID"
# torchrun makes a 1 of every failure: the first rank that fails leaves its own status here
STATUS_FILE = "MEGALADDER_STATUS_FILE"
FIRST_WORD_S = 0.5  # ranks usually fail together; the others let rank 0 speak
LAST_WORD_S = 1.5  # a rank that ends takes the others with it: not before they had their say
_PR_SET_PDEATHSIG = 1


def under_launcher(environ: Mapping[str, str] = os.environ) -> bool:
    """True in a process that torchrun, Slurm's torchrun, or `launch_local` started."""
    return "RANK" in environ and "WORLD_SIZE" in environ


def run_example(verb: str, run_yaml: Path, overrides: Sequence[str]) -> int:
    """What a launch script of examples/ does once it is Python: `megaladder VERB run.yaml
    overrides`, with the ranks that there are.

    Under torchrun with a number of processes that number counts, not the file's; torchrun without
    one started a single process, which then starts what the file asks for.
    """
    from megaladder.cli import main

    if os.environ.get("WORLD_SIZE") == "1":
        for name in (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "LOCAL_WORLD_SIZE",
            "GROUP_RANK",
            "MASTER_ADDR",
            "MASTER_PORT",
        ):
            os.environ.pop(name, None)
    started = under_launcher() and not any(
        argument.startswith("--parallel.ranks") for argument in overrides
    )
    ranks = ["--parallel.ranks", os.environ["WORLD_SIZE"]] if started else []
    return main([verb, str(run_yaml), *ranks, *overrides])


def die_with_launcher() -> None:
    """In a rank: have the kernel end it when the launcher that started it, ours or torchrun, is
    gone, however that happened (Linux)."""
    launcher = os.environ.get(LAUNCHER_PID)
    if (
        launcher is None and "TORCHELASTIC_RUN_ID" not in os.environ
    ) or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher or os.getppid()):  # it died before the call above
        os.kill(os.getpid(), signal.SIGKILL)


def may_speak(status: int, told_elsewhere: bool = False) -> bool:
    """Whether this process should print the error it ends with. Of the ranks of a job one does:
    rank 0 if it fails too, else the first to fail. Its exit status is left in the status file.
    `told_elsewhere`: another rank has the cause and says it.

    Without a launcher, and where the status file cannot be written, everybody speaks: twice is
    better than never.
    """
    path = _status_file()
    if not under_launcher() or path is None:
        return True
    if told_elsewhere:
        time.sleep(LAST_WORD_S)
        return False
    if os.environ["RANK"] != "0":
        time.sleep(FIRST_WORD_S)
    return leave_status(status)


def end_of_rank() -> None:
    """In a rank whose work is done: late stop signals mean nothing any more. (While Python ends it
    puts the default handlers back, and a SIGUSR1 then would turn a run that has saved into one that
    was killed.)"""
    if under_launcher() and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


def leave_status(status: int) -> bool:
    """Writes the status file; False when another rank did so before."""
    path = _status_file()
    if path is None:
        return True
    try:
        with path.open("x") as file:
            file.write(f"{status}\n")
    except FileExistsError:
        return False
    except OSError:  # a full or read-only disk must not cost the message
        return True
    return True


def _status_file() -> Path | None:
    """Where the ranks of this job leave the status: as told, else in torchrun's own temporary
    folder of this node."""
    told, of_torchrun = os.environ.get(STATUS_FILE), os.environ.get("TORCHELASTIC_ERROR_FILE")
    if told:
        return Path(told)
    return Path(of_torchrun).parents[1] / "megaladder_status" if of_torchrun else None


def free_port() -> int:
    """A TCP port on the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank_environment(
    rank: int,
    num_ranks: int,
    port: int,
    environ: Mapping[str, str] = os.environ,
    status_file: str | None = None,
) -> dict[str, str]:
    """The environment of one local rank. OMP_NUM_THREADS shares the cores out unless the user set
    it.

    What a torchrun above us set is left out: with its TORCHELASTIC_USE_AGENT_STORE every rank would
    wait for a store that nobody serves.
    """
    threads = max(1, available_cores() // num_ranks)
    own = {
        name: value
        for name, value in environ.items()
        if not name.startswith(("TORCHELASTIC_", "GROUP_", "ROLE_"))
    }
    own |= {STATUS_FILE: status_file} if status_file else {}
    return {
        "OMP_NUM_THREADS": str(threads),
        **own,
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


def launch_local(num_ranks: int, command: Sequence[str]) -> int:
    """Runs `command` as ranks 0 … num_ranks-1 and returns the exit status of the whole.

    0 if all ranks return 0; else that of the first rank that failed, where a rank that was killed
    by a signal counts as 1. SIGTERM, SIGINT and SIGUSR1 go on to every rank; a second SIGINT kills
    them.
    """
    port = free_port()
    notes = tempfile.TemporaryDirectory(prefix="megaladder-ranks-")
    status_file = os.environ.get(STATUS_FILE) or str(Path(notes.name) / "status")
    ranks: list[subprocess.Popen[bytes]] = []
    interrupts = [0]

    def forward(number: int, _frame: object) -> None:
        interrupts[0] += number == signal.SIGINT
        for child in ranks:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL if interrupts[0] > 1 else number)

    previous = {number: signal.signal(number, forward) for number in FORWARDED}
    readers: list[threading.Thread] = []
    try:
        for rank in range(num_ranks):
            ranks.append(
                _start(
                    command, rank, rank_environment(rank, num_ranks, port, status_file=status_file)
                )
            )
        readers = [_prefix_output(rank, child) for rank, child in enumerate(ranks) if rank > 0]
        return _wait(ranks)
    finally:
        for child in ranks:
            if child.poll() is None:
                child.kill()
            child.wait()
        for reader in readers:
            reader.join(timeout=2.0)
        for number, handler in previous.items():
            signal.signal(number, handler)
        notes.cleanup()


def _start(command: Sequence[str], rank: int, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    """A session of its own, so that a terminal's Ctrl-C reaches a rank once: through `forward`."""
    pipe = None if rank == 0 else subprocess.PIPE
    merged = None if rank == 0 else subprocess.STDOUT
    return subprocess.Popen(
        list(command),
        env=environ,
        stdout=pipe,
        stderr=merged,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
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


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits for all; once one has failed, gives the rest their grace and then kills them. Returns
    the status of the whole."""
    first_failed: int | None = None
    deadline = float("inf")
    while True:
        states = [child.poll() for child in ranks]
        for rank, status in enumerate(states):
            if status and first_failed is None:
                first_failed = rank
                grace_s = STOPPED_GRACE_S if status == 3 else FAILED_GRACE_S
                deadline = time.monotonic() + grace_s
            elif status and status != 3:  # a real failure cuts the long grace of a status 3 short
                deadline = min(deadline, time.monotonic() + FAILED_GRACE_S)
        running = [rank for rank, status in enumerate(states) if status is None]
        if not running:
            break
        if time.monotonic() > deadline:
            for rank in running:
                ranks[rank].kill()
                ranks[rank].wait()
            break
        time.sleep(POLL_S)
    if first_failed is None:
        return 0
    return _report(first_failed, ranks[first_failed].returncode, len(ranks), len(running))


def _report(rank: int, status: int, num_ranks: int, num_killed: int) -> int:
    """One line that names the rank which ended the run; its status, or 1 for a death by signal."""
    how = (
        f"was killed by {signal.Signals(-status).name}"
        if status < 0
        else f"exited with status {status}"
    )
    rest = (
        f"; the other {num_ranks - 1} ranks were stopped ({num_killed} by force)"
        if num_ranks > 1
        else ""
    )
    hint = (
        "; fix: start the same command again, it resumes from the last committed checkpoint"
        if status < 0 or status == 3
        else ""
    )
    print(f"megaladder: rank {rank} of {num_ranks} {how}{rest}{hint}", file=sys.stderr, flush=True)
    return 1 if status < 0 else status
