"""A rank among the ranks of its job: who started it, which of them speaks, which status is left."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from megaladder.process.signals import die_with_parent

LAUNCHER_PID = "MEGALADDER_LAUNCHER_PID"
# torchrun makes a 1 of every failure: the first rank that fails leaves its own status here
STATUS_FILE = "MEGALADDER_STATUS_FILE"
# number of the listening socket that rank 0 inherits from our launcher: the ranks' store
STORE_SOCKET = "MEGALADDER_STORE_SOCKET"
FIRST_WORD_S = 0.5  # ranks usually fail together; the others let rank 0 speak
LAST_WORD_S = 1.5  # a rank that ends takes the others with it: not before they had their say

# whoever continues a whole job continues one process after the other
STOPPED_S = 10.0


def process_start(pid: object) -> str | None:
    """When a process of this machine started, in the kernel's ticks.

    A pid that is used again has another one. None: it is gone, or only waits to be collected by its
    parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine is stopped; False where that cannot be seen."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "tT"
    except (OSError, IndexError):
        return False


class StoppedProcesses:
    """How long processes have been stopped, by regular looks at them."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def too_long(self, pid: int | None) -> bool:
        """One look: whether the process has been stopped for `STOPPED_S`."""
        if pid is None or not is_stopped(pid):
            self._since.pop(pid or 0, None)
            return False
        return time.monotonic() - self._since.setdefault(pid, time.monotonic()) >= STOPPED_S


def stopped_in_words(pid: int | None) -> str:
    """What to say of one."""
    return f"process {pid} has been stopped for {STOPPED_S:g} s (SIGSTOP, a debugger)"


def under_launcher(environ: Mapping[str, str] = os.environ) -> bool:
    """True in a process that torchrun, Slurm's torchrun, or `launch_local` started."""
    return "RANK" in environ and "WORLD_SIZE" in environ


def gloo_on_loopback(environ: Mapping[str, str]) -> dict[str, str]:
    """For ranks of one machine: gloo would listen where the machine's name leads.

    The user's own choice counts."""
    if not sys.platform.startswith("linux"):
        return {}
    return {"GLOO_SOCKET_IFNAME": environ.get("GLOO_SOCKET_IFNAME", "lo")}


def rank_from_env() -> int:
    return int(os.environ.get("RANK", "0"))


def host() -> str:
    """This machine's name."""
    return socket.gethostname()


def attempt() -> str:
    """Names this start of the run, the same on all its ranks."""
    if LAUNCHER_PID in os.environ:
        return os.environ[LAUNCHER_PID]
    names = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "MASTER_PORT")
    parts = [os.environ[name] for name in names if name in os.environ]
    return "-".join(parts) if under_launcher() and parts else str(os.getpid())


def die_with_launcher() -> None:
    """Has the kernel end this rank when its launcher is gone.

    Ours or torchrun, however that happened (Linux)."""
    launcher = os.environ.get(LAUNCHER_PID)
    if launcher is not None or "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent(int(launcher or os.getppid()))


def may_speak(status: int, told_elsewhere: bool = False) -> bool:
    """Whether this process should print the error it ends with.

    Of the ranks of a job one does: rank 0 if it fails too, else the first to fail. Its exit status
    is left in the status file. `told_elsewhere`: another rank has the cause and says it.

    Without a launcher, and where the status file cannot be written, everybody speaks: twice is
    better than never.
    """
    if not under_launcher() or _status_file() is None:
        return True
    if told_elsewhere:
        time.sleep(LAST_WORD_S)
        return False
    if os.environ["RANK"] != "0":
        time.sleep(FIRST_WORD_S)
    return leave_status(status)


def speak_first(status: int, text: str) -> None:
    """Prints what ends the job before this process ends, unless another rank has spoken.

    Nothing where every rank speaks for itself as it ends (see `may_speak`)."""
    if under_launcher() and _status_file() is not None and leave_status(status):
        print(f"megaladder: {text}", file=sys.stderr, flush=True)


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
    """Where the ranks of this job leave the status.

    As told, else in torchrun's own temporary folder of this node."""
    told, of_torchrun = os.environ.get(STATUS_FILE), os.environ.get("TORCHELASTIC_ERROR_FILE")
    if told:
        return Path(told)
    return Path(of_torchrun).parents[1] / "megaladder_status" if of_torchrun else None
