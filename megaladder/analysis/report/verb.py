"""The verb `report`.

Collects the folders, builds the sections, writes the page and the CSV with every number beside it.

The page is one file: styles, script and drawings are inside, a content security policy forbids
everything else (its own script runs by hash), so that text of a model can neither run nor load
anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

from megaladder import __version__
from megaladder.analysis.report.blocks import CsvRow, Prose, Section
from megaladder.analysis.report.cells import palette
from megaladder.analysis.report.collect import Inputs, collect
from megaladder.analysis.report.sections.data import data_section
from megaladder.analysis.report.sections.findings import finding_sections
from megaladder.analysis.report.sections.rollouts import rollout_section, visible
from megaladder.analysis.report.sections.runs import learning_section, reward_section, runs_section
from megaladder.analysis.report.sections.scores import (
    accuracy_section,
    length_section,
    pass_at_k_section,
    summary,
)
from megaladder.analysis.report.sections.steps import steps_section
from megaladder.analysis.report.sections.study import findings_section
from megaladder.analysis.report.svg import legend_key
from megaladder.config.verbs.analysis import ReportConfig
from megaladder.errors import ConfigError
from megaladder.run_dir import atomic_write

CSV_COLUMNS = ("section", "figure", "series", "x", "y", "low", "high", "n")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def build_sections(inputs: Inputs, config: ReportConfig) -> list[Section]:
    """All sections that have something to show, and last what is not there."""
    styles = palette(inputs)
    sections = [
        findings_section([analysis.result for analysis in inputs.of_kind("study")]),
        summary(inputs, config.seed),
        runs_section(inputs),
        data_section(inputs),
        learning_section(inputs, styles),
        reward_section(inputs, styles),
        steps_section(inputs, styles, config.seed),
        accuracy_section(inputs, styles, config.seed),
        pass_at_k_section(inputs, styles, config.seed),
        length_section(inputs, styles),
        *finding_sections(inputs),
        rollout_section(inputs, config.max_rollouts, config.max_chars, config.seed),
    ]
    absent = [
        f"{section.title}: needs {section.missing}." for section in sections if not section.blocks
    ]
    notes = Section("notes", "Notes")
    if inputs.notes:
        notes.blocks.append(Prose(list(dict.fromkeys(inputs.notes)), as_list=True))
    if absent:
        notes.blocks += [Prose(["Not in this report:"]), Prose(absent, as_list=True)]
    return [section for section in (*sections, notes) if section.blocks]


def render(sections: list[Section], title: str, subtitle: str, footer: str) -> str:
    """The HTML text."""
    import jinja2

    folder = Path(__file__).parent / "page"
    style, script = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["key"] = legend_key
    page = environment.get_template("page.html.jinja")
    values = {
        "title": title,
        "subtitle": subtitle,
        "footer": footer,
        "sections": sections,
        "style": style,
        "script": script,
    }
    return page.render(**values, style_hash=_csp_hash(style), script_hash=_csp_hash(script))


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode(
        "ascii"
    )


def csv_text(value: str) -> str:
    """A text cell that no spreadsheet runs as a formula, quoted."""
    safe = "'" + value if value.startswith(FORMULA_STARTS) else value
    return '"' + safe.replace('"', '""') + '"'


def csv_file(rows: Iterable[CsvRow]) -> str:
    """The CSV: text cells quoted and disarmed, numbers in full precision, nothing for None."""

    def cell(value: str | float | None) -> str:
        if value is None:
            return ""
        return csv_text(visible(value, 1000)) if isinstance(value, str) else repr(value)

    lines = [",".join(CSV_COLUMNS)]
    for row in rows:
        lines.append(",".join(cell(_plain(getattr(row, column))) for column in CSV_COLUMNS))
    return "\n".join(lines) + "\n"


def _plain(value: object) -> str | float | None:
    if value is None or isinstance(value, str):
        return value
    number = float(value)  # type: ignore[arg-type]
    if number != number or number in (float("inf"), float("-inf")):
        return None
    return int(number) if number.is_integer() and isinstance(value, int) else number


def run_report(config: ReportConfig) -> None:
    """The verb `report`."""
    out = Path(config.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(
            f"out {config.out}: should end in .html; fix: --out report.html (the numbers go to"
            " report.csv)"
        )
    inputs = collect(config.run_dirs)
    sections = build_sections(inputs, config)
    names = [Path(folder).resolve().name for folder in inputs.folders]
    title = visible(config.title or "Report: " + ", ".join(dict.fromkeys(names)), 300)
    subtitle = f"from {', '.join(visible(folder, 200) for folder in inputs.folders)}"
    numbers = out.with_suffix(".csv")
    footer = (
        f"megaladder {__version__}. Every number of this page is in {numbers.name} beside it. This"
        " file loads nothing from elsewhere."
    )
    html = render(sections, title, subtitle, footer)
    atomic_write(numbers, csv_file(row for section in sections for row in section.csv()))
    atomic_write(out, html.encode("utf-8", "replace"))
    print(f"{out} ({len(html) / 1e6:.2f} MB, {len(sections)} sections) and {numbers}")
    for note in inputs.notes:
        print(f"note: {visible(note, 300)}")
