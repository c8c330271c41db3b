"""docs/h200.md from docs/h200/*.json: targets, then every stage's figures.

Cells without a measurement say "not measured" and the command.

Only records of a CUDA device are read; anything else in the folder is ignored and named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megaladder.run_dir import atomic_write
from megaladder.tools.acceptance.record import DONE, read_record
from megaladder.tools.acceptance.table import STAGES, Stage

NOT_MEASURED = "not measured"
_MAX_DEPTH = 3  # of nested figures shown as rows


def render(folder: Path, page: Path) -> str:
    """Writes and returns the page."""
    records = {stage.name: read_record(folder, stage.name) for stage in STAGES}
    measured = {
        name: record
        for name, record in records.items()
        if record is not None and record.get("device") == "cuda"
    }
    strangers = sorted(
        name for name, record in records.items() if record is not None and name not in measured
    )
    lines = [
        "# Measured on an H200",
        "",
        (
            "Written by `tools/gpu_acceptance.py` from `docs/h200/*.json`; do not edit. Every cell"
            " comes from a run on a CUDA device; what has"
        ),
        (
            f'not run yet says "{NOT_MEASURED}". Slices have the real layer shapes and fewer'
            " layers; what is extrapolated from them says so."
        ),
        "",
        *_targets(measured),
        "",
        *_qwen_table(measured),
    ]
    for stage in STAGES:
        lines += ["", *_stage(stage, measured.get(stage.name))]
    if strangers:
        lines += [
            "",
            f"Ignored, because they do not come from a CUDA device: {', '.join(strangers)}.",
        ]
    text = "\n".join(lines) + "\n"
    atomic_write(page, text)
    return text


def _targets(measured: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "## Targets",
        "",
        "| target | goal | measured | met | stage |",
        "|---|---|---|---|---|",
    ]
    for stage in STAGES:
        figures = _figures(measured.get(stage.name))
        for target in stage.targets:
            judged = target.judge(figures)
            met = {None: NOT_MEASURED, True: "yes", False: "**no**"}[judged["met"]]
            name = judged["name"].replace("|", "\\|")
            lines.append(
                f"| {name} ({judged['source']}) | {judged['goal']} | {_cell(judged['value'])} |"
                f" {met} | {stage.name} |"
            )
    return lines


def _qwen_table(measured: dict[str, dict[str, Any]]) -> list[str]:
    """The table that nobody has published: Qwen3-14B layers on an H200, bf16 against FP8."""
    bf16, fp8 = _figures(measured.get("throughput_bf16")), _figures(measured.get("throughput_fp8"))
    rows = {
        "bf16": bf16,
        **{
            f"FP8 {name}": fp8.get("recipes", {}).get(name, {})
            for name in ("tensorwise", "blockwise", "delayed")
        },
    }
    lines = [
        "## Qwen3-14B layer shapes, one H200, packed 8,192 tokens",
        "",
        (
            "| precision | layers | step s | tokens/s/GPU | TFLOP/s | MFU (bf16 peak) | peak GiB "
            "| 40 layers, extrapolated: tokens/s | TFLOP/s | MFU |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in rows.items():
        cut, whole = figures.get("slice", {}), figures.get("extrapolated", {})
        peak = cut.get("memory_peak_bytes")
        cells = [
            cut.get("layers"),
            cut.get("step_s"),
            cut.get("tokens_per_s"),
            cut.get("tflops"),
            _share(cut.get("mfu")),
            peak / 1024**3 if peak else None,
            whole.get("tokens_per_s"),
            whole.get("tflops"),
            _share(whole.get("mfu")),
        ]
        lines.append(f"| {name} | " + " | ".join(_cell(cell) for cell in cells) + " |")
    return [
        *lines,
        "",
        (
            "Fill it: `python3 tools/gpu_acceptance.py --stages throughput_bf16,throughput_fp8`;"
            " one cell by hand:"
        ),
        (
            "`megaladder bench train --shape qwen3-14b --layers 12 --fp8 tensorwise`"
            " (docs/throughput.md)."
        ),
    ]


def _stage(stage: Stage, record: dict[str, Any] | None) -> list[str]:
    lines = [f"## {stage.name}", "", f"{stage.measures[0].upper()}{stage.measures[1:]}.", ""]
    if record is None:
        return [*lines, f"{NOT_MEASURED}; `python3 tools/gpu_acceptance.py --stages {stage.name}`"]
    where = (
        f"{record['date']}, {record['gpu']}, driver {record['driver']}, {_versions(record)};"
        f" `{record['command']}`"
    )
    if record["status"] != DONE:
        return [
            *lines,
            f"{NOT_MEASURED} ({record['status']}): {record.get('reason', '')}",
            "",
            where,
        ]
    rows = [f"| {name} | {_cell(value)} |" for name, value in _flat(record["figures"])]
    return [*lines, where, "", "| figure | value |", "|---|---|", *rows]


def _figures(record: dict[str, Any] | None) -> dict[str, Any]:
    return record["figures"] if record is not None and record["status"] == DONE else {}


def _versions(record: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def _flat(figures: dict[str, Any], prefix: str = "", depth: int = 0) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in figures.items():
        if isinstance(value, dict) and depth < _MAX_DEPTH:
            rows += _flat(value, f"{prefix}{name}.", depth + 1)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, item in enumerate(value):
                rows += _flat(item, f"{prefix}{name}[{index}].", depth + 1)
        else:
            rows.append((f"{prefix}{name}", value))
    return rows


def _cell(value: Any) -> str:
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list):
        shown = ", ".join(_cell(item) for item in value[:12])
        return f"{shown}, … ({len(value)} in all)" if len(value) > 12 else shown
    return str(value).replace("|", "\\|").replace("\n", " ")[:300]


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"
