"""Configuration of `study`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from megaladder.config.base import Positional, StrictModel


class StudyConfig(StrictModel):
    """A published study from its data to its findings: the same command again goes on."""

    name: Positional[str]
    """A shipped study, or a folder of your own with a study.yaml; `megaladder study list` prints
    the shipped ones."""
    scale: Literal["toy", "paper"] = "toy"
    """toy = minutes on two CPU cores, tasks on which the published effect can show; paper = the
    published models, data and benchmarks, on a cluster."""
    out: str | None = None
    """Folder for everything that the study makes. null = runs/study/NAME-SCALE."""
    jobs: Annotated[int, Field(ge=1)] | None = None
    """Jobs of a sweep at a time. null = one a core; one on a machine with GPUs."""
    only: str | None = None
    """One stage, one job (STAGE/LABEL), or `findings`: measure them and write the report."""
    launcher: Literal["local", "slurm"] = "local"
    """local = here; slurm = write a job array a stage and a script that submits them."""
    dry_run: bool = False
    """List stages and commands, each resolved against its verb's configuration; start nothing."""

    @model_validator(mode="after")
    def _only_one_way(self) -> StudyConfig:
        if self.launcher == "slurm" and (self.only is not None or self.jobs is not None):
            raise ValueError(
                "launcher slurm submits every job as a task of its own and takes no only and no"
                " jobs; fix: leave them out"
            )
        return self
