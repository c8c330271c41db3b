"""Transferability index (Huan et al., arXiv 2507.00432).

How much of the gain in maths arrives in other groups of tasks.

v1: ΔR_g = mean over benchmarks of (R − R_base)/R_base. v2: Δ_b = R − R_base in points, δ_b =
Δ_b/σ_g, s_b = sign(δ_b)·√|δ_b|, gain_g = Σ ŵ_b·s_b with ŵ_b ∝ 100 − R_base,b inside the group.
Both: TI_g = 100·gain_g/gain_math. σ_g is one number a group, shared by all models: with a σ per
model the published values do not come out (docs/published_numbers.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.analysis.runs.read import read_runs
from megaladder.analysis.runs.record import RunRecord, Runs, Score
from megaladder.analysis.samples.files import sample_files_of
from megaladder.analysis.samples.sets import SampleSet, read_samples
from megaladder.analysis.stats import percentile_interval, resample_indices
from megaladder.analysis.tables import Warnings, format_columns, printable, read_csv, write_result
from megaladder.config.verbs.analysis import TransferConfig
from megaladder.errors import DataError

GROUPS = ("math", "other", "non")
CSV_TOLERANCE_POINTS = 0.1  # a score table is rounded to one decimal

Scores = Sequence[float] | np.ndarray
GroupScores = Mapping[str, Scores]  # group → scores in %, benchmarks in one fixed order


@dataclass(frozen=True)
class ScoreTable:
    """Scores in percent: `scores[model][group][benchmark]`.

    Every model has the base's benchmarks, in the base's order."""

    base: str
    scores: dict[str, dict[str, dict[str, float]]]

    @property
    def models(self) -> list[str]:
        return [name for name in self.scores if name != self.base]

    def values(self, model: str) -> dict[str, np.ndarray]:
        """Group → float64 [benchmarks]."""
        return {
            group: np.array(list(self.scores[model][group].values()))
            for group in self.scores[model]
        }


@dataclass(frozen=True)
class Transfer:
    """One model.

    `gain[g]` is what the index divides (v1: mean relative gain; v2: DI_g); None where it has no
    value."""

    gain: dict[str, float | None]
    ti_other: float | None
    ti_non: float | None
    points: dict[str, float] = field(default_factory=dict)  # plain mean gain in points
    warnings: list[str] = field(default_factory=list)


def shared_sigma(base: GroupScores, models: Sequence[GroupScores]) -> dict[str, float]:
    """σ_g: population standard deviation of all gains of all models in the group, in points."""
    return {
        g: float(
            np.std(
                [
                    np.asarray(scores[g], dtype=float) - np.asarray(base[g], dtype=float)
                    for scores in models
                ]
            )
        )
        for g in base
    }


def gain_v1(model: Scores, base: Scores) -> float | None:
    """Mean relative gain (a ratio, not %); None where a base score is 0."""
    after, before = np.asarray(model, dtype=float), np.asarray(base, dtype=float)
    return float(np.mean((after - before) / before)) if (before > 0).all() else None


def gain_v2(model: Scores, base: Scores, sigma: float) -> float | None:
    """Headroom-weighted mean of signed roots of gains in σ.

    None where σ is 0 or no benchmark has headroom."""
    after, before = np.asarray(model, dtype=float), np.asarray(base, dtype=float)
    headroom = 100.0 - before
    if sigma <= 0 or headroom.sum() <= 0:
        return None
    delta = (after - before) / sigma
    return float(headroom @ (np.sign(delta) * np.sqrt(np.abs(delta))) / headroom.sum())


def transferability(
    model: GroupScores, base: GroupScores, sigma: Mapping[str, float] | None
) -> Transfer:
    """The index of one model; `sigma` None means v1.

    What cannot be computed is None, with the reason in `warnings`."""
    gain: dict[str, float | None] = {}
    reasons: list[str] = []
    for group in base:
        gain[group] = (
            gain_v1(model[group], base[group])
            if sigma is None
            else gain_v2(model[group], base[group], sigma[group])
        )
        if gain[group] is None:
            reasons.append(_why_none(group, base[group], sigma))
    reasons += [f"no benchmarks of group '{group}'" for group in GROUPS if group not in base]
    in_math = gain.get("math")
    if in_math is not None and in_math <= 0:
        reasons.append(
            f"the gain in math is {in_math:.4g}, not positive: the index would change its sign, so"
            " it is null"
        )
        in_math = None

    def index(group: str) -> float | None:
        value = gain.get(group)
        return None if value is None or in_math is None else 100.0 * value / in_math

    points = {
        group: float(
            np.mean(np.asarray(model[group], dtype=float) - np.asarray(base[group], dtype=float))
        )
        for group in base
    }
    return Transfer(
        {group: gain.get(group) for group in GROUPS}, index("other"), index("non"), points, reasons
    )


def _why_none(group: str, base: Scores, sigma: Mapping[str, float] | None) -> str:
    if sigma is None:
        return (
            f"a base score in group '{group}' is 0, so v1's relative gain has no value; use"
            " --variant v2"
        )
    if sigma[group] <= 0:
        return f"σ of group '{group}' is 0 (all gains are equal); give --sigma"
    return f"all base scores in group '{group}' are 100: no headroom to weight by"


def read_scores(path: str, base: str) -> ScoreTable:
    """Reads the CSV and checks that every model has every benchmark of the base."""
    scores: dict[str, dict[str, dict[str, float]]] = {}
    groups: dict[str, tuple[str, str]] = {}  # benchmark → group, where
    for row in read_csv(path, ("model", "group", "benchmark", "score")):
        model, group, benchmark = row.text("model"), row.text("group"), row.text("benchmark")
        if group not in GROUPS:
            raise DataError(
                f"{row.where}: group {group!r}, expected {', '.join(GROUPS)}; fix: the cell"
            )
        if groups.setdefault(benchmark, (group, row.where))[0] != group:
            raise DataError(
                f"{row.where}: benchmark {benchmark!r} is in group {group}, before in"
                f" {groups[benchmark][0]} ({groups[benchmark][1]}); fix: one of them"
            )
        cells = scores.setdefault(model, {}).setdefault(group, {})
        if benchmark in cells:
            raise DataError(
                f"{row.where}: {model} already has a score in {benchmark}; fix: keep one of the"
                " rows"
            )
        cells[benchmark] = row.number("score", 0, 100, "percent")
    if base not in scores:
        raise DataError(
            f"{path}: no model named {base!r}; found {', '.join(scores)[:300]}; fix: --base with"
            " one of them"
        )
    order = {group: list(cells) for group, cells in scores[base].items()}
    if "math" not in order:
        raise DataError(
            f"{path}: {base} has no scores in group math, which the index divides by; fix: add them"
        )
    for model, found in scores.items():
        have, want = (
            {b for g in found.values() for b in g},
            {b for names in order.values() for b in names},
        )
        if have != want:
            missing, extra = ", ".join(sorted(want - have)), ", ".join(sorted(have - want))
            parts = [f"{model} has no score in {missing}"] * bool(missing) + [
                f"{base} has no score in {extra}, {model} has"
            ] * bool(extra)
            raise DataError(
                f"{path}: {'; '.join(parts)}: means over different benchmarks must not be compared;"
                " fix: add or remove the rows"
            )
    return ScoreTable(
        base,
        {
            m: {g: {b: found[g][b] for b in names} for g, names in order.items()}
            for m, found in scores.items()
        },
    )


# the groups of the paper's benchmarks, and where ours belong; by the name without punctuation
GROUP_OF = {
    "math": (
        *("aime24", "aime25", "math500", "hendrycksmath500", "openaimath", "olympiadbench"),
        *("olympiad", "amc23", "gsm8k", "minerva", "arithmetic", "countdown", "aime", "math"),
    ),
    "other": (
        *("livecodebench", "gpqadiamond", "gpqa", "acpbench", "acpmcqcot2shot", "headqa"),
        *("headqaen", "mmlupro"),
    ),
    "non": ("coqa", "ifeval", "ifevallmeval", "halueval", "mctaco", "truthfulqa"),
}


def group_of(benchmark: str, given: Sequence[str]) -> str | None:
    """math, other or non; `given`: `benchmark=group`, which wins. None for an unknown one."""
    named = dict(item.split("=", 1) for item in given)
    if benchmark in named:
        return named[benchmark]
    for text in (benchmark, benchmark.split("_")[0]):
        plain = "".join(char for char in text.lower() if char.isalnum())
        for group, names in GROUP_OF.items():
            if plain in names:
                return group
    return None


def scores_of(
    runs: Runs, config: TransferConfig
) -> tuple[ScoreTable, dict[str, dict[str, SampleSet]]]:
    """The last step of each run against the base, on the benchmarks that all of them have.

    And the samples behind the scores, {} unless every score has them."""
    base = _base_of(runs, config.base)
    found: dict[str, dict[str, tuple[RunRecord, Score]]] = {}
    for record in [base, *(r for r in runs.evaluated if r is not base)]:
        scores = {name: runs.last(record, name) for name in record.benchmarks}
        found[record.name] = {
            name: (record, score)
            for name, score in scores.items()
            if score is not None and runs.percent(record, score) is not None
        }
    table = ScoreTable(base.name, {name: {} for name in found})
    for benchmark in _common(found, runs.warnings):
        group = group_of(benchmark, config.group)
        if group is None:
            runs.warnings.add(
                f"{benchmark} is in no known group, left out; --group {benchmark}=math, =other or"
                " =non"
            )
            continue
        for name, own in found.items():
            value = runs.percent(*own[benchmark])
            table.scores[name].setdefault(group, {})[benchmark] = float(value or 0.0)
    if "math" not in table.scores[base.name]:
        raise DataError(
            f"{base.name} and the runs have no benchmark of group math in common, which the index"
            f" divides by; found {', '.join(runs.benchmarks)}; fix: evaluate all on one, or --group"
        )
    return table, _samples_of(runs, found, table)


def _base_of(runs: Runs, name: str | None) -> RunRecord:
    if name is not None:
        return runs.named(name)
    roots = [record for record in runs.evaluated if record.stage == "base"]
    roots = roots or [r for r in runs.evaluated if not r.is_run and "base" in r.name.lower()]
    if len(roots) != 1:
        raise DataError(
            f"{len(roots)} base models with scores among {', '.join(runs.names)[:300]}; fix:"
            " --base NAME, or the folder of the base model's evaluation"
        )
    return roots[0]


def _common(found: Mapping[str, Mapping[str, Any]], warnings: Warnings) -> list[str]:
    """Benchmarks of all models, in the first one's order; the others are named."""
    first = next(iter(found.values()))
    common = [name for name in first if all(name in scores for scores in found.values())]
    left = {name for scores in found.values() for name in scores} - set(common)
    if left:
        warnings.add(f"{', '.join(sorted(left))}: not evaluated for all models, left out")
    return common


