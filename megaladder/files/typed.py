"""Paths inside the commands that messages tell people to type."""

from __future__ import annotations

import shlex
from pathlib import Path


def typed(path: str | Path) -> str:
    """A path as a shell has to be given it.

    >>> typed("runs/sft"), typed("my runs/sft")
    ('runs/sft', "'my runs/sft'")
    """
    return shlex.quote(str(path))
