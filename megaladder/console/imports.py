"""Garbage collection waits while a process imports.

Modules are no garbage, and looking through them again and again takes a quarter of the time that
torch, megatron-core or vLLM take to import.
"""

from __future__ import annotations

import gc


def begin() -> None:
    """No collections from here on, until `done`."""
    gc.disable()


def done() -> None:
    """Collections again, of what comes after this; nothing without a `begin`."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
