"""What trainings at two layouts must have in common: tokens, loss and gradient norm of each step."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

LOSS_TOLERANCE, GRAD_NORM_TOLERANCE = 1e-5, 1e-4  # relative
Step = tuple[float, float, int]  # mean loss, gradient norm, loss tokens


def assert_same_steps(found: Sequence[Step], reference: Sequence[Step], name: str) -> None:
    """`name`: the case, for the message."""
    for (loss, norm, tokens), (loss0, norm0, tokens0) in zip(found, reference, strict=True):
        assert tokens == tokens0, name
        assert loss == pytest.approx(loss0, rel=LOSS_TOLERANCE), name
        assert norm == pytest.approx(norm0, rel=GRAD_NORM_TOLERANCE), name
        assert norm > 1e-3, name  # the case says something
