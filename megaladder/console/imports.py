"""Garbage collection waits while a process imports.

Modules are no garbage, and looking through them again and again takes a quarter of the time that
torch, megatron-core or vLLM take to import.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_began = False


def begin() -> None:
    """No collections from here on, until `done`."""
    global _began
    _began = gc.isenabled()
    gc.disable()


def done() -> None:
    """Collections again, of what comes after this.

    Nothing without a `begin`: a program that calls the package may have ended its own."""
    global _began
    if _began:
        gc.freeze()
        gc.enable()
    _began = False


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
