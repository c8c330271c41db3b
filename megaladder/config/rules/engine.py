"""Rules of the engine outside training, for `eval` and `data sample`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from megaladder.config.rules.unread import ReadIf
from megaladder.config.sections.engine import EngineSection
from megaladder.errors import ConfigError


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

# vLLM 0.32's attention on a CPU: get_supported_head_sizes of vllm/v1/attention/backends/cpu_attn.py
VLLM_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)

# vLLM 0.32's MaxLoRARanks from 8 on
VLLM_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def head_size_problem(raw: Mapping[str, Any]) -> str | None:
    """Why the vLLM that is installed cannot run a config.json's attention heads, or None."""
    hidden, heads = raw.get("hidden_size"), raw.get("num_attention_heads")
    size = raw.get("head_dim") or (hidden // heads if hidden and heads else None)
    if size is None or size in VLLM_CPU_HEAD_SIZES or not vllm_is_for_cpu():
        return None
    return (
        "vLLM on a CPU computes attention heads of"
        f" {', '.join(map(str, VLLM_CPU_HEAD_SIZES))} values, this model's have {size}; fix: another"
        " head_dim (make_tiny_model: hidden / heads), or a GPU"
    )


def routing_problem(tp: int) -> str | None:
    """Why the vLLM that is installed cannot tell its choices of experts at `tp`, or None."""
    if tp == 1 or not vllm_is_for_cpu():
        return None
    return (
        f"rollout.tp {tp}: vLLM on several CPU processes does not tell which experts it chose; fix:"
        " rollout.tp 1, or grpo.router_replay none"
    )


def room_for_rank(rank: int) -> int:
    """The rank that vLLM is to make room for, so that it takes adapters of `rank`.

    Raises:
        ConfigError: it takes none so large.
    """
    if rank > VLLM_LORA_RANKS[-1]:
        raise ConfigError(
            f"adapters of rank {rank}: vLLM takes up to {VLLM_LORA_RANKS[-1]}; fix: a smaller"
            " lora.rank, or sync file, which sends the merged model"
        )
    return min(room for room in VLLM_LORA_RANKS if room >= rank)


def vllm_is_for_cpu() -> bool:
    """Whether the vLLM that is installed is the one for CPUs."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True
