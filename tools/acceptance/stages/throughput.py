"""Step time, tokens/s, TFLOP/s, MFU, memory and phases of real Qwen3-14B layers on one GPU.

40 layers by extrapolation, said as such."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from megaladder import parallel, platform
from megaladder.capabilities import fp8_problem
from megaladder.parallel import Layout
from megaladder.plan.layout import PlannedLayout
from megaladder.plan.layout import Work as PlannedWork
from megaladder.plan.memory import estimate_memory
from megaladder.tools.acceptance.context import Context, StageSkipped
from megaladder.tools.acceptance.step_bench import (
    Work,
    deepest_that_fits,
    extrapolate,
    measure,
    slice_of,
)

RECIPES = ("tensorwise", "blockwise", "delayed")


def run(context: Context) -> dict[str, Any]:
    """The bf16 slice, or FP8 recipes at the same depths."""
    parallel.initialize(Layout())
    figures = _bf16(context) if context.stage == "throughput_bf16" else _fp8(context)
    parallel.shutdown()
    return figures


def _work(context: Context) -> Work:
    if context.tiny:
        return Work(
            shape="tiny",
            layers=4,
            sequence=64,
            micro_batch_tokens=128,
            micro_batches=2,
            precision="fp32",
            warmup=1,
            steps=3,
        )
    # four timed steps differed by 0.3 % in bf16 and 1 % in FP8 (28 November 2026)
    return Work(warmup=2, steps=4, profile_steps=1)


def _bf16(context: Context) -> dict[str, Any]:
    work = _work(context)
    candidates = [4] if context.tiny else list(range(20, 3, -2))
    if not context.tiny and platform.machine().te_problem:
        raise StageSkipped(f"Transformer Engine: {platform.machine().te_problem}")
    found = context.case("deepest", lambda: _deepest(work, candidates))
    deepest, too_deep = found["slice"], found["too_deep"]
    platform.release_memory()
    half = replace(work, layers=max(1, deepest["layers"] // 2))
    shallow = context.case("half", lambda: measure(half))
    full = 40 if not context.tiny else 8
    return {
        "slice": deepest,
        "half": shallow,
        "layers_that_did_not_fit": too_deep,
        "extrapolated": extrapolate(shallow, deepest, full),
        "note": _note(deepest, full),
    }


def _deepest(work: Work, candidates: list[int]) -> dict[str, Any]:
    deepest, too_deep = deepest_that_fits(work, _start_from(candidates, work))
    return {"slice": deepest, "too_deep": too_deep}


def _start_from(candidates: list[int], work: Work) -> list[int]:
    """Leaves out depths that `plan` says exceed the device, activations included."""
    if not platform.has_cuda():
        return candidates
    memory = torch.cuda.get_device_properties(0).total_memory
    return [
        layers for layers in candidates if _planned_bytes(work, layers) < 0.97 * memory
    ] or candidates[-1:]


def _planned_bytes(work: Work, layers: int) -> int:
    planned = PlannedWork(work.micro_batch_tokens, work.micro_batches, sample_length=work.sequence)
    return estimate_memory(slice_of(work.shape, layers), PlannedLayout(), planned).total


def _note(deepest: dict[str, Any], full: int) -> str:
    return (
        f"{deepest['layers']} of {full} layers measured on one device; the {full}-layer figures are"
        " extrapolated from two depths and hold no communication; targets are judged on them"
    )


def _fp8(context: Context) -> dict[str, Any]:
    before = context.figures_of("throughput_bf16")
    if not before:
        raise StageSkipped(
            "it compares with throughput_bf16, which has no figures yet; fix: run that stage first"
        )
    base, half, work = before["slice"], before["half"], _work(context)
    machine, recipes, not_run = platform.machine(), {}, {}
    for recipe in RECIPES if context.on_cuda else ("fp32 again",):
        problem = fp8_problem(recipe, machine) if context.on_cuda else None
        if problem or context.seconds_left() < 60:
            not_run[recipe] = problem or "no time left in this stage; fix: run it again"
            continue
        wanted = replace(work, fp8=recipe if context.on_cuda else None)
        deep = context.case(recipe, partial(measure, replace(wanted, layers=base["layers"])))
        platform.release_memory()
        shallow = context.case(
            f"{recipe}, half", partial(measure, replace(wanted, layers=half["layers"]))
        )
        platform.release_memory()
        whole = extrapolate(shallow, deep, before["extrapolated"]["layers"])
        recipes[recipe] = {
            "slice": deep,
            "half": shallow,
            "extrapolated": whole,
            "slice_speedup": base["step_s"] / deep["step_s"],
            "speedup": before["extrapolated"]["step_s"] / whole["step_s"],
        }
    if not recipes:
        raise StageSkipped("; ".join(f"{name}: {why}" for name, why in not_run.items()))
    best = max(recipes, key=lambda name: recipes[name]["speedup"])
    return {
        "recipes": recipes,
        "not_run": not_run,
        "best": best,
        "speedup": recipes[best]["speedup"],
        "extrapolated": recipes[best]["extrapolated"],
        "note": before["note"],
    }