def _samples_of(
    runs: Runs, found: Mapping[str, Mapping[str, tuple[RunRecord, Score]]], table: ScoreTable
) -> dict[str, dict[str, SampleSet]]:
    names = [name for group in table.scores[table.base].values() for name in group]
    out: dict[str, dict[str, SampleSet]] = {}
    for model, scores in found.items():
        try:
            out[model] = {name: runs.samples(*scores[name]) for name in names}
        except DataError as error:
            runs.warnings.add(f"no intervals: {error}")
            return {}
    return out


def analyze(
    table: ScoreTable, variant: str, sigma: Sequence[float] | None
) -> tuple[dict[str, Transfer], dict[str, float] | None]:
    """Every model but the base → Transfer, and the σ used (None for v1)."""
    base = table.values(table.base)
    models = {name: table.values(name) for name in table.models}
    used: dict[str, float] | None = None
    if variant == "v2":
        used = (
            dict(zip(GROUPS, map(float, sigma), strict=True))
            if sigma is not None
            else shared_sigma(base, list(models.values()))
        )
    return {name: transferability(scores, base, used) for name, scores in models.items()}, used


def bootstrap_indices(
    table: ScoreTable,
    samples: Mapping[str, Mapping[str, SampleSet]],
    sigma: Mapping[str, float] | None,
    draws: int,
    seed: int,
) -> dict[str, dict[str, list[float] | None]]:
    """95 % intervals of the indices.

    Problems are resampled inside each benchmark, the same ones for base and model; σ stays fixed.

    `samples[model][benchmark]`. An interval is None where a resample has no index (non-positive
    gain in maths, a zero base in v1).
    """
    out: dict[str, dict[str, list[float] | None]] = {}
    for model in table.models:
        replicates = [
            {g: np.empty((draws, len(table.scores[m][g]))) for g in table.scores[m]}
            for m in (model, table.base)
        ]
        for group, cells in table.scores[model].items():
            for column, benchmark in enumerate(cells):
                tuned, base = _paired(samples[model][benchmark], samples[table.base][benchmark])
                start = 0
                for index in resample_indices(len(tuned), draws, seed):
                    replicates[0][group][start : start + len(index), column] = 100 * tuned[
                        index
                    ].mean(axis=1)
                    replicates[1][group][start : start + len(index), column] = 100 * base[
                        index
                    ].mean(axis=1)
                    start += len(index)
        values = [
            transferability(
                {g: v[b] for g, v in replicates[0].items()},
                {g: v[b] for g, v in replicates[1].items()},
                sigma,
            )
            for b in range(draws)
        ]
        out[model] = {}
        for name in ("ti_other", "ti_non"):
            draws_b = np.array(
                [
                    np.nan if getattr(value, name) is None else getattr(value, name)
                    for value in values
                ]
            )
            out[model][name] = percentile_interval(draws_b)
    return out


