"""Our options, sampling parameters and completions in vLLM's words, and back. For the child."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from megaladder.config.rules.engine import room_for_rank

GIB = 1024**3
OUR_WORKER_EXTENSION = "megaladder.rollout.worker_extension.WorkerExtension"


def engine_arguments(options: Mapping[str, Any], on_cpu: bool, accepts: set[str]) -> dict[str, Any]:
    """Our options in vLLM's words.

    `accepts`: the names that its EngineArgs has; a wish it cannot grant is an error, not a silence.
    """
    given: dict[str, Any] = {
        "model": options["model"],
        "revision": options["revision"],
        "tokenizer": options["tokenizer"],
        "dtype": options["dtype"],
        "tensor_parallel_size": options["tp"],
        "max_model_len": options["max_model_len"],
        "seed": options["seed"],
        "trust_remote_code": options["trust_remote_code"],
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "enforce_eager": on_cpu if options["enforce_eager"] is None else options["enforce_eager"],
        "gpu_memory_utilization": options["gpu_memory_utilization"],
        "max_num_seqs": options["max_num_seqs"],
    }
    if on_cpu:
        given["kv_cache_memory_bytes"] = int(options["cpu_kv_cache_gib"] * GIB)
        # a seeded request whose prompt is cut in two kills the CPU worker ("does not use offset")
        given["enable_chunked_prefill"] = False
        del given["gpu_memory_utilization"]
    else:
        given["enable_sleep_mode"] = options["enable_sleep"] or None
        given["enable_return_routed_experts"] = options["routed_experts"] or None
    if options["lora_rank"] is not None:
        given |= {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": room_for_rank(options["lora_rank"]),
        }
    given["worker_extension_cls"] = OUR_WORKER_EXTENSION
    if options["weight_transfer"]:
        given["weight_transfer_config"] = {"backend": options["weight_transfer"]}
    given = {name: value for name, value in given.items() if value is not None}
    unknown = sorted(given.keys() - accepts)
    if unknown:
        raise TypeError(
            f"this vLLM takes no {', '.join(unknown)}; fix: the version that `megaladder doctor`"
            " names"
        )
    return given


def params_builder(vllm: Any) -> Any:
    """Returns a function from our parameters, a seed and whether text is told as it comes to vLLM's.

    Only the final output of a request is sent otherwise, as `LLM.generate` does it.
    """
    from vllm.sampling_params import RequestOutputKind

    def build(ours: dict[str, Any], seed: int | None, pieces: bool) -> Any:
        unknown = ("n", "logprobs", "seed", "routed_experts")
        theirs = {name: value for name, value in ours.items() if name not in unknown}
        theirs.update(stop=list(ours["stop"]), stop_token_ids=list(ours["stop_token_ids"]))
        return vllm.SamplingParams(
            **theirs,
            seed=seed,
            logprobs=0 if ours["logprobs"] else None,
            output_kind=(RequestOutputKind.CUMULATIVE if pieces else RequestOutputKind.FINAL_ONLY),
        )

    return build


def refusal_types() -> list[type[Exception]]:
    """What newer vLLMs raise, besides ValueError, for a request that they cannot take."""
    if find_spec("vllm.exceptions") is None:
        return []
    from vllm import exceptions

    return [
        getattr(exceptions, name)
        for name in ("VLLMClientError", "VLLMValidationError")
        if hasattr(exceptions, name)
    ]


def as_plain(output: Any) -> dict[str, Any]:
    """A finished completion for the wire."""
    ids = list(output.token_ids)
    chosen = (
        []
        if output.logprobs is None
        else [at[token].logprob for token, at in zip(ids, output.logprobs, strict=True)]
    )
    return {"ids": ids, "text": output.text, "finish": output.finish_reason, "logprobs": chosen}
