"""What a process's memory consists of, told by itself: what it uses, and what its allocators keep
for later, which an operating system cannot tell apart."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
from pathlib import Path

_FIELDS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and later; sums over all arenas."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def memory() -> dict[str, float]:
    """`python_blocks`: objects of Python's own allocator; `used_mib`, `free_mib`: of malloc, in use
    and kept for later (0 without glibc); `anonymous_mib`, `file_mib`: resident, without and with a
    file behind it, as code of libraries has."""
    used = free = 0
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallinfo2"):
        libc.mallinfo2.restype = _MallInfo
        info = libc.mallinfo2()
        used, free = info.uordblks + info.hblkhd, info.fordblks
    resident = {
        line.split(":")[0]: int(line.split()[1]) / 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("Rss")
    }
    return {
        "python_blocks": sys.getallocatedblocks(),
        "used_mib": round(used / 2**20, 2),
        "free_mib": round(free / 2**20, 2),
        "anonymous_mib": round(resident["RssAnon"], 2),
        "file_mib": round(resident["RssFile"] + resident["RssShmem"], 2),
    }


def write_down(path: Path, every_s: float) -> None:
    """Adds a row of `memory` to a file again and again, in a thread of this process."""

    def run() -> None:
        began = time.monotonic()
        while True:
            row = {"pid": os.getpid(), "age_s": round(time.monotonic() - began, 1), **memory()}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            threading.Event().wait(every_s)

    threading.Thread(target=run, daemon=True).start()
