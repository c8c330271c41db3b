"""Which SFT-time metric predicts the score after RL, and which runs to take into RL.

After Kang et al., "Quagmires", arXiv 2510.01624.

Predictor: post-RL score ≈ α·metric + β, fitted on a calibration part of the runs, judged on the
rest by R² = 1 − SS_res/SS_tot, over repeated seeded splits. "both" averages the predictors'
predictions. Spearman is over all runs (for "both": of the average of fits on all runs, which sees
the target). R² of one split has no lower bound, so means over splits of few runs can be far below
0: that is the finding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.analysis.runs.predictors import SftStep, sft_steps
from megaladder.analysis.runs.read import read_runs
from megaladder.analysis.runs.record import Runs
from megaladder.analysis.samples.files import find_sample_files
from megaladder.analysis.samples.sets import SampleSet, read_samples
from megaladder.analysis.stats import linear_fit, spearman, spearman_interval
from megaladder.analysis.tables import Row, Warnings, format_columns, read_csv, write_result
from megaladder.config.verbs.analysis import PredictConfig
from megaladder.errors import DataError
from megaladder.evaluation.metrics import pass_at_k

LABELS = ("run", "name", "label", "candidate", "model")
PASS_AT = re.compile(r"(pass|avg)@(\d+|n)", re.IGNORECASE)
CHUNK_SPLITS = 4096


@dataclass(frozen=True)
class RunTable:
    """R runs with their SFT-time metrics and the score to predict.

    `values[metric]` float64 [R] in the good direction, `target` float64 [R] (NaN = a candidate
    without a score yet).

    `lower`: metrics whose sign was turned. `by_k`: further pass@K, in the same form. `overfit`: bool
    a run, the first stage of the selection.
    """

    names: tuple[str, ...]
    target: np.ndarray
    values: dict[str, np.ndarray]
    target_name: str
    lower: tuple[str, ...] = ()
    by_k: dict[str, np.ndarray] = field(default_factory=dict)
    overfit: tuple[bool, ...] = ()

    @property
    def known(self) -> np.ndarray:
        """bool [R]: runs with a target."""
        return np.isfinite(self.target)


@dataclass(frozen=True, slots=True)
class Predictor:
    """How well one metric (or "both") predicts.

    `r2_*` are over `num_splits` splits in which R² has a value."""

    spearman: float | None
    ci95: list[float] | None
    r2_mean: float | None
    r2_std: float | None
    r2_median: float | None
    num_splits: int


def calibration_size(calibration: float, num_runs: int) -> int:
    """RunTable in the calibration part: a share (rounded half up) or a number.

    At least 2, and at least 2 are left to judge by."""
    size = int(calibration) if calibration >= 2 else math.floor(calibration * num_runs + 0.5)
    return max(2, min(size, num_runs - 2))


def splits(num_runs: int, size: int, max_splits: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks int64 [b, R] of run orders whose first `size` entries are the calibration part.

    All splits, or `max_splits` random ones."""
    if math.comb(num_runs, size) <= max_splits:
        everything = set(range(num_runs))
        orders = [
            list(part) + sorted(everything - set(part))
            for part in combinations(range(num_runs), size)
        ]
        yield np.array(orders)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, max_splits, CHUNK_SPLITS):
        count = min(CHUNK_SPLITS, max_splits - start)
        yield rng.permuted(np.tile(np.arange(num_runs), (count, 1)), axis=1)


