"""Starts real gloo ranks for tests: `run_ranks(script, world_size, *args)` is torchrun on a worker
script of the tests folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
    """Runs tests/`script` on `world_size` ranks and returns its output; a failure raises with the
    output's end."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(world_size),
    ]
    command = [*launcher, str(ROOT / "tests" / script), *args]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, (
        f"{script} on {world_size} ranks failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    )
    return done.stdout
