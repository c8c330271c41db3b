"""Recomputes every published number whose inputs are published.

With the package's own functions; prints `published | ours | ok`.

    python tools/reproduce_published.py > docs/published_numbers.md        # exit status 1 if one is
    off

Sources: Transferability (arXiv 2507.00432), s1 (2501.19393), the reasoning ladder (2504.11741),
Rethinking SFT (2604.06628), LIMO (2502.03387), Quagmires (2510.01624). "ok" means equal within the
rounding of the published figure. No model, no GPU, no network.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from megaladder.analysis.stats import spearman
from megaladder.analysis.studies.scaling import Setting, control, performance, scaling
from megaladder.analysis.studies.tiers import AIME24_TIERS
from megaladder.analysis.studies.trajectory import Point, classify
from megaladder.analysis.studies.transfer import gain_v1, gain_v2, shared_sigma, transferability
from megaladder.evaluation.metrics import pass_at_k

GROUPS = ("math", "other", "non")
# table 1 of v2: AIME24 AIME25 MATH500 Olympiad | GPQA LCB ACPBench HeadQA | CoQA MC-TACO IFEval
# HaluEval
TI_SCORES = {
    "Qwen3-14B-Base": ((13.0, 9.3, 60.4, 27.9), (42.6, 29.7, 10.7, 37.6), (10.0, 67.7, 69.2, 35.7)),
    "SFT-think": ((52.0, 37.0, 85.0, 25.0), (55.9, 21.9, 68.6, 34.8), (1.7, 38.2, 42.3, 2.3)),
    "SFT-no-think": ((16.0, 13.0, 77.2, 22.7), (48.7, 23.5, 69.3, 35.0), (5.3, 66.1, 41.4, 3.3)),
    "RL": ((55.7, 38.0, 87.8, 33.8), (57.7, 40.6, 65.4, 40.2), (28.2, 74.0, 70.0, 40.7)),
}
SIGMA_RATIOS = {"math": 1.0, "other": 1.136, "non": 1.275}
TI_PUBLISHED = {"SFT-think": (52.2, -104.1), "SFT-no-think": (165.4, -278.9), "RL": (82.3, 52.2)}
TI_V1 = {"SFT-think": (85.7, -41.2), "SFT-no-think": (741.5, -250.3), "RL": (83.9, 29.3)}
DI_SIGMA_1 = {
    "SFT-think": (3.7813, 2.1048, -4.4438),
    "SFT-no-think": (1.1163, 1.9674, -3.5160),
    "RL": (4.9648, 4.3530, 2.9271),
}
TI_SIGMA_PER_MODEL = {
    "SFT-think": (42.9, -148.5),
    "SFT-no-think": (96.7, -239.6),
    "RL": (71.0, 84.1),
}
AVERAGES = {
    "Qwen3-14B-Base": (27.7, 30.2, 45.7),
    "SFT-think": (49.8, 45.3, 21.1),
    "SFT-no-think": (32.3, 44.1, 29.0),
    "RL": (53.8, 51.0, 53.2),
}
S1_TOKENS = {"TCC": (7939, 7158, 8263, 7108, 7500), "TCC+BF": (1024, 2048, 4031, 5664, 6330)}
S1_CORRECT = {"TCC": (8, 9, 10, 10, 12), "TCC+BF": (1, 9, 10, 10, 12)}  # of 30
S1_BUDGETS = (1024, 2048, 4096, 8192, 16384)
S1_PUBLISHED = {"TCC": (40, -24, 40.0), "TCC+BF": (100, 13, 40.0)}
S1_AIME_OF_30 = ((11, 36.7), (8, 26.7), (10, 33.3), (16, 53.3), (15, 50.0), (17, 56.7))
STEPS = (0, 10, 20, 40, 80, 160, 320, 480, 640)
QWEN3_4B = {
    "MATH500": (70.8, 64.9, 62.9, 71.5, 77.1, 78.8, 86.3, 87.1, 86.2),
    "AIME24": (11.0, 9.0, 13.0, 15.3, 19.0, 22.3, 29.0, 27.3, 30.7),
}
# base, dip step, dip score, end
QWEN3_4B_ENDS = {"LCB": (20.6, 40, 14.5, 24.4), "IFEval": (49.2, 20, 33.0, 49.4)}
LIMO_TEN = (63.3, 95.6, 96.3, 67.6, 84.2, 91.1, 83.9, 76.2, 52.2, 70.7)


@dataclass(frozen=True)
class Check:
    """One line of the table.

    `tolerance` is half a unit of the published figure's last digit unless the note says otherwise.
    """

    what: str
    published: float | str
    ours: float | str
    tolerance: float = 0.0
    note: str = ""
    paper_off: bool = False  # the published figure does not follow from the published inputs

    @property
    def ok(self) -> bool:
        if isinstance(self.published, str) or isinstance(self.ours, str):
            return self.published == self.ours
        return abs(self.published - self.ours) <= self.tolerance + 1e-9


def scores_of(model: str) -> dict[str, np.ndarray]:
    return {group: np.array(values) for group, values in zip(GROUPS, TI_SCORES[model], strict=True)}


def transfer_checks() -> list[Check]:
    """Group averages, DI, and the index in both variants.

    Also with the σ that does not reproduce it."""
    base = scores_of("Qwen3-14B-Base")
    checks = []
    for model, published in AVERAGES.items():
        for group, value in zip(GROUPS, published, strict=True):
            note = (
                "the paper's own rows give 32.2"
                if (model, group) == ("SFT-no-think", "math")
                else ""
            )
            checks.append(
                Check(
                    f"group average, {model}, {group}",
                    value,
                    float(scores_of(model)[group].mean()),
                    0.05,
                    note,
                    bool(note),
                )
            )
    for model in TI_PUBLISHED:
        tuned = scores_of(model)
        for i, group in enumerate(GROUPS):
            checks.append(
                Check(
                    f"DI, σ = 1, {model}, {group}",
                    DI_SIGMA_1[model][i],
                    gain_v2(tuned[group], base[group], 1.0),
                    5e-5,
                )
            )
        v1, v2 = transferability(tuned, base, None), transferability(tuned, base, SIGMA_RATIOS)
        alone = transferability(tuned, base, shared_sigma(base, [tuned]))
        for i, name in enumerate(("other", "non")):
            ours = [getattr(result, f"ti_{name}") for result in (v1, v2, alone)]
            checks.append(Check(f"TI v1, {model}, {name}", TI_V1[model][i], ours[0], 0.05))
            checks.append(
                Check(
                    f"TI v2, {model}, {name}",
                    TI_PUBLISHED[model][i],
                    ours[1],
                    0.1,
                    "σ = 1, 1.136, 1.275, given to ±0.1",
                )
            )
            note = "σ from this model alone: not the published index, as stated"
            checks.append(
                Check(
                    f"TI v2, σ per model, {model}, {name}",
                    TI_SIGMA_PER_MODEL[model][i],
                    ours[2],
                    0.05,
                    note,
                )
            )
    assert gain_v1([1.0], [0.0]) is None
    return checks


def scaling_checks() -> list[Check]:
    """s1's three metrics, and accuracies that are multiples of 1/30."""
    checks = []
    for method, (control_pct, slope, best) in S1_PUBLISHED.items():
        settings = [
            Setting(tokens, 100 * correct / 30, instructed_max=budget)
            for tokens, correct, budget in zip(
                S1_TOKENS[method], S1_CORRECT[method], S1_BUDGETS, strict=True
            )
        ]
        checks.append(Check(f"s1 control, {method}, %", control_pct, control(settings), 0.5))
        checks.append(
            Check(
                f"s1 scaling, {method}", slope, scaling(settings), 0.5, "x = log2 tokens, all pairs"
            )
        )
        checks.append(Check(f"s1 performance, {method}, %", best, performance(settings), 0.05))
    checks += [
        Check(f"AIME24 {k} of 30, %", published, 100 * k / 30, 0.05)
        for k, published in S1_AIME_OF_30
    ]
    return checks