def held_out_r2(
    values: list[np.ndarray], target: np.ndarray, calibration: float, max_splits: int, seed: int
) -> np.ndarray:
    """R² of each split, float64 [≤ max_splits], of the metrics' [R] mean prediction.

    Splits with equal held-out targets drop out."""
    size = calibration_size(calibration, len(target))
    if len(target) < size + 2:
        return np.empty(0)
    out = []
    for order in splits(len(target), size, max_splits, seed):
        fit, held = order[:, :size], order[:, size:]
        truth = target[held]
        predicted = np.zeros_like(truth)
        for x in values:
            slope, intercept = linear_fit(x[fit], target[fit])
            predicted += (slope[:, None] * x[held] + intercept[:, None]) / len(values)
        total = ((truth - truth.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        kept = total > 0
        out.append(1.0 - ((truth - predicted) ** 2).sum(axis=1)[kept] / total[kept])
    return np.concatenate(out)


def forecast(values: list[np.ndarray], target: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mean prediction of the metrics' fits on all runs with a target, float64 [R].

    NaN below two such runs."""
    if known.sum() < 2:
        return np.full(len(target), np.nan)
    predicted = np.zeros(len(target))
    for x in values:
        slope, intercept = linear_fit(x[known][None], target[known][None])
        predicted += (slope[0] * x + intercept[0]) / len(values)
    return predicted


def judge(values: list[np.ndarray], runs: RunTable, config: PredictConfig) -> Predictor:
    """One metric, or several averaged."""
    known, target = runs.known, runs.target[runs.known]
    score = values[0] if len(values) == 1 else forecast(values, runs.target, known)
    rho = spearman(score[known], target)
    r2 = held_out_r2(
        [x[known] for x in values], target, config.calibration, config.splits, config.seed
    )
    some = len(r2) > 0
    return Predictor(
        spearman=rho,
        ci95=spearman_interval(rho, int(known.sum())),
        r2_mean=float(r2.mean()) if some else None,
        r2_std=float(r2.std()) if some else None,
        r2_median=float(np.median(r2)) if some else None,
        num_splits=len(r2),
    )


def overfit_flags(
    series: list[str], order: list[float], score: list[float], loss: list[float]
) -> list[bool]:
    """Flags runs that overfit against the run before them in their series.

    Their held-out loss is above that run's while their SFT score is not below it.

    More training then fits the score without generalising (first stage of the paper's selection).
    """
    flags = [False] * len(series)
    for name in set(series):
        members = sorted(
            (i for i in range(len(series)) if series[i] == name), key=lambda i: order[i]
        )
        for before, after in pairwise(members):
            flags[after] = loss[after] > loss[before] and score[after] >= score[before]
    return flags


def select(runs: RunTable, score: np.ndarray, flagged: list[bool]) -> list[str]:
    """Second stage: survivors, best first.

    Candidates (no target) if there are any, else all runs; ties keep the file's order."""
    candidates = ~runs.known if (~runs.known).any() else np.ones(len(runs.names), dtype=bool)
    chosen = [
        i
        for i in range(len(runs.names))
        if candidates[i] and not flagged[i] and np.isfinite(score[i])
    ]
    return [runs.names[i] for i in sorted(chosen, key=lambda i: -score[i])]


def read_table(config: PredictConfig, warnings: Warnings) -> RunTable:
    """The CSV as arrays; metrics of --lower-is-better are negated."""
    path = str(config.table)
    missing = [name for name in config.metrics if PASS_AT.fullmatch(name)] if config.samples else []
    columns = [name for name in config.metrics if name not in missing]
    rows = read_csv(path, (str(config.target), *columns))
    names = _names(rows, path)
    target = [row.number_or_none(str(config.target)) for row in rows]
    if all(value is None for value in target):
        raise DataError(
            f"{path}: column '{config.target}' is blank in every row; fix: fill in the runs that"
            " went through RL"
        )
    computed = [name for name in missing if name not in rows[0].cells]
    values = {
        name: (
            np.array([row.number(name) for row in rows])
            * (-1.0 if name in config.lower_is_better else 1.0)
        )
        for name in config.metrics
        if name not in computed
    }
    if computed:
        values |= metrics_from_samples(config.samples, names, computed, warnings)
    return RunTable(
        names,
        np.array([np.nan if value is None else value for value in target]),
        {name: values[name] for name in config.metrics},
        str(config.target),
        tuple(config.lower_is_better),
        _pass_columns(rows, values),
        tuple(find_overfit(config, rows)),
    )


def _names(rows: list[Row], path: str) -> tuple[str, ...]:
    label = next((name for name in LABELS if name in rows[0].cells), None)
    names = tuple(row.text(label) if label else f"row {i}" for i, row in enumerate(rows, start=1))
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled:
        raise DataError(
            f"{path}: two runs are named {doubled!r} (column '{label}'); fix: give each run its own"
            " name"
        )
    return names


def _pass_columns(rows: list[Row], values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The numeric columns named pass@K that are no metrics."""
    return {
        name: np.array([row.number(name) for row in rows])
        for name in rows[0].cells
        if PASS_AT.fullmatch(name) and name not in values and all(row.cells[name] for row in rows)
    }


def metrics_from_samples(
    root: str | None, names: tuple[str, ...], metrics: list[str], warnings: Warnings
) -> dict[str, np.ndarray]:
    """pass@K and avg@n in % of each run from its sample files.

    `<root>/<run>.jsonl`, or the one sample file below `<root>/<run>/`; one in memory at a time."""
    assert root is not None
    files = {file.model: file.path for file in find_sample_files(root, warnings)}
    out = {name: np.empty(len(names)) for name in metrics}
    for r, name in enumerate(names):
        single = Path(root) / f"{name}.jsonl"
        path = single if single.is_file() else files.get(name)
        if path is None:
            raise DataError(
                f"{root}: no samples of run {name!r}; fix: add {single}, or"
                f" {Path(root) / name}/samples_….jsonl"
            )
        samples = read_samples(path, name, "", warnings)
        for metric in metrics:
            out[metric][r] = _percent(samples, metric)
    return out


def correlation_by_k(runs: RunTable) -> dict[str, float | None]:
    """Spearman with the target for each pass@K, by growing K."""
    by_k = {
        int(name[5:]): x
        for name, x in {**runs.by_k, **runs.values}.items()
        if re.fullmatch(r"pass@\d+", name, re.IGNORECASE)
    }
    return {str(k): spearman(by_k[k][runs.known], runs.target[runs.known]) for k in sorted(by_k)}


def find_overfit(config: PredictConfig, rows: list[Row]) -> list[bool]:
    """The first stage; all False when its columns are not named."""
    if config.series is None:
        return [False] * len(rows)
    loss = config.flag_loss or config.lower_is_better[0]
    needed = [config.series, config.order or "", config.flag_score or "", loss]
    missing = [name for name in needed if name not in rows[0].cells]
    if missing:
        raise DataError(
            f"{config.table}:1: no column {', '.join(missing)} for the over-fit flag; found"
            f" {', '.join(rows[0].cells)}; fix: the names"
        )
    numbers = [[row.number(name) for row in rows] for name in needed[1:]]
    return overfit_flags([row.text(config.series) for row in rows], *numbers)


def table_of(records: Runs, config: PredictConfig) -> RunTable:
    """Each evaluated step of each SFT run as a row.

    Its target is the score of the GRPO run that began with it (the mean of several), on the
    benchmarks that all have."""
    rows = sft_steps(records, config.benchmark)
    if not any(row.after for row in rows):
        raise DataError(
            "no GRPO run with scores began with an evaluated SFT step; found"
            f" {', '.join(f'{r.name} ({r.stage})' for r in records)[:300]}; fix: the folders of SFT"
            " runs, of the GRPO runs that began with their exports, and of the evaluations of both"
        )
    largest = min(s.num_samples for row in rows for s in row.before)
    ks = [2**i for i in range(largest.bit_length())]
    columns = {f"pass@{k}": [_measure(row.before, f"pass@{k}") for row in rows] for k in ks}
    columns["avg@n"] = [_measure(row.before, "avg@n") for row in rows]
    if all(row.held_out is not None for row in rows):
        columns["held_out_loss"] = [-row.held_out for row in rows if row.held_out is not None]
    names = config.metrics or tuple(
        name
        for name in ("avg@n", f"pass@{ks[-1]}" if largest > 1 else "", "held_out_loss")
        if name in columns
    )
    for name in names:
        match = PASS_AT.fullmatch(name)
        if name not in columns and match and match[2] != "n" and 1 <= int(match[2]) <= largest:
            columns[name] = [_measure(row.before, name) for row in rows]
        if name not in columns:
            raise DataError(
                f"--metrics {name}: not among {', '.join(columns)} of the run folders; fix: one of"
                " them, or more samples, or a held-out set (data.held_out)"
            )
    target = config.target or "avg@n"
    values = {name: np.array(column) for name, column in columns.items()}
    return RunTable(
        tuple(row.name for row in rows),
        np.array([_measure(row.after, target) if row.after else math.nan for row in rows]),
        {name: values[name] for name in names},
        f"{target} after RL",
        tuple(name for name in names if name == "held_out_loss"),
        {name: x for name, x in values.items() if name not in names and name.startswith("pass@")},
        tuple(_overfit(rows, values)),
    )


def _measure(sets: Sequence[SampleSet], metric: str) -> float:
    """pass@K or avg@n in %, the mean over the sets (benchmarks, runs)."""
    return float(np.mean([_percent(samples, metric) for samples in sets]))


def _percent(samples: SampleSet, metric: str) -> float:
    match = PASS_AT.fullmatch(metric)
    kind, k = match.groups() if match else ("", "")
    if kind.lower() == "avg":
        return 100 * float(samples.accuracy_p.mean())
    if not k.isdigit() or not 1 <= int(k) <= samples.num_samples:
        raise DataError(
            f"{samples.path}: {metric} needs a k from 1 to its {samples.num_samples} samples; fix:"
            " --metrics, --target"
        )
    return 100 * float(pass_at_k(samples.num_samples_p, samples.num_correct_p, int(k)).mean())


def _overfit(rows: Sequence[SftStep], columns: Mapping[str, np.ndarray]) -> list[bool]:
    """The first stage, where there is a held-out loss.

    Runs that differ in length only, and the steps of one run."""
    if "held_out_loss" not in columns:
        return [False] * len(rows)
    return overfit_flags(
        [row.series for row in rows],
        [float(row.num_updates) for row in rows],
        list(columns["avg@n"]),
        list(-columns["held_out_loss"]),
    )


def run_predict(config: PredictConfig) -> None:
    """The verb `analyze predict`."""
    warnings = Warnings()
    if config.table is not None:
        runs = read_table(config, warnings)
    else:
        runs = table_of(read_runs(config.runs, warnings), config)
    found = {name: judge([x], runs, config) for name, x in runs.values.items()}
    if len(runs.values) > 1:
        found["both"] = judge(list(runs.values.values()), runs, config)
    warn_of_gaps(found, runs, config, warnings)
    forecasts = forecast(list(runs.values.values()), runs.target, runs.known)
    scores = {**runs.values, "both": forecasts}
    rank_by = config.rank_by or (next(iter(runs.values)) if len(runs.values) == 1 else "both")
    if rank_by not in scores:
        raise DataError(
            f"--rank-by {rank_by}: is none of {', '.join(scores)}; fix: name a metric, or both"
        )
    out: dict[str, Any] = {
        "metrics": {
            name: {"spearman": p.spearman, "r2_mean": p.r2_mean, "r2_std": p.r2_std}
            for name, p in found.items()
        },
        "select": select(runs, scores[rank_by], list(runs.overfit)),
        "ci95": {name: p.ci95 for name, p in found.items()},
        "r2_median": {name: p.r2_median for name, p in found.items()},
        "num_splits": {name: p.num_splits for name, p in found.items()},
        "num_runs": int(runs.known.sum()),
        "spearman_by_k": correlation_by_k(runs),
        "overfit": [name for name, flag in zip(runs.names, runs.overfit, strict=True) if flag],
        "target": runs.target_name,
        "lower_is_better": list(runs.lower),
        "runs": _points(runs, forecasts),
        "warnings": warnings.list(),
    }
    write_result(config.json_path, out)
    _print(found, out)


def _print(found: dict[str, Predictor], out: dict[str, Any]) -> None:
    table = [
        [name, p.spearman, _bounds(p.ci95), p.r2_mean, p.r2_std, p.num_splits]
        for name, p in found.items()
    ]
    print(f"predicting {out['target']} from {out['num_runs']} runs")
    print(format_columns(("metric", "Spearman", "95 %", "R² mean", "R² std", "splits"), table))
    if out["overfit"]:
        print("over-fit (loss rises, score does not fall): " + ", ".join(out["overfit"]))
    print("take into RL, best first: " + ", ".join(out["select"][:10]))


def warn_of_gaps(
    found: dict[str, Predictor], runs: RunTable, config: PredictConfig, warnings: Warnings
) -> None:
    """One warning for each null."""
    known = int(runs.known.sum())
    wanted = (
        config.calibration
        if config.calibration >= 2
        else math.floor(config.calibration * known + 0.5)
    )
    if known >= 4 and calibration_size(config.calibration, known) != wanted:
        warnings.add(
            f"calibration uses {calibration_size(config.calibration, known)} of {known} runs: two"
            " must be there to fit, two to judge by"
        )
    if known < len(runs.names):
        warnings.add(
            f"{len(runs.names) - known} of {len(runs.names)} runs have no target: they are"
            " candidates, not used in any fit"
        )
    for name, predictor in found.items():
        if predictor.spearman is None:
            warnings.add(
                f"{name}: Spearman is null ({'one run' if known < 2 else 'a constant column'})"
            )
        if predictor.r2_mean is None:
            warnings.add(
                f"{name}: R² is null, it needs two runs to fit and two different ones to judge by;"
                f" {known} have a target"
            )
        if predictor.ci95 is None and predictor.spearman is not None:
            warnings.add(
                f"{name}: Spearman has no interval"
                f" ({'a perfect rank order' if known >= 5 else f'{known} runs'})"
            )


def _points(runs: RunTable, predicted: np.ndarray) -> list[dict[str, Any]]:
    """Rows of the scatter in the report: metrics as they were given, target, forecast."""
    sign = {name: -1.0 if name in runs.lower else 1.0 for name in runs.values}
    return [
        {
            "run": name,
            "target": runs.target[i],
            "forecast": predicted[i],
            **{m: sign[m] * x[i] for m, x in runs.values.items()},
        }
        for i, name in enumerate(runs.names)
    ]


def _bounds(ci95: list[float] | None) -> str:
    return f"[{ci95[0]:.2f}, {ci95[1]:.2f}]" if ci95 else "–"
