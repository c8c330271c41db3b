"""Rules that every training run has: schedule, checkpoints, profile, layout, CUDA path."""

from __future__ import annotations

from megaladder.config.base import leaf_keys
from megaladder.config.rules.gpu import gpu_problems
from megaladder.config.rules.layout import values_problems
from megaladder.config.rules.unread import ReadIf, unread_problems
from megaladder.config.sections.evaluate import EvaluateSection, SftEvaluateSection
from megaladder.config.sections.run import RunConfig
from megaladder.config.sections.shared import (
    CheckpointSection,
    DataSection,
    LoraSection,
    OptimSection,
    ParallelSection,
    TrainSection,
)

READ_IF: tuple[ReadIf[RunConfig], ...] = (
    ReadIf(
        ("train.recompute_modules",),
        lambda run: run.train.recompute == "selective",
        "train.recompute selective",
    ),
    ReadIf(
        ("train.profiler", "train.profile_ranks"),
        lambda run: bool(run.train.profile_steps),
        "train.profile_steps",
    ),
    ReadIf(
        tuple(f"data.{key}" for key in ("path", "config", "split", "revision", "format", "fields")),
        lambda run: not run.data.mixture,
        "data.mixture empty (its parts have these keys)",
    ),
    ReadIf(
        ("optim.min_lr",),
        lambda run: run.optim.schedule != "constant",
        "optim.schedule cosine, linear or wsd",
    ),
    ReadIf(
        ("optim.warmup_ratio",),
        lambda run: run.optim.warmup_steps is None,
        "optim.warmup_steps null",
    ),
    ReadIf(
        ("optim.wsd_decay_ratio",), lambda run: run.optim.schedule == "wsd", "optim.schedule wsd"
    ),
    ReadIf(
        ("log.project",),
        lambda run: run.log.wandb or run.log.mlflow or run.log.trackio,
        "log.wandb, log.mlflow or log.trackio",
    ),
    ReadIf(("log.entity",), lambda run: run.log.wandb, "log.wandb true"),
    ReadIf(
        ("log.group",), lambda run: run.log.wandb or run.log.trackio, "log.wandb or log.trackio"
    ),
    ReadIf(("log.tags",), lambda run: run.log.wandb or run.log.mlflow, "log.wandb or log.mlflow"),
    ReadIf(("gpu.fp8_format",), lambda run: run.train.fp8 is not None, "train.fp8"),
    ReadIf(
        ("gpu.fp8_amax_history_len", "gpu.fp8_amax_compute_algo"),
        lambda run: run.train.fp8 == "delayed",
        "train.fp8 delayed",
    ),
    ReadIf(
        ("gpu.num_layers_at_start_in_bf16", "gpu.num_layers_at_end_in_bf16"),
        lambda run: run.gpu.first_last_layers_bf16,
        "gpu.first_last_layers_bf16 true",
    ),
    ReadIf(("parallel.sequence_parallel",), lambda run: run.parallel.tp > 1, "parallel.tp above 1"),
    ReadIf(
        ("moe.aux_loss_coef",),
        lambda run: run.moe.aux_loss != "none",
        "moe.aux_loss sequence or global_batch",
    ),
    ReadIf(("gpu.cp_comm_type",), lambda run: run.parallel.cp > 1, "parallel.cp above 1"),
    ReadIf(
        tuple(f"evaluate.{key}" for key in leaf_keys(EvaluateSection) if key != "benchmarks"),
        lambda run: bool(run.evaluate.benchmarks),
        "evaluate.benchmarks",
    ),
    ReadIf(
        ("evaluate.min_delta",), lambda run: run.evaluate.patience is not None, "evaluate.patience"
    ),
    ReadIf(
        ("gpu.optimizer_offload_fraction",),
        lambda run: run.gpu.optimizer_cpu_offload,
        "gpu.optimizer_cpu_offload true",
    ),
    ReadIf(("lora.rank",), lambda run: run.lora.start is None, "lora.start null (it has a rank)"),
    ReadIf(
        ("lora.alpha", "lora.targets", "lora.rslora"),
        lambda run: run.lora.rank is not None and run.lora.start is None,
        "lora.rank",
    ),
    ReadIf(
        ("lora.merged_export",),
        lambda run: run.lora.enabled and run.checkpoint.export_hf,
        "lora.rank (or start) and checkpoint.export_hf true",
    ),
)


