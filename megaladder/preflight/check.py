"""The verb `check`.

Everything about a run that can be known before a single rank starts.

Prints the layout, the batch arithmetic, memory by part, what the data became, and one sample with
its loss tokens marked. Exit status 2 for a configuration or data that no machine would take; what
is only not here (model, data, a GPU) is named: `needs`, `not here`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from megaladder.config.grpo import GrpoConfig
from megaladder.config.resolve.overlay import load_layered as load_yaml
from megaladder.config.rules.engine import head_size_problem, routing_problem
from megaladder.config.rules.grpo import asks_experts
from megaladder.config.rules.layout import batch_line, check_platform, check_world, validate_layout
from megaladder.config.rules.model import require_model
from megaladder.config.sft import SftConfig
from megaladder.errors import ConfigError
from megaladder.model.hf_config import read_config_json
from megaladder.model.lora.peft_config import engine_adapters, lora_spec, start_notes
from megaladder.plan.hardware import Gpu, find_gpu, find_model, gpus
from megaladder.plan.layout import ADAPTERS_UNTIMED, OURS, PlannedLayout, Software, Work
from megaladder.plan.memory import GIB, MemoryEstimate, estimate_memory
from megaladder.plan.search import Task, predict, search
from megaladder.preflight.check_benchmarks import check_benchmarks
from megaladder.preflight.check_data import check_data, show
from megaladder.preflight.check_recipe import CheckRecipe, is_recipe, run_check_recipe

if TYPE_CHECKING:
    from megaladder.model.hf_config import ModelShape

GRPO_SECTIONS = ("rollout", "grpo", "reward")
TYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
SAME_SPEED = 0.03  # relative; the predictions err by more


class CheckSft(SftConfig):
    """Resolve a supervised fine-tuning run and say what it would do; starts nothing."""

    plan_gpu: str | None = None
    """GPU that the layout is compared with `plan`'s for: h100, h200, … null = this machine's, h200
    where it has none. Not for fp32."""
    strict: bool = False
    """For scripts: status 2 where the data or the model is not here or this machine cannot run it;
    off = that is only named."""


class CheckGrpo(GrpoConfig):
    """Resolve a GRPO run and say what it would do; starts nothing."""

    plan_gpu: str | None = None
    """GPU that the layout is compared with `plan`'s for: h100, h200, … null = this machine's, h200
    where it has none. Not for fp32."""
    strict: bool = False
    """For scripts: status 2 where the data or the model is not here or this machine cannot run it;
    off = that is only named."""


def config_class(args: Sequence[str]) -> type[CheckSft] | type[CheckGrpo] | type[CheckRecipe]:
    """A file or a flag that names a section only GRPO has makes it a GRPO run.

    A file with stages is a data recipe."""
    if args and not args[0].startswith("-") and is_recipe(args[0]):
        return CheckRecipe
    return CheckGrpo if is_grpo(args) else CheckSft


def is_grpo(args: Sequence[str]) -> bool:
    """Whether the file or a flag names a section that only GRPO has."""
    if any(arg.startswith(f"--{section}.") for arg in args for section in GRPO_SECTIONS):
        return True
    if not args or args[0].startswith("-"):
        return False
    sections = load_yaml(args[0]).values
    return any(section in sections for section in GRPO_SECTIONS)


def run_check(config: CheckSft | CheckGrpo | CheckRecipe) -> None:
    """Prints the findings.

    Files that are not here are named under `needs`: a recipe can be checked before anything is
    fetched."""
    if isinstance(config, CheckRecipe):
        for name, text in run_check_recipe(config):
            show(name, text)
        return
    ranks = config.parallel.ranks or config.parallel.least_ranks
    dp = check_world(config, ranks)
    layout = config.parallel
    started = Path(config.run_dir, "config.yaml").exists()
    note = " (exists: a start there resumes)" if started else ""
    show("run folder", f"{config.run_dir}{note}")
    show(
        "layout",
        f"{ranks} rank(s) = dp {dp} × tp {layout.tp} × pp {layout.pp}"
        + (f" (vpp {layout.vpp})" if layout.vpp else "")
        + (f", experts over ep {layout.ep}" if layout.ep > 1 else "")
        + (f" × etp {layout.etp}" if layout.etp > 1 else ""),
    )
    show("batch", batch_line(config, ranks))
    if isinstance(config, CheckGrpo):
        show("rollouts", _rollout_line(config))
    for note in config.unread:
        show("note", note)
    if isinstance(config, CheckSft) and config.data.truncation == "right":
        show(
            "note",
            f"samples above {config.data.seq_length:,} tokens are cut at the end (data.truncation"
            " right) and counted",
        )
    not_here = _not_here(config)
    if not_here:
        show("not here", not_here)
    needs = [*_check_model(config, dp), *check_data(config), *check_benchmarks(config)]
    for need in needs:
        show("needs", need)
    if needs:
        show(
            "",
            "the comments on top of the run.yaml say how to make or download what a shipped example"
            " needs",
        )
    if config.strict and (needs or not_here):
        raise ConfigError(
            "strict: "
            + "; ".join([*needs, *([not_here] if not_here else [])])
            + "; fix: what is named above, or no --strict"
        )


def _not_here(config: SftConfig | GrpoConfig) -> str | None:
    """What this machine cannot do of the run, with the reasons."""
    from megaladder import platform

    try:
        check_platform(config, platform.machine())
    except ConfigError as error:
        return str(error)
    return None


def _rollout_line(config: CheckGrpo) -> str:
    prompts, n, updates = config.grpo.prompts_per_step, config.rollout.n, config.grpo.mini_batches
    return (
        f"{prompts} prompts × {n} completions = {prompts * n} a step, in {updates} update(s) of"
        f" {config.samples_per_update}"
    )


def _check_model(config: CheckSft | CheckGrpo, dp: int) -> list[str]:
    """Prints shape, memory and what this machine cannot do; returns what is missing."""
    from megaladder import platform

    here = Path(config.model.path).exists()
    if here:
        require_model(config.model.path, config.model.revision)
    try:
        shape = find_model(config.model.path)
    except ConfigError:
        return [
            f"model.path {config.model.path}: no such folder here, and no known model; layout and"
            " memory are not checked"
        ]
    validate_layout(config, shape)
    precision = (
        platform.default_precision() if config.train.precision == "auto" else config.train.precision
    )
    where = f"weights {config.model.init}" if here else "as published (the folder is not here)"
    show(
        "model",
        f"{config.model.path}: {shape.hf_family}, {_count(shape)} parameters, {precision}, {where}",
    )
    for note in start_notes(config.lora):
        show("note", note)
    _show_plan(config, shape, dp, precision)
    if _has_engine(config):
        engine_adapters(config.lora, shape, *_engine_sync(config))
    if not here:
        return [f"model.path {config.model.path}: no such folder here"]
    if problem := _engine_problem(config, shape):
        return [f"an engine that can run {config.model.path}: {problem}"]
    weights = list(Path(config.model.path).glob("*.safetensors"))
    if config.model.init == "pretrained" and not weights:
        return [
            f"*.safetensors in {config.model.path} (model.init is pretrained); fix: the whole"
            " folder, or model.init random"
        ]
    return []


def _show_plan(config: CheckSft | CheckGrpo, shape: ModelShape, dp: int, precision: str) -> None:
    """Memory, and on a GPU what `plan` says."""
    layout, work, software = planned(config, shape, dp, precision)
    colocated = _has_engine(config)
    estimate = estimate_memory(shape, layout, work, colocated, software)
    on_cpu = precision == "fp32"
    show(
        "memory/rank", _memory_line(replace(estimate, reserve=0, engine=0) if on_cpu else estimate)
    )
    if not on_cpu:
        task = Task(shape, plan_gpu(config), layout.gpus, work, None, colocated, software)
        show("plan", plan_line(layout, task))
        if work.lora:
            show("note", ADAPTERS_UNTIMED)


def _engine_problem(config: CheckSft | CheckGrpo, shape: ModelShape) -> str | None:
    """Why the vLLM of this machine cannot do what the run asks of it, or None."""
    if not _has_engine(config) or (isinstance(config, CheckGrpo) and config.rollout.servers):
        return None
    problem = head_size_problem(read_config_json(config.model.path))
    if problem is None and isinstance(config, CheckGrpo) and asks_experts(config, shape):
        problem = routing_problem(config.rollout.tp)
    return problem


def _has_engine(config: SftConfig | GrpoConfig) -> bool:
    """Whether an engine takes its share of the trainer's GPUs: for rollouts, or for benchmarks."""
    if isinstance(config, GrpoConfig):
        return config.rollout.engine == "vllm"
    return bool(config.evaluate.benchmarks) and config.evaluate.engine == "vllm"


