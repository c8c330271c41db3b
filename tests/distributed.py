"""Starts real gloo ranks for tests: `run_ranks(script, world_size, *args)` is what torchrun does
with a worker script of the tests folder, in forks of a server that has paid for the imports.

The ranks meet in a store that this process holds, at a port which the system gave it: none is
looked for first and taken later.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from clean_fork import start_fork

ROOT = Path(__file__).resolve().parent.parent


def environment() -> dict[str, str]:
    """One thread a rank (two cores), the source tree on the path, no hub."""
    path = os.pathsep.join(
        filter(None, [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    )
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "USE_HUB_KERNELS": "NO",
    }


def run_ranks(script: str, world_size: int, *args: str, timeout_s: float = 240) -> str:
    """Runs tests/`script` on `world_size` ranks and returns what they printed; a failure raises
    with the output's end, and ends the other ranks."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, world_size, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / f"rank_{rank}" for rank in range(world_size)]
        ranks = [
            start_fork(
                _rank, script, args, _meeting(rank, world_size, store.port), stdout=out, stderr=out
            )
            for rank, out in enumerate(said)
        ]
        try:
            failed = _first_failure(ranks, timeout_s)
            status = None if failed is None else ranks[failed].exitcode
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()
        output = [path.read_text(errors="replace") for path in said]
    assert failed is None, (
        f"{script}, rank {failed} of {world_size}: status {status}\n{output[failed][-6000:]}"
    )
    return "".join(output)


def run_alone(script: str, *args: str, timeout_s: float = 240) -> str:
    """The same by a single process that imports all itself: for what is decided at import, such as
    Triton's interpreter."""
    command = [sys.executable, str(ROOT / "tests" / script), *args]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"{script} failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def _meeting(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The variables by which torch.distributed finds the other ranks."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # rank 0 joins the store as the others do: it is ours
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _rank(script: str, args: tuple[str, ...], meeting: dict[str, str]) -> None:
    os.environ |= environment() | meeting
    sys.argv = [script, *args]
    runpy.run_path(str(ROOT / "tests" / script), run_name="__main__")


def _first_failure(ranks: list[BaseProcess], timeout_s: float) -> int | None:
    """Waits until all ranks have ended well (None), or one of them otherwise (that one), or has not
    ended in time."""
    deadline = time.monotonic() + timeout_s
    while running := {rank.sentinel: rank for rank in ranks if rank.exitcode is None}:
        wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
        for index, rank in enumerate(ranks):
            if rank.exitcode or (rank.exitcode is None and time.monotonic() > deadline):
                return index
    return next((index for index, rank in enumerate(ranks) if rank.exitcode), None)
