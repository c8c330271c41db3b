"""The sections that come from run folders: runs and protocols, learning curves, rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megaladder.analysis.report.blocks import Block, CsvRow, Panels, Prose, Section, Table
from megaladder.analysis.report.cells import Palette, amount, number
from megaladder.analysis.report.collect import EvalResult, Inputs, TrainRun, rollout_rows
from megaladder.analysis.report.svg import Chart, Series
from megaladder.analysis.samples.files import flatten
from megaladder.analysis.studies.compute import read_compute
from megaladder.analysis.tables import Warnings
from megaladder.ledger.book import ROW_KEYS, Phase
from megaladder.ledger.sampled import read_sampled_ledger
from megaladder.ledger.work import Work
from megaladder.process import last_word
from megaladder.rewards.dialects import OWN_DIALECT
from megaladder.rewards.grade import grader_label

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


CONFIG_KEYS = (
    "model.path",
    "data.path",
    "grpo.preset",
    "train.loss",
    "train.global_batch_size",
    "optim.lr",
    "train.precision",
    "train.seed",
)


PROTOCOL_WORDS = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "seed",
    "engine",
    "version",
    "style",
    "fingerprint",
    "revision",
    "dtype",
    "grader",
)


def runs_section(inputs: Inputs) -> Section:
    """What ran: training runs with their cost, and the protocol of each evaluation."""
    section = Section(
        "runs", "Runs and protocol", missing="a training run folder (metrics.jsonl) or eval results"
    )
    if inputs.runs:
        section.blocks.append(_runs_table(inputs))
        section.blocks += _unfinished(inputs)
    section.blocks += ledger_table(inputs)
    protocols = [(item, item.protocol) for item in inputs.shown]
    if protocols:
        section.blocks.append(_protocol_table(protocols))
        section.blocks += _mixed_protocols(inputs)
    return section


def _runs_table(inputs: Inputs) -> Table:
    rows, numbers = [], []
    for run in inputs.runs:
        config, warnings = flatten(run.config), Warnings()
        cost = (
            read_compute(run.path, warnings).totals()
            if any(row.get("step", 0) > 0 for row in run.rows)
            else {}
        )
        last = next(
            (
                row["loss"]
                for row in reversed(run.rows)
                if isinstance(row.get("loss"), (int, float))
            ),
            None,
        )
        settings = ", ".join(
            f"{key} {config[key]}" for key in CONFIG_KEYS if config.get(key) not in (None, "")
        )
        steps = run.rows[-1]["step"] if run.rows else 0
        cells = [
            run.name,
            str(steps),
            amount(cost.get("tokens")),
            number(cost.get("flops"), ".3g"),
            hours(cost.get("gpu_hours"), run.device),
            number(last, ".4f"),
            last_word.how_it_ended(run.last_word) if run.last_word else "no last_word.json",
        ]
        rows.append([*cells, settings or "no config.yaml"])
        status = run.last_word["status"] if run.last_word else None
        values = {"last loss": last, "steps": float(steps), "exit status": status}
        for name, value in {**cost, **values}.items():
            numbers.append(CsvRow("runs", "training runs", run.name, name, value))
    caption = (
        "Tokens trained on; FLOPs of all that the model learned from (training, log-prob passes,"
        " generation, a teacher's data; 6 · parameters · tokens for a run without a ledger);"
        " hours = seconds · ranks, of the device that is named."
    )
    return Table(
        ("run", "steps", "tokens", "FLOPs", "device hours", "last loss", "ended", "settings"),
        rows,
        caption,
        numbers,
        frozenset({1, 2, 3, 4, 5}),
    )


def hours(value: float | None, device: str) -> str:
    """`1.5 NVIDIA H200-h`: hours mean nothing without what they are hours of."""
    return "–" if value is None else f"{value:.3g} {device}-h"


def ledger_table(inputs: Inputs) -> list[Block]:
    """What each phase of each run and evaluation cost."""
    works: dict[str, Mapping[Phase, Work]] = {
        run.name: read_compute(run.path, Warnings()).ledger
        for run in inputs.runs
        if any(row.get("step", 0) > 0 for row in run.rows)
    }
    for item in inputs.shown:
        name = f"{item.samples.model} on {item.samples.benchmark}"
        works[name] = read_sampled_ledger(Path(item.samples.path).parent / "ledger.json")
    rows, numbers = [], []
    for name, phases in works.items():
        total = sum(work.flops for work in phases.values())
        for phase, work in phases.items():
            share = f"{work.flops / total:.1%}" if total else "–"
            cells = [amount(work.tokens), amount(work.prompt_tokens), number(work.flops, ".3g")]
            rows.append([name, phase.replace("_", " "), *cells, share, f"{work.cpu_s:.1f}"])
            for measure, value in asdict(work).items():
                numbers.append(CsvRow("runs", f"ledger: {phase}", name, measure, value))
    head = ("run", "phase", "tokens", "of prompts", "FLOPs", "share", "CPU s of grading")
    caption = (
        "The ledger: model FLOPs, without padding and recomputation; a prompt counts once for"
        " the completions that share it."
    )
    return [Table(head, rows, caption, numbers, frozenset({2, 3, 4, 5, 6}))] if rows else []


def _unfinished(inputs: Inputs) -> list[Block]:
    """The own words of runs that did not come to their end."""
    words = ((run.name, run.last_word) for run in inputs.runs)
    lines = [f"{name}: {word['message']}" for name, word in words if word and word["status"]]
    return [Prose(lines, as_list=True)] if lines else []


def _protocol_table(protocols: list[tuple[EvalResult, dict[str, Any]]]) -> Table:
    rows = []
    for item, protocol in protocols:
        s = item.samples
        chosen = [
            f"{key} {value}" for key, value in protocol.items() if _is_protocol(key.split(".")[-1])
        ]
        rows.append(
            [
                s.model,
                s.benchmark,
                str(len(s.problems)),
                str(s.num_samples),
                ", ".join(chosen)[:400] or "not recorded",
            ]
        )
    return Table(
        ("model", "benchmark", "problems", "samples", "protocol"),
        rows,
        "How each score was made.",
        (),
        frozenset({2, 3}),
    )


def _is_protocol(key: str) -> bool:
    return key in PROTOCOL_WORDS or any(part in PROTOCOL_WORDS for part in key.split("_"))


def _mixed_protocols(inputs: Inputs) -> list[Block]:
    """Says where models of one benchmark were not measured alike."""
    lines = []
    for benchmark in inputs.benchmarks:
        sets = [item.samples for item in inputs.shown if item.samples.benchmark == benchmark]
        for what, values in (
            ("samples a problem", {s.num_samples for s in sets}),
            ("problems", {len(s.problems) for s in sets}),
        ):
            if len(values) > 1:
                lines.append(
                    f"{benchmark}: models have {min(values)} to {max(values)} {what}; compare with"
                    " care."
                )
    return [Prose(lines, as_list=True)] if lines else []


def learning_section(inputs: Inputs, styles: Palette) -> Section:
    """Loss, gradient norm, rate and speed over steps."""
    section = Section(
        "learning", "Learning curves", missing="a training run folder with metrics.jsonl"
    )
    for stage, runs in by_stage(inputs.runs).items():
        keys = _numeric_keys(runs)
        first = [key for key in LEARNING if key in keys]
        rest = [key for key in keys if key not in LEARNING and not _is_reward(key)]
        prefix = f"{stage}: " if len(by_stage(inputs.runs)) > 1 else ""
        _add_curves(section, runs, first, styles, prefix)
        _add_curves(section, runs, rest, styles, prefix, "more curves")
    return section


def by_stage(runs: Sequence[TrainRun]) -> dict[str, list[TrainRun]]:
    """SFT and GRPO apart: their losses and steps share no axis."""
    found: dict[str, list[TrainRun]] = {}
    for run in runs:
        found.setdefault(run.stage, []).append(run)
    return found


def reward_section(inputs: Inputs, styles: Palette) -> Section:
    """Rewards, lengths and policy health over steps (GRPO)."""
    section = Section("rewards", "Rewards and rollouts over time", missing="a GRPO run folder")
    said = [line for run in inputs.runs if run.rollouts for line in verified_by(run)]
    section.blocks += [Prose(said, as_list=True)] if said else []
    keys = [key for key in _numeric_keys(inputs.runs) if _is_reward(key) and key not in LEARNING]
    _add_curves(section, inputs.runs, keys[:12], styles, "")
    _add_curves(section, inputs.runs, keys[12:], styles, "", "more curves")
    return section


def verified_by(run: TrainRun) -> list[str]:
    """Who verified a GRPO run's answers, and how many stayed undecided.

    Nothing for a run without a resolved configuration."""
    config, environment = flatten(run.config), flatten(run.fingerprint)
    version = environment.get("environment.packages.megaladder")
    samples = config.get("rollout.n")
    if version is None or not isinstance(samples, int):
        return []
    first = run.rollouts[min(run.rollouts)]
    kinds = sorted({str(row["kind"]) for _, row in rollout_rows(first) if "kind" in row})
    label = grader_label(dialect=config.get("reward.extract", OWN_DIALECT), version=version)
    counts = {
        name: sum(int(row.get(name, 0)) for row in run.rows)
        for name in ("num_groups", "undecided_left_out")
    }
    return [
        f"{run.name}: answers verified as {', '.join(kinds)} by {label};"
        f" {counts['undecided_left_out']:,} of {counts['num_groups'] * samples:,} undecided, counted"
        " apart from wrong and left out of training."
    ]


def _is_reward(key: str) -> bool:
    return any(word in key.lower() for word in REWARD_WORDS)


def _numeric_keys(runs: Sequence[TrainRun]) -> list[str]:
    """Keys of metrics.jsonl with numbers that are not bookkeeping, in order of appearance."""
    keys: dict[str, None] = {}
    for run in runs:
        for row in run.rows:
            keys.update(
                {
                    k: None
                    for k, v in row.items()
                    if isinstance(v, (int, float)) and not isinstance(v, bool) and k not in HIDDEN
                }
            )
    return list(keys)


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
            points = [
                (row["step"], float(row[key]))
                for row in run.rows
                if isinstance(row.get(key), (int, float))
            ]
            if len({value for _, value in points}) > 1:
                series.append(Series(run.name, points, styles[run.name]))
                shown.append(run.name)
            elif points:
                constant.setdefault(run.name, []).append(
                    CsvRow(section.id, title, run.name, "constant", points[0][1], n=len(points))
                )
        if series:
            charts.append(Chart(f"{prefix}{title}", "step", title, series, csv_name=key))
    if charts:
        section.blocks.append(Panels(charts, styles.legend(shown), folded))
    for name, rows in constant.items():
        text = ", ".join(
            f"{row.figure} {row.y:.6g}{' (one value)' if row.n == 1 else ''}" for row in rows
        )
        section.blocks.append(Prose([f"Unchanged in {name}: {text}."], numbers=rows))