def pass_at_k_checks() -> list[Check]:
    rows = ((256, 4, 64, 0.686082), (64, 8, 1, 0.125), (8, 3, 2, 0.642857), (8, 6, 4, 1.0))
    return [
        Check(
            f"pass@{k}, {c} of {n} correct",
            published,
            float(pass_at_k(np.array([n]), np.array([c]), k)[0]),
            5e-7,
        )
        for n, c, k, published in rows
    ]


def ladder_checks() -> list[Check]:
    ids = [number for numbers in AIME24_TIERS.values() for number in numbers]
    sizes = "/".join(str(len(numbers)) for numbers in AIME24_TIERS.values())
    return [
        Check("AIME24 tier sizes, easy/medium/hard/exhard", "4/10/12/4", sizes),
        Check(
            "AIME24 tiers partition ids 60–89",
            "yes",
            "yes" if sorted(ids) == list(range(60, 90)) else "no",
        ),
    ]


def trajectory_checks() -> list[Check]:
    """Class and place of the dip of the published curves."""
    checks = []
    for name, scores in QWEN3_4B.items():
        found = classify(
            [Point(step, score) for step, score in zip(STEPS, scores, strict=True)], 1.0
        )
        checks.append(Check(f"Qwen3-4B trajectory, {name}", "dip-and-recovery", found.kind))
        checks.append(
            Check(f"Qwen3-4B dip at step, {name}", 20 if name == "MATH500" else 10, found.dip_step)
        )
    for name, (base, step, dip, end) in QWEN3_4B_ENDS.items():
        found = classify([Point(0, base), Point(step, dip), Point(640, end)], 1.0)
        checks.append(Check(f"Qwen3-4B trajectory, {name}", "dip-and-recovery", found.kind))
    return checks


