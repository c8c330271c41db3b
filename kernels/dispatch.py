"""Triton kernel or PyTorch twin.

Chosen by device, overridable with one variable, said once in the log.

MEGALADDER_KERNELS = auto (default): Triton for CUDA tensors, the twin (`reference.py`) for others;
                     triton: always Triton; CPU tensors then need TRITON_INTERPRET=1 (slow, for
                     tests);
                     torch: always the twin, also on CUDA (to bisect a fault).

Imports no Triton itself: `triton_kernels` is loaded at the first launch.
"""

from __future__ import annotations

import functools
import logging
import os

import torch

VARIABLE = "MEGALADDER_KERNELS"
_CHOICES = ("auto", "triton", "torch")
_log = logging.getLogger("megaladder.kernels")


@functools.cache
def _say_once(backend: str, device_type: str, choice: str) -> None:
    _log.info(
        "loss-head kernels on %s: %s (%s=%s)",
        device_type,
        "Triton" if backend == "triton" else "PyTorch twin",
        VARIABLE,
        choice,
    )


def backend(device: torch.device) -> str:
    """'triton' or 'torch' for tensors on `device`.

    Raises:
        ValueError: the variable holds something else than auto, triton or torch.
    """
    choice = os.environ.get(VARIABLE, "auto").strip().lower() or "auto"
    if choice not in _CHOICES:
        raise ValueError(
            f"{VARIABLE}={choice!r}: expected one of {', '.join(_CHOICES)}; fix: unset it or name"
            " one of them"
        )
    chosen = choice if choice != "auto" else ("triton" if device.type == "cuda" else "torch")
    _say_once(chosen, device.type, choice)
    return chosen
