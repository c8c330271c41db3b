"""Peak memory of real steps against what `plan` says, by recompute mode, depth and length.

On a CPU: against the resident set, which also holds Python, libraries and the allocator's
leftovers, so only the path is rehearsed there.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from megaladder import parallel, platform
from megaladder.parallel import Layout
from megaladder.tools.acceptance.context import Context
from megaladder.tools.acceptance.step_bench import Work, measure, slice_of


def run(context: Context) -> dict[str, Any]:
    """Each case measured, next to what `plan` says of it."""
    parallel.initialize(Layout())
    rows: list[dict[str, Any]] = []
    for work in _cases(context):
        if context.seconds_left() < 30:
            rows.append({**_key(work), "not_run": "no time left in this stage; fix: run it again"})
            continue
        try:
            rows.append(context.case(str(_key(work)), partial(_row, work)))
        except torch.OutOfMemoryError as error:
            rows.append(
                {
                    **_key(work),
                    "not_run": f"out of memory: {str(error).splitlines()[0]}",
                    "planned_bytes": _planned(work),
                }
            )
        gc.collect()
        platform.release_memory()
    parallel.shutdown()
    errors = [abs(row["relative_error"]) for row in rows if row.get("relative_error") is not None]
    return {
        "rows": rows,
        "worst_relative_error": max(errors, default=None) if context.on_cuda else None,
        "plan": "megaladder.plan.memory" if find_spec("megaladder.plan") else "plan not available",
    }


def _cases(context: Context) -> list[Work]:
    short = {"warmup": 1, "steps": 2, "profile_steps": 0, "micro_batches": 1}
    if context.tiny:
        base = Work(
            shape="tiny", layers=4, sequence=64, micro_batch_tokens=256, precision="fp32", **short
        )
        return [base, replace(base, recompute="full")]
    base = Work(layers=8, **short)
    cases = [replace(base, recompute=mode) for mode in ("none", "selective", "full")]
    long = replace(base, sequence=32_768, micro_batch_tokens=32_768, recompute="full")
    fp8 = [replace(base, fp8="tensorwise"), replace(base, fp8="blockwise", recompute="full")]
    return [*cases, replace(base, layers=4), replace(base, micro_batch_tokens=16_384), long, *fp8]


def _key(work: Work) -> dict[str, Any]:
    return {
        name: getattr(work, name)
        for name in (
            "shape",
            "layers",
            "sequence",
            "micro_batch_tokens",
            "precision",
            "fp8",
            "recompute",
        )
    }


def _row(work: Work) -> dict[str, Any]:
    measured, planned = measure(work)["memory_peak_bytes"], _planned(work)
    return {
        **_key(work),
        "measured_bytes": measured,
        "planned_bytes": planned,
        "relative_error": planned / measured - 1 if planned else None,
    }


def _planned(work: Work) -> int | None:
    """`plan`'s total without its reserve for framework and fragmentation.

    The allocator's peak holds neither."""
    if not find_spec("megaladder.plan"):
        return None
    from megaladder.plan.layout import PlannedLayout
    from megaladder.plan.layout import Work as PlanWork
    from megaladder.plan.memory import estimate_memory

    shape = slice_of(work.shape, work.layers)
    plan_work = PlanWork(
        seq_length=work.micro_batch_tokens,
        global_batch_size=work.micro_batches,
        sample_length=work.sequence,
        precision="fp8" if work.fp8 else work.precision,
    )
    estimate = estimate_memory(shape, PlannedLayout(recompute=work.recompute), plan_work)
    return estimate.total - estimate.reserve
