"""Fits the few numbers of `megaladder plan` to published figures, and writes docs/plan.md.

Predicted, published, error.

    python tools/study/calibrate_plan.py --write     # megaladder/plan/calibration.yaml and
    docs/plan.md python tools/study/calibrate_plan.py --doc       # docs/plan.md from the
    calibration.yaml that is there
    python tools/study/calibrate_plan.py             # the summary only

Least squares of log(predicted / published) over the tuned and measured rows of published_runs.yaml
(one configuration counts once, however many releases measured it), with a prior on every number: a
handful of figures cannot settle nine numbers alone, so each is held near what is known of it unless
the figures speak against it. Untuned rows are never seen by the fit. How well it predicts what it
has not seen: each source in turn is left out, and predicted by what the others say.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from megaladder.plan.experts import ExpertCalibration, expert_calibration  # noqa: E402
from megaladder.plan.grpo import GrpoCalibration, grpo_calibration  # noqa: E402
from megaladder.plan.throughput import Calibration, calibration  # noqa: E402
from megaladder.run_dir import atomic_write  # noqa: E402
from megaladder.tools.study import published_runs as published  # noqa: E402
from megaladder.tools.study.plan_page import page  # noqa: E402

# a published figure is repeated within about 6 %: the releases of one configuration differ by as
# much
FIGURE_SPREAD = 0.06
PRIOR_SPREAD = 0.5  # of a prior, in logit (shares) or logarithm (the rest)
PRIORS: dict[str, tuple[float, str]] = {
    "gemm_bf16": (0.85, "shapes of a model reach less than the best shape of a benchmark"),
    "gemm_fp8": (0.85, "the same"),
    "attention": (
        0.6,
        "backward reaches less than forward: 500–560 of 740 TFLOP/s, arXiv 2407.08608 fig. 6",
    ),
    "memory": (0.8, "what well-written element-wise kernels reach"),
    "link": (0.75, "NCCL bus bandwidth over the link's, large messages"),
    "overlap": (0.7, "most of it hides; the first and last buckets cannot"),
    "tp_overlap": (0.65, "pipelined products and collectives; Transformer Engine user buffers"),
    "layer_overhead_s": (4.0e-5, "about 60 kernels a layer, forward and backward"),
    "eager": (2.5, "each operation reads and writes its tensors"),
}
GRPO_PRIORS: dict[str, tuple[float, str]] = {
    "decode_memory": (0.7, "weights and paged keys read by small kernels"),
    "decode_step_s": (0.004, "scheduler, sampler, graph launch"),
    "tail": (3.0, "the longest of thousands of completions over their mean"),
    "update": (1.1, "uneven packed rows"),
    "round_s": (10.0, "grading tail, sleep and wake, data through the controller"),
}
EXPERT_PRIORS: dict[str, tuple[float, str]] = {
    "grouped": (0.75, "many small products in one launch, tiles that their tokens do not fill"),
    "all_to_all": (0.6, "many small messages: less than a ring's"),
    "host_s": (8e-3, "some hundred kernels a layer from Python, and a wait for counts"),
    "overlap_host": (1.3, "two micro-batches' kernels are started in pieces"),
}
DECODE_PRIORS: dict[str, tuple[float, str]] = {
    "decode_layer_s": (1e-4, "about ten more kernels a layer than a dense one, in CUDA graphs")
}
SHARES = {
    "grouped",
    "all_to_all",
    "gemm_bf16",
    "gemm_fp8",
    "attention",
    "memory",
    "link",
    "overlap",
    "tp_overlap",
    "decode_memory",
}


def fit(
    priors: dict[str, tuple[float, str]], residuals: Callable[[dict[str, float]], list[float]]
) -> dict[str, float]:
    """The numbers with the largest posterior.

    Residuals in units of FIGURE_SPREAD, priors in units of PRIOR_SPREAD."""
    names = list(priors)
    start = np.array([_free(name, priors[name][0]) for name in names])

    def vector(free: np.ndarray) -> np.ndarray:
        numbers = {name: _bound(name, value) for name, value in zip(names, free, strict=True)}
        return np.concatenate(
            [np.array(residuals(numbers)) / FIGURE_SPREAD, (free - start) / PRIOR_SPREAD]
        )

    found = least_squares(vector, start).x
    return {
        name: float(f"{_bound(name, value):.4g}") for name, value in zip(names, found, strict=True)
    }


def _free(name: str, value: float) -> float:
    return math.log(value / (1 - value)) if name in SHARES else math.log(value)


def _bound(name: str, value: float) -> float:
    return 1 / (1 + math.exp(-value)) if name in SHARES else math.exp(value)


def fit_training() -> Calibration:
    """From every tuned figure and our own measurements."""
    return fit_runs(published.calibrating_runs())


def fit_experts(runs: list[published.Run]) -> ExpertCalibration:
    """The numbers of experts from these runs, with everything else as in calibration.yaml.

    What decoding takes for them comes from the calibrating GRPO rounds."""
    releases = Counter(run.group for run in runs)

    def of_steps(numbers: dict[str, float]) -> list[float]:
        fitted = ExpertCalibration(**numbers, decode_layer_s=0.0)
        return [
            math.log(run.predict(experts=fitted) / run.value) / math.sqrt(releases[run.group])
            for run in runs
        ]

    steps = fit(EXPERT_PRIORS, of_steps)
    rounds = [
        run for run, role in published.split(published.expert_rounds()) if role == "calibration"
    ]

    def of_rounds(numbers: dict[str, float]) -> list[float]:
        fitted = ExpertCalibration(**steps, **numbers)
        return [math.log(run.predict(experts=fitted) / run.value) for run in rounds]

    return ExpertCalibration(**steps, **fit(DECODE_PRIORS, of_rounds))


def experts_without_their_source() -> list[published.Comparison]:
    """Every training figure of experts, predicted by what the other sources say of them."""
    runs = published.calibrating_expert_runs()
    found = []
    for family in sorted({run.family for run in runs}):
        fitted = fit_experts([run for run in runs if run.family != family])
        found += [run.compare("held out", None, fitted) for run in runs if run.family == family]
    return found


def without_their_source() -> list[published.Comparison]:
    """Every calibrating figure, predicted by numbers that were fitted to the other sources only."""
    runs = published.calibrating_runs()
    found = []
    for family in sorted({run.family for run in runs}):
        fitted = fit_runs([run for run in runs if run.family != family])
        found += [run.compare("held out", fitted) for run in runs if run.family == family]
    return found


def fit_runs(runs: list[published.Run]) -> Calibration:
    """The numbers from these runs; each configuration weighs one figure."""
    releases = Counter(run.group for run in runs)

    def residuals(numbers: dict[str, float]) -> list[float]:
        fitted = Calibration(**numbers)
        return [
            math.log(run.predict(fitted) / run.value) / math.sqrt(releases[run.group])
            for run in runs
        ]

    return Calibration(**fit(PRIORS, residuals))


def fit_grpo() -> GrpoCalibration:
    """From the calibrating rounds, with the training numbers as they are in calibration.yaml."""
    groups = published.calibrating([run.id for run in published.round_runs()])
    runs = [run for run in published.round_runs() if run.id in groups]

    def residuals(numbers: dict[str, float]) -> list[float]:
        fitted = GrpoCalibration(**numbers)
        return [math.log(run.predict(fitted) / run.value) for run in runs]

    return GrpoCalibration(**fit(GRPO_PRIORS, residuals))


def calibration_text(
    training: Calibration, experts: ExpertCalibration, grpo: GrpoCalibration
) -> str:
    """calibration.yaml."""
    lines = [
        "# Written by tools/study/calibrate_plan.py. What each number is: Calibration in"
        " throughput.py, ExpertCalibration in experts.py, GrpoCalibration in grpo.py."
    ]
    sections = (
        ("training", training, PRIORS),
        ("experts", experts, EXPERT_PRIORS | DECODE_PRIORS),
        ("grpo", grpo, GRPO_PRIORS),
    )
    for section, numbers, priors in sections:
        lines += [f"{section}:", *(f"  {name}: {getattr(numbers, name):g}" for name in priors)]
    return "\n".join(lines) + "\n"


def refit(path: Path) -> None:
    """Writes calibration.yaml: dense numbers first, rounds by them, experts by both."""
    training, experts, grpo = fit_training(), expert_calibration(), grpo_calibration()
    _write(path, training, experts, grpo)
    grpo = fit_grpo()
    _write(path, training, experts, grpo)
    _write(path, training, fit_experts(published.calibrating_expert_runs()), grpo)


def _write(
    path: Path, training: Calibration, experts: ExpertCalibration, grpo: GrpoCalibration
) -> None:
    atomic_write(path, calibration_text(training, experts, grpo))
    for cached in (calibration, expert_calibration, grpo_calibration):
        cached.cache_clear()


def the_page(
    blind: Sequence[published.Comparison], blind_experts: Sequence[published.Comparison]
) -> str:
    """The text of docs/plan.md with the present calibration.yaml."""
    return page(PRIORS | EXPERT_PRIORS | DECODE_PRIORS | GRPO_PRIORS, blind, blind_experts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--write", action="store_true", help="refit; write calibration.yaml and docs/plan.md"
    )
    parser.add_argument(
        "--doc", action="store_true", help="write docs/plan.md with the present calibration.yaml"
    )
    args = parser.parse_args(argv)
    if args.write:
        refit(ROOT / "megaladder" / "plan" / "calibration.yaml")
    blind, blind_experts = without_their_source(), experts_without_their_source()
    if args.write or args.doc:
        atomic_write(ROOT / "docs" / "plan.md", the_page(blind, blind_experts))
    for name, rows in (
        ("training", [*published.training_comparisons(), *blind]),
        ("GRPO", published.round_comparisons()),
        ("experts", [*published.expert_comparisons(), *blind_experts]),
        ("experts' GRPO", published.expert_round_comparisons()),
    ):
        for role in ("calibration", "held out", "untuned"):
            chosen = [row for row in rows if row.role == role]
            if chosen:
                middle, largest = published.summary(chosen)
                print(
                    f"{name:<13} {role:<12} {len(chosen):>3} figures: median error {middle:.1%},"
                    f" largest {largest:.1%}"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
