"""Which sections the page has, in which order; which of them grow with every step of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megaladder.analysis.report.blocks import Prose, Section
from megaladder.analysis.report.collect import Inputs
from megaladder.analysis.report.palette import Palette, palette
from megaladder.analysis.report.sections.curves import (
    LEARN,
    MISMATCH,
    REWARDS,
    curve_section,
    phase_section,
)
from megaladder.analysis.report.sections.data import data_section
from megaladder.analysis.report.sections.findings import finding_sections
from megaladder.analysis.report.sections.rollouts import rollout_section
from megaladder.analysis.report.sections.runs import runs_section
from megaladder.analysis.report.sections.scores import (
    accuracy_section,
    length_section,
    pass_at_k_section,
    summary,
)
from megaladder.analysis.report.sections.steps import steps_section
from megaladder.analysis.report.sections.study import findings_section
from megaladder.config.verbs.analysis import ReportConfig


@dataclass(frozen=True)
class Material:
    """What a section is built from."""

    inputs: Inputs
    config: ReportConfig
    styles: Palette


@dataclass(frozen=True)
class Chapter:
    """One or more sections.

    grows: from the metrics of the runs alone, cheap to build again; rollouts: a page that watches
    asks for them instead."""

    build: Callable[[Material], list[Section]]
    grows: bool = False
    rollouts: bool = False


CHAPTERS = (
    Chapter(lambda s: [findings_section(s.inputs.of_kind("study"))]),
    Chapter(lambda s: [summary(s.inputs, s.config.seed)]),
    Chapter(lambda s: [runs_section(s.inputs)]),
    Chapter(lambda s: [data_section(s.inputs)]),
    Chapter(lambda s: [curve_section(s.inputs, s.styles, LEARN)], grows=True),
    Chapter(lambda s: [curve_section(s.inputs, s.styles, REWARDS)], grows=True),
    Chapter(lambda s: [curve_section(s.inputs, s.styles, MISMATCH)], grows=True),
    Chapter(lambda s: [phase_section(s.inputs, s.styles)], grows=True),
    Chapter(lambda s: [steps_section(s.inputs, s.styles, s.config.seed)]),
    Chapter(lambda s: [accuracy_section(s.inputs, s.styles, s.config.seed)]),
    Chapter(lambda s: [pass_at_k_section(s.inputs, s.styles, s.config.seed)]),
    Chapter(lambda s: [length_section(s.inputs, s.styles)]),
    Chapter(lambda s: finding_sections(s.inputs)),
    Chapter(lambda s: [rollout_section(s.inputs, s.config)], rollouts=True),
)


def build_sections(inputs: Inputs, config: ReportConfig) -> list[Section]:
    """All sections that have something to show, and last what is not there."""
    material = Material(inputs, config, palette(inputs))
    sections = [section for chapter in CHAPTERS for section in chapter.build(material)]
    absent = [
        f"{section.title}: needs {section.missing}." for section in sections if not section.blocks
    ]
    sections.append(notes_section(inputs.notes, absent))
    return [section for section in sections if section.blocks]


def notes_section(told: list[str], absent: list[str]) -> Section:
    """What a reader should know, and what is not on the page."""
    notes = Section("notes", "Notes")
    if told:
        notes.blocks.append(Prose(list(dict.fromkeys(told)), as_list=True))
    if absent:
        notes.blocks += [Prose(["Not in this report:"]), Prose(absent, as_list=True)]
    return notes