def _engine_sync(config: CheckSft | CheckGrpo) -> tuple[str, str]:
    """How weights reach the engine, key and value."""
    if isinstance(config, CheckGrpo):
        return "rollout.sync", config.rollout.sync
    return "evaluate.sync", config.evaluate.sync


def _count(shape: ModelShape) -> str:
    return (
        f"{shape.num_parameters / 1e9:.2f} G"
        if shape.num_parameters >= 1e9
        else f"{shape.num_parameters / 1e6:.2f} M"
    )


def planned(
    config: SftConfig | GrpoConfig, shape: ModelShape, dp: int, precision: str
) -> tuple[PlannedLayout, Work, Software]:
    """The run in `plan`'s words.

    Every sample taken to fill its row, since the data may not be there."""
    parallel, train = config.parallel, config.train
    sizes = (parallel.tp, parallel.pp, parallel.vpp, parallel.cp, dp)
    layout = PlannedLayout(
        *sizes,
        train.micro_batch_size,
        train.recompute,
        parallel.sequence_parallel,
        parallel.ep,
        parallel.etp,
    )
    work = Work(
        config.data.seq_length,
        config.samples_per_update,
        "fp8" if train.fp8 else precision,
        lora=config.lora.enabled,
        adapters=lora_spec(config.lora, shape) if config.lora.enabled else None,
    )
    gpu, state_bytes = config.gpu, 12.0
    if gpu.precision_aware_optimizer:  # an fp32 master copy is then the 16 bits that bf16 lacks
        state_bytes = 2 + sum(
            TYPE_BYTES[name] for name in (gpu.exp_avg_dtype, gpu.exp_avg_sq_dtype)
        )
    if gpu.optimizer_cpu_offload:
        state_bytes *= 1 - gpu.optimizer_offload_fraction
    return (
        layout,
        work,
        replace(
            OURS,
            tp_overlap=gpu.tp_comm_overlap,
            optimizer_bytes=state_bytes,
            fp8_params=gpu.fp8_param_gather,
        ),
    )


