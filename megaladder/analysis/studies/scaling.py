"""Test-time scaling (s1, arXiv 2501.19393): control, scaling, performance of a method.

Sequential against parallel (majority) curves.

Scaling is the mean slope over all pairs of settings with x = log2(thinking tokens) and y in %: that
axis, not a linear one, gives the published −24 and 13 (docs/published_numbers.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from megaladder.analysis.runs.read import read_runs
from megaladder.analysis.runs.record import RunRecord, Runs, Score
from megaladder.analysis.runs.thinking import count_thinking
from megaladder.analysis.samples.sets import ProblemSamples, SampleSet, read_samples
from megaladder.analysis.tables import Warnings, format_columns, read_csv, write_result
from megaladder.config.verbs.analysis import ScalingConfig
from megaladder.errors import DataError


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a method.

    Mean thinking tokens, accuracy in %, and the bounds it was told to keep (±inf = none)."""

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
    """Mean over pairs of (f(b) − f(a))/(log2 b − log2 a), points per doubling.

    Pairs with equal tokens have none. None without pairs."""
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
    """Parallel scaling: majority of 1, 2, 4, … samples against n · mean tokens.

    Mean over `draws` random orders of each problem's samples.

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
    """How many of `draws` random orders have a correct majority among their first n samples.

    For each n in `sizes`."""
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


METHODS = {
    "max_thinking": "budget forcing",
    "num_waits": "wait",
    "tokens": "token-conditional",
    "steps": "step-conditional",
    "effort": "class-conditional",
    "reject_above": "rejection",
}
STEP_TOKENS = 100  # s1: a step is 100 tokens


def settings_of(runs: Runs, only: str | None) -> dict[str, list[Setting]]:
    """Method → its settings, by growing budget.

    Evaluations of one model on one benchmark that differ in their thinking budget. Names carry
    model and benchmark where there are several.

    Bounds as s1 has them: a token budget is an upper bound, so is 100 tokens a step; a short answer
    must think less than the plain evaluation, a long one more. Waiting has none.
    """
    places = [
        (record, benchmark)
        for record in runs
        for benchmark in record.benchmarks
        if any(score.benchmark == benchmark and score.budget for score in record.scores)
        and only in (None, benchmark)
    ]
    if not places:
        raise DataError(
            f"no evaluation under a thinking budget; found {', '.join(runs.benchmarks) or 'none'}"
            " without one; fix: megaladder eval --budget.max-thinking N with another --name for"
            " each N"
        )
    methods: dict[str, list[Setting]] = {}
    for record, benchmark in places:
        prefix = f"{record.name}/{benchmark}: " if len(places) > 1 else ""
        for method, settings in _settings(runs, record, benchmark).items():
            methods[prefix + method] = settings
    return methods


def _settings(runs: Runs, record: RunRecord, benchmark: str) -> dict[str, list[Setting]]:
    scores = [score for score in record.scores if score.benchmark == benchmark]
    step = max(score.step for score in scores if score.budget)
    plain = next((s for s in scores if not s.budget and s.step == step), None)
    plain_tokens = None if plain is None else _thinking(runs, record, plain)
    found: dict[str, list[tuple[float, Setting]]] = {}
    for score in scores:
        kind = next((kind for kind in METHODS if score.budget.get(kind)), None)
        percent = runs.percent(record, score)
        if score.step != step or kind is None or percent is None:
            continue
        amount = score.budget[kind]
        low, high = _bounds(kind, amount, plain_tokens)
        setting = Setting(_thinking(runs, record, score), percent, low, high)
        order = float(amount) if isinstance(amount, int) else setting.tokens
        found.setdefault(METHODS[kind], []).append((order, setting))
    return {
        method: [setting for _, setting in sorted(pairs, key=lambda pair: pair[0])]
        for method, pairs in found.items()
    }


def _bounds(kind: str, amount: Any, plain_tokens: float | None) -> tuple[float, float]:
    """Least and most thinking tokens that a setting asks for."""
    if kind == "effort" and plain_tokens is not None:
        return (-math.inf, plain_tokens) if amount == "short" else (plain_tokens, math.inf)
    if kind in ("num_waits", "effort") or not isinstance(amount, int):
        return -math.inf, math.inf
    return -math.inf, float(amount * (STEP_TOKENS if kind == "steps" else 1))


def _thinking(runs: Runs, record: RunRecord, score: Score) -> float:
    """Mean thinking tokens, recorded or counted in the stored ids; else tokens of the answer."""
    tokens = runs.length(record, score, thinking=True)
    if tokens is None:
        tokens = count_thinking(record, score)
    if tokens is None:
        runs.warnings.add(
            f"{record.name} on {score.benchmark}: thinking tokens are not recorded, and cannot be"
            " counted (no token ids, no tokenizer, or no end of thinking in the answers); the tokens"
            " of whole answers are used"
        )
        tokens = runs.length(record, score)
    if not tokens:
        raise DataError(
            f"{score.where}: no token counts; fix: samples with 'num_tokens' or 'response_ids'"
        )
    return tokens


def parallel_source(runs: Runs, only: str | None) -> str | None:
    """The file for the parallel curve.

    The plain evaluation of the model and benchmark that has budgets, where it has several samples a
    problem."""
    for record in runs:
        for score in record.scores:
            alone = not score.budget and only in (None, score.benchmark) and score.samples
            others = [s for s in record.scores if s.benchmark == score.benchmark and s.budget]
            if alone and others and runs.samples(record, score).num_samples > 1:
                return str(score.samples)
    return None


def run_scaling(config: ScalingConfig) -> None:
    """The verb `analyze scaling`."""
    warnings = Warnings()
    methods, samples = {}, config.samples
    if config.runs:
        runs = read_runs(config.runs, warnings)
        methods = settings_of(runs, config.benchmark)
        samples = parallel_source(runs, config.benchmark)
    elif config.table is not None:
        methods = read_settings(config.table)
    out: dict[str, Any] = {
        "methods": {name: describe(name, settings, warnings) for name, settings in methods.items()}
    }
    out["points"] = {
        name: [{"tokens": s.tokens, "accuracy": s.accuracy} for s in settings]
        for name, settings in methods.items()
    }
    if samples:
        points = parallel_points(samples, config.draws, config.seed, warnings)
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
    if samples:
        rows.append(
            ["majority of n", None, out["parallel"]["scaling"], out["parallel"]["performance"]]
        )
    print(
        format_columns(("method", "control %", "scaling (points/doubling)", "performance %"), rows)
    )
