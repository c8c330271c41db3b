"""Findings with their verdicts as the first section of a report."""

from __future__ import annotations

from typing import Any

from megaladder.analysis.report.blocks import CsvRow, Prose, Section, Table, ends
from megaladder.analysis.report.formats import fixed

COLUMNS = ("finding", "published", "here, 95 % interval", "reproduced if", "verdict")


def findings_section(results: list[dict[str, Any]]) -> Section:
    """The table of every `findings.json` among the report's inputs; empty without one."""
    section = Section("study", "Published findings", missing="findings.json of a study")
    for result in results:
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
        section.blocks.append(
            Table(
                COLUMNS,
                [_row(finding) for finding in findings],
                numbers=[_number(result["scale"], finding) for finding in findings],
            )
        )
    return section


def _row(finding: dict[str, Any]) -> list[str]:
    return [
        finding["claim"],
        finding["published"],
        in_words(finding),
        finding["reproduced_if"],
        finding["verdict"],
    ]


def in_words(finding: dict[str, Any]) -> str:
    """`-12.3 [-15.1, -9.8] points (200)`."""
    value = _digits(finding["value"])
    bounds = finding["ci95"]
    interval = f"[{_digits(bounds[0])}, {_digits(bounds[1])}]" if bounds else "[no interval]"
    return f"{value} {interval} {finding['unit']} (n {finding['n']})"


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