def run_problems(config: RunConfig) -> list[str]:
    """Violations of everything that `sft` and `grpo` share."""
    problems = [
        *values_problems(config),
        *_schedule(config.optim, config.train),
        *_checkpoint(config.checkpoint),
        *_profile(config.train, config.parallel),
        *_evaluate(config.evaluate, config.train),
        *gpu_problems(config),
        *_lora(config),
        *unread_problems(config, READ_IF),
    ]
    problems = [*_sources(config.data), *problems]
    if not config.model.path:
        problems.insert(
            0,
            "model.path is empty; fix: set model.path to a Hugging Face folder or hub id"
            " (--model.path DIR)",
        )
    return problems


def _sources(data: DataSection) -> list[str]:
    if not data.mixture and not data.paths:
        return [
            "data.path is empty; fix: set data.path to a data file or hub id (--data.path FILE)"
        ]
    weights = [part.weight for part in data.mixture]
    if None in weights and any(weight is not None for weight in weights):
        return [
            f"data.mixture has weights {', '.join(map(str, weights))}; fix: a weight in every part,"
            " or in none"
        ]
    return []


def _schedule(optim: OptimSection, train: TrainSection) -> list[str]:
    problems = []
    if optim.min_lr > optim.lr:
        problems.append(
            f"optim.min_lr {optim.min_lr:g} is above optim.lr {optim.lr:g}; fix: min_lr ≤ lr"
        )
    warmup = optim.warmup_ratio if optim.warmup_steps is None else 0.0
    if optim.schedule == "wsd" and warmup + optim.wsd_decay_ratio > 1:
        problems.append(
            f"optim.warmup_ratio {optim.warmup_ratio:g} + optim.wsd_decay_ratio"
            f" {optim.wsd_decay_ratio:g} take more than all steps; fix: together at most 1"
        )
    max_steps = train.max_steps
    if max_steps is not None and optim.warmup_steps is not None and optim.warmup_steps > max_steps:
        problems.append(
            f"optim.warmup_steps {optim.warmup_steps} is more than train.max_steps {max_steps};"
            " fix: fewer warm-up steps"
        )
    return problems


def _checkpoint(checkpoint: CheckpointSection) -> list[str]:
    bad = [step for step in checkpoint.keep_steps if step < 1]
    return (
        [f"checkpoint.keep_steps {bad}: steps are counted from 1; fix: numbers ≥ 1"] if bad else []
    )


def _evaluate(evaluate: EvaluateSection, train: TrainSection) -> list[str]:
    problems = []
    if "list" in evaluate.benchmarks:
        problems.append(
            "evaluate.benchmarks list is no benchmark; fix: names that `megaladder eval --benchmark"
            " list` prints"
        )
    last = train.max_steps
    if evaluate.every and last is not None and evaluate.every > last:
        problems.append(
            f"evaluate.every {evaluate.every} never happens in train.max_steps {last}; fix: at most"
            f" {last}, or 0 for before the first and after the last step only"
        )
    return problems


def _lora(config: RunConfig) -> list[str]:
    """What adapters do not go with."""
    evaluate = config.evaluate
    if isinstance(evaluate, SftEvaluateSection) and evaluate.sync == "adapter":
        problems = without_adapters("evaluate.sync", config.lora)
    else:
        problems = []
    if not config.lora.enabled:
        return problems
    if config.train.fp8 is not None:
        problems.append(
            f"train.fp8 {config.train.fp8} with lora: frozen FP8 weights under adapters are not"
            " built; fix: fp8 null"
        )
    if config.model.init == "random":
        problems.append(
            "model.init random with lora: an adapter belongs to weights that are kept; fix:"
            " model.init pretrained"
        )
    if config.gpu.tp_comm_overlap:
        problems.append(
            "gpu.tp_comm_overlap with lora: its buffers are of norms fused into linears, which"
            " adapters take apart; fix: tp_comm_overlap false"
        )
    return problems


def without_adapters(key: str, lora: LoraSection) -> list[str]:
    """An engine that is to be sent adapters, where none are trained."""
    if lora.enabled:
        return []
    return [f"{key} adapter sends what lora trains, which is off; fix: lora.rank, or {key} auto"]


def _profile(train: TrainSection, parallel: ParallelSection) -> list[str]:
    problems = []
    last = train.max_steps
    bad = [step for step in train.profile_steps if step < 1 or (last is not None and step > last)]
    if bad:
        problems.append(
            f"train.profile_steps {bad} never happen (steps run from"
            f" 1{f' to {last}' if last else ''}); fix: steps that do"
        )
    bad = [
        rank
        for rank in train.profile_ranks
        if rank < 0 or (parallel.ranks is not None and rank >= parallel.ranks)
    ]
    if bad:
        problems.append(
            f"train.profile_ranks {bad} are not ranks; fix: numbers from 0 to the number of ranks"
            " less one"
        )
    return problems
