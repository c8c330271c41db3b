"""The sections that draw the numbers of the runs by step.

Losses and speed, rewards, trainer against engine, seconds of each phase. SFT and GRPO never share
an axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megaladder.analysis.report.blocks import Block, CsvRow, Drawing, Panels, Prose, Section, Table
from megaladder.analysis.report.charts import Chart, Curve, Series
from megaladder.analysis.report.collect import Inputs, TrainRun
from megaladder.analysis.report.formats import clock, percent, significant
from megaladder.analysis.report.palette import Palette
from megaladder.analysis.report.svg import filled
from megaladder.ledger.book import ROW_KEYS

LEARNING = (
    "loss",
    "held_out_loss",
    "holdout_loss",
    "val_loss",
    "grad_norm",
    "lr",
    "tokens_per_s",
    "mfu",
    "non_padding_share",
)
HIDDEN = {
    "step",
    "total_steps",
    "epoch",
    "tokens",
    "loss_tokens",
    "time",
    "timestamp",
    "memory_bytes",
    "step_s",
    "flops",
    "flops_per_s",
    "total_flops",
    *ROW_KEYS,
}
REWARD_WORDS = (
    "reward",
    "correct",
    "accuracy",
    "response",
    "length",
    "truncat",
    "solve",
    "entropy",
    "kl",
    "clip",
    "advantage",
    "ratio",
    "group",
)
MISMATCH_WORDS = ("mismatch", "correction", "dropped_sequences")
# phases of a GRPO step that follow each other, and what two of them hold
PHASES = ("sync_s", "rollouts_s", "logprobs_s", "update_s", "other_s")
INSIDE = {"generation_s": "rollouts_s", "grading_s": "rollouts_s"}
# panels that stand open; the rest is folded
OPEN = 12


@dataclass(frozen=True)
class Group:
    """A section of curves: keys of metrics.jsonl, those of `first` before the others."""

    id: str
    title: str
    missing: str
    first: tuple[str, ...] = ()
    open: int = OPEN


MISMATCH = Group(
    "mismatch",
    "Trainer against engine",
    "a GRPO run folder",
    ("mismatch_mean", "mismatch_max", "mismatch_k3", "mismatch_outside_share"),
)
REWARDS = Group(
    "rewards",
    "Rewards and rollouts over time",
    "a GRPO run folder",
    ("reward", "accuracy", "response_tokens_mean", "entropy"),
)
LEARN = Group("learning", "Learning curves", "a training run folder with metrics.jsonl", LEARNING)
SECONDS = Group("phases", "Where the seconds go", "a GRPO run folder", PHASES, open=0)


def group_of(key: str) -> Group:
    """The section that draws a key."""
    lower = key.lower()
    if key in LEARNING:
        return LEARN
    if any(word in lower for word in MISMATCH_WORDS):
        return MISMATCH
    if lower.endswith("_s") and not lower.endswith("_per_s"):
        return SECONDS
    return REWARDS if any(word in lower for word in REWARD_WORDS) else LEARN


def by_stage(runs: Sequence[TrainRun]) -> dict[str, list[TrainRun]]:
    """SFT and GRPO apart: their losses and steps share no axis."""
    found: dict[str, list[TrainRun]] = {}
    for run in runs:
        found.setdefault(run.stage, []).append(run)
    return found


def curve_section(inputs: Inputs, styles: Palette, group: Group) -> Section:
    """The panels of a group, a stage after the other."""
    section = Section(group.id, group.title, missing=group.missing)
    stages = by_stage(inputs.runs)
    for stage, runs in stages.items():
        keys = [key for key in numeric_keys(runs) if group_of(key) == group]
        keys.sort(key=lambda key: group.first.index(key) if key in group.first else len(keys) + 99)
        prefix = f"{stage}: " if len(stages) > 1 else ""
        is_open = [key for i, key in enumerate(keys) if _stands_open(group, key, i)]
        _add_curves(section, runs, is_open, styles, prefix)
        rest = [key for key in keys if key not in is_open]
        folded = "seconds of each step" if group is SECONDS else "more curves"
        _add_curves(section, runs, rest, styles, prefix, folded)
    return section


def _stands_open(group: Group, key: str, place: int) -> bool:
    return key in LEARNING if group is LEARN else place < group.open


def phase_section(inputs: Inputs, styles: Palette) -> Section:
    """The seconds of all steps by phase, then their curves."""
    section = curve_section(inputs, styles, SECONDS)
    rows: list[list[str | Drawing]] = []
    numbers: list[CsvRow] = []
    for run in inputs.runs:
        seconds = {key: run.metrics.total(key) for key in (*PHASES, *INSIDE)}
        whole = sum(seconds[key] for key in PHASES)
        for key, value in seconds.items():
            if whole > 0 and value > 0:
                name = key.removesuffix("_s")
                words = f"– {name}" if key in INSIDE else name
                label = f"{run.name}, {name}: {percent(value / whole)}"
                drawing = Drawing(filled(value / whole, styles[run.name], label))
                rows.append([run.name, words, clock(value), percent(value / whole), drawing])
                numbers.append(CsvRow("phases", "seconds", run.name, name, value))
    if rows:
        head = ("run", "phase", "in all", "share", "0 … 100 %")
        caption = "Wall-clock seconds of the steps, without checkpoints and evaluations."
        table: Block = Table(head, rows, caption, numbers, frozenset({2, 3}))
        section.blocks.insert(0, table)
    return section


def numeric_keys(runs: Sequence[TrainRun]) -> list[str]:
    """Keys with numbers that are not bookkeeping, in order of appearance."""
    keys = (key for run in runs for key in run.metrics.keys)
    return [key for key in dict.fromkeys(keys) if key not in HIDDEN]


def _add_curves(
    section: Section,
    runs: Sequence[TrainRun],
    keys: Sequence[str],
    styles: Palette,
    prefix: str,
    folded: str = "",
) -> None:
    """A panel for each key that changes.

    Keys that keep one value (counters of what did not happen) become one sentence a run."""
    charts, shown = [], []
    constant: dict[str, list[CsvRow]] = {}
    for key in keys:
        title = key.replace("_", " ")
        series = []
        for run in runs:
            steps, values = run.metrics.curve(key)
            if len(values) and (values != values[0]).any():
                series.append(Series(run.name, Curve(steps, values), styles[run.name]))
                shown.append(run.name)
            elif len(values):
                row = CsvRow(
                    section.id, title, run.name, "constant", float(values[0]), n=len(values)
                )
                constant.setdefault(run.name, []).append(row)
        if series:
            charts.append(Chart(f"{prefix}{title}", "step", title, series, csv_name=key))
    if charts:
        section.blocks.append(Panels(charts, styles.legend(shown), folded))
    section.blocks += [_unchanged(name, rows) for name, rows in constant.items()]


def _unchanged(name: str, rows: Sequence[CsvRow]) -> Prose:
    text = ", ".join(
        f"{row.figure} {significant(row.y, 6)}{' (one value)' if row.n == 1 else ''}"
        for row in rows
    )
    return Prose([f"Unchanged in {name}: {text}."], numbers=rows)
