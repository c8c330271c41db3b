"""The training data of a run, as its stages left it.

What each stage of a selection left over, and how hard the problems are for the teacher that
answered them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from megaladder.analysis.report.blocks import (
    Block,
    CsvRow,
    Panels,
    Section,
    Table,
    refuse_other_kinds,
)
from megaladder.analysis.report.charts import Chart, Series
from megaladder.analysis.report.collect import Inputs
from megaladder.analysis.samples.files import read_object
from megaladder.analysis.tables import read_json_lines
from megaladder.files.shapes import as_number, expected

BINS = 10


def data_section(inputs: Inputs) -> Section:
    """Counts by stage (`*.stages.json`), success rates by problem (`*.difficulty.jsonl`)."""
    section = Section(
        "data",
        "Data",
        missing="*.stages.json of data select or *.difficulty.jsonl of data sample, in a folder or"
        " beside the data of a run",
    )
    charts = []
    for path in inputs.data:
        if path.name.endswith(".stages.json"):
            section.blocks += _stages(path)
        elif chart := _difficulty(path):
            charts.append(chart)
    if charts:
        section.blocks.append(Panels(charts))
    return section


def _stages(path: Path) -> list[Block]:
    name, record = path.name.removesuffix(".stages.json"), read_object(path)
    with expected(path, "a record of data select", "write it again, or move it away"):
        rows, numbers = [], []
        for number, entry in enumerate(record["stages"], start=1):
            published = entry.get("published")
            rows.append(
                [
                    f"{number}. {entry['stage']}",
                    f"{entry['rows_in']:,}",
                    f"{entry['rows_out']:,}",
                    "–" if published is None else f"{published:,}",
                    _reasons(entry.get("dropped") or {}),
                ]
            )
            numbers.append(CsvRow("data", name, entry["stage"], "rows", float(entry["rows_out"])))
        caption = (
            f"{name}: {record['name']}, seed {record['seed']}, {record['rows_read']:,} rows read,"
            f" {record['rows']:,} kept; ids {str(record['ids_sha256'])[:12]}"
        )
        columns = ("stage", "rows in", "rows out", "published", "dropped for")
        table = Table(columns, rows, caption, numbers, frozenset({1, 2, 3}))
        refuse_other_kinds(table)
    return [table]


def _reasons(dropped: dict[str, Any]) -> str:
    most = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in most[:4]) or "–"


def _difficulty(path: Path) -> Chart | None:
    """Share of problems by the teacher's success rate, in ten bins."""
    name = path.name.removesuffix(".difficulty.jsonl")
    rates = [
        rate
        for _, row in read_json_lines(path)
        if (rate := as_number(row.get("success_rate"))) is not None
    ]
    if not rates:
        return None
    counts, edges = np.histogram(rates, bins=BINS, range=(0.0, 1.0))
    points = [
        (100 * float(edges[i] + edges[i + 1]) / 2, 100 * float(count) / len(rates))
        for i, count in enumerate(counts)
    ]
    solved, never = sum(rate == 1 for rate in rates), sum(rate == 0 for rate in rates)
    note = f"{len(rates):,} problems; {solved:,} always solved, {never:,} never"
    return Chart(
        f"difficulty of {name}",
        "success rate of the teacher, %",
        "problems %",
        [Series(name, points, 0)],
        note=note,
        csv_name=f"difficulty {name}",
    )
