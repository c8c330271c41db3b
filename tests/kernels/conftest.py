"""Triton's interpreter for the kernel tests, and the float64 oracle they compare with.

The interpreter is switched on for these tests only. Triton decides at import whether its own
library functions are interpreted, and another test may have imported it before (megatron-core
does): then its standard functions are made again, interpreted.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass

import pytest
import torch


@pytest.fixture(autouse=True)
def _interpreter_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def kernels(_interpreter_on):
    """`megaladder.kernels.triton_kernels` under the interpreter."""
    import triton.language as tl
    from triton.runtime.jit import JITFunction

    if isinstance(tl.max, JITFunction):
        standard = importlib.reload(importlib.import_module("triton.language.standard"))
        for name in dir(standard):
            if type(getattr(standard, name)).__name__ == "InterpretedFunction" and hasattr(
                tl, name
            ):
                setattr(tl, name, getattr(standard, name))
    return importlib.import_module("megaladder.kernels.triton_kernels")


@pytest.fixture(params=["twin", "triton"])
def implementation(request):
    """The PyTorch twin and the interpreted Triton kernels: same functions."""
    if request.param == "triton":
        return request.getfixturevalue("kernels")
    return importlib.import_module("megaladder.kernels.reference")


@dataclass(frozen=True)
class Oracle:
    """Values and gradients by autograd through log_softmax, in the type of `logits`."""

    logp: torch.Tensor
    entropy: torch.Tensor
    d_logits: torch.Tensor


def _oracle(
    logits: torch.Tensor,
    targets: torch.Tensor,
    inv_temperature: torch.Tensor,
    g: torch.Tensor,
    h: torch.Tensor,
) -> Oracle:
    """For valid columns only; ignored tokens (-100) give 0. g, h [T]: upstream of log-prob and
    entropy."""
    x = logits.detach().clone().requires_grad_()
    logs = torch.log_softmax(x * inv_temperature.to(x.dtype).view(-1, 1), -1)
    kept = targets != -100
    logp = torch.where(kept, logs.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1), 0.0)
    products = torch.where(logs > -math.inf, logs, 0.0) * logs.exp()
    entropy = torch.where(kept, -products.sum(1), 0.0)
    (logp * g.to(x.dtype) + entropy * h.to(x.dtype)).sum().backward()
    return Oracle(logp.detach(), entropy.detach(), x.grad)


@pytest.fixture
def oracle():
    return _oracle
