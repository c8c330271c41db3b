"""What a restart in the same run folder may change.

One table over every key, and the comparison. Pure; no torch.

MUST_MATCH: the run would no longer be the same experiment, or the data position would point
elsewhere. MAY_CHANGE: allowed and logged. IGNORED: does not touch the numbers. A key that is not
classified fails a test (tests/config/test_resume_table.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class Resume(StrEnum):
    """How a key is treated when a run continues."""

    MUST_MATCH = "must_match"
    MAY_CHANGE = "may_change"
    IGNORED = "ignored"


_CLASSES: dict[Resume, tuple[str, ...]] = {
    Resume.MUST_MATCH: (
        "model.path",
        "model.revision",
        "model.tokenizer",
        "model.chat_template",
        "model.chat_template_kwargs",
        "model.template_date",
        "data.path",
        "data.format",
        "data.config",
        "data.split",
        "data.revision",
        "data.mixture",
        "data.fields",
        "data.duplicates",
        "data.seq_length",
        "data.truncation",
        "data.order",
        "data.holdout",
        "data.on_bad_row",
        "data.response_template",
        "data.reasoning",
        "data.system_prompt",
        "data.s1_teacher",
        "train.global_batch_size",
        "train.loss",
        "train.precision",
        "train.seed",
        "lora.rank",
        "lora.alpha",
        "lora.targets",
        "lora.rslora",
        "lora.start",
        "rollout.n",
        "rollout.max_tokens",
        "rollout.max_prompt_tokens",
        "rollout.prompt_suffix",
        "grpo.prompts_per_step",
        "grpo.mode",
        "grpo.policy_loss",
        "grpo.ratio",
        "grpo.baseline",
        "grpo.std",
        "grpo.aggregation",
        "grpo.kl",
        "grpo.reference",
        "reward.kind",
        "reward.extract",
    ),
    Resume.MAY_CHANGE: (
        "data.packing",
        "parallel.tp",
        "parallel.pp",
        "parallel.vpp",
        "parallel.cp",
        "parallel.ep",
        "parallel.etp",
        "parallel.sequence_parallel",
        "parallel.ranks",
        "train.micro_batch_size",
        "train.epochs",
        "train.max_steps",
        "train.clip_ratio_low",
        "train.clip_ratio_high",
        "train.fp8",
        "train.recompute",
        "train.recompute_modules",
        "train.logits",
        "train.eval_every",
        "train.nonfinite_limit",
        "gpu.fp8_format",
        "gpu.first_last_layers_bf16",
        "gpu.num_layers_at_start_in_bf16",
        "gpu.num_layers_at_end_in_bf16",
        "gpu.fp8_param_gather",
        "gpu.fp8_amax_history_len",
        "gpu.fp8_amax_compute_algo",
        "gpu.cp_comm_type",
        "gpu.precision_aware_optimizer",
        "gpu.main_params_dtype",
        "gpu.exp_avg_dtype",
        "gpu.exp_avg_sq_dtype",
        "moe.aux_loss",
        "moe.aux_loss_coef",
        "moe.z_loss_coef",
        "moe.bias_update_rate",
        "optim.lr",
        "optim.min_lr",
        "optim.betas",
        "optim.eps",
        "optim.weight_decay",
        "optim.clip_grad",
        "optim.schedule",
        "optim.warmup_ratio",
        "optim.warmup_steps",
        "optim.wsd_decay_ratio",
        "checkpoint.every",
        "checkpoint.keep_last",
        "checkpoint.keep_steps",
        "checkpoint.keep_best",
        "checkpoint.export_hf",
        "lora.merged_export",
        "rollout.engine",
        "rollout.tp",
        "rollout.temperature",
        "rollout.top_p",
        "rollout.top_k",
        "rollout.sync",
        "rollout.replay_dir",
        "rollout.servers",
        "grpo.preset",
        "grpo.mini_batches",
        "grpo.lag",
        "grpo.clip_low",
        "grpo.clip_high",
        "grpo.dual_clip",
        "grpo.kl_coef",
        "grpo.kl_importance_weight",
        "grpo.entropy_coef",
        "grpo.correction",
        "grpo.correction_low",
        "grpo.correction_high",
        "grpo.off_policy_mask",
        "grpo.router_replay",
        "grpo.recompute_old_logprobs",
        "grpo.dynamic_sampling",
        "grpo.max_resamples",
        "grpo.filter_truncated",
        "grpo.mismatch_limit",
        "grpo.skip_zero_advantage",
        "reward.terms",
        "evaluate.benchmarks",
        "evaluate.every",
        "evaluate.limit",
        "evaluate.n",
        "evaluate.temperature",
        "evaluate.top_p",
        "evaluate.top_k",
        "evaluate.max_tokens",
        "evaluate.seed",
        "evaluate.prompt.style",
        "evaluate.prompt.system",
        "evaluate.prompt.suffix",
        "evaluate.prompt.template",
        "evaluate.keep_best",
        "evaluate.patience",
        "evaluate.min_delta",
        "evaluate.engine",
        "evaluate.extract",
        "evaluate.tp",
        "evaluate.sync",
    ),
    Resume.IGNORED: (
        "run_dir",
        "model.trust_remote_code",
        "model.init",
        "data.cache_dir",
        "train.timeout_s",
        "train.profile_steps",
        "train.profiler",
        "train.profile_ranks",
        "gpu.overlap_grad_reduce",
        "gpu.overlap_param_gather",
        "gpu.tp_comm_overlap",
        "gpu.optimizer_cpu_offload",
        "gpu.optimizer_offload_fraction",
        "gpu.activation_offload_layers",
        "gpu.nccl_timeout_s",
        "gpu.nccl_trace_entries",
        "checkpoint.async_save",
        "checkpoint.resume",
        "log.every",
        "log.wandb",
        "log.tensorboard",
        "log.mlflow",
        "log.trackio",
        "log.project",
        "log.entity",
        "log.group",
        "log.tags",
        "rollout.sync_bucket_mib",
        "rollout.check_sync",
        "rollout.server_concurrency",
        "rollout.sync_dir",
        "rollout.gpu_memory_utilization",
        "rollout.cpu_kv_cache_gib",
        "rollout.timeout_s",
        "reward.workers",
        "reward.timeout_s",
        "evaluate.data_dir",
        "evaluate.registry",
        "evaluate.gpu_memory_utilization",
        "evaluate.cpu_kv_cache_gib",
        "evaluate.timeout_s",
        "evaluate.sync_bucket_mib",
        "evaluate.check_sync",
        "evaluate.grade_workers",
        "evaluate.grade_timeout_s",
    ),
}

RESUME_TABLE: dict[str, Resume] = {key: kind for kind, keys in _CLASSES.items() for key in keys}


def compare_for_resume(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """(errors, changes) between two resolved configurations.

    As plain values: `model_dump(mode="json")`, or config.yaml as read back.

    Errors are keys that must match, changes those that may; each a line with both values. A key
    that only one side has is a change (the run folder may come from another version of this
    program); a key in no class is an error.
    """
    before, after = _flat(old), _flat(new)
    errors, changes = [], []
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key, _ABSENT), after.get(key, _ABSENT)
        if _same(was, now):
            continue
        kind = RESUME_TABLE.get(key)
        if was is _ABSENT or now is _ABSENT:
            changes.append(f"{key}: {_show(was)} → {_show(now)}")
        elif kind is Resume.MUST_MATCH:
            errors.append(f"{key}: the run was started with {_show(was)}, now it is {_show(now)}")
        elif kind is Resume.MAY_CHANGE:
            changes.append(f"{key}: {_show(was)} → {_show(now)}")
        elif kind is None:
            errors.append(
                f"{key}: {_show(was)} → {_show(now)}, and nobody said whether it may change; fix:"
                " add it to config/resume.py"
            )
    return errors, changes


_ABSENT = object()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(
            _flat(value, f"{prefix}{name}.")
            if isinstance(value, Mapping) and f"{prefix}{name}" not in RESUME_TABLE
            else {f"{prefix}{name}": value}
        )
    return flat


def _same(was: Any, now: Any) -> bool:
    """Equal values; lists and tuples with equal items are equal (YAML has no tuples)."""
    if isinstance(was, (list, tuple)) and isinstance(now, (list, tuple)):
        return list(was) == list(now)
    return was == now


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else "null" if value is None else repr(value)
