"""The sections that come straight from run and eval folders: summary, runs and protocols, learning
curves, accuracy, pass@k, length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megaladder.analysis.report.blocks import Block, CsvRow, Drawing, Panels, Prose, Section, Table
from megaladder.analysis.report.collect import EvalResult, Inputs, TrainRun
from megaladder.analysis.report.svg import Chart, Series, short, strip
from megaladder.analysis.samples import SampleSet, flatten, is_benchmark
from megaladder.analysis.stats import mean_intervals
from megaladder.analysis.studies.compare import compare
from megaladder.analysis.studies.compute import read_compute
from megaladder.analysis.studies.ladder import intervals, tier_means
from megaladder.analysis.studies.tiers import TIERS, published_aime24
from megaladder.analysis.tables import Warnings
from megaladder.config.verbs.analysis import CompareConfig
from megaladder.evaluation.metrics import bootstrap_intervals, pass_at_k

DRAWS = 2000
MAX_SENTENCES = 8
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
)


@dataclass(frozen=True)
class Palette:
    """Name of a model or run → style, the same on the whole page."""

    names: tuple[str, ...]

    def __getitem__(self, name: str) -> int:
        return self.names.index(name) if name in self.names else len(self.names)

    def legend(self, names: Sequence[str]) -> list[tuple[str, int]]:
        return [(name, self[name]) for name in dict.fromkeys(names)]


def palette(inputs: Inputs) -> Palette:
    """Models first, then runs, in the order of the command line; names that are both share a
    style."""
    return Palette(tuple(dict.fromkeys([*inputs.models, *(run.name for run in inputs.runs)])))


def summary(inputs: Inputs, seed: int) -> Section:
    """What changed against the base model, one tested sentence a benchmark."""
    section = Section("summary", "In short")
    counts = [
        (len(inputs.runs), "training run"),
        (len(inputs.models), "evaluated model"),
        (len(inputs.benchmarks), "benchmark"),
    ]
    section.blocks.append(
        Prose(
            [", ".join(f"{n} {what}{'s' * (n != 1)}" for n, what in counts if n) or "Analyses only"]
        )
    )
    if len(inputs.models) < 2:
        if inputs.evals:
            section.blocks.append(Prose(["One model only: nothing to compare it with."]))
        return section
    base = inputs.models[0]
    pairs = []
    for item in inputs.evals:
        other = inputs.find(base, item.samples.benchmark)
        if item.samples.model != base and other is not None:
            pairs.append((other, item.samples))
    if not pairs:
        section.blocks.append(
            Prose(
                [f"No benchmark was run for both {base} and another model, so nothing is compared."]
            )
        )
        return section
    warnings = Warnings()
    config = CompareConfig(base=base, runs=("report",), seed=seed)
    found = sorted(compare(pairs, config, warnings), key=lambda c: (not c.real, -abs(c.difference)))
    inputs.notes += warnings.list()
    section.blocks.append(Prose([c.sentence() for c in found[:MAX_SENTENCES]], as_list=True))
    numbers = [
        CsvRow(
            "summary",
            f"{c.b} minus {c.a}",
            c.benchmark,
            "points",
            c.difference,
            *(c.ci95 or (None, None)),
            c.num_problems,
        )
        for c in found
    ]
    rows = [
        [
            c.b,
            c.benchmark,
            f"{c.difference:+.1f}",
            _span(c.ci95, "+.1f"),
            f"{c.p_holm:.2g}",
            str(c.num_problems),
            "yes" if c.real else "no",
        ]
        for c in found
    ]
    columns = ("model", "benchmark", "points", "95 % interval", "p (Holm)", "problems", "real")
    caption = (
        f"Difference to {base}. Paired by problem; p of {config.draws:,} sign flips, adjusted over"
        f" the rows; real: below {config.level:g}."
    )
    section.blocks.append(Table(columns, rows, caption, numbers, frozenset({2, 3, 4, 5})))
    return section


def runs_section(inputs: Inputs) -> Section:
    """What ran: training runs with their cost, and the protocol of each evaluation."""
    section = Section(
        "runs", "Runs and protocol", missing="a training run folder (metrics.jsonl) or eval results"
    )
    if inputs.runs:
        section.blocks.append(_runs_table(inputs))
    protocols = [(item, item.protocol) for item in inputs.evals]
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
            _amount(cost.get("tokens")),
            _number(cost.get("flops"), ".3g"),
            _number(cost.get("gpu_hours"), ".3g"),
            _number(last, ".4f"),
        ]
        rows.append([*cells, settings or "no config.yaml"])
        for name, value in {**cost, "last loss": last, "steps": float(steps)}.items():
            numbers.append(CsvRow("runs", "training runs", run.name, name, value))
    caption = (
        "Tokens through the model; FLOPs = 6 · parameters · tokens where the parameter count is"
        " known; GPU-hours = seconds · ranks."
    )
    return Table(
        ("run", "steps", "tokens", "FLOPs", "GPU-hours", "last loss", "settings"),
        rows,
        caption,
        numbers,
        frozenset({1, 2, 3, 4, 5}),
    )


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
        sets = [item.samples for item in inputs.evals if item.samples.benchmark == benchmark]
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
    keys = _numeric_keys(inputs.runs)
    first = [key for key in LEARNING if key in keys]
    rest = [key for key in keys if key not in LEARNING and not _is_reward(key)]
    _add_curves(section, inputs.runs, first, styles, "")
    _add_curves(section, inputs.runs, rest, styles, "more curves")
    return section


def reward_section(inputs: Inputs, styles: Palette) -> Section:
    """Rewards, lengths and policy health over steps (GRPO)."""
    section = Section("rewards", "Rewards and rollouts over time", missing="a GRPO run folder")
    keys = [key for key in _numeric_keys(inputs.runs) if _is_reward(key) and key not in LEARNING]
    _add_curves(section, inputs.runs, keys[:12], styles, "")
    _add_curves(section, inputs.runs, keys[12:], styles, "more curves")
    return section


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
    section: Section, runs: Sequence[TrainRun], keys: Sequence[str], styles: Palette, folded: str
) -> None:
    """A panel for each key that changes; keys that keep one value (counters of what did not happen)
    become one sentence a run."""
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
            charts.append(Chart(title, "step", title, series, csv_name=key))
    if charts:
        section.blocks.append(Panels(charts, styles.legend(shown), folded))
    for name, rows in constant.items():
        text = ", ".join(
            f"{row.figure} {row.y:.6g}{' (one value)' if row.n == 1 else ''}" for row in rows
        )
        section.blocks.append(Prose([f"Unchanged in {name}: {text}."], numbers=rows))


def accuracy_section(inputs: Inputs, styles: Palette, seed: int) -> Section:
    """avg@n of every model on every benchmark with its interval, then AIME24 by tier."""
    section = Section(
        "accuracy",
        "Accuracy",
        "Mean over problems of the mean over samples, with a 95 % interval that resamples"
        " problems.",
        missing="eval results (samples_*.jsonl)",
    )
    for benchmark in inputs.benchmarks:
        sets = [item.samples for item in inputs.evals if item.samples.benchmark == benchmark]
        bounds = {
            s.model: mean_intervals(
                {"avg": 100 * s.accuracy_p, "cov": 100 * s.covered_p}, DRAWS, seed
            )
            for s in sets
        }
        rows, numbers = [], []
        for s in sets:
            average, coverage = 100 * float(s.accuracy_p.mean()), 100 * float(s.covered_p.mean())
            length = s.mean_tokens_p
            label = f"{s.model}: {average:.1f} {_span(bounds[s.model]['avg'])}"
            drawing = Drawing(strip(average, bounds[s.model]["avg"], styles[s.model], label=label))
            tokens = "–" if length is None else f"{length.mean():,.0f}"
            rows.append(
                [
                    s.model,
                    f"{average:.1f}",
                    _span(bounds[s.model]["avg"]),
                    drawing,
                    f"{coverage:.1f}",
                    tokens,
                ]
            )
            for name, value, key in (("avg@n", average, "avg"), ("cov@n", coverage, "cov")):
                numbers.append(
                    CsvRow(
                        "accuracy",
                        benchmark,
                        s.model,
                        name,
                        value,
                        *(bounds[s.model][key] or (None, None)),
                        len(s.problems),
                    )
                )
            if length is not None:
                numbers.append(
                    CsvRow(
                        "accuracy",
                        benchmark,
                        s.model,
                        "mean tokens",
                        float(length.mean()),
                        n=len(s.problems),
                    )
                )
        n = sorted({s.num_samples for s in sets})
        caption = f"{benchmark}: {len(sets[0].problems)} problems, n = {', '.join(map(str, n))}"
        section.blocks.append(
            Table(
                ("model", "avg@n %", "95 %", "0 … 100 %", "cov@n %", "tokens"),
                rows,
                caption,
                numbers,
                frozenset({1, 2, 4, 5}),
            )
        )
        if is_benchmark(benchmark, "aime24"):
            section.blocks.append(_tier_table(sets, styles, seed))
    if inputs.others:
        section.blocks.append(_other_table(inputs))
    return section


def _other_table(inputs: Inputs) -> Table:
    """Benchmarks with scores of their own kind, as their results files have them."""
    rows, numbers = [], []
    for item in inputs.others:
        for name, value in item.metrics.items():
            rows.append([item.model, item.benchmark, name.replace("_", " "), f"{value:.4g}"])
            numbers.append(CsvRow("accuracy", item.benchmark, item.model, name, value))
    return Table(
        ("model", "benchmark", "measure", "value"),
        rows,
        "Judged benchmarks and others with their own measures.",
        numbers,
        frozenset({3}),
    )


def _tier_table(sets: Sequence[SampleSet], styles: Palette, seed: int) -> Table:
    table, rows, numbers = published_aime24(), [], []
    for s in sets:
        means, bounds = tier_means(s, table), intervals(s, table, DRAWS, seed)
        for tier in TIERS:
            if means[tier] is not None:
                label = f"{s.model} {tier}: {means[tier]:.1f} {_span(bounds[tier])}"
                rows.append(
                    [
                        tier,
                        s.model,
                        f"{means[tier]:.1f}",
                        _span(bounds[tier]),
                        Drawing(strip(means[tier], bounds[tier], styles[s.model], label=label)),
                    ]
                )
                numbers.append(
                    CsvRow(
                        "accuracy",
                        "AIME24 tiers",
                        s.model,
                        tier,
                        means[tier],
                        *(bounds[tier] or (None, None)),
                    )
                )
    rows.sort(key=lambda row: TIERS.index(row[0]))
    return Table(
        ("tier", "model", "avg@n %", "95 %", "0 … 100 %"),
        rows,
        "AIME24 by published difficulty tier.",
        numbers,
        frozenset({2, 3}),
    )


def pass_at_k_section(inputs: Inputs, styles: Palette, seed: int) -> Section:
    """Unbiased pass@k over k with bands, where there are at least two samples a problem."""
    section = Section(
        "pass-at-k",
        "pass@k",
        "Chance that at least one of k samples is right (unbiased), with a 95 % band over"
        " problems.",
        missing="eval results with two or more samples a problem",
    )
    charts, shown = [], []
    for benchmark in inputs.benchmarks:
        series = []
        for s in (item.samples for item in inputs.evals if item.samples.benchmark == benchmark):
            if s.num_samples < 2:
                continue
            ks = sorted({2**i for i in range(s.num_samples.bit_length())} | {s.num_samples})
            values = {
                str(k): 100 * pass_at_k(s.num_samples_p, s.num_correct_p, k)
                for k in ks
                if k <= s.num_samples
            }
            bounds = bootstrap_intervals(values, DRAWS, seed)
            points = [(int(k), float(v.mean())) for k, v in values.items()]
            pairs = [None if bounds[k] is None else (bounds[k].low, bounds[k].high) for k in values]
            series.append(Series(s.model, points, styles[s.model], pairs))
            shown.append(s.model)
        if series:
            charts.append(
                Chart(
                    benchmark,
                    "k (samples)",
                    "pass@k %",
                    series,
                    x_log=True,
                    y_range=(0, 100),
                    csv_name=f"pass@k {benchmark}",
                )
            )
    if charts:
        section.blocks.append(Panels(charts, styles.legend(shown)))
    return section


def length_section(inputs: Inputs, styles: Palette) -> Section:
    """Share of problems answered within a token budget, from lengths alone (a cut answer counts as
    wrong: a lower bound)."""
    section = Section(
        "budget",
        "Accuracy by token budget",
        missing="token counts in the samples, or budget.json of analyze budget",
    )
    charts, shown = [], []
    for analysis in inputs.of_kind("budget"):
        result = analysis.result
        points = [
            (int(b), 100 * y)
            for b, y in sorted(result["accuracy"].items(), key=lambda kv: int(kv[0]))
        ]
        pairs = [
            (
                tuple(100 * v for v in result["ci95"][str(b)])
                if (result.get("ci95") or {}).get(str(b))
                else None
            )
            for b, _ in points
        ]
        name = analysis.path.stem
        note = (
            "cut answers graded again" if result.get("regraded") else "cut answers count as wrong"
        )
        charts.append(
            Chart(
                name,
                "budget (tokens)",
                "accuracy %",
                [Series(name, points, styles[name], pairs)],
                x_log=True,
                y_range=(0, 100),
                note=note,
            )
        )
    for benchmark in inputs.benchmarks:
        series = []
        for s in (item.samples for item in inputs.evals if item.samples.benchmark == benchmark):
            points = _within_budget(s)
            if len(points) > 1:
                series.append(Series(s.model, points, styles[s.model]))
                shown.append(s.model)
        if series:
            note = "right answers of at most so many tokens: a lower bound"
            charts.append(
                Chart(
                    benchmark,
                    "budget (tokens)",
                    "accuracy %",
                    series,
                    x_log=True,
                    y_range=(0, 100),
                    note=note,
                    csv_name=f"budget {benchmark}",
                )
            )
    if charts:
        section.blocks.append(Panels(charts, styles.legend(shown)))
    return section


def _within_budget(s: SampleSet) -> list[tuple[float, float]]:
    if s.mean_tokens_p is None:
        return []
    lengths = [np.array(problem.num_tokens) for problem in s.problems]
    shortest, longest = min(int(x.min()) for x in lengths), max(int(x.max()) for x in lengths)
    budgets = [2**i for i in range(max(0, shortest.bit_length() - 1), longest.bit_length() + 1)]
    correct = [np.array(problem.correct) for problem in s.problems]
    return [
        (
            b,
            100
            * float(
                np.mean(
                    [(ok & (size <= b)).mean() for ok, size in zip(correct, lengths, strict=True)]
                )
            ),
        )
        for b in budgets
    ]


def _span(bounds: Sequence[float] | None, spec: str = ".1f") -> str:
    return f"[{bounds[0]:{spec}}, {bounds[1]:{spec}}]" if bounds else "–"


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def _amount(value: float | None) -> str:
    return "–" if value is None else short(float(f"{value:.4g}"))
