"""What ran: training runs with their cost, and the protocol of each evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megaladder.analysis.report.blocks import Block, CsvRow, Prose, Section, Table
from megaladder.analysis.report.collect import EvalResult, Inputs, TrainRun, rollout_rows
from megaladder.analysis.report.formats import amount, count, fixed, hours, percent, significant
from megaladder.analysis.samples.files import flatten
from megaladder.analysis.studies.compute import Compute, read_compute
from megaladder.analysis.tables import Warnings
from megaladder.ledger.book import Phase
from megaladder.ledger.sampled import read_sampled_ledger
from megaladder.ledger.work import Work
from megaladder.process import last_word
from megaladder.rewards.dialects import OWN_DIALECT
from megaladder.rewards.grade import grader_label

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
    costs = _costs(inputs)
    if inputs.runs:
        section.blocks.append(_runs_table(inputs, costs))
        section.blocks += _unfinished(inputs)
        said = [line for run in inputs.runs if run.rollouts for line in verified_by(run)]
        section.blocks += [Prose(said, as_list=True)] if said else []
    section.blocks += ledger_table(inputs, costs)
    protocols = [(item, item.protocol) for item in inputs.shown]
    if protocols:
        section.blocks.append(_protocol_table(protocols))
        section.blocks += _mixed_protocols(inputs)
    return section


def _costs(inputs: Inputs) -> dict[str, Compute]:
    """What each run with steps cost; what cannot be known becomes a note."""
    warnings = Warnings(said=False)
    stepped = [run for run in inputs.runs if run.metrics.last_step > 0]
    costs = {run.name: read_compute(run.path, warnings) for run in stepped}
    inputs.notes += warnings.list()
    return costs


def _runs_table(inputs: Inputs, costs: Mapping[str, Compute]) -> Table:
    rows, numbers = [], []
    for run in inputs.runs:
        config = flatten(run.config)
        cost = costs[run.name].totals() if run.name in costs else {}
        last = run.metrics.last("loss")
        settings = ", ".join(
            f"{key} {config[key]}" for key in CONFIG_KEYS if config.get(key) not in (None, "")
        )
        steps = run.metrics.last_step
        cells = [
            run.name,
            count(steps),
            amount(cost.get("tokens")),
            significant(cost.get("flops")),
            hours(cost.get("gpu_hours"), run.device),
            fixed(last, 4),
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


def ledger_table(inputs: Inputs, costs: Mapping[str, Compute]) -> list[Block]:
    """What each phase of each run and evaluation cost."""
    works: dict[str, Mapping[Phase, Work]] = {name: cost.ledger for name, cost in costs.items()}
    for item in inputs.shown:
        name = f"{item.samples.model} on {item.samples.benchmark}"
        works[name] = read_sampled_ledger(Path(item.samples.path).parent / "ledger.json")
    rows, numbers = [], []
    for name, phases in works.items():
        total = sum(work.flops for work in phases.values())
        for phase, work in phases.items():
            share = percent(work.flops / total if total else None)
            cells = [amount(work.tokens), amount(work.prompt_tokens), significant(work.flops)]
            rows.append([name, phase.replace("_", " "), *cells, share, fixed(work.cpu_s)])
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
    undecided, groups = (run.metrics.total(key) for key in ("undecided_left_out", "num_groups"))
    return [
        f"{run.name}: answers verified as {', '.join(kinds)} by {label};"
        f" {count(undecided)} of {count(groups * samples)} undecided, counted apart from wrong and"
        " left out of training."
    ]
