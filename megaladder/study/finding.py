"""A finding: what was published, the number that tests it, and the rule of its verdict.

Statistics are means over problems of something that is linear in each problem's score, so that one
bootstrap over problems gives every interval; rank correlation resamples runs and problems. `measure`
computes them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from megaladder.config.base import StrictModel

Verdict = Literal["reproduced", "not at this scale", "opposite"]
# STAGE/LABEL/BENCHMARK: an evaluation of the study; * stands for any part of a label, and several
# evaluations are averaged problem by problem
Scores = Annotated[str, Field(pattern=r"^[^/]+/[^/]+/[^/]+$")]
Metric = Annotated[str, Field(pattern=r"^(accuracy|tokens|pass@[1-9][0-9]*)$")]


class Bound(StrictModel):
    """Where the whole interval has to lie."""

    above: float | None = None
    """Above this number."""
    below: float | None = None
    """Below this number."""
    between: tuple[float, float] | None = None
    """Between these two."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Bound:
        if sum(value is not None for value in (self.above, self.below, self.between)) != 1:
            raise ValueError("a rule takes one of above, below, between; fix: {above: 0}")
        return self

    def holds(self, low: float, high: float) -> bool:
        """Whether the interval lies there."""
        if self.above is not None:
            return low > self.above
        if self.below is not None:
            return high < self.below
        assert self.between is not None
        return self.between[0] < low and high < self.between[1]

    def __str__(self) -> str:
        if self.between is not None:
            return f"between {self.between[0]:g} and {self.between[1]:g}"
        return f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"


class Only(StrictModel):
    """Some problems of a benchmark: those whose row in a file has this value."""

    file: str
    """Under the study's output folder; rows with `id`."""
    column: str
    """Of that file."""
    value: str | int | float | tuple[str | int | float, ...]
    """What stands there, or a list of such."""

    def __str__(self) -> str:
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        return f"problems whose {self.column} is {' or '.join(map(str, values))}"


class _OfProblems(StrictModel):
    """A statistic over the problems of evaluations."""

    metric: Metric = "accuracy"
    """accuracy (share of correct samples, in percent), pass@K (percent) or tokens (of an
    answer)."""
    only: Only | None = None
    """Some of the problems."""

    def _with_problems(self, words: str) -> str:
        return words if self.only is None else f"{words}, {self.only}"


class Level(_OfProblems):
    """The mean itself."""

    kind: Literal["level"]
    of: Scores
    """STAGE/LABEL/BENCHMARK; `*` in a label averages several, problem by problem."""

    def __str__(self) -> str:
        return self._with_problems(f"{self.metric} of {self.of}")


class Difference(_OfProblems):
    """Mean of one minus mean of the other, paired by problem."""

    kind: Literal["difference"]
    of: Scores
    """The one."""
    minus: Scores
    """The other."""

    def __str__(self) -> str:
        return self._with_problems(f"{self.metric} of {self.of} minus {self.minus}, paired")


class Point(StrictModel):
    """One place of a curve."""

    x: float | None = None
    """Its place. null = the mean thinking tokens that its samples used."""
    of: Scores
    """Its scores."""


class Slope(_OfProblems):
    """Points a doubling of x: least squares (slope), or the mean over all pairs (s1's scaling)."""

    kind: Literal["slope", "scaling"]
    points: Annotated[tuple[Point, ...], Field(min_length=2)]
    """Two or more."""

    def __str__(self) -> str:
        how = "least squares" if self.kind == "slope" else "mean over all pairs"
        of = ", ".join(point.of for point in self.points)
        words = f"{self.metric} gained a doubling of {self._axis}, {how}: {of}"
        return self._with_problems(words)

    @property
    def _axis(self) -> str:
        places = [point.x for point in self.points if point.x is not None]
        if not places:
            return "thinking tokens"
        return f"x ({', '.join(f'{place:g}' for place in places)})"


class Control(StrictModel):
    """Share of samples whose thinking kept to its budget `x`, in percent (s1's control)."""

    kind: Literal["control"]
    points: Annotated[tuple[Point, ...], Field(min_length=1)]
    """Each with its `x`, in tokens."""

    def __str__(self) -> str:
        of = ", ".join(f"{point.of} {point.x:g}" for point in self.points if point.x is not None)
        return f"samples whose thinking kept to its budget: {of}"


class Column(StrictModel):
    """One number a run: from an evaluation, or its last held-out loss."""

    of: str
    """STAGE/{run}/BENCHMARK, or STAGE/{run} for the loss; {run} stands for each label of `runs`."""
    metric: Annotated[str, Field(pattern=r"^(accuracy|tokens|pass@[1-9][0-9]*|held_out_loss)$")]
    """accuracy, pass@K, tokens or held_out_loss."""

    @model_validator(mode="after")
    def _depth(self) -> Column:
        parts = 2 if self.metric == "held_out_loss" else 3
        if "{run}" not in self.of or len(self.of.split("/")) != parts:
            shape = "STAGE/{run}" if parts == 2 else "STAGE/{run}/BENCHMARK"
            raise ValueError(f"of {self.of}: should be {shape} for {self.metric}; fix: that form")
        return self

    def __str__(self) -> str:
        return f"{self.metric.replace('_', '-')} of {self.of}"


class Correlation(StrictModel):
    """Spearman's rank correlation over runs.

    With `better_than`, how much higher it is in size than that column's."""

    kind: Literal["correlation"]
    runs: Annotated[tuple[str, ...], Field(min_length=4)]
    """Labels of cases, four or more."""
    x: Column
    """What may predict."""
    y: Column
    """What is predicted."""
    better_than: Column | None = None
    """What may predict less well."""

    def __str__(self) -> str:
        words = f"Spearman of {self.x} with {self.y}"
        if self.better_than is not None:
            words = f"{words} in size, minus that of {self.better_than}"
        return f"{words}; runs {', '.join(self.runs)}"


class Shift(StrictModel):
    """A number of `analyze shift --tokens`, a mean over texts.

    With `minus`, less that of another model. Texts are not paired: each model is asked about its
    own answers."""

    kind: Literal["shift"]
    what: Literal["kl", "rank"]
    """kl = log-probability under the tuned less under the base model, nats a token; rank = places
    that the token lost under the base model."""
    of: str
    """A token file, under the study's output folder."""
    minus: str | None = None
    """Another such file."""

    def __str__(self) -> str:
        what = {"kl": "KL to the base", "rank": "rank lost under the base"}[self.what]
        return f"{what}, {self.of}" + ("" if self.minus is None else f" minus {self.minus}")


Statistic = Annotated[
    Level | Difference | Slope | Control | Correlation | Shift, Field(discriminator="kind")
]


class Finding(StrictModel):
    """A published claim, how it is tested here, and what counts as what."""

    name: str
    """For messages; no two are alike."""
    claim: str
    """The published sentence, in plain words."""
    published: str
    """The published figures."""
    reproduced: Bound
    """Where the 95 % interval lies when the claim holds."""
    opposite: Bound
    """Where it lies when the contrary does. Anywhere else: not at this scale."""
    measured: dict[Literal["toy", "paper"], Statistic]
    """The statistic at each scale."""

    def verdict(self, ci95: tuple[float, float] | None) -> Verdict:
        """What the interval says; without one nothing was shown."""
        if ci95 is not None and self.reproduced.holds(*ci95):
            return "reproduced"
        if ci95 is not None and self.opposite.holds(*ci95):
            return "opposite"
        return "not at this scale"

    def rule(self) -> dict[str, Any]:
        """What has to be fixed before the run."""
        return self.model_dump(mode="json", exclude={"claim", "published"})