def _paired(tuned: SampleSet, base: SampleSet) -> tuple[np.ndarray, np.ndarray]:
    index = base.by_id()
    if set(index) != {problem.id for problem in tuned.problems}:
        raise DataError(
            f"{tuned.path} and {base.path} hold different problems; fix: evaluate both on the same"
            " benchmark"
        )
    order = [index[problem.id] for problem in tuned.problems]
    return tuned.accuracy_p, base.accuracy_p[order]


def read_all_samples(
    table: ScoreTable, root: str, warnings: Warnings
) -> dict[str, dict[str, SampleSet]]:
    """`samples[model][benchmark]` of every score in the table.

    Warns where their mean is not the table's score."""
    out: dict[str, dict[str, SampleSet]] = {name: {} for name in table.scores}
    for group, cells in table.scores[table.base].items():
        for benchmark in cells:
            files = sample_files_of(root, benchmark, warnings)
            for model in table.scores:
                if model not in files:
                    raise DataError(
                        f"{root}: no samples of {model} on {benchmark}; fix: add"
                        f" {Path(root) / model / benchmark}, or drop --samples"
                    )
                found = read_samples(files[model], model, benchmark, warnings)
                out[model][benchmark] = found
                mean, given = (
                    100 * float(found.accuracy_p.mean()),
                    table.scores[model][group][benchmark],
                )
                if abs(mean - given) > CSV_TOLERANCE_POINTS:
                    warnings.add(
                        f"{model} on {benchmark}: the samples give {mean:.2f} %, the table says"
                        f" {given:.2f} %"
                    )
    return out


