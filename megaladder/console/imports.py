"""Garbage collection waits while a process imports.

Modules are no garbage, and looking through them again and again takes a quarter of the time that
torch, megatron-core or vLLM take to import.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


def begin() -> None:
    """No collections from here on, until `done`."""
    gc.disable()


def done() -> None:
    """Collections again, of what comes after this; nothing without a `begin`."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """The same for an import in the midst of work, whose own garbage stays to be collected."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
