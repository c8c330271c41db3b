"""The verb `report`: folders in, a page out.

Collects the folders, builds the sections, writes the page and the CSV with every number beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from megaladder import __version__
from megaladder.analysis.report.blocks import CsvRow
from megaladder.analysis.report.collect import collect
from megaladder.analysis.report.contents import build_sections
from megaladder.analysis.report.formats import fixed
from megaladder.analysis.report.render import Heading, page_of, parts_of
from megaladder.analysis.report.sections.rollouts import visible
from megaladder.config.verbs.analysis import ReportConfig
from megaladder.errors import ConfigError, DataError
from megaladder.run_dir import atomic_write

CSV_COLUMNS = ("section", "figure", "series", "x", "y", "low", "high", "n")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


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
    began = time.monotonic()
    out = Path(config.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(
            f"out {config.out}: should end in .html; fix: --out report.html (the numbers go to"
            " report.csv)"
        )
    inputs = collect(config.run_dirs)
    if not inputs.size:
        raise DataError(
            f"{', '.join(config.run_dirs)}: nothing to report (metrics.jsonl, samples_*.jsonl or"
            " analysis JSON); fix: give run or eval folders"
        )
    sections = build_sections(inputs, config)
    numbers = out.with_suffix(".csv")
    footer = (
        f"megaladder {__version__}. Every number of this page is in {numbers.name} beside it. This"
        " file loads nothing from elsewhere."
    )
    heading = Heading(title_of(inputs.folders, config.title), subtitle_of(inputs.folders), footer)
    page = page_of(parts_of(sections), heading).encode("utf-8", "replace")
    atomic_write(numbers, csv_file(row for section in sections for row in section.csv()))
    atomic_write(out, page)
    took = fixed(time.monotonic() - began)
    size = fixed(len(page) / 1e6, 2)
    print(f"{out} ({size} MB, {len(sections)} sections, {took} s) and {numbers}")
    for note in inputs.notes:
        print(f"note: {visible(note, 300)}")


def title_of(folders: Iterable[str], given: str) -> str:
    """The heading: what was given, else from the names of the folders."""
    names = dict.fromkeys(Path(folder).resolve().name for folder in folders)
    return visible(given or "Report: " + ", ".join(names), 300)


def subtitle_of(folders: Iterable[str]) -> str:
    return f"from {', '.join(visible(folder, 200) for folder in folders)}"