def plan_line(layout: PlannedLayout, task: Task) -> str:
    """What `plan` predicts for this layout, and whether it would take another."""
    gpu, own = task.gpu, predict(task, layout)
    fits = "fits" if own.memory.total <= gpu.memory_bytes else "DOES NOT FIT"
    text = (
        f"{layout.gpus} × {gpu.name}, full rows: about {own.seconds:.1f} s an update,"
        f" {own.tokens_per_s_gpu:,.0f} tokens/s/GPU; {fits} {gpu.memory_gib:.0f} GiB"
    )
    try:
        best = search(task)[0]
    except ConfigError as error:
        return f"{text}; {error}"
    if best.layout == layout:
        return f"{text}; `plan` has no better layout"
    gain = own.seconds / best.seconds - 1
    if fits == "fits" and gain <= SAME_SPEED:
        return f"{text}; `plan` has none that is more than {SAME_SPEED:.0%} faster"
    return (
        f"{text}; `plan` would take {best.layout}: {best.memory.total / GIB:.0f} GiB, {gain:+.0%}"
        " in tokens/s"
    )


def plan_gpu(config: CheckSft | CheckGrpo) -> Gpu:
    """The GPU to plan for.

    The one asked for, else that of this machine where hardware.yaml has it, else the H200 that the
    recipes are written for."""
    from megaladder import platform

    if config.plan_gpu:
        return find_gpu(config.plan_gpu)
    device = (platform.device_name() or "").upper()
    for name, gpu in gpus().items():
        if name.upper() in device:
            return gpu
    return find_gpu("h200")


def _memory_line(estimate: MemoryEstimate) -> str:
    by_part = ", ".join(
        f"{part} {_size(size)}"
        for part, size in estimate.by_part().items()
        if part != "total" and size
    )
    return f"about {_size(estimate.total)} on the fullest: {by_part}"


def _size(num_bytes: int) -> str:
    return (
        f"{num_bytes / 1024**3:.2f} GiB"
        if num_bytes >= 1024**3
        else f"{num_bytes / 1024**2:.1f} MiB"
    )
