"""One pass of AdamW over ragged sizes against torch's in float64."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("count", [0, 1, 2047, 2048, 5000])
def test_three_updates_are_torchs(kernels, count):
    from megaladder.kernels.triton_kernels.adamw import AdamStep, adamw

    random = torch.Generator().manual_seed(count)
    weight = torch.randn(count, generator=random)
    moments = (torch.zeros(count), torch.zeros(count))
    copy = torch.full((count,), 7.0, dtype=torch.bfloat16)
    truth = torch.nn.Parameter(weight.double())
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    adam = torch.optim.AdamW([truth], **options)
    for step in (1, 2, 3):
        grad = torch.randn(count, generator=random)
        kept = grad.clone()
        truth.grad = grad.double() * 0.25
        adam.step()
        adamw(weight, grad, moments, copy, AdamStep(1e-2, 0.9, 0.95, 1e-8, 0.1, step, 0.25))
        assert torch.equal(grad, kept)
    torch.testing.assert_close(weight.double(), truth.detach(), rtol=1e-6, atol=1e-6)
    assert ((copy.float() - weight).abs() <= weight.abs() / 128).all()
