"""Test-time scaling (s1, arXiv 2501.19393): control, scaling, performance of a method; sequential
against parallel (majority) curves.

Scaling is the mean slope over all pairs of settings with x = log2(thinking tokens) and y in %: that
axis, not a linear one, gives the published −24 and 13 (docs/published_numbers.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from megaladder.analysis.samples.sets import ProblemSamples, SampleSet, read_samples
from megaladder.analysis.tables import Warnings, format_columns, read_csv, write_result
from megaladder.config.verbs.analysis import ScalingConfig
from megaladder.errors import DataError


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a method: mean thinking tokens, accuracy in %, and the bounds it was told to
    keep (±inf = none)."""

    tokens: float
    accuracy: float
    instructed_min: float = -math.inf
    instructed_max: float = math.inf


def control(settings: list[Setting]) -> float:
    """Share of settings inside their bounds, in %."""
    return (
        100.0
        * sum(s.instructed_min <= s.tokens <= s.instructed_max for s in settings)
        / len(settings)
    )


def scaling(settings: list[Setting]) -> float | None:
    """Mean over pairs of (f(b) − f(a))/(log2 b − log2 a), points per doubling; pairs with equal
    tokens have none. None without pairs."""
    slopes = [
        (b.accuracy - a.accuracy) / (math.log2(b.tokens) - math.log2(a.tokens))
        for a, b in combinations(settings, 2)
        if a.tokens != b.tokens
    ]
    return math.fsum(slopes) / len(slopes) if slopes else None


def performance(settings: list[Setting]) -> float:
    """The best accuracy, in %."""
    return max(s.accuracy for s in settings)


def read_settings(path: str) -> dict[str, list[Setting]]:
    """Method → its settings, in file order."""
    methods: dict[str, list[Setting]] = {}
    seen: dict[tuple[str, str], str] = {}
    for row in read_csv(path, ("method", "setting", "tokens", "accuracy")):
        method, setting = row.text("method"), row.text("setting")
        if (method, setting) in seen:
            raise DataError(
                f"{row.where}: {method}/{setting} stands there already ({seen[method, setting]});"
                " fix: keep one of the rows"
            )
        seen[method, setting] = row.where
        low, high = row.number_or_none("instructed_min"), row.number_or_none("instructed_max")
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        if low > high:
            raise DataError(
                f"{row.where}: instructed_min {low:g} is above instructed_max {high:g}; fix: swap"
                " them"
            )
        tokens = row.number("tokens", low=0)
        if tokens == 0:
            raise DataError(
                f"{row.where}: tokens is 0, which has no logarithm; fix: the mean number of"
                " thinking tokens"
            )
        methods.setdefault(method, []).append(
            Setting(tokens, row.number("accuracy", 0, 100, "percent"), low, high)
        )
    return methods


def describe(name: str, settings: list[Setting], warnings: Warnings) -> dict[str, float | None]:
    """The three metrics of a method, with a warning for each that says less than it seems to."""
    slope = scaling(settings)
    if all(math.isinf(s.instructed_min) and math.isinf(s.instructed_max) for s in settings):
        warnings.add(f"{name}: no setting has bounds, so its control is 100 % trivially")
    if slope is None:
        warnings.add(f"{name}: scaling is null, it needs two settings with different token counts")
    elif len({s.tokens for s in settings}) < len(settings):
        warnings.add(
            f"{name}: settings with equal token counts have no slope between them; those pairs are"
            " left out of scaling"
        )
    return {"control": control(settings), "scaling": slope, "performance": performance(settings)}


def majority_curve(samples: SampleSet, draws: int, seed: int) -> list[dict[str, float]]:
    """Parallel scaling: majority of 1, 2, 4, … samples against n · mean tokens. Mean over `draws`
    random orders of each problem's samples.

    Ties in the majority go to the answer seen first in that order; an answer counts as correct if
    its graded sample does. Prefixes of one order share the work: rows {n, tokens, accuracy in %}.
    """
    sizes = [2**i for i in range(int(math.log2(samples.num_samples)) + 1)]
    rng = np.random.default_rng(seed)
    hits = np.zeros(len(sizes))
    for problem in samples.problems:
        hits += _majority_hits(problem, sizes, draws, rng)
    tokens = samples.mean_tokens_p
    mean_tokens = float("nan") if tokens is None else float(tokens.mean())
    return [
        {
            "n": n,
            "tokens": n * mean_tokens,
            "accuracy": 100 * float(hits[i]) / (draws * len(samples.problems)),
        }
        for i, n in enumerate(sizes)
    ]


