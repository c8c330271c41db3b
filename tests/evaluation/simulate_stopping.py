"""How much `eval --stop-against` saves, and how often it errs.

PYTHONPATH=. python tests/evaluation/simulate_stopping.py                # simulated evaluations
PYTHONPATH=. python tests/evaluation/simulate_stopping.py runs/study/*   # stored samples of studies
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from megaladder.analysis.samples.sets import read_samples
from megaladder.analysis.tables import Warnings
from megaladder.evaluation.benchmarks.stopping import Look, replayed

# problems, samples of each, mean, intra-class correlation
SETTINGS = ((200, 16, 0.4, 0.7), (500, 8, 0.05, 0.3))
EFFECTS = (0.0, 0.02, 0.05)
Models = tuple[np.ndarray, np.ndarray]


def chances(rng: np.random.Generator, mean: float, icc: float, count: int) -> np.ndarray:
    """Chances of problems with that mean and intra-class correlation."""
    size = (1 - icc) / icc
    return rng.beta(mean * size, (1 - mean) * size, count)


def two_models(
    rng: np.random.Generator, shape: tuple[int, int], mean: float, icc: float, effect: float
) -> Models:
    """Verdicts [P, n] of a model that is better by `effect` on average, and the stored shares of
    the other one; three problems of ten are of another difficulty for it."""
    count, n = shape
    stored = chances(rng, mean, icc, count)
    ours = np.where(rng.random(count) < 0.3, chances(rng, mean, icc, count), stored)
    ours = ours + (1 - ours) * effect / (1 - mean)
    return rng.random(shape) < ours[:, None], rng.binomial(n, stored) / n


def found_by_all(verdicts_pn: np.ndarray, stored_p: np.ndarray) -> bool:
    """Whether the paired t test of all samples finds a difference at 5 %."""
    differences = verdicts_pn.mean(axis=1) - stored_p
    error = differences.std(ddof=1) / len(differences) ** 0.5
    return bool(abs(differences.mean()) > student.ppf(0.975, len(differences) - 1) * error)


def one_line(models: list[Models], effect: float | None) -> str:
    """What came out over many evaluations; their coverage where the true difference is known."""
    looks: list[tuple[Look, int]] = [replayed(*pair) for pair in models]
    saved = np.mean([1 - n / pair[0].shape[1] for (_, n), pair in zip(looks, models, strict=True)])
    ours, all_of = [look.decided for look, _ in looks], [found_by_all(*pair) for pair in models]
    same = sum(a == b for a, b in zip(ours, all_of, strict=True))
    line = f"{len(models)} evaluations, saved {saved:.1%}, found {sum(ours)}, by all samples"
    line += f" {sum(all_of)}, same verdict {same}"
    if effect is not None:
        held = [abs(look.difference - effect) <= look.half_width for look, _ in looks]
        line += f", coverage {np.mean(held):.1%}"
    return line


def stored(folder: Path) -> Iterator[tuple[str, list[Models]]]:
    """Each benchmark of a study with all ordered pairs of its models."""
    paths = sorted(folder.glob("evaluate/*/*/samples_*.jsonl"))
    for name in sorted({path.name for path in paths}):
        sets = [read_samples(p, str(p), name, Warnings()) for p in paths if p.name == name]
        for n in sorted({one.num_samples for one in sets}):
            alike = [one for one in sets if one.num_samples == n]
            verdicts = [np.array([p.correct[:n] for p in one.problems]) for one in alike]
            shares = [one.accuracy_p for one in alike]
            pairs = itertools.permutations(range(len(alike)), 2)
            yield f"{folder.name} {name} n {n}", [(verdicts[a], shares[b]) for a, b in pairs]


def main() -> None:
    found: list[Models] = []
    for folder in sys.argv[1:]:
        for name, models in stored(Path(folder)):
            if models:
                print(f"{name}: {one_line(models, None)}")
                found += models
    if found:
        print(f"all: {one_line(found, None)}")
        return
    for count, n, mean, icc in SETTINGS:
        for effect in EFFECTS:
            rng = np.random.default_rng(0)
            models = [two_models(rng, (count, n), mean, icc, effect) for _ in range(1500)]
            print(f"{count} x {n}, mean {mean}, {icc}, {effect}: {one_line(models, effect)}")


if __name__ == "__main__":
    main()
