"""Configuration of `watch`.

The string under a field is its `--help` text. No file is touched here.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from megaladder.config.base import Positional, StrictModel


class WatchConfig(StrictModel):
    """A live page over run and evaluation folders, for a browser on this machine, until Ctrl-C.

    It shows where each run stands, its curves, where the seconds go, trainer against engine, scores
    and rollouts; "save" gives the self-contained file that `report` writes. It only reads, and only
    what is new. The address holds a secret; on a machine elsewhere: ssh -L PORT:127.0.0.1:PORT HOST
    and the same address here. Example: megaladder watch runs/sft runs/grpo
    """

    run_dirs: Positional[tuple[str, ...]]
    """Folders of runs and evaluations, or parents of runs; those that are not there yet are waited
    for."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port on 127.0.0.1. 0 = a free one."""

    @model_validator(mode="after")
    def _check_dirs(self) -> WatchConfig:
        if not self.run_dirs:
            raise ValueError("run_dirs is empty; fix: megaladder watch RUN_DIR…")
        return self
