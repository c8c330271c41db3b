"""The verb `power`: a table of problems and samples, from stored samples or from given numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from megaladder.analysis.power.design import (
    Pair,
    Spread,
    half_width,
    measured_covariance,
    measured_spread,
    problems_needed,
    quantiles,
    smallest_effect,
)
from megaladder.analysis.samples.sets import SampleSet, read_samples
from megaladder.analysis.tables import Warnings, format_columns, write_result
from megaladder.config.verbs.grade import PowerConfig
from megaladder.errors import DataError
from megaladder.evaluation.benchmarks.stopping import replayed


def run_power(config: PowerConfig) -> None:
    """The verb."""
    warnings = Warnings()
    sets = [read_samples(path, path, "", warnings) for path in config.samples]
    pair = _measured(sets) if sets else _given(config)
    replay = _replay(sets) if len(sets) > 1 else None
    problems = config.problems or (len(sets[0].problems) if sets else None)
    rows = [_row(config, pair, n, problems) for n in config.n]
    result: dict[str, Any] = {
        "effect": config.effect,
        "level": config.level,
        "power": config.power,
        "mean": 100 * pair.a.mean,
        "icc": pair.a.icc,
        "correlation": _correlation(pair),
        "problems": problems,
        "rows": rows,
        "stop_against": replay,
        "warnings": warnings.list(),
    }
    write_result(config.json_path, result)
    print(
        f"mean {result['mean']:.1f} %, intra-class correlation {pair.a.icc:.2f}, correlation of the"
        f" two models over problems {result['correlation']:.2f}"
    )
    print(
        f"a difference of {config.effect:g} points at level {config.level:g} with power"
        f" {config.power:g} needs these problems; with {problems or '–'} problems the smallest"
        " difference, and the half width of one score, are (points):"
    )
    header = ("n", "paired", "samples", "unpaired", "paired ≥", "unpaired ≥", "± score")
    print(format_columns(header, [list(row.values()) for row in rows]))
    if replay is not None:
        print(
            f"`eval --stop-against` would have drawn {replay['n']} of {replay['of']} samples a"
            f" problem of {sets[0].path}; {replay['look']}"
        )


def _replay(sets: list[SampleSet]) -> dict[str, Any]:
    """The first file's samples in their order, against the second's, as `eval` looks at them."""
    ours, stored = sets[0], sets[-1]
    n, index = ours.num_samples, stored.by_id()
    shared = [problem for problem in ours.problems if problem.id in index]
    verdicts_pn = np.array([problem.correct[:n] for problem in shared], dtype=bool)
    stored_p = stored.accuracy_p[[index[problem.id] for problem in shared]]
    look, drawn = replayed(verdicts_pn, stored_p)
    return {"n": drawn, "of": n, "look": str(look), **look.as_json()}


def _row(config: PowerConfig, pair: Pair, n: int, problems: int | None) -> dict[str, Any]:
    z, effect = quantiles(config.level, config.power), config.effect / 100
    paired = problems_needed(pair, effect, n, z, paired=True)
    row: dict[str, Any] = {
        "n": n,
        "problems_paired": paired,
        "samples_paired": paired * n,
        "problems_unpaired": problems_needed(pair, effect, n, z, paired=False),
        "effect_paired": None,
        "effect_unpaired": None,
        "half_width": None,
    }
    if problems:
        row |= {
            "effect_paired": 100 * smallest_effect(pair, problems, n, z, paired=True),
            "effect_unpaired": 100 * smallest_effect(pair, problems, n, z, paired=False),
            "half_width": 100 * half_width(pair.a, problems, n, config.level),
        }
    return row


def _given(config: PowerConfig) -> Pair:
    """Two models of the given mean and spread, the second better by the effect."""
    a = Spread.of(config.mean / 100, config.icc)
    b = Spread.of(min(1.0, (config.mean + config.effect) / 100), config.icc)
    return Pair(a, b, config.correlation * (a.between * b.between) ** 0.5)


def _measured(sets: list[SampleSet]) -> Pair:
    """One file stands for both models: perfectly correlated chances, the best case of pairing."""
    first, last = sets[0], sets[-1]
    spreads = [measured_spread([problem.correct for problem in one.problems]) for one in sets]
    if len(sets) == 1:
        return Pair(spreads[0], spreads[0], spreads[0].between)
    index = last.by_id()
    shared = [(i, index[p.id]) for i, p in enumerate(first.problems) if p.id in index]
    if len(shared) < 2:
        raise DataError(f"{first.path} and {last.path} share no problems; fix: the same benchmark")
    at_a, at_b = np.array(shared).T
    spread_a, spread_b = spreads
    return Pair(
        spread_a, spread_b, measured_covariance(first.accuracy_p[at_a], last.accuracy_p[at_b])
    )


def _correlation(pair: Pair) -> float:
    scale = (pair.a.between * pair.b.between) ** 0.5
    return min(1.0, pair.covariance / scale) if scale else 0.0
