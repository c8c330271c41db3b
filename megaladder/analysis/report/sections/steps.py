"""Scores over the steps of the runs, from their evaluations alone."""

from __future__ import annotations

from megaladder.analysis.report.blocks import Panels, Prose, Section
from megaladder.analysis.report.charts import Chart, Series
from megaladder.analysis.report.collect import WHILE_TRAINING, EvalResult, Inputs, TrainRun
from megaladder.analysis.report.formats import percent
from megaladder.analysis.report.palette import Palette
from megaladder.analysis.stats import mean_intervals


def steps_section(inputs: Inputs, styles: Palette, seed: int) -> Section:
    """avg@n of each run by step with a 95 % band, a panel a benchmark and stage."""
    section = Section(
        "steps",
        "Scores over steps",
        "avg@n after each evaluated step, with a 95 % band over problems.",
        missing="a run that was evaluated at several steps",
    )
    charts, shown = [], []
    stage_of = {run.name: run.stage for run in inputs.runs}
    for benchmark in dict.fromkeys(item.samples.benchmark for item in inputs.evals):
        panels: dict[str, list[Series]] = {}
        for run, items in _by_run(inputs.evals, benchmark).items():
            if len({item.step for item in items}) > 1:
                maker = run.removesuffix(WHILE_TRAINING)
                style = styles[maker if maker in stage_of else items[-1].samples.model]
                panels.setdefault(stage_of.get(maker, ""), []).append(
                    _series(run, items, style, seed)
                )
                shown.append((run, style))
        charts += [
            Chart(
                f"{stage}: {benchmark}" if stage else benchmark,
                "step",
                "avg@n %",
                series,
                csv_name=f"steps {benchmark}",
            )
            for stage, series in panels.items()
        ]
    if charts:
        section.blocks.append(Panels(charts, list(dict.fromkeys(shown))))
    best = [_best(run) for run in inputs.runs if run.best]
    if best:
        section.blocks.append(Prose(best, as_list=True))
    return section


def _best(run: TrainRun) -> str:
    """The step that scored highest inside the training, as the run recorded it."""
    best = run.best
    scores = ", ".join(
        f"{row['benchmark']} {row['metric']} {percent(row['score'])}" for row in best["benchmarks"]
    )
    where = best.get("hf") or best.get("checkpoint")
    kept = f"kept in {run.path / where}" if where else "its weights are not kept"
    return f"{run.name}: step {best['step']} scored highest ({scores}); {kept}."


def _by_run(evals: list[EvalResult], benchmark: str) -> dict[str, list[EvalResult]]:
    found: dict[str, list[EvalResult]] = {}
    for item in sorted(evals, key=lambda item: item.step):
        if item.samples.benchmark == benchmark and item.run:
            found.setdefault(item.run, []).append(item)
    return found


def _series(run: str, items: list[EvalResult], style: int, seed: int) -> Series:
    values = {item.step: 100 * item.samples.accuracy_p for item in items}
    named = {str(step): accuracy for step, accuracy in values.items()}
    found = mean_intervals(named, seed=seed, bounds=(0.0, 100.0)).values()
    points = [(step, float(accuracy.mean())) for step, accuracy in values.items()]
    return Series(run, points, style, [(pair[0], pair[1]) if pair else None for pair in found])
