"""Configuration of `replay`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from megaladder.config.base import Positional, StrictModel
from megaladder.config.sections.engine import JsonPath


class ReplayConfig(StrictModel):
    """Computes a step of an SFT or GRPO run again from its record.

    From the nearest earlier checkpoint, its data, its stored rollouts; every number of its row is
    compared, bit by bit."""

    run_dir: Positional[str]
    """The folder of the run. Nothing in it is changed."""
    step: Annotated[int, Field(ge=1)]
    """The step to compute again."""
    json_path: JsonPath = None
    """Also write what was compared to this file."""