def _majority_hits(
    problem: ProblemSamples, sizes: list[int], draws: int, rng: np.random.Generator
) -> np.ndarray:
    """How many of `draws` random orders have a correct majority among their first n samples, for
    each n in `sizes`."""
    codes = {
        answer: code
        for code, answer in enumerate(dict.fromkeys(a for a in problem.answers if a is not None))
    }
    if not codes:
        return np.zeros(len(sizes))
    right = np.zeros(len(codes), dtype=bool)
    for answer, correct in reversed(list(zip(problem.answers, problem.correct, strict=True))):
        if answer is not None:
            right[codes[answer]] = correct  # the first sample with that answer decides
    code_n = np.array([-1 if answer is None else codes[answer] for answer in problem.answers])
    orders = rng.permuted(np.tile(np.arange(len(code_n)), (draws, 1)), axis=1)[:, : sizes[-1]]
    voted = code_n[orders]  # [draws, n]
    counts = np.zeros((draws, len(codes)), dtype=np.int64)
    first = np.full((draws, len(codes)), len(code_n))
    rows, hits, done = np.arange(draws), np.zeros(len(sizes)), 0
    for i, size in enumerate(sizes):
        for position in range(done, size):
            vote = voted[:, position]
            counted = vote >= 0
            counts[rows[counted], vote[counted]] += 1
            first[rows[counted], vote[counted]] = np.minimum(
                first[rows[counted], vote[counted]], position
            )
        done = size
        winner = (counts * (len(code_n) + 1) - first).argmax(axis=1)  # most votes, then seen first
        hits[i] = (right[winner] & (counts.max(axis=1) > 0)).sum()
    return hits


def parallel_points(path: str, draws: int, seed: int, warnings: Warnings) -> list[dict[str, float]]:
    """`majority_curve` of a graded file; says what the file lacks."""
    samples = read_samples(path, "samples", "samples", warnings)
    if any(len(problem.answers) != len(problem.correct) for problem in samples.problems):
        raise DataError(
            f"{path}: a majority vote needs the extracted 'answer' of each sample; fix: megaladder"
            " grade writes them"
        )
    if samples.mean_tokens_p is None:
        raise DataError(
            f"{path}: the parallel curve needs token counts ('num_tokens' or 'response_ids') of"
            " each sample; fix: add them"
        )
    return majority_curve(samples, draws, seed)


def run_scaling(config: ScalingConfig) -> None:
    """The verb `analyze scaling`."""
    warnings = Warnings()
    methods = read_settings(config.runs) if config.runs else {}
    out: dict[str, Any] = {
        "methods": {name: describe(name, settings, warnings) for name, settings in methods.items()}
    }
    out["points"] = {
        name: [{"tokens": s.tokens, "accuracy": s.accuracy} for s in settings]
        for name, settings in methods.items()
    }
    if config.samples:
        points = parallel_points(config.samples, config.draws, config.seed, warnings)
        settings = [Setting(point["tokens"], point["accuracy"]) for point in points]
        out["parallel"] = {
            "points": points,
            "scaling": scaling(settings),
            "performance": performance(settings),
        }
    out["warnings"] = warnings.list()
    write_result(config.json_path, out)
    rows = [
        [name, m["control"], m["scaling"], m["performance"]] for name, m in out["methods"].items()
    ]
    if config.samples:
        rows.append(
            ["majority of n", None, out["parallel"]["scaling"], out["parallel"]["performance"]]
        )
    print(
        format_columns(("method", "control %", "scaling (points/doubling)", "performance %"), rows)
    )
