"""A short GRPO run from the SFT model: reward by step, where a step's time goes, tokens per second.

In FP8 too where there is a GPU."""

from __future__ import annotations

import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megaladder import platform
from megaladder.capabilities import fp8_problem
from megaladder.tools.acceptance.context import Context, StageSkipped
from megaladder.tools.acceptance.stages.rollout import grpo_overrides
from megaladder.tools.acceptance.stages.sft import exported


def run(context: Context) -> dict[str, Any]:
    """Reward, phases and rate of a run for each precision."""
    model, steps = exported(context), 3 if context.tiny else 10
    if find_spec("vllm") is None:
        raise StageSkipped(
            "vLLM is not installed; fix: unpack the kit's vllm parts (tools/gpu_acceptance.py"
            " --kit)"
        )
    if model is None:
        raise StageSkipped("there is no exported SFT model; fix: run the stage sft_curves first")
    figures: dict[str, Any] = {"steps": steps, "runs": {}, "not_run": {}}
    recipes = ("bf16", "tensorwise") if context.on_cuda else ("bf16",)
    for recipe in recipes:
        problem = None if recipe == "bf16" else fp8_problem(recipe, platform.machine())
        if problem:
            figures["not_run"][recipe] = problem
            continue
        figures["runs"][recipe] = context.case(recipe, partial(_run, context, model, recipe, steps))
    return figures


def _run(context: Context, model: Path, recipe: str, steps: int) -> dict[str, Any]:
    folder = context.work / f"grpo_{recipe}"
    shutil.rmtree(folder, ignore_errors=True)
    context.megaladder(
        f"grpo_{recipe}",
        "grpo",
        **grpo_overrides(context, model, folder, steps),
        optim__lr=1e-6 if not context.tiny else 1e-4,
        train__fp8=None if recipe == "bf16" else recipe,
    )
    return _summary(context.metrics(folder))


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    phases = sorted(
        {key for row in rows for key in row if key.endswith("_s") and isinstance(row[key], float)}
        - {"tokens_per_s", "step_s"}
    )
    later = rows[1:] or rows  # the first step compiles and fills caches
    return {
        "reward": [row["reward"] for row in rows],
        "loss": [row["loss"] for row in rows],
        "mismatch_mean": [row.get("mismatch_mean") for row in rows],
        "step_s": sorted(row["step_s"] for row in later)[len(later) // 2],
        "phases_s": {
            name: sum(row.get(name, 0.0) for row in later) / len(later) for name in phases
        },
        "tokens_per_s": sum(row["tokens"] for row in later) / sum(row["step_s"] for row in later),
    }
