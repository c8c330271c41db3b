"""The walks of the verbs that train, and of those that only look at a run: check, dryrun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from walks.stand_ins import (
    GradesHere,
    ProcessesInName,
    RisingEngine,
    TrackerInName,
    named_children,
    no_ranks,
)
from walks.walk import Walk

from megaladder.config.base import leaf_keys
from megaladder.config.sections.evaluate import EvaluateSection

# without a GPU nothing else shows them
_PROBES = (
    "megaladder.parallel:initialize",
    "megaladder.platform:record_collectives",
    "megaladder.model.build:TransformerConfig",
    "megaladder.train.optimizer:OptimizerConfig",
    "megaladder.train.optimizer:DistributedDataParallelConfig",
    "megaladder.train.life.run_life:NonFiniteGuard",
    "megaladder.data.chat.tokenizer:load_tokenizer",
)


_STAND_INS = {
    "megaladder.process.launch:launch_local": no_ranks,
    "megaladder.rewards.verifiers.pool:GradePool": GradesHere,
    "megaladder.train.life.engines:vllm_children": named_children,
    "megaladder.train.life.engines:ProcessEngine": ProcessesInName,
    "megaladder.train.life.engines:FakeEngine": RisingEngine,
    **dict.fromkeys(("wandb", "mlflow", "trackio"), TrackerInName()),
}
_ENGINE_PROBES = (
    *(f"megaladder.train.life.engines:{name}" for name in ("VllmOptions", "Limits", "SyncOptions")),
    "megaladder.rollout.engine:BaseEngine.stream",
)
_VLLM_KEYS = ("tp", "sync", "gpu_memory_utilization", "cpu_kv_cache_gib")
_SFT_ENGINE_KEYS = (
    "timeout_s",
    "sync_bucket_mib",
    "check_sync",
    "engine",
    "extract",
    "grade_workers",
    "grade_timeout_s",
)
# what takes more ranks than a walk has, or a GPU, is seen in a dry run
_BY_DRYRUN = ("parallel.vpp", "parallel.sequence_parallel")
_LAYOUT = ("parallel.tp", "parallel.pp", "parallel.cp", "parallel.ranks")
_OVERLAP = ("gpu.overlap_grad_reduce", "gpu.overlap_param_gather", "train.micro_batch_size")


def _run(i: Path) -> dict[str, object]:
    """What both kinds of training are given."""
    return {
        "run_dir": "run",
        "model.path": str(i / "model"),
        "train.max_steps": 3,
        "optim.lr": 1e-2,
        "checkpoint.every": 0,
        # a run that failed leaves its watchdog
        "train.timeout_s": 3000.0,
    }


def _tracked() -> dict[str, dict[str, object]]:
    """What the keys of trackers need; mlflow and trackio have no other."""
    by_wandb = {"log.wandb": True}
    return {f"log.{key}": by_wandb for key in ("project", "entity", "group", "tags")}


def _experts(i: Path) -> dict[str, dict[str, Any]]:
    """What the keys of a mixture of experts need."""
    experts = {"model.path": str(i / "experts")}
    return {
        "parallel.ep": experts,
        "parallel.etp": experts,
        "moe.aux_loss": experts,
        "moe.aux_loss_coef": {**experts, "moe.aux_loss": "sequence"},
        "moe.z_loss_coef": experts,
        "moe.bias_update_rate": {"model.path": str(i / "biased_experts")},
    }


def _asked(i: Path) -> dict[str, object]:
    """Benchmarks between the steps, before the first and after the last."""
    return {
        "evaluate.benchmarks": ["amc23"],
        "evaluate.data_dir": str(i / "bench"),
        "evaluate.limit": 2,
        "evaluate.n": 2,
        "evaluate.max_tokens": 40,
    }


def _evaluations(i: Path, asked: dict[str, object]) -> dict[str, dict[str, Any]]:
    """Values, needs and what goes together of the section `evaluate`, of both kinds of training."""
    rising = {**asked, "evaluate.data_dir": str(i / "rising"), "evaluate.every": 1}
    patient = {**rising, "evaluate.patience": 1}
    mine = {"evaluate.benchmarks": ["mine"], "evaluate.registry": str(i / "registry.yaml")}
    values = {
        "benchmarks": ["gsm8k"],
        "registry": str(i / "other_registry.yaml"),
        "every": 1,
        "data_dir": str(i / "bench2"),
        "limit": 1,
        "n": 3,
        "max_tokens": 9,
        "prompt.style": "raw",
        "prompt.template": "{question} !",
        "patience": 1,
        "min_delta": 0.5,
    }
    keys = [key for key in leaf_keys(EvaluateSection) if key != "benchmarks"]
    needs = {
        **dict.fromkeys(keys, asked),
        "keep_best": {**rising, "checkpoint.every": 1, "checkpoint.keep_last": 1},
        "registry": {**asked, **mine},
        "patience": rising,
        "min_delta": patient,
    }
    return {
        "values": {f"evaluate.{key}": value for key, value in values.items()},
        "needs": {f"evaluate.{key}": value for key, value in needs.items()},
        "beside": {"evaluate.benchmarks": asked},
        # a gain of one sample is then none
        "together": {"evaluate.patience": {"evaluate.min_delta": 0.5}},
    }


_ADAPTED: dict[str, object] = {"lora.rank": 2}


def _adapters(i: Path) -> dict[str, dict[str, Any]]:
    """Values and needs of the section `lora`."""
    exported = {**_ADAPTED, "checkpoint.export_hf": True}
    return {
        "values": {"lora.targets": ["q_proj"], "lora.start": str(i / "adapter")},
        "needs": {
            **{f"lora.{key}": _ADAPTED for key in ("alpha", "targets", "rslora")},
            "lora.merged_export": exported,
        },
    }


def sft_walk(i: Path) -> Walk:
    """Two updates of a tiny model for every key."""
    asked = {**_asked(i), "evaluate.engine": "fake", "evaluate.grade_workers": 1}
    evaluations = _evaluations(i, asked)
    held_out = {"data.holdout": 4}
    clipped = {"train.loss": "ppo", "data.path": str(i / "judged.jsonl")}
    profiled = {"train.profile_steps": [2]}
    broken = {"data.path": str(i / "broken.jsonl"), "data.on_bad_row": "skip"}
    return Walk(
        "sft",
        {
            **_run(i),
            "data.path": str(i / "rows.jsonl"),
            "data.seq_length": 256,
            "train.global_batch_size": 2,
        },
        values={
            "run_dir": "another",
            "model.path": str(i / "other_model"),
            "model.tokenizer": str(i / "tokenizer"),
            "model.chat_template": str(i / "template.jinja"),
            "model.chat_template_kwargs": {"note": "hello"},
            "model.template_date": "2025-01-01",
            "data.path": str(i / "more.jsonl"),
            "data.mixture": [{"source": str(i / "more.jsonl")}],
            "data.seq_length": 128,
            "data.truncation": "error",
            "data.holdout": 4,
            "data.on_bad_row": "error",
            "data.fields": {"question": "id"},
            "data.response_template": "answer:",
            "data.s1_teacher": "deepseek",
            "data.cache_dir": "cache",
            "parallel.ranks": 2,
            "train.logits": "fp32",
            "train.eval_every": 1,
            "optim.warmup_ratio": 0.9,
            "optim.wsd_decay_ratio": 0.9,
            "optim.warmup_steps": 2,
            "optim.min_lr": 1e-3,
            "train.max_steps": 1,
            "train.epochs": 0.1,
            "train.loss": "dft",
            "train.recompute_modules": ["mlp"],
            "train.profile_steps": [2],
            "train.profile_ranks": [3],
            "checkpoint.every": 1,
            "checkpoint.keep_steps": [1],
            "checkpoint.keep_last": 1,
            "checkpoint.keep_best": 1,
            "checkpoint.resume": "run/checkpoints/step_1",
            "log.every": 2,
            "evaluate.sync": "ipc",
            "evaluate.extract": "first-box",
            **evaluations["values"],
            **_adapters(i)["values"],
        },
        refuses={"data.on_bad_row": "broken.jsonl:151"},
        beside={
            "data.duplicates": {"data.path": str(i / "repeats.jsonl")},
            "data.on_bad_row": broken,
            "data.response_template": {
                "data.path": str(i / "one_answer.jsonl"),
                "data.response_template": "question:",
            },
            "data.s1_teacher": {"data.path": str(i / "s1.jsonl"), "data.s1_teacher": "gemini"},
            "data.truncation": {"data.seq_length": 64},
            "data.reasoning": {"data.path": str(i / "thoughts.jsonl")},
            "model.chat_template_kwargs": {"model.chat_template": str(i / "template.jinja")},
            "model.template_date": {"model.chat_template": str(i / "dated.jinja")},
            "checkpoint.keep_last": {"checkpoint.every": 1},
            "train.epochs": {"train.max_steps": None, "train.epochs": 0.2},
            **{f"evaluate.{key}": asked for key in _VLLM_KEYS},
            **evaluations["beside"],
            "data.packing": {"data.seq_length": 1024},
        },
        needs={
            **evaluations["needs"],
            **_adapters(i)["needs"],
            **{f"evaluate.{key}": asked for key in _SFT_ENGINE_KEYS},
            **{f"evaluate.{key}": {"evaluate.engine": "vllm"} for key in _VLLM_KEYS},
            "train.eval_every": held_out,
            "checkpoint.keep_best": {**held_out, "checkpoint.every": 1},
            "train.recompute_modules": {"train.recompute": "selective"},
            "train.profiler": profiled,
            "train.profile_ranks": profiled,
            "train.logits": {"train.precision": "bf16"},
            "optim.wsd_decay_ratio": {"optim.schedule": "wsd"},
            **_tracked(),
            **_experts(i),
            **{f"train.clip_ratio_{side}": clipped for side in ("low", "high")},
        },
        together=evaluations["together"],
        probes=(
            *(*_PROBES, *_ENGINE_PROBES, "megaladder.train.sft:Watchdog"),
            "megaladder.train.supervised.answers:VerifierPool",
        ),
        stand_ins=_STAND_INS,
        shown_by=dict.fromkeys(_BY_DRYRUN, "dryrun sft"),
        slow=True,
        forks=True,
    )


_REWARDS = [{"name": "correctness"}, {"name": "repetition", "weight": 0.5, "ngram": 2}]


def grpo_walk(i: Path) -> Walk:
    """Two rounds of a tiny model with the stand-in engine for every key."""
    evaluations = _evaluations(i, _asked(i))
    # the stand-in's log-probs are far from the model's
    from_vllm = {"rollout.engine": "vllm", "grpo.mismatch_limit": 100.0}
    corrected = {**from_vllm, "grpo.correction": "tis"}
    kl = {"grpo.kl": "k2", "grpo.kl_coef": 0.1}
    # later updates of a round are off-policy: there ratios are not 1
    off_policy = {"grpo.mini_batches": 2, "optim.lr": 0.1}
    profiled = {"train.profile_steps": [2]}
    broken = {"data.path": str(i / "broken.jsonl"), "data.on_bad_row": "skip"}
    served = {**from_vllm, "rollout.servers": ["http://127.0.0.1:1"]}
    no_kl = {"grpo.kl": "none"}
    replayed = {
        "grpo.correction": "none",
        "train.max_steps": 2,
        "rollout.engine": "replay",
        "rollout.replay_dir": str(i / "rounds"),
    }
    return Walk(
        "grpo",
        {
            **_run(i),
            "data.path": str(i / "problems.jsonl"),
            "data.seq_length": 128,
            "rollout.engine": "fake",
            "rollout.n": 4,
            "rollout.max_tokens": 40,
            "grpo.preset": "grpo",
            "grpo.prompts_per_step": 2,
            "reward.terms": _REWARDS,
        },
        values={
            "run_dir": "another",
            "model.path": str(i / "other_model"),
            "model.tokenizer": str(i / "tokenizer"),
            "model.chat_template": str(i / "template.jinja"),
            "model.chat_template_kwargs": {"note": "hello"},
            "model.template_date": "2025-01-01",
            "data.path": str(i / "other_problems.jsonl"),
            "data.mixture": [{"source": str(i / "other_problems.jsonl")}],
            "data.fields": {"question": "answer"},
            "data.on_bad_row": "error",
            "parallel.ranks": 2,
            "train.logits": "bf16",
            "optim.warmup_ratio": 0.9,
            "optim.wsd_decay_ratio": 0.9,
            "optim.warmup_steps": 2,
            "optim.min_lr": 1e-3,
            "train.max_steps": 1,
            "train.epochs": 0.7,
            "train.recompute_modules": ["mlp"],
            "train.profile_steps": [2],
            "train.profile_ranks": [3],
            "checkpoint.every": 1,
            "checkpoint.keep_steps": [1],
            "checkpoint.keep_last": 1,
            "checkpoint.resume": "run/checkpoints/step_1",
            "log.every": 2,
            **evaluations["values"],
            **_adapters(i)["values"],
            "rollout.engine": "replay",
            "rollout.sync": "ipc",
            "rollout.max_prompt_tokens": 22,
            "rollout.servers": ["http://127.0.0.1:2"],
            "rollout.replay_dir": str(i / "other_rounds"),
            "rollout.prompt_suffix": " Why?",
            "grpo.preset": "gspo",
            "grpo.dual_clip": 3.0,
            "grpo.aggregation": "sequence_mean_token_sum",
            "grpo.correction": "icepop",
            "grpo.correction_low": 0.5,
            "grpo.correction_high": 0.001,
            "grpo.mismatch_limit": 0.01,
            "grpo.reference": str(i / "other_model"),
            "reward.kind": "exact",
            "reward.extract": "first-box",
            "reward.terms": ["correctness"],
        },
        refuses={"data.on_bad_row": "broken.jsonl:151"},
        beside={
            "model.chat_template_kwargs": {"model.chat_template": str(i / "template.jinja")},
            "model.template_date": {"model.chat_template": str(i / "dated.jinja")},
            "data.duplicates": {"data.path": str(i / "repeats.jsonl")},
            "data.on_bad_row": broken,
            "checkpoint.keep_last": {"checkpoint.every": 1},
            "train.epochs": {"train.max_steps": None},
            **{f"grpo.{name}": off_policy for name in ("clip_low", "clip_high", "dual_clip")},
            **{f"grpo.{name}": off_policy for name in ("policy_loss", "ratio")},
            **{f"grpo.{name}": no_kl for name in ("kl_coef", "kl_importance_weight", "reference")},
            # groups whose answers are all alike, and answers that are cut
            "grpo.skip_zero_advantage": {**no_kl, "rollout.n": 2},
            "grpo.filter_truncated": {"rollout.max_tokens": 8},
            "grpo.off_policy_mask": from_vllm,
            "grpo.mismatch_limit": from_vllm,
            "grpo.mini_batches": {"optim.lr": 0.1},
            **evaluations["beside"],
        },
        needs={
            **evaluations["needs"],
            **_adapters(i)["needs"],
            "train.recompute_modules": {"train.recompute": "selective"},
            "train.profiler": profiled,
            "train.profile_ranks": profiled,
            "train.logits": {"train.precision": "bf16"},
            "optim.wsd_decay_ratio": {"optim.schedule": "wsd"},
            **_tracked(),
            **_experts(i),
            **{f"rollout.{name}": from_vllm for name in _VLLM_KEYS},
            "rollout.server_concurrency": served,
            "rollout.sync_dir": served,
            "rollout.replay_dir": replayed,
            "grpo.kl_coef": kl,
            "grpo.kl_importance_weight": {**kl, **off_policy},
            "grpo.reference": kl,
            "grpo.router_replay": {**from_vllm, "model.path": str(i / "experts")},
            # weights are far below 1: the two differ where the bound is as well
            "grpo.correction": {**from_vllm, "grpo.correction_high": 0.001},
            "grpo.correction_low": corrected,
            "grpo.correction_high": corrected,
            "grpo.max_resamples": {"grpo.dynamic_sampling": "accuracy"},
        },
        together={
            "rollout.engine": {"rollout.replay_dir": str(i / "rounds")},
            **evaluations["together"],
        },
        probes=(
            *(*_PROBES, *_ENGINE_PROBES),
            "megaladder.train.grpo:Watchdog",
            "megaladder.train.rl.rounds:VerifierPool",
            "megaladder.train.life.engines:ServerOptions",
        ),
        stand_ins=_STAND_INS,
        shown_by=dict.fromkeys(_BY_DRYRUN, "dryrun grpo"),
        slow=True,
        forks=True,
    )


def training_walks(i: Path) -> list[Walk]:
    """`i`: the folder of the inputs, models and rounds."""
    return [sft_walk(i), grpo_walk(i), _replay_walk(i), *_looks(i)]


def _replay_walk(i: Path) -> Walk:
    return Walk(
        "replay",
        {"run_dir": str(i / "trained"), "step": 2},
        values={"run_dir": str(i / "other_trained"), "step": 1, "json_path": "j.json"},
        slow=True,
        forks=True,
    )


def _looks(i: Path) -> list[Walk]:
    """The verbs that look at a run and start nothing."""
    looks = []
    for run in (sft_walk(i), grpo_walk(i)):
        base = {**run.base, "train.precision": "bf16"}
        # told as what is not here
        elsewhere = {"gpu.precision_aware_optimizer": True}
        looks += [
            Walk(
                f"check {run.verb}",
                base,
                values={"plan_gpu": "h100"},
                beside={"strict": elsewhere},
                shares=run.verb,
            ),
            Walk(
                f"dryrun {run.verb}",
                {**base, "parallel.ranks": 2},
                values={
                    "parallel.ranks": 1,
                    "parallel.vpp": 2,
                    "json_file": "j.json",
                    "gpu_kind": "h100",
                },
                beside={"gpu.overlap_grad_reduce": {"gpu.overlap_param_gather": False}},
                needs={
                    "parallel.sequence_parallel": {"parallel.tp": 2},
                    "parallel.vpp": {"parallel.pp": 2, "model.path": str(i / "deep_model")},
                },
                shares=run.verb,
                keys=(*_BY_DRYRUN, *_LAYOUT, *_OVERLAP),
                probes=(
                    "megaladder.dryrun.verb:_summary",
                    "megaladder.train.optimizer:DistributedDataParallelConfig",
                ),
                slow=True,
                forks=True,
            ),
        ]
    recipes = {"recipe": str(i / "recipe.yaml")}
    return [*looks, Walk("check recipe", recipes, values={"recipe": str(i / "other.yaml")})]