def step_checks() -> list[Check]:
    """Step arithmetic of Rethinking SFT, by the loader and the schedule that train."""
    from megaladder.config.sections.shared import OptimSection
    from megaladder.data.loader import SftLoader
    from megaladder.train.schedule import build_schedule

    loader, small = SftLoader(range(20480), 256, 42, None), SftLoader(range(2560), 32, 42, None)
    return [
        Check("steps per epoch, 20,480 rows / 256", 80, loader.steps_per_epoch),
        Check("steps, 8 epochs", 640, loader.total_steps(8)),
        Check("steps, 16 epochs", 1280, loader.total_steps(16)),
        Check(
            "steps, 2,560 rows / 32, 8 epochs",
            640,
            small.total_steps(8),
            note="the equal-budget run",
        ),
        Check(
            "steps, 20,480 rows / 32, 1 epoch",
            640,
            SftLoader(range(20480), 32, 42, None).total_steps(1),
            note="the equal-budget run",
        ),
        Check(
            "warm-up steps, 10 % of 640",
            64,
            build_schedule(OptimSection(warmup_ratio=0.1), 640).warmup_steps,
        ),
    ]


def other_checks() -> list[Check]:
    flip = spearman(np.array([32.51, 36.61]), np.array([42.57, 41.63]))
    return [
        Check("LIMO, mean of the ten benchmarks", 78.1, math.fsum(LIMO_TEN) / 10, 0.05),
        Check("Quagmires, Mistral 25k: Spearman of SFT and post-RL score (rank flip)", -1.0, flip),
    ]


def all_checks() -> list[Check]:
    """Every line of the table, in order."""
    parts = (
        transfer_checks,
        scaling_checks,
        pass_at_k_checks,
        ladder_checks,
        trajectory_checks,
        step_checks,
        other_checks,
    )
    return [check for part in parts for check in part()]


def show(value: float | str, other: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:g}" if value is other or float(value).is_integer() else f"{value:.6g}"


def main() -> int:
    checks = all_checks()
    good, off = (
        sum(check.ok for check in checks),
        sum(check.paper_off and not check.ok for check in checks),
    )
    print("# Published numbers, recomputed\n")
    print(
        "Written by `python tools/reproduce_published.py`. Inputs are the papers' own tables; the"
        " functions are the package's.\n"
    )
    print(
        f"{good} of {len(checks)} agree within the rounding of the published figure; {off} cannot"
        " (note).\n"
    )
    print("| number | published | ours | ok | note |\n|---|---|---|---|---|")
    for check in checks:
        verdict = "yes" if check.ok else "paper" if check.paper_off else "**no**"
        print(
            f"| {check.what} | {show(check.published, check.published)} |"
            f" {show(check.ours, check.published)} | {verdict} | {check.note} |"
        )
    return 0 if good + off == len(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
