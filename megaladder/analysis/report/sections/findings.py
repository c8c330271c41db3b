"""The sections that show JSON files of the analyze verbs.

Predictors, trajectories, transfer, scaling, token shift, equal compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megaladder.analysis.report.blocks import (
    CsvRow,
    Drawing,
    Panels,
    Prose,
    Section,
    Table,
    Token,
    TokenView,
    ends,
    refuse_other_kinds,
)
from megaladder.analysis.report.charts import Chart, Series
from megaladder.analysis.report.collect import Analysis, Inputs, rollout_rows
from megaladder.analysis.report.formats import (
    fixed,
    mean_std,
    signed,
    signed_span,
    significant,
    span,
)
from megaladder.analysis.report.sections.rollouts import visible
from megaladder.analysis.report.svg import bar
from megaladder.analysis.studies.compute import MEASURES
from megaladder.errors import DataError
from megaladder.files.shapes import OTHER_KIND

# adds one result to its section
Show = Callable[[Section, Analysis], None]
MAX_TOKEN_ROWS = 20
MAX_TOKENS = 3000


def finding_sections(inputs: Inputs) -> list[Section]:
    """All of them, in page order; empty ones say what would fill them."""
    shift_files = "a JSON of analyze shift (with --tokens: marked tokens)"
    with_cost = "a JSON of analyze compare with --compute"
    sections: list[tuple[str, str, str, str, Show]] = [
        ("predict", "predict", "What predicts the score after RL", "", _add_predictor),
        ("trajectory", "trajectory", "Trajectories over checkpoints", "", _add_trajectory),
        ("transfer", "transfer", "Transferability", "", _add_transfer),
        ("scaling", "scaling", "Test-time scaling", "", _add_scaling),
        ("shift", "shift", "What the model says differently", shift_files, _add_shift),
        ("compare", "compute", "At equal compute", with_cost, _add_compute),
    ]
    found = []
    for verb, name, title, missing, show in sections:
        section = Section(name, title, missing=missing or f"a JSON of analyze {verb}")
        for analysis in inputs.of_kind(verb):
            guarded(analysis, show, section)
        found.append(section)
    return found


def guarded(analysis: Analysis, show: Show, section: Section) -> None:
    """Runs `show(section, analysis)`; a result file of another shape is bad input, not a crash."""
    before = len(section.blocks)
    try:
        show(section, analysis)
        for block in section.blocks[before:]:
            refuse_other_kinds(block)
    except OTHER_KIND as error:
        verb = "study" if analysis.kind == "study" else f"analyze {analysis.kind}"
        raise DataError(
            f"{analysis.path}: looks like a result of {verb}, but lacks or"
            f" misnames {error}; fix: write it again"
        ) from None


def _add_predictor(section: Section, analysis: Analysis) -> None:
    """Scatter of each predictor against the post-RL score."""
    result = analysis.result
    known = [row for row in result["runs"] if row["target"] is not None]
    charts = []
    for name, found in result["metrics"].items():
        column = "forecast" if name == "both" else name
        rows = [row for row in known if row.get(column) is not None]
        if not rows:
            continue
        labels = [
            f"{row['run']}: {column} {significant(row[column], 4)},"
            f" {result['target']} {significant(row['target'], 4)}"
            for row in rows
        ]
        rho, r2 = fixed(found["spearman"], 2), mean_std(found["r2_mean"], found["r2_std"])
        series = Series(
            name, [(row[column], row["target"]) for row in rows], 0, labels=labels, line=False
        )
        axis = (
            f"forecast of {result['target']}"
            if name == "both"
            else name + (" (less is better)" if name in result["lower_is_better"] else "")
        )
        charts.append(
            Chart(
                name,
                axis,
                result["target"],
                [series],
                note=f"Spearman {rho}, R² {r2}",
                csv_name=f"predictor {name}",
            )
        )
    by_k = {
        int(k): rho for k, rho in (result.get("spearman_by_k") or {}).items() if rho is not None
    }
    if len(by_k) > 1:
        series = Series("Spearman", sorted(by_k.items()), 0)
        charts.append(
            Chart(
                "correlation by k", "k of pass@k", "Spearman", [series], x_log=True, y_range=(-1, 1)
            )
        )
    section.blocks.append(Panels(charts))
    columns = ("predictor", "Spearman", "95 %", "R² held out (mean ± std)")
    rows, numbers = [], []
    for name, found in result["metrics"].items():
        ci95 = (result.get("ci95") or {}).get(name)
        rows.append(
            [
                name,
                fixed(found["spearman"], 2),
                span(ci95, 2),
                mean_std(found["r2_mean"], found["r2_std"]),
            ]
        )
        numbers.append(
            CsvRow(
                "predict",
                "Spearman",
                name,
                None,
                found["spearman"],
                *ends(ci95),
                result.get("num_runs"),
            )
        )
        numbers.append(CsvRow("predict", "R² mean", name, None, found["r2_mean"]))
        numbers.append(CsvRow("predict", "R² std", name, None, found["r2_std"]))
    caption = (
        f"{result.get('num_runs', len(known))} runs; interval of Spearman by Fisher's z over runs; R²"
        " over repeated calibration splits."
    )
    section.blocks.append(Table(columns, rows, caption, numbers, frozenset({1, 2, 3})))
    lines = (
        [f"Take into RL, best first: {', '.join(result['select'][:10])}."]
        if result["select"]
        else []
    )
    lines += (
        [f"Over-fit (loss rises, score does not fall): {', '.join(result['overfit'])}."]
        if result.get("overfit")
        else []
    )
    section.blocks.append(Prose([*lines, *result.get("warnings", [])]))


def _add_trajectory(section: Section, analysis: Analysis) -> None:
    """Score over checkpoints, with the dip, and response length where known."""
    charts, rows, numbers = [], [], []
    result = analysis.result
    for name, points in result["points"].items():
        found = result["curves"][name]
        series = [Series("score", [(p["step"], p["score"]) for p in points], 0)]
        dip = (
            next((p for p in points if p["step"] == found["dip_step"]), None)
            if found["dip_step"] is not None
            else None
        )
        if dip:
            series.append(
                Series(
                    "dip",
                    [(dip["step"], dip["score"])],
                    2,
                    labels=[f"dip at step {dip['step']}: {significant(dip['score'], 6)}"],
                    line=False,
                )
            )
        charts.append(
            Chart(
                name, "step", "score %", series, note=found["class"], csv_name=f"trajectory {name}"
            )
        )
        lengths = [(p["step"], p["length"]) for p in points if p.get("length") is not None]
        if len(lengths) > 1:
            charts.append(
                Chart(
                    f"{name}: length",
                    "step",
                    "tokens",
                    [Series("length", lengths, 1)],
                    csv_name=f"length {name}",
                )
            )
        rows.append(
            [
                name,
                found["class"],
                significant(found["dip_step"], 9),
                fixed(found["dip"]),
                fixed(found["recovery"]),
            ]
        )
        numbers += [
            CsvRow("trajectory", "class", name, found["class"], found[key])
            for key in ("dip", "recovery")
        ]
    section.blocks.append(Panels(charts))
    section.blocks.append(
        Table(
            ("curve", "class", "dip at step", "dip (points)", "recovered (points)"),
            rows,
            "Dip: score at step 0 less the lowest later one; recovered: last less lowest. No"
            " intervals: scores as they are.",
            numbers,
            frozenset({2, 3, 4}),
        )
    )
    keep = {model: step for model, step in (result.get("keep") or {}).items() if step is not None}
    section.blocks.append(
        Prose(
            [
                f"Keep of {model}: step {step} (best mean over its benchmarks)."
                for model, step in keep.items()
            ]
        )
    )


def _add_transfer(section: Section, analysis: Analysis) -> None:
    """Signed-log bars of the transferability index."""
    result = analysis.result
    values = [
        model[key]
        for model in result["models"].values()
        for key in ("ti_other", "ti_non")
        if model[key] is not None
    ]
    reach = max([100.0, *(abs(value) for value in values)]) * 1.1
    rows, numbers, notes = [], [], []
    for name, model in result["models"].items():
        for style, (key, group) in enumerate(
            (("ti_other", "other reasoning"), ("ti_non", "non-reasoning"))
        ):
            value, ci95 = model[key], ((result.get("ci95") or {}).get(name) or {}).get(key)
            label = f"{name}, {group}: {signed(value)} %"
            rows.append(
                [
                    name,
                    group,
                    signed(value),
                    signed_span(ci95),
                    Drawing(bar(value, reach, style, label)),
                ]
            )
            numbers.append(
                CsvRow("transfer", f"TI {result['variant']}", name, group, value, *ends(ci95))
            )
        notes += [f"{name}: {text}" for text in model["warnings"]]
    caption = (
        f"Index {result['variant']}, base {result['base']}: % of the gain in maths that arrives;"
        " log scale, lines at ±10, ±100, ±1000. Intervals resample problems; – without samples."
    )
    section.blocks.append(
        Table(
            ("model", "group", "TI %", "95 %", "− 0 +"), rows, caption, numbers, frozenset({2, 3})
        )
    )
    if notes:
        section.blocks.append(Prose(notes, as_list=True))


def _add_scaling(section: Section, analysis: Analysis) -> None:
    """Accuracy against thinking tokens, sequential and parallel."""
    result, curves, rows, numbers = analysis.result, [], [], []
    named = {
        **result["points"],
        **({"majority of n": result["parallel"]["points"]} if result.get("parallel") else {}),
    }
    for style, (name, points) in enumerate(named.items()):
        curves.append(Series(name, sorted((p["tokens"], p["accuracy"]) for p in points), style))
        found = result["methods"].get(name) or {
            "control": None,
            **{k: result["parallel"][k] for k in ("scaling", "performance")},
        }
        rows.append([name, *(fixed(found[key]) for key in ("control", "scaling", "performance"))])
        numbers += [
            CsvRow("scaling", key, name, None, found[key])
            for key in ("control", "scaling", "performance")
        ]
    legend = [(series.name, series.style) for series in curves]
    section.blocks.append(
        Panels(
            [Chart("accuracy by thinking tokens", "tokens", "accuracy %", curves, x_log=True)],
            legend,
        )
    )
    columns = ("method", "control %", "scaling (points a doubling)", "performance %")
    caption = (
        "Control: share of settings inside their token bounds; scaling: mean slope over all pairs;"
        " performance: best accuracy. No intervals: settings as they are."
    )
    section.blocks.append(Table(columns, rows, caption, numbers, frozenset({1, 2, 3})))


def _add_shift(section: Section, analysis: Analysis) -> None:
    """KL and rank shift, PCA distance by layer, and answers with the shifted tokens marked."""
    result = analysis.result
    names = (
        ("kl", "KL, nats a token (Monte Carlo)"),
        ("kl_exact", "KL, nats a token (exact)"),
        ("mean_rank_shift", "mean rank shift"),
        ("shifted_fraction", "share of tokens shifted"),
        ("num_tokens", "tokens scored"),
    )
    rows = [[text, significant(result.get(key), 4)] for key, text in names]
    numbers = [
        CsvRow("shift", text, analysis.path.stem, None, result.get(key)) for key, text in names
    ]
    section.blocks.append(
        Table(
            ("measure", "value"),
            rows,
            f"{result.get('tuned', '')} against {result.get('base', '')}, on the tuned model's own"
            " answers: KL as mean over answers, ranks over tokens; no intervals.",
            numbers,
            frozenset({1}),
        )
    )
    charts = []
    for variant in ("with_padding", "without_padding"):
        if result["pca_shift"].get(variant):
            numbers.append(
                CsvRow(
                    "shift",
                    f"PCA distance {variant}",
                    analysis.path.stem,
                    None,
                    result["pca_shift"][variant]["distance"],
                )
            )
            moved = [
                (p["layer"], p["shift"])
                for p in result["pca_shift"][variant]["data"]
                if p["state"] == "Updated"
            ]
            note = f"distance {significant(result['pca_shift'][variant]['distance'])}"
            title = f"PCA shift by layer, {variant.replace('_', ' ')}"
            charts.append(
                Chart(
                    title, "layer", "PC1 shift", [Series("updated − original", moved, 0)], note=note
                )
            )
    if charts:
        section.blocks.append(Panels(charts))
    # recorded by `analyze shift`; beside the published files by its name
    recorded = result.get("tokens", f"{analysis.path.stem}_tokens.jsonl")
    if recorded and (tokens := analysis.path.parent / recorded).is_file():
        section.blocks.append(_token_view(tokens))


def _token_view(path: Any) -> TokenView:
    rows = []
    for _, row in rollout_rows(path):
        tokens = [_token(item) for item in row["tokens"][:MAX_TOKENS]]
        rows.append((visible(str(row.get("input", "")), 600), tokens))
        if len(rows) == MAX_TOKEN_ROWS:
            break
    return TokenView(rows)


def _token(item: dict[str, Any]) -> Token:
    rank = int(item["rank"])
    heat = 0 if rank <= 1 else 1 if rank <= 3 else 2 if rank <= 10 else 3 if rank <= 100 else 4
    says = f"; base says {visible(str(item['base_says']), 60)!r}" if "base_says" in item else ""
    kl = float(item["kl"])
    return Token(
        visible(str(item["token"]), 200),
        heat,
        f"rank {rank} under the base, KL {fixed(kl, 3)}{says}",
        rank,
        kl,
    )


def _add_compute(section: Section, analysis: Analysis) -> None:
    """Cost of the runs and scores at equal cost."""
    if not analysis.result.get("compute"):
        return
    compute = analysis.result["compute"]
    rows, numbers = [], []
    for name, totals in compute["totals"].items():
        rows.append([name, *(significant(totals.get(key), 4) for key in MEASURES)])
        numbers += [CsvRow("compute", "total", name, key, value) for key, value in totals.items()]
    section.blocks.append(
        Table(
            ("run", "tokens", "FLOPs of training", "FLOPs in all", "device-hours"),
            rows,
            "What each run cost. FLOPs in all: also log-prob passes, generation, a teacher's data.",
            numbers,
            frozenset({1, 2, 3, 4}),
        )
    )
    rows, numbers = [], []
    for benchmark, measures in (compute.get("matched") or {}).items():
        for measure, found in measures.items():
            for name, score in found.items():
                if name != "at" and score is not None:
                    rows.append(
                        [
                            benchmark,
                            f"{significant(found['at'], 4)} {measure.replace('_', '-')}",
                            name,
                            fixed(score),
                        ]
                    )
                    numbers.append(
                        CsvRow(
                            "compute", f"{benchmark} at equal {measure}", name, found["at"], score
                        )
                    )
    if rows:
        section.blocks.append(
            Table(
                ("benchmark", "at", "run", "score %"),
                rows,
                "Scores at equal cost, linear between checkpoints; no intervals.",
                numbers,
                frozenset({3}),
            )
        )
