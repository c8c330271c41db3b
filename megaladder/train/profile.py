"""Profiles of chosen steps (train.profile_steps).

A torch trace per step, or ranges for Nsight Systems.

    train.profiler torch   run_dir/profile/step_12_rank_0.json.gz, for ui.perfetto.dev; works on a
    CPU too
    train.profiler nsys    nsys profile --capture-range=cudaProfilerApi --capture-range-end=repeat
                           -t cuda,nvtx megaladder sft …

Steps that are not chosen cost one comparison. A profiled step is slower: leave it out of throughput
figures. Not here: memory snapshots.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from megatron.core.utils import configure_nvtx_profiling

from megaladder import platform
from megaladder.config.sections.shared import TrainSection


class StepProfiler:
    """Captures the steps that a run's `train` section names, on the ranks that it names."""

    def __init__(self, section: TrainSection, folder: Path, rank: int) -> None:
        self._steps = (
            frozenset(section.profile_steps) if rank in section.profile_ranks else frozenset()
        )
        self._kind, self._folder, self._rank = section.profiler, folder, rank
        self._active = False

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Captures everything that a chosen step does on the device.

        A second capture of a step (GRPO's mini-batches) gets a file of its own.
        """
        if step not in self._steps:
            yield
            return
        self._active = True
        with self._torch(step) if self._kind == "torch" else self._nsys(step):
            yield
            platform.synchronize()
        self._active = False

    def phase(self, name: str) -> AbstractContextManager[Any]:
        """A named range inside a captured step."""
        if not self._active:
            return nullcontext()
        return (
            torch.profiler.record_function(name)
            if self._kind == "torch"
            else platform.nvtx_range(name)
        )

    @contextmanager
    def _torch(self, step: int) -> Iterator[None]:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if platform.has_cuda():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(
            activities=activities, record_shapes=True, profile_memory=True
        ) as recorded:
            yield
        self._folder.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(self._free_name(step)))

    def _free_name(self, step: int) -> Path:
        names = (
            self._folder / f"step_{step}{suffix}_rank_{self._rank}.json.gz"
            for suffix in ("", *(f"_{n}" for n in range(2, 10**6)))
        )
        return next(path for path in names if not path.exists())

    @contextmanager
    def _nsys(self, step: int) -> Iterator[None]:
        configure_nvtx_profiling(True)  # megatron-core's own ranges: attention, MLP, …
        with platform.nsys_capture(f"step {step}"):
            yield
        configure_nvtx_profiling(False)
