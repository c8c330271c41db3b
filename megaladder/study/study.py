"""What a study is: stages of ordinary commands, and findings that were written down before it ran.

    Study   = scales (toy, paper) × findings
    Scale   = stages, in the order in which they run
    Stage   = commands, once for each case of its sweep
    Finding = a published claim, a statistic with a 95 % interval, and the rule of its verdict

A study is a folder with `study.yaml` and the run files that its commands name. Nothing here starts
anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from megaladder.config.base import StrictModel
from megaladder.config.resolve.resolver import validate
from megaladder.config.rules.unread import raise_all
from megaladder.config.strict_yaml import load_yaml
from megaladder.errors import ConfigError
from megaladder.study.finding import Finding

SHIPPED = Path(__file__).parent / "studies"
ScaleName = Literal["toy", "paper"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
# words that every command may use beside the stages before it and the axes of its sweep
OWN_WORDS = ("here", "stage", "label", "study", "recipes", "together")
Value = str | int | float
Case = dict[Name, Value | tuple[Value, ...]]


class Sweep(StrictModel):
    """The cases of a stage: each of `cases` with each combination of `grid`."""

    cases: tuple[Case, ...] = ()
    """Values that belong together, e.g. {label: 25k2ep, rows: 25000, epochs: 2}."""
    grid: dict[Name, tuple[Value, ...]] = Field(default_factory=dict)
    """Axes that are crossed, e.g. {seed: [1, 2, 3]}."""

    def expand(self) -> Iterator[tuple[str, Case]]:
        """(label, values) of each case.

        One without values and called `all` where there is no sweep."""
        for case in self.cases or ({},):
            for crossed in itertools.product(*self.grid.values()):
                axes = dict(zip(self.grid, crossed, strict=True))
                named = [case["label"]] if "label" in case else list(case.values())
                parts = [str(part) for part in (*named, *axes.values())]
                yield "-".join(parts) or "all", {**case, **axes}


class Stage(StrictModel):
    """Commands of megaladder, run one after another, for each case of the sweep."""

    name: Name
    """Also the name of its folder, and the word `${NAME}` in the commands of later stages."""
    run: tuple[str, ...]
    """Commands as typed, without `megaladder`. `${here}` is this case's folder, `${stage}` the
    stage's, `${study}` the study's own files, `${recipes}` examples/recipes of a checkout,
    `${AXIS}` a value of the sweep; a list becomes several words."""
    sweep: Sweep = Sweep()
    """The cases that the commands are run for; without one once, in a case called `all`."""
    together: dict[str, dict[str, Value]] = Field(default_factory=dict)
    """Cases that one command works off, which gets them as `${together}`: `eval --cases
    ${together}` starts one engine for all of them; a sweep would start one for each."""

    @model_validator(mode="after")
    def _labels_differ(self) -> Stage:
        labels = [label for label, _ in self.sweep.expand()]
        doubled = sorted({label for label in labels if labels.count(label) > 1})
        bad = sorted({label for label in labels if not label.replace("-", "").strip(".")})
        bad += [label for label in (*labels, *self.together) if "/" in label]
        problems = [
            f"{self.name}: two cases are called {one}; fix: give each a `label`" for one in doubled
        ]
        problems += [
            f"{self.name}: {one!r} is no name of a folder; fix: give it a `label`" for one in bad
        ]
        if bool(self.together) != any("${together}" in command for command in self.run):
            problems.append(
                f"{self.name}: `together` and a command with ${{together}} need each other; fix:"
                " both, or neither"
            )
        raise_all(problems)
        return self


class Scale(StrictModel):
    """One size of the study."""

    about: str
    """What it trains on what, and what it takes."""
    stages: tuple[Stage, ...]
    """In the order in which they run."""
    report: tuple[str, ...]
    """Stages whose runs and evaluations the report shows."""

    @model_validator(mode="after")
    def _stages_are_known(self) -> Scale:
        names = [stage.name for stage in self.stages]
        problems = [
            f"stage {name} stands there twice; fix: another name"
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        problems += [
            f"stage {name}: this word means something already; fix: another name"
            for name in names
            if name in OWN_WORDS
        ]
        problems += [
            f"report names {name}, which is no stage; fix: one of {', '.join(names)}"
            for name in self.report
            if name not in names
        ]
        raise_all(problems)
        return self


class Study(StrictModel):
    """A published study that can be run."""

    title: str
    """Head of the report."""
    source: str
    """Authors and arXiv number."""
    scales: dict[ScaleName, Scale]
    """Its sizes, by name: toy, paper, or both."""
    findings: tuple[Finding, ...]
    """What it tests."""

    @model_validator(mode="after")
    def _findings_can_be_measured(self) -> Study:
        names = [finding.name for finding in self.findings]
        problems = [
            f"finding {name} stands there twice; fix: another name"
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        problems += [
            f"finding {finding.name}: {scale}: the study has no such scale; fix: one of its scales"
            for finding in self.findings
            for scale in finding.measured
            if scale not in self.scales
        ]
        raise_all(problems)
        return self

    def findings_at(self, scale: ScaleName) -> tuple[Finding, ...]:
        """The findings that this scale can measure."""
        return tuple(finding for finding in self.findings if scale in finding.measured)


def shipped_studies() -> dict[str, Path]:
    """Name → folder."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob("*/study.yaml"))}


def study_folder(name: str) -> Path:
    """The folder that a shipped study's name, or a path, means. Raises ConfigError."""
    shipped: Mapping[str, Path] = shipped_studies()
    folder = shipped.get(name, Path(name))
    if not (folder / "study.yaml").is_file():
        raise ConfigError(
            f"study {name}: neither a shipped study ({', '.join(shipped)}) nor a folder with a"
            " study.yaml; fix: one of these names, or a folder of your own"
        )
    return folder


def load_study(folder: Path) -> Study:
    """`study.yaml` of a folder, checked."""
    file = load_yaml(folder / "study.yaml")
    return validate(Study, file.values, file)
