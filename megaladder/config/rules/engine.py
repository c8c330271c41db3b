"""Rules of the engine outside training, for `eval` and `data sample`."""

from __future__ import annotations

from typing import Protocol

from megaladder.config.rules.unread import ReadIf
from megaladder.config.sections.engine import EngineSection


class HasEngine(Protocol):
    """A configuration with an engine."""

    @property
    def rollout(self) -> EngineSection: ...


READ_BY_VLLM: tuple[ReadIf[HasEngine], ...] = (
    ReadIf(
        (
            "rollout.tp",
            "rollout.replicas",
            "rollout.dtype",
            "rollout.max_model_len",
            "rollout.max_num_seqs",
            "rollout.gpu_memory_utilization",
            "rollout.cpu_kv_cache_gib",
            "rollout.cpu_threads",
            "rollout.timeout_s",
        ),
        lambda run: run.rollout.engine == "vllm",
        "rollout.engine vllm",
    ),
)