def run_transfer(config: TransferConfig) -> None:
    """The verb `analyze transfer`."""
    warnings = Warnings()
    table, samples = _read(config, warnings)
    if not table.models:
        raise DataError(
            f"{config.table or ', '.join(config.runs)}: holds the base {table.base} only; fix: add"
            " a tuned model"
        )
    if config.variant == "v2" and config.sigma is None and len(table.models) == 1:
        warnings.add(
            "σ comes from one model only; the published index shares it over all audited models:"
            " give --sigma to compare with it"
        )
    results, sigma = analyze(table, config.variant, config.sigma)
    out: dict[str, Any] = {
        "models": {},
        "variant": config.variant,
        "base": table.base,
        "points": {},
        "sigma": sigma,
    }
    for name, result in results.items():
        for text in result.warnings:
            warnings.add(f"{name}: {text}")
        out["points"][name] = result.points
        out["models"][name] = {
            "ti_other": result.ti_other,
            "ti_non": result.ti_non,
            "gain": result.gain,
            "warnings": result.warnings,
        }
    out["scores"] = table.scores
    if samples:
        out["ci95"] = bootstrap_indices(table, samples, sigma, config.draws, config.seed)
    out["warnings"] = warnings.list()
    write_result(config.json_path, out)
    print(_table(config.variant, table.base, results, out.get("ci95", {})))


def _read(
    config: TransferConfig, warnings: Warnings
) -> tuple[ScoreTable, dict[str, dict[str, SampleSet]]]:
    """The scores, and their samples where there are any, from the table or the run folders."""
    if config.table is None:
        return scores_of(read_runs(config.runs, warnings), config)
    table = read_scores(config.table, str(config.base))
    return table, read_all_samples(table, config.samples, warnings) if config.samples else {}


def _table(variant: str, base: str, results: dict[str, Transfer], ci95: dict[str, Any]) -> str:
    def bounds(name: str, key: str) -> str:
        found = ci95.get(name, {}).get(key)
        return f"[{found[0]:.1f}, {found[1]:.1f}]" if found else ""

    rows = [
        [
            printable(name),
            result.ti_other,
            bounds(name, "ti_other"),
            result.ti_non,
            bounds(name, "ti_non"),
            *result.gain.values(),
        ]
        for name, result in results.items()
    ]
    title = f"transferability index {variant}, % of the gain in math (base {printable(base)})"
    return (
        title
        + "\n"
        + format_columns(
            ("model", "TI other", "", "TI non", "", *(f"gain {group}" for group in GROUPS)), rows
        )
    )
