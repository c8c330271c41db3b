"""The reasoning ladder (Sun et al., arXiv 2504.11741).

Accuracy by difficulty tier from stored samples, potential against stability, and accuracy against
the training set's size, length, style and similarity.

avg@n = mean over problems of the mean over samples; cov@n = share of problems with any correct
sample (prefix coverage over all n). potential − stability: cov@n − avg@n is what better aggregation
could still gain; avg@n / cov@n is how reliably the solvable are solved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from megaladder.analysis.runs.read import read_runs
from megaladder.analysis.runs.record import Runs
from megaladder.analysis.samples.files import is_benchmark
from megaladder.analysis.samples.sets import SampleSet
from megaladder.analysis.stats import linear_fit, mean_intervals, spearman
from megaladder.analysis.studies.tiers import TIERS, TierTable, constructed, published_aime24
from megaladder.analysis.tables import Warnings, printable, read_csv, write_result
from megaladder.config.verbs.analysis import LadderConfig
from megaladder.errors import DataError

FACTORS = ("category", "length", "style", "similarity")


def tier_means(samples: SampleSet, table: TierTable | None) -> dict[str, float | None]:
    """`easy … exhard, avg@n, cov@n` in %; a tier without problems is None."""
    members: dict[str, list[float]] = {tier: [] for tier in TIERS}
    for problem, accuracy in zip(samples.problems, samples.accuracy_p, strict=True):
        tier = table.tier_of(problem) if table else None
        if tier is not None:
            members[tier].append(float(accuracy))
    out: dict[str, float | None] = {
        tier: 100 * float(np.mean(values)) if values else None for tier, values in members.items()
    }
    out["avg@n"] = 100 * float(samples.accuracy_p.mean())
    out["cov@n"] = 100 * float(samples.covered_p.mean())
    return out


def intervals(
    samples: SampleSet, table: TierTable | None, draws: int, seed: int
) -> dict[str, list[float] | None]:
    """95 % intervals of `tier_means`, in %, problems resampled inside each tier."""
    values: dict[str, list[float]] = {tier: [] for tier in TIERS}
    for problem, accuracy in zip(samples.problems, samples.accuracy_p, strict=True):
        tier = table.tier_of(problem) if table else None
        if tier is not None:
            values[tier].append(accuracy)
    columns = {**values, "avg@n": samples.accuracy_p, "cov@n": samples.covered_p}
    return mean_intervals(
        {name: 100 * np.asarray(column) for name, column in columns.items()},
        draws,
        seed,
        (0.0, 100.0),
    )


def potential(samples: SampleSet) -> dict[str, Any]:
    """The potential cov@n − avg@n of a model, in points, and its stability.

    n, number of problems, the gap in points, and avg@n / cov@n in [0, 1]."""
    average, coverage = float(samples.accuracy_p.mean()), float(samples.covered_p.mean())
    lengths = samples.mean_tokens_p
    return {
        "n": samples.num_samples,
        "num_problems": len(samples.problems),
        "gap": 100 * (coverage - average),
        "stability": average / coverage if coverage > 0 else None,
        "mean_tokens": None if lengths is None else float(lengths.mean()),
    }


def choose_tiers(
    config: LadderConfig, sets: Mapping[str, SampleSet], warnings: Warnings
) -> TierTable | None:
    """The tiers to sort problems by, or none.

    The published AIME24 table, one built from accuracies (--tier-base, --tier-sft), or none for
    other benchmarks."""
    if config.tier_base is None:
        if config.benchmark.split("_")[0] == "aime24":
            return published_aime24()
        warnings.add(
            f"no published tiers for {config.benchmark}, so tiers are null; build them with"
            " --tier-base MODEL --tier-sft MODEL,…"
        )
        return None
    for name in (config.tier_base, *config.tier_sft):
        if name not in sets:
            raise DataError(
                f"{', '.join(config.runs)}: no model named {name!r}; found {', '.join(sets)[:300]}; fix:"
                " --tier-base, --tier-sft"
            )
    accuracy = {
        name: dict(zip((p.id for p in s.problems), s.accuracy_p, strict=True))
        for name, s in sets.items()
    }
    for name, values in accuracy.items():
        if values.keys() != accuracy[config.tier_base].keys():
            raise DataError(
                f"{name} and {config.tier_base} hold different problems of {config.benchmark}; fix:"
                " evaluate both on all of them"
            )
    return constructed(accuracy, config.tier_base, config.tier_sft)


def check_coverage(name: str, samples: SampleSet, table: TierTable, warnings: Warnings) -> None:
    """Warns of problems without a tier and of missing problems.

    Also where the gold answer stood in for the id."""
    without = [problem.id for problem in samples.problems if table.tier_of(problem) is None]
    if without:
        warnings.add(
            f"{name}: {len(without)} of {len(samples.problems)} problems have no tier (ids"
            f" {', '.join(without[:5])}, …)"
        )
    if len(samples.problems) - len(without) < len(table.by_id):
        warnings.add(
            f"{name}: {len(samples.problems) - len(without)} of {len(table.by_id)} tiered problems"
            " are there"
        )
    by_gold = sum(
        problem.id not in table.by_id and table.tier_of(problem) is not None
        for problem in samples.problems
    )
    if by_gold:
        warnings.add(
            f"{name}: {by_gold} problems have other ids than the published ones; their gold answer"
            " gave the tier"
        )


def read_factors(
    path: str, models: Mapping[str, Any], warnings: Warnings
) -> dict[str, dict[str, Any]]:
    """Model → {size, length, style, similarity, category} of its training set.

    For the models that have results."""
    out: dict[str, dict[str, Any]] = {}
    for row in read_csv(path, ("model",)):
        name = row.text("model")
        if name in out:
            raise DataError(f"{row.where}: {name} stands there already; fix: keep one of the rows")
        if name not in models:
            warnings.add(f"{row.where}: no results of {name}; row ignored")
            continue
        out[name] = {factor: row.cells[factor] for factor in FACTORS if row.cells.get(factor)}
        if row.cells.get("size"):
            out[name]["size"] = row.number("size", low=1)
    if not out:
        raise DataError(
            f"{path}: none of its models has results; fix: the names in the column 'model'"
        )
    return out


def by_factor(
    models: Mapping[str, Mapping[str, float | None]], factors: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Per metric: fit of accuracy (%) on log10(size) with slope per tenfold data, R², Spearman.

    Mean accuracy of each factor's levels."""
    out: dict[str, Any] = {}
    for metric in (*TIERS, "avg@n"):
        sized = [
            (f["size"], score)
            for name, f in factors.items()
            if "size" in f and (score := models[name][metric]) is not None
        ]
        levels: dict[str, dict[str, list[float]]] = {}
        for name, found in factors.items():
            for factor in FACTORS:
                if factor in found and (score := models[name][metric]) is not None:
                    levels.setdefault(factor, {}).setdefault(found[factor], []).append(score)
        means = {
            factor: {level: float(np.mean(values)) for level, values in groups.items()}
            for factor, groups in levels.items()
        }
        out[metric] = {"log_size": _log_fit(sized), **means}
    return out


