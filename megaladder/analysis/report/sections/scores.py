"""The sections that come from eval folders: summary, accuracy, pass@k, length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megaladder.analysis.report.blocks import CsvRow, Drawing, Panels, Prose, Section, Table, ends
from megaladder.analysis.report.charts import Chart, Series
from megaladder.analysis.report.collect import Inputs
from megaladder.analysis.report.formats import count, fixed, signed, signed_span, significant, span
from megaladder.analysis.report.palette import Palette
from megaladder.analysis.report.svg import strip
from megaladder.analysis.samples.files import is_benchmark
from megaladder.analysis.samples.sets import SampleSet
from megaladder.analysis.stats import DRAWS, mean_intervals
from megaladder.analysis.studies.compare import Comparison, compare
from megaladder.analysis.studies.ladder import intervals, tier_means
from megaladder.analysis.studies.tiers import TIERS, published_aime24
from megaladder.analysis.tables import Warnings
from megaladder.config.verbs.analysis import CompareConfig
from megaladder.evaluation.metrics import pass_at_k

PERCENT = (0.0, 100.0)


MAX_SENTENCES = 8


def summary(inputs: Inputs, seed: int) -> Section:
    """What changed, one tested sentence a benchmark.

    GRPO against SFT first, then each model against what it began with, then against the base model.
    """
    section = Section("summary", "In short")
    counts = [
        (len(inputs.runs), "training run"),
        (len(inputs.models), "evaluated model"),
        (len(inputs.benchmarks), "benchmark"),
    ]
    said = ", ".join(f"{n} {what}{'s' * (n != 1)}" for n, what in counts if n)
    section.blocks.append(Prose([said or "Analyses only"]))
    if len(inputs.models) < 2:
        if inputs.evals:
            section.blocks.append(Prose(["One model only: nothing to compare it with."]))
        return section
    pairs = compared_pairs(inputs)
    if not pairs:
        section.blocks.append(
            Prose(["No benchmark was run for two of the models, so nothing is compared."])
        )
        return section
    warnings = Warnings(said=False)
    config = CompareConfig(runs=("report",), seed=seed)
    found = compare(pairs, config, warnings)
    inputs.notes += warnings.list()
    _add_comparisons(section, inputs, found, config)
    return section


def compared_pairs(inputs: Inputs) -> list[tuple[SampleSet, SampleSet]]:
    """(A, B) on each benchmark that both have.

    The pairs of the ladder, then the rest against the first model."""
    base = inputs.models[0]
    names = list(dict.fromkeys([*inputs.pairs, *((base, name) for name in inputs.models[1:])]))
    places = ((a, b, benchmark) for a, b in names for benchmark in inputs.benchmarks)
    sets = ((inputs.find(a, name), inputs.find(b, name)) for a, b, name in places)
    return [(a, b) for a, b in sets if a is not None and b is not None]


def _add_comparisons(
    section: Section, inputs: Inputs, found: Sequence[Comparison], config: CompareConfig
) -> None:
    first = dict.fromkeys(inputs.pairs)
    order = {pair: place for place, pair in enumerate(first)}
    ranked = sorted(
        found, key=lambda c: (order.get((c.a, c.b), len(order)), not c.real, -abs(c.difference))
    )
    section.blocks.append(Prose([c.sentence() for c in ranked[:MAX_SENTENCES]], as_list=True))
    numbers = [
        CsvRow(
            "summary",
            f"{c.b} minus {c.a}",
            c.benchmark,
            "points",
            c.difference,
            *ends(c.ci95),
            c.num_problems,
        )
        for c in ranked
    ]
    rows = [
        [
            c.b,
            c.a,
            c.benchmark,
            signed(c.difference),
            signed_span(c.ci95),
            significant(c.p_holm, 2),
            count(c.num_problems),
            "yes" if c.real else "no",
        ]
        for c in ranked
    ]
    columns = (
        *("model", "against", "benchmark", "points"),
        *("95 % interval", "p (Holm)", "problems", "real"),
    )
    caption = (
        f"Paired by problem; intervals resample problems; p of {config.draws:,} sign flips, adjusted"
        f" over the rows; real: below {config.level:g}."
    )
    section.blocks.append(Table(columns, rows, caption, numbers, frozenset({3, 4, 5, 6})))


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
        sets = [item.samples for item in inputs.shown if item.samples.benchmark == benchmark]
        bounds = _intervals(sets, seed)
        rows: list[list[str | Drawing]] = []
        numbers: list[CsvRow] = []
        for s in sets:
            average, coverage = 100 * float(s.accuracy_p.mean()), 100 * float(s.covered_p.mean())
            length = s.mean_tokens_p
            label = f"{s.model}: {fixed(average)} {span(bounds[s.model]['avg'])}"
            drawing = Drawing(strip(average, bounds[s.model]["avg"], styles[s.model], label=label))
            tokens = count(None if length is None else float(length.mean()))
            rows.append(
                [
                    s.model,
                    fixed(average),
                    span(bounds[s.model]["avg"]),
                    drawing,
                    fixed(coverage),
                    tokens,
                    count(s.num_undecided),
                    s.grader,
                ]
            )
            undecided = float(s.num_undecided)
            numbers.append(CsvRow("accuracy", benchmark, s.model, "undecided samples", undecided))
            for name, value, key in (("avg@n", average, "avg"), ("cov@n", coverage, "cov")):
                numbers.append(
                    CsvRow(
                        "accuracy",
                        benchmark,
                        s.model,
                        name,
                        value,
                        *ends(bounds[s.model][key]),
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
        caption = (
            f"{benchmark}: {len(sets[0].problems)} problems, n = {', '.join(map(str, n))}. Undecided"
            " samples have no verdict: they are in no share."
        )
        section.blocks.append(
            Table(
                (
                    *("model", "avg@n %", "95 %", "0 … 100 %", "cov@n %", "tokens"),
                    *("undecided", "graded by"),
                ),
                rows,
                caption,
                numbers,
                frozenset({1, 2, 4, 5, 6}),
            )
        )
        if is_benchmark(benchmark, "aime24"):
            section.blocks.append(_tier_table(sets, styles, seed))
    if inputs.others:
        section.blocks.append(_other_table(inputs))
    return section


def _intervals(sets: Sequence[SampleSet], seed: int) -> dict[str, dict[str, list[float] | None]]:
    """Of avg@n and cov@n of each model, in percent, as `eval` prints them; all share their draws."""
    values = {f"{i}avg": 100 * s.accuracy_p for i, s in enumerate(sets)}
    values |= {f"{i}cov": 100 * s.covered_p for i, s in enumerate(sets)}
    found = mean_intervals(values, seed=seed, bounds=PERCENT)
    return {
        s.model: {key: found[f"{i}{key}"] for key in ("avg", "cov")} for i, s in enumerate(sets)
    }


def _other_table(inputs: Inputs) -> Table:
    """Benchmarks with scores of their own kind, as their results files have them."""
    rows, numbers = [], []
    for item in inputs.others:
        for name, value in item.metrics.items():
            rows.append([item.model, item.benchmark, name.replace("_", " "), significant(value, 4)])
            numbers.append(CsvRow("accuracy", item.benchmark, item.model, name, value))
    return Table(
        ("model", "benchmark", "measure", "value"),
        rows,
        "Judged benchmarks and others with their own measures.",
        numbers,
        frozenset({3}),
    )


def _tier_table(sets: Sequence[SampleSet], styles: Palette, seed: int) -> Table:
    table = published_aime24()
    rows: list[list[str | Drawing]] = []
    numbers: list[CsvRow] = []
    for s in sets:
        means, bounds = tier_means(s, table), intervals(s, table, DRAWS, seed)
        for tier in TIERS:
            if means[tier] is not None:
                label = f"{s.model} {tier}: {fixed(means[tier])} {span(bounds[tier])}"
                rows.append(
                    [
                        tier,
                        s.model,
                        fixed(means[tier]),
                        span(bounds[tier]),
                        Drawing(strip(means[tier], bounds[tier], styles[s.model], label=label)),
                    ]
                )
                numbers.append(
                    CsvRow(
                        "accuracy", "AIME24 tiers", s.model, tier, means[tier], *ends(bounds[tier])
                    )
                )
    rows.sort(key=lambda row: TIERS.index(row[0]))
    return Table(
        ("tier", "model", "avg@n %", "95 %", "0 … 100 %"),
        rows,
        "AIME24 by published difficulty tier; intervals resample the problems of a tier.",
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
        asked = [item.samples for item in inputs.shown if item.samples.benchmark == benchmark]
        sets = [s for s in asked if s.num_samples >= 2]
        series = _pass_at_k_series(sets, styles, seed)
        shown += [s.model for s in sets]
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


def _pass_at_k_series(sets: Sequence[SampleSet], styles: Palette, seed: int) -> list[Series]:
    """The curve of each model; all share their draws of problems."""
    values = {
        f"{i} {k}": 100 * pass_at_k(s.num_samples_p, s.num_correct_p, k)
        for i, s in enumerate(sets)
        for k in sorted({2**i for i in range(s.num_samples.bit_length())} | {s.num_samples})
        if k <= s.num_samples
    }
    bounds = mean_intervals(values, seed=seed, bounds=PERCENT)
    series = []
    for i, s in enumerate(sets):
        own = [name for name in values if name.startswith(f"{i} ")]
        points = [(int(name.split()[1]), float(values[name].mean())) for name in own]
        pairs = [(band[0], band[1]) if (band := bounds[name]) else None for name in own]
        series.append(Series(s.model, points, styles[s.model], pairs))
    return series


def length_section(inputs: Inputs, styles: Palette) -> Section:
    """Share of problems answered within a token budget, from lengths alone.

    A cut answer counts as wrong, so it is a lower bound."""
    section = Section(
        "budget",
        "Accuracy by token budget",
        missing="token counts in the samples, or budget.json of analyze budget",
    )
    charts, shown = [], []
    for analysis in inputs.of_kind("budget"):
        result = analysis.result
        points: list[tuple[float, float]] = [
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
        name = analysis.title
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
        for s in (item.samples for item in inputs.shown if item.samples.benchmark == benchmark):
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
