"""Where the harness works."""

from __future__ import annotations

from pathlib import Path


def fast_folder() -> str | None:
    """Files in memory, where a sync costs nothing; None for the usual place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
