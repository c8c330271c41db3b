"""The last words of `make quickstart`: the scores, what other runs of it gave, and what differs.

    python -m megaladder.tools.quickstart.verdict runs/quickstart

Whole runs by the roundings of several processors stand in runs.yaml. Expected is where one run more
falls with 95 % by those of quickstart's seed: mean ± t · s · sqrt(1 + 1/n), Student's t with n − 1
degrees of freedom (the prediction interval of normal values), at least ± 1 point, in whole percents
outwards.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import t as student

RUNS = Path(__file__).parent / "runs.yaml"
TITLES = {"base": "random weights", "sft": "after SFT", "grpo": "after SFT and GRPO"}
BENCHMARK, METRIC = "arithmetic", "avg@4"
SEED = 42
# random weights had none of 800 answers right: at most 3 in 800 by the rule of three, rounded up
LUCK = (0.0, 0.01)
# around a single run, by eye
BY_EYE = {"moe": {"base": (0.0, 0.02), "sft": (0.1, 0.35), "grpo": (0.3, 0.65)}}
# whole runs that a range is taken from
FEWEST = 3


@dataclass(frozen=True, slots=True)
class Found:
    """A model's score in [0, 1], its 95 % interval over problems, mean tokens an answer."""

    score: float
    low: float
    high: float
    num_tokens: float


def expected_range(scores: Sequence[float]) -> tuple[float, float]:
    """Where one score more falls with 95 %, in [0, 1]; scores: of at least two whole runs.

    >>> expected_range([0.30, 0.32, 0.28, 0.31])
    (0.24, 0.37)
    """
    n = len(scores)
    half = max(student.ppf(0.975, n - 1) * statistics.stdev(scores) * math.sqrt(1 + 1 / n), 0.01)
    middle = statistics.fmean(scores)
    low, high = math.floor(100 * (middle - half)), math.ceil(100 * (middle + half))
    return max(low, 0) / 100, min(high, 100) / 100


def expected(kind: str) -> dict[str, tuple[float, float]]:
    """Model → range of its score by the runs of a kind: dense or moe."""
    runs: list[dict[str, Any]] = yaml.safe_load(RUNS.read_text(encoding="utf-8"))
    same = [run for run in runs if (run["kind"], run["seed"]) == (kind, SEED)]
    if len(same) < FEWEST:
        return BY_EYE.get(kind, {})
    trained = {name: expected_range([run[name] for run in same]) for name in ("sft", "grpo")}
    return {"base": LUCK, **trained}


def read_found(run: Path) -> dict[str, Found]:
    """Model → what its evaluation below `run` found."""
    found = {}
    for name in TITLES:
        summary = json.loads((run / "eval" / name / "summary.json").read_text(encoding="utf-8"))
        told = summary["benchmarks"][BENCHMARK]
        score, (low, high) = told["metrics"][METRIC], told["ci95"][METRIC]
        found[name] = Found(score, low, high, told["metrics"]["response_length"])
    return found


def verdict_lines(
    found: Mapping[str, Found], ranges: Mapping[str, tuple[float, float]]
) -> list[str]:
    """The table, and a last line that says "as expected" or what differs and how.

    ranges: of each model, or empty where they are not known."""
    lines = [f"{'':<19} {METRIC} over 200 unseen problems   expected     tokens an answer"]
    strange = []
    for name, one in found.items():
        least, most = ranges.get(name, (0.0, 1.0))
        shown = f"{one.score:6.1%} [{one.low:.1%}, {one.high:.1%}]"
        asked = f"{least:.0%} to {most:.0%}" if ranges else "not known"
        lines.append(f"{TITLES[name]:<19} {shown:<32} {asked:<13}{one.num_tokens:.0f}")
        if not least <= one.score <= most:
            side = f"below {least:.0%}" if one.score < least else f"above {most:.0%}"
            strange.append(f"{TITLES[name]} {one.score:.1%} is {side}")
    if not ranges:
        return [*lines, "no verdict: too few whole runs of this kind were measured"]
    return [*lines, f"not as expected: {'; '.join(strange)}" if strange else "as expected"]


def main(args: list[str]) -> int:
    run = Path(args[0])
    kind, page = ("moe", "docs/moe.md") if run.name.endswith("moe") else ("dense", "README.md")
    print(*verdict_lines(read_found(run), expected(kind)), sep="\n")
    print(f"in detail: {run}/report.html; what was measured before: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
