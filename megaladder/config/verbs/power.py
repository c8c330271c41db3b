"""Configuration of `power`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from megaladder.config.base import CommaInts, CommaStrs, StrictModel
from megaladder.config.rules.unread import ReadIf, raise_all, unread_problems
from megaladder.config.sections.engine import JsonPath

Share = Annotated[float, Field(ge=0, le=1)]


class PowerConfig(StrictModel):
    """How many problems and samples an evaluation needs to show a difference (arXiv 2411.00640)."""

    effect: Annotated[float, Field(gt=0, le=100)]
    """The difference of two models that should be seen, points."""
    samples: CommaStrs = ()
    """Graded samples that the variances are measured from: a file of one model, or of two models
    A,B on the same problems. none = mean, icc and correlation as given."""
    mean: Annotated[float, Field(gt=0, lt=100)] = 50.0
    """Score of the first model, percent."""
    icc: Share = 0.5
    """Intra-class correlation: the share of one sample's variance that is between problems."""
    correlation: Share = 0.8
    """Of the chances of the same problems under the two models; what pairing gains from."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Of the two-sided test."""
    power: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Chance that a true difference of `effect` is seen."""
    problems: Annotated[int, Field(ge=2)] | None = None
    """Also: what so many problems show. null = as many as --samples has."""
    n: CommaInts = (1, 2, 4, 8, 16, 32, 64)
    """Samples a problem, a row of the table each."""
    json_path: JsonPath = None
    """Write the result here."""

    @model_validator(mode="after")
    def _check(self) -> PowerConfig:
        problems = []
        if len(self.samples) > 2:
            problems.append(f"samples names {len(self.samples)} files; fix: one, or two models A,B")
        if not self.n or min(self.n) < 1:
            problems.append(f"n {self.n}: fix: whole numbers from 1 on")
        raise_all([*problems, *unread_problems(self, _READ_IF)])
        return self


_READ_IF: tuple[ReadIf[PowerConfig], ...] = (
    ReadIf(("mean", "icc", "correlation"), lambda run: not run.samples, "no --samples"),
)
