"""What every rank holds in a dry run, against what `plan` says."""

from __future__ import annotations

from typing import Any

import pytest


def assert_bytes_are_plans(stages: list[dict[str, Any]]) -> None:
    """stages: those of `dryrun --json`."""
    for stage in stages:
        held, planned = stage["bytes"], stage["plan_bytes"]
        assert held["weights"] == planned["weights"]
        for part in ("gradients", "optimizer"):
            assert held[part] == pytest.approx(planned[part], rel=0.01)
        # embeddings' output and the final norm's input are no part of plan's layers
        assert held["activations"] == pytest.approx(planned["activations"], rel=0.15)
