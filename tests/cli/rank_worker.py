"""A rank for test_launch.py: does what MODE says and leaves a file with its environment."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from megaladder.process.ranks import die_with_launcher, may_speak

die_with_launcher()
mode, folder = sys.argv[1], Path(sys.argv[2])
rank = int(os.environ["RANK"])
names = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
    "USE_HUB_KERNELS",
)


def stop(number: int, frame: object) -> None:
    (folder / f"signal_{rank}").write_text(signal.Signals(number).name)
    sys.exit(3)


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, stop)
(folder / f"rank_{rank}.tmp").write_text(
    json.dumps({"pid": os.getpid(), **{name: os.environ.get(name) for name in names}})
)
os.replace(folder / f"rank_{rank}.tmp", folder / f"rank_{rank}.json")
print(f"hello from {rank}", flush=True)
if mode == "ok":
    sys.exit(0)
if mode in ("all fail", "rank 1 fails", "rank 1 has the cause"):
    if mode == "rank 1 fails" and rank != 1:
        signal.pause()
    if may_speak(2, told_elsewhere=mode == "rank 1 has the cause" and rank != 1):
        print(f"megaladder: from rank {rank}", file=sys.stderr, flush=True)
    sys.exit(2)
if mode.startswith("exit") and rank == 1:
    sys.exit(int(mode[4:]))
if mode.startswith("SIG") and rank == 1:
    os.kill(os.getpid(), getattr(signal, mode))
signal.pause()
