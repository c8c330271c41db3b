"""The verb `plan`.

The configuration becomes a task, the search answers, a table and a JSON object say it."""

from __future__ import annotations

from typing import Any

from megaladder.config.verbs.plan import PlanConfig
from megaladder.errors import ConfigError
from megaladder.model.hf_config import ModelShape
from megaladder.model.lora.spec import LoraSpec, check_targets, known_targets
from megaladder.plan.grpo import Round, engine_budget
from megaladder.plan.hardware import find_gpu, find_model
from megaladder.plan.layout import ADAPTERS_UNTIMED, Work
from megaladder.plan.memory import GIB
from megaladder.plan.search import Pins, Plan, Task, context_parallel_sizes, search
from megaladder.run_dir import atomic_write, to_json
from megaladder.types import required


def run_plan(config: PlanConfig) -> int:
    """Prints the best layouts; 0, or a ConfigError when none fits."""
    task, pins = task_of(config), pins_of(config)
    plans = search(task, pins)
    notes = _notes(config, task)
    for line in [
        _headline(config, task, len(plans)),
        *_table(plans[: config.top], task),
        *_best(plans[0], task),
        *notes,
    ]:
        print(line)
    if config.json_file:
        report = {
            **_question(config, task),
            "layouts": [as_dict(plan, task) for plan in plans],
            "notes": notes,
        }
        atomic_write(config.json_file, to_json(report, sort_keys=True, indent=1) + "\n")
    return 0


def pins_of(config: PlanConfig) -> Pins:
    return Pins(
        config.tp,
        config.pp,
        config.vpp,
        config.cp,
        config.micro_batch_size,
        config.recompute,
        config.ep,
        config.etp,
    )


def _require_experts(config: PlanConfig, shape: ModelShape) -> None:
    """Raises ConfigError where sizes of experts are given for a model that has none."""
    given = {"ep": config.ep, "etp": config.etp, "imbalance": config.imbalance}
    asked = [f"--{name} {value:g}" for name, value in given.items() if value not in (None, 1.0)]
    if shape.moe is None and asked:
        raise ConfigError(
            f"{asked[0]} is read for a mixture of experts only, {config.model} has none; fix: leave"
            " it out"
        )


def adapters_of(config: PlanConfig, shape: ModelShape) -> LoraSpec | None:
    """The adapters that are trained instead of the weights, on every projection."""
    if config.lora_rank is None:
        return None
    names = tuple(known_targets(shape))
    spec = LoraSpec(config.lora_rank, float(config.lora_rank), names)
    check_targets(shape, spec)
    return spec


def task_of(config: PlanConfig) -> Task:
    """Model, machine and work of the command line."""
    shape, gpu = find_model(config.model), find_gpu(config.gpu)
    _require_experts(config, shape)
    gpu.peak(config.precision)  # an FP8 plan for a GPU without FP8 units ends here, with the reason
    adapters = adapters_of(config, shape)
    if config.workload == "sft":
        return Task(
            shape,
            gpu,
            config.gpus,
            Work(
                config.seq_length,
                required(config.global_batch_size, "global_batch_size"),
                config.precision,
                config.sample_length,
                adapters is not None,
                adapters,
                config.imbalance,
            ),
        )
    asked = Round(
        required(config.prompts_per_step, "prompts_per_step"),
        required(config.n, "n"),
        config.mini_batches,
        config.prompt_length,
        required(config.response_length, "response_length"),
        required(config.max_tokens, "max_tokens"),
        config.seq_length,
        config.precision,
        logprob_passes=int(config.mini_batches > 1),
        engine_tp=config.engine_tp or 0,
        engine_gpus=config.engine_gpus or config.gpus,
        colocated=config.engine_gpus is None,
        overlapped=config.lag == 1,
        adapters=adapters,
        imbalance=config.imbalance,
    )
    if config.engine_tp and asked.engine_gpus % config.engine_tp:
        raise ConfigError(
            f"--engine-tp {config.engine_tp} does not divide the {asked.engine_gpus} GPUs that"
            " generate; fix: a divisor"
        )
    return Task(shape, gpu, config.gpus, asked.update_work(), asked, asked.colocated)


def as_dict(plan: Plan, task: Task) -> dict[str, Any]:
    """One layout of the JSON; bytes and seconds are whole values, unrounded."""
    layout = plan.layout
    values: dict[str, Any] = {
        "tp": layout.tp,
        "pp": layout.pp,
        "vpp": layout.vpp,
        "cp": layout.cp,
        "ep": layout.ep,
        "etp": layout.etp,
        "dp": layout.dp,
        "micro_batch_size": layout.micro_batch_size,
        "micro_batches": plan.micro_batches,
        "recompute": layout.recompute,
        "sequence_parallel": layout.sequence_parallel,
        "memory_per_gpu_bytes": plan.memory.by_part(),
        "step_seconds": plan.seconds,
        "step_parts_seconds": plan.step.by_part(),
        "tokens_per_s_per_gpu": plan.tokens_per_s_gpu,
        "model_tflops_per_gpu": plan.model_tflops,
        "mfu": plan.mfu,
    }
    if task.work.precision == "fp8":
        values["mfu_of_fp8_peak"] = plan.mfu * task.gpu.peak("bf16") / task.gpu.peak("fp8")
    if plan.phases and task.round:
        budget = engine_budget(plan.memory, task.gpu.memory_bytes, task.round.colocated)
        values |= {
            "phases_seconds": plan.phases.by_part(),
            "engine_tp": plan.engine_tp,
            "gpu_memory_utilization": round(budget / task.gpu.memory_bytes, 2),
        }
    return values


