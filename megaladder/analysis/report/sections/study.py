"""Findings with their verdicts as the first section of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megaladder.analysis.report.blocks import CsvRow, Prose, Section, Table, ends
from megaladder.analysis.report.collect import Analysis
from megaladder.analysis.report.formats import fixed
from megaladder.analysis.report.sections.findings import guarded

COLUMNS = (
    *("finding", "published", "statistic", "here [95 % interval]", "reproduced if"),
    *("opposite if", "verdict"),
)
CAPTION = (
    "Verdicts go by where the whole interval lies: inside “reproduced if”, inside “opposite if”, or"
    " in neither, which is “not at this scale”: the effect was not shown, nor its contrary."
    " Intervals tell the chance of the problems, texts or runs in brackets (bootstrap; “exact”"
    " where all problems have one value), not that of another seed: each model was trained once."
)


def findings_section(analyses: Sequence[Analysis]) -> Section:
    """The table of every `findings.json` among the report's inputs; empty without one."""
    section = Section("study", "Published findings", missing="findings.json of a study")
    for analysis in analyses:
        guarded(analysis, _add_study, section)
    return section


def _add_study(section: Section, analysis: Analysis) -> None:
    result = analysis.result
    findings = result["findings"]
    counts = [f["verdict"] for f in findings]
    lines = [
        f"{result['title']} ({result['source']}), scale {result['scale']}:"
        f" {counts.count('reproduced')} of {len(counts)} findings reproduced,"
        f" {counts.count('opposite')} opposite,"
        f" {counts.count('not at this scale')} not at this scale."
        " Statistic and rule of each stood in the study's file before it ran."
    ]
    lines += [
        f"{name}: its rule is another than when this study was started."
        for name in result["changed_rules"]
    ]
    section.blocks.append(Prose(lines))
    rows = [_row(finding) for finding in findings]
    numbers = [_number(result["scale"], finding) for finding in findings]
    section.blocks.append(Table(COLUMNS, rows, CAPTION, numbers))


def _row(finding: dict[str, Any]) -> list[str]:
    return [
        finding["claim"],
        finding["published"],
        finding["statistic"],
        in_words(finding),
        finding["reproduced_if"],
        finding["opposite_if"],
        finding["verdict"],
    ]


def in_words(finding: dict[str, Any]) -> str:
    """`-12.3 [-15.1, -9.8] points (200 problems)`."""
    value = _digits(finding["value"])
    bounds = finding["ci95"]
    interval = f"[{_digits(bounds[0])}, {_digits(bounds[1])}]" if bounds else "[no interval]"
    return f"{value} {interval} {finding['unit']} ({finding['n']} {finding['over']})"


def _digits(value: float) -> str:
    return fixed(value, 1 if abs(value) >= 10 else 2)


def _number(scale: str, finding: dict[str, Any]) -> CsvRow:
    low, high = ends(finding["ci95"])
    return CsvRow(
        "study",
        finding["name"],
        scale,
        finding["verdict"],
        finding["value"],
        low,
        high,
        finding["n"],
    )