def _log_fit(sized: list[tuple[float, float]]) -> dict[str, float | int | None] | None:
    if len({size for size, _ in sized}) < 2:
        return None
    x, y = np.log10([size for size, _ in sized]), np.array([score for _, score in sized])
    (slope,), (intercept,) = linear_fit(x[None], y[None])
    total = float(((y - y.mean()) ** 2).sum())
    r2 = 1.0 - float(((y - slope * x - intercept) ** 2).sum()) / total if total > 0 else None
    return {
        "slope_per_tenfold": float(slope),
        "intercept": float(intercept),
        "r2": r2,
        "spearman": spearman(x, y),
        "num_models": len(sized),
    }


def sets_of(runs: Runs, config: LadderConfig) -> dict[str, SampleSet]:
    """Name of a model (and step) → its samples of the benchmark.

    Raises DataError for none, or for two tasks that fit its name."""
    tasks = [name for name in runs.benchmarks if is_benchmark(name, config.benchmark)]
    sets: dict[str, SampleSet] = {}
    for record in runs:
        own = [name for name in tasks if name in record.benchmarks]
        if len(own) > 1:
            raise DataError(
                f"{record.name}: both {own[0]} and {own[1]} fit '{config.benchmark}'; fix:"
                " --benchmark with the full name"
            )
        steps = sorted({score.step for name in own for score in record.plain(name)})
        for step in steps if config.steps == "all" else steps[-1:]:
            score = runs.score(record, own[0], step)
            if score is not None:
                label = runs.label(record, step)
                sets[label] = runs.samples(record, score, label)
    if not sets:
        raise DataError(
            f"{', '.join(config.runs)}: no samples of '{config.benchmark}'"
            f" (samples_{config.benchmark}*.jsonl) in it; fix: the folder, or --benchmark"
        )
    return sets


def recorded_sizes(runs: Runs, sets: Mapping[str, SampleSet]) -> dict[str, dict[str, Any]]:
    """Model → the size of its training set, of SFT runs that recorded it.

    {} for fewer than two sizes."""
    found = {
        runs.label(record, step): {"size": float(size)}
        for record in runs
        if record.stage == "sft" and isinstance(size := record.identity.get("num_samples"), int)
        for step in record.steps[-1:]
    }
    sized = {name: factors for name, factors in found.items() if name in sets}
    return sized if len({factors["size"] for factors in sized.values()}) > 1 else {}


def run_ladder(config: LadderConfig) -> None:
    """The verb `analyze ladder`: JSON, and a TSV on stdout."""
    warnings = Warnings()
    runs = read_runs(config.runs, warnings)
    sets = sets_of(runs, config)
    table = choose_tiers(config, sets, warnings)
    out: dict[str, Any] = {"models": {}, "ci95": {}, "potential": {}, "benchmark": config.benchmark}
    for name, samples in sets.items():
        if table:
            check_coverage(name, samples, table, warnings)
        out["models"][name] = tier_means(samples, table)
        out["ci95"][name] = intervals(samples, table, config.draws, config.seed)
        out["potential"][name] = potential(samples)
    if len({found["n"] for found in out["potential"].values()}) > 1:
        warnings.add(
            "models have different numbers of samples: cov@n grows with n, so compare avg@n only"
        )
    if config.tier_base and table:
        out["tiers"] = {
            tier: [key for key, found in table.by_id.items() if found == tier] for tier in TIERS
        }
    given = read_factors(config.factors, sets, warnings) if config.factors else None
    factors = recorded_sizes(runs, sets) if given is None else given
    if factors:
        out["factors"] = by_factor(out["models"], factors)
    out["warnings"] = warnings.list()
    write_result(config.json_path, out)
    columns = (*TIERS, "avg@n", "cov@n")
    print("\t".join(("model", *columns, "n", "problems")))
    for name, means in out["models"].items():
        cells = ["" if means[column] is None else f"{means[column]:.1f}" for column in columns]
        print(
            "\t".join(
                (
                    printable(name),
                    *cells,
                    str(out["potential"][name]["n"]),
                    str(out["potential"][name]["num_problems"]),
                )
            )
        )