def _question(config: PlanConfig, task: Task) -> dict[str, Any]:
    return {
        "model": config.model,
        "parameters": task.shape.num_parameters,
        "active_parameters": task.shape.num_active_parameters,
        "gpu": config.gpu,
        "gpus": config.gpus,
        "memory_available_bytes": task.gpu.memory_bytes,
        "workload": config.workload,
        "seq_length": config.seq_length,
        "global_batch_size": task.work.global_batch_size,
        "precision": config.precision,
        "sample_length": task.work.context,
        "imbalance": task.work.imbalance,
    }


def _headline(config: PlanConfig, task: Task, num_fitting: int) -> str:
    batch = f"{task.work.global_batch_size} samples a step"
    if task.round:
        batch = (
            f"{task.round.prompts} prompts × {task.round.n} a round, {task.round.mini_batches}"
            f" update(s) of {batch[:-7]}"
        )
    active = ""
    if task.shape.moe is not None:
        active = f", {task.shape.num_active_parameters / 1e9:.2f} G active"
    return (
        f"{config.model} ({task.shape.num_parameters / 1e9:.2f} G parameters{active}) on {config.gpus} ×"
        f" {task.gpu.name}, {config.precision}, rows of {config.seq_length:,}, {batch}:"
        f" {num_fitting} layouts fit {task.gpu.memory_gib:.1f} GiB"
    )


def _table(plans: list[Plan], task: Task) -> list[str]:
    unit = "round s" if task.round else "step s"
    lines = [
        f"{'':>3} {'tp':>3} {'pp':>3} {'vpp':>4} {'cp':>3} {'ep':>4} {'dp':>5} {'mbs':>4} {'recompute':>10}"
        f" {'GiB/GPU':>8} {unit:>9} {'tokens/s/GPU':>13}"
        f" {'MFU':>6}{' engine tp' if task.round else ''}"
    ]
    for index, plan in enumerate(plans, start=1):
        layout = plan.layout
        sizes = (
            f"{layout.tp:>3} {layout.pp:>3} {layout.vpp or '–':>4} {layout.cp:>3} {layout.ep:>4}"
            f" {layout.dp:>5} {layout.micro_batch_size:>4}"
        )
        figures = (
            f"{plan.memory.total / GIB:>8.1f} {plan.seconds:>9,.2f} {plan.tokens_per_s_gpu:>13,.0f}"
            f" {plan.mfu:>6.1%}"
        )
        lines.append(
            f"{index:>3} {sizes} {layout.recompute:>10}"
            f" {figures}{f'{plan.engine_tp:>10}' if task.round else ''}"
        )
    return lines


def _best(plan: Plan, task: Task) -> list[str]:
    memory = ", ".join(
        f"{part} {size / GIB:.1f}"
        for part, size in plan.memory.by_part().items()
        if size and part != "total"
    )
    lines = [f"1: GiB a GPU: {memory}", "1: share of a step: " + shares(plan.step.by_part())]
    if plan.phases:
        lines.append("1: share of a round: " + shares(plan.phases.by_part()))
    return lines


def shares(parts: dict[str, float]) -> str:
    """Parts as shares of their total, those below a thousandth left out."""
    total = parts.pop("total")
    return ", ".join(
        f"{part} {seconds / total:.1%}"
        for part, seconds in parts.items()
        if abs(seconds) >= total / 1000
    )


def _notes(config: PlanConfig, task: Task) -> list[str]:
    notes = [
        "note: predicted, calibrated on published runs; errors in docs/plan.md",
        (
            "note: of layouts within 1 % of the fastest, those with fewer pipeline chunks come"
            " first, then those with less memory"
        ),
    ]
    if (
        config.cp
        and config.cp not in context_parallel_sizes()
        and len(context_parallel_sizes()) == 1
    ):
        notes.append(
            f"note: cp {config.cp} is a prediction only: this trainer takes parallel.cp"
            f" {context_parallel_sizes()[0]}"
        )
    if task.shape.moe is not None and config.imbalance == 1:
        notes.append(
            "note: every expert taken to get as many tokens; --imbalance BUSIEST/MEAN for other loads"
        )
    if task.work.lora:
        notes.append(f"note: {ADAPTERS_UNTIMED}")
    if task.round is None and config.sample_length is None:
        notes.append(
            "note: every sample taken to fill its row; --sample-length MEAN for packed shorter ones"
        )
    return notes
