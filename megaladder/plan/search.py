"""Every layout that divides the model, the GPUs and the batch.

Those that fit the memory, fastest first.

Layouts within 1 % of the fastest are equals (the model errs by more): of these, fewer pipeline
chunks come first, then less memory. Context parallelism is tried where nothing fits without it, or
when pinned: its price on packed rows of unequal sequences is not modelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from megaladder.config.rules.layout import shape_problems
from megaladder.config.sections.shared import ParallelSection
from megaladder.errors import ConfigError
from megaladder.model.hf_config import ModelShape
from megaladder.plan.grpo import Round, RoundTime, engine_budget, grpo_calibration, round_time
from megaladder.plan.hardware import Gpu, gpus
from megaladder.plan.layout import OURS, RECOMPUTE_MODES, PlannedLayout, Software, Work
from megaladder.plan.memory import GIB, MemoryEstimate, estimate_memory
from megaladder.plan.throughput import Cluster, StepTime, step_time

MICRO_BATCH_SIZES = (1, 2, 4, 8)
SAME = 0.01  # relative difference in time that is none
MAX_HELP_GPUS = 4096


@dataclass(frozen=True, slots=True)
class Pins:
    """Sizes that are given; None is searched."""

    tp: int | None = None
    pp: int | None = None
    vpp: int | None = None
    cp: int | None = None
    micro_batch_size: int | None = None
    recompute: str | None = None
    ep: int | None = None
    etp: int | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of the search.

    A model's steps (`work`), or its GRPO rounds (`round`, whose `work` is one of its updates), on
    so many GPUs.

    colocated_engine: an engine sleeps on the trainer's GPUs during updates. software: what the
    trainer is told to overlap and to keep.
    """

    shape: ModelShape
    gpu: Gpu
    gpus: int
    work: Work
    round: Round | None = None
    colocated_engine: bool = False
    software: Software = OURS

    @property
    def trainer_gpus(self) -> int:
        """GPUs that train: all, unless the engine has its own."""
        return (
            self.gpus
            if self.round is None or self.round.colocated
            else self.gpus - self.round.engine_gpus
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A layout with its predictions. `phases` is set for GRPO; `seconds` is then a round."""

    layout: PlannedLayout
    micro_batches: int
    memory: MemoryEstimate
    step: StepTime
    seconds: float
    tokens_per_s_gpu: float
    model_tflops: float
    mfu: float
    phases: RoundTime | None = None
    engine_tp: int | None = None


def predict(task: Task, layout: PlannedLayout) -> Plan:
    """Memory and time of one layout, whether it fits or not."""
    machine, work = Cluster(task.gpu, task.software), task.work
    memory = estimate_memory(task.shape, layout, work, task.colocated_engine, task.software)
    step = step_time(task.shape, layout, work, machine)
    phases, engine_tp, seconds, tokens = None, None, step.total, work.tokens
    if task.round is not None:
        budget = engine_budget(memory, task.gpu.memory_bytes, task.round.colocated)
        phases = round_time(task.shape, layout, task.round, machine, budget, grpo_calibration())
        engine_tp, seconds, tokens = (
            task.round.engine_tp,
            phases.total,
            task.round.samples * task.round.sample_length,
        )
    per_token = task.shape.flops_per_token(work.context)
    if work.lora:  # frozen weights have no gradient: one product less of each
        per_token -= task.shape.forward_flops(1, 0, 1)
    flops = per_token * tokens / seconds / task.gpus
    return Plan(
        layout,
        work.micro_batches(layout),
        memory,
        step,
        seconds,
        tokens / seconds / task.gpus,
        flops / 1e12,
        flops / task.gpu.peak("bf16"),
        phases,
        engine_tp,
    )


def search(task: Task, pins: Pins = Pins()) -> list[Plan]:
    """Layouts that fit, best first.

    Raises:
        ConfigError: the pinned sizes do not divide, or nothing fits; the message has the smallest
        shortfall and what would help.
    """
    layouts = list(_layouts(task, pins))
    if not layouts:
        raise ConfigError(_why_none(task, pins))
    for cp in _context_parallel(task.shape, pins):
        plans = [
            plan
            for layout in layouts
            if layout.cp == cp and _spare(task, layout) >= 0
            for plan in _plans(task, layout)
        ]
        if plans:
            break
    else:
        raise ConfigError(_shortfall(task, pins, layouts))
    fastest = min(plan.seconds for plan in plans)
    # generation may hide any trainer: then the faster one comes first
    if task.round is not None and task.round.overlapped:
        return sorted(plans, key=lambda plan: (plan.seconds, plan.step.total))
    return sorted(plans, key=lambda plan: _rank(plan, fastest))


def _rank(plan: Plan, fastest: float) -> tuple[float, int, int]:
    equal = plan.seconds <= fastest * (1 + SAME)
    return (fastest if equal else plan.seconds, plan.layout.chunks, plan.memory.total)


def _plans(task: Task, layout: PlannedLayout) -> Iterator[Plan]:
    """The layout's prediction.

    For GRPO with the engine's best tensor parallelism, none where no engine fits beside the
    trainer."""
    if task.round is None:
        yield predict(task, layout)
        return
    found = []
    for engine_tp in (
        [task.round.engine_tp]
        if task.round.engine_tp
        else _divisors(min(task.round.engine_gpus, task.gpu.gpus_per_node))
    ):
        if shape_problems(task.shape, engine_tp, 1, None):
            continue
        try:
            found.append(
                predict(replace(task, round=replace(task.round, engine_tp=engine_tp)), layout)
            )
        except ConfigError:
            continue  # no room for this engine; another may have
    yield from sorted(found, key=lambda plan: plan.seconds)[:1]


def _spare(task: Task, layout: PlannedLayout) -> int:
    """Bytes left on the fullest GPU; negative: missing."""
    return (
        task.gpu.memory_bytes
        - estimate_memory(task.shape, layout, task.work, task.colocated_engine, task.software).total
    )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def context_parallel_sizes() -> tuple[int, ...]:
    """What the trainer takes for parallel.cp.

    The values its configuration lists, else powers of two."""
    return get_args(ParallelSection.model_fields["cp"].annotation) or (1, 2, 4, 8, 16)


def _layouts(task: Task, pins: Pins) -> Iterator[PlannedLayout]:
    """Layouts whose sizes divide, pinned ones kept."""
    shape, total = task.shape, task.trainer_gpus
    for tp in [pins.tp] if pins.tp else _divisors(task.gpu.gpus_per_node):
        for pp in [pins.pp] if pins.pp else _divisors(shape.num_layers):
            for cp in _context_parallel(shape, pins):
                if total % (tp * pp * cp) or task.work.seq_length % _row_multiple(tp, cp):
                    continue
                if task.work.global_batch_size < total // (tp * pp * cp):
                    continue  # ranks without a sample
                for vpp in _interleavings(shape, pp, pins):
                    if not shape_problems(shape, tp, pp, vpp):
                        dense = PlannedLayout(tp, pp, vpp, cp, total // (tp * pp * cp))
                        for layout in _expert_splits(shape, dense, pins):
                            yield from _variants(layout, pins)


def _context_parallel(shape: ModelShape, pins: Pins) -> Sequence[int]:
    """Sizes to try; the trainer has none above 1 for a mixture of experts."""
    if pins.cp:
        return [pins.cp]
    return context_parallel_sizes() if shape.moe is None else (1,)


def _expert_splits(shape: ModelShape, dense: PlannedLayout, pins: Pins) -> Iterator[PlannedLayout]:
    """The layout with its experts over every number of ranks that divides both.

    Each expert whole, unless etp is pinned: fine-grained ones are too thin to cut."""
    if shape.moe is None:
        yield dense
        return
    ranks, etp = dense.expert_copies, pins.etp or 1
    for ep in [pins.ep] if pins.ep else _divisors(shape.moe.num_experts):
        if shape.moe.num_experts % ep or ranks % (ep * etp) or shape.moe.ffn_hidden_size % etp:
            continue
        yield replace(dense, ep=ep, etp=etp)


def _row_multiple(tp: int, cp: int) -> int:
    """What a row's length must be a multiple of.

    Tp shares under sequence parallelism, two chunks a context-parallel rank."""
    return tp * (2 * cp if cp > 1 else 1)


def _interleavings(shape: ModelShape, pp: int, pins: Pins) -> list[int | None]:
    if pins.vpp:
        return [pins.vpp] if pp > 1 else []
    return [
        None,
        *(
            n
            for n in range(2, shape.num_layers // pp + 1)
            if pp > 1 and shape.num_layers % (pp * n) == 0
        ),
    ]


def _variants(layout: PlannedLayout, pins: Pins) -> Iterator[PlannedLayout]:
    for size in [pins.micro_batch_size] if pins.micro_batch_size else MICRO_BATCH_SIZES:
        for recompute in [pins.recompute] if pins.recompute else RECOMPUTE_MODES:
            yield replace(layout, micro_batch_size=size, recompute=recompute)


def _why_none(task: Task, pins: Pins) -> str:
    """The first reason why no size divides."""
    tp, pp, cp = pins.tp or 1, pins.pp or 1, pins.cp or 1
    problems = shape_problems(task.shape, tp, pp, pins.vpp, prefix="--")
    if problems:
        return "\n".join(problems)
    if task.trainer_gpus % (tp * pp * cp):
        return (
            f"tp {tp} × pp {pp} × cp {cp} = {tp * pp * cp} does not divide {task.trainer_gpus} GPUs"
            f" that train; fix: --gpus a multiple of {tp * pp * cp}, or other sizes"
        )
    if pins.vpp and not (pins.pp and pins.pp > 1):
        return (
            f"--vpp {pins.vpp} needs pipeline stages; fix: --pp of at least 2 with pp·vpp a divisor"
            f" of {task.shape.num_layers} layers"
        )
    if problem := _experts_problem(task, pins):
        return problem
    if task.work.seq_length % (multiple := _row_multiple(tp, cp)):
        return (
            f"--seq-length {task.work.seq_length} does not divide over tp {tp}, cp {cp}; fix:"
            f" --seq-length a multiple of {multiple}"
        )
    return (
        f"--global-batch-size {task.work.global_batch_size} is smaller than the data-parallel size"
        f" of every layout on {task.trainer_gpus} GPUs; fix: a larger batch (at least"
        f" {task.trainer_gpus // task.gpu.gpus_per_node}), or fewer GPUs"
    )


def _experts_problem(task: Task, pins: Pins) -> str | None:
    """Why the pinned sizes of experts do not divide, if that is so."""
    moe, ep, etp = task.shape.moe, pins.ep or 1, pins.etp or 1
    if moe is None:
        return None
    if moe.num_experts % ep or moe.ffn_hidden_size % etp:
        return (
            f"--ep {ep} and --etp {etp} do not divide {moe.num_experts} experts of feed-forward size"
            f" {moe.ffn_hidden_size}; fix: divisors of both"
        )
    ranks = task.trainer_gpus // (pins.pp or 1)
    if ranks % (ep * etp):
        return (
            f"--ep {ep} × --etp {etp} does not divide the {ranks} GPUs of a pipeline stage; fix:"
            f" --gpus a multiple of {ep * etp * (pins.pp or 1)}, or other sizes"
        )
    return None


def _shortfall(task: Task, pins: Pins, layouts: list[PlannedLayout]) -> str:
    """The layout that misses by least, by how much, and what would make one fit."""
    nearest = max(layouts, key=lambda layout: _spare(task, layout))
    memory, missing = (
        estimate_memory(task.shape, nearest, task.work, task.colocated_engine, task.software),
        -_spare(task, nearest) / GIB,
    )
    parts = sorted(
        ((size, part) for part, size in memory.by_part().items() if part != "total"), reverse=True
    )[:3]
    largest = ", ".join(f"{part} {size / GIB:.1f}" for size, part in parts)
    where = f"{task.gpus} × {task.gpu.name}"
    if missing <= 0:
        text = (
            f"no layout on {where} leaves room for the engine's weights beside the trainer's states"
            f" (nearest: {nearest})"
        )
    else:
        text = (
            f"no layout fits {where}: the nearest ({nearest}) needs {memory.total / GIB:.1f} GiB a"
            f" GPU of {task.gpu.memory_gib:.1f}, {missing:.1f} GiB short (largest parts in GiB:"
            f" {largest})"
        )
    helps = _what_helps(task, pins)
    return f"{text}; fix: {' or '.join(helps) if helps else 'a smaller model'}"


def _what_helps(task: Task, pins: Pins) -> list[str]:
    """Changes of one thing after which something fits."""

    def fits(changed: Task, with_pins: Pins = pins) -> bool:
        return any(
            _spare(changed, layout) >= 0 and next(_plans(changed, layout), None)
            for layout in _layouts(changed, with_pins)
        )

    helps = []
    if pins != Pins() and fits(task, Pins()):
        helps.append("leave --tp, --pp, --cp, --ep, --micro-batch-size and --recompute open")
    counts = iter(range(2, MAX_HELP_GPUS // task.gpus + 1))
    more = next(
        (
            task.gpus * n
            for n in counts
            if n & (n - 1) == 0 and fits(replace(task, gpus=task.gpus * n, round=_more(task, n)))
        ),
        None,
    )
    # perhaps no pipeline size divides the GPUs: the largest smaller number that one does
    if more is None:
        node, layers = task.gpu.gpus_per_node, _divisors(task.shape.num_layers)
        fewer = sorted(
            {task.gpus // (node * pp) * node * pp for pp in layers if task.round is None}
            - {0, task.gpus},
            reverse=True,
        )
        more = next((count for count in fewer if fits(replace(task, gpus=count))), None)
    if more:
        helps.append(f"--gpus {more}")
    bigger = {
        name: gpu
        for name, gpu in gpus().items()
        if gpu.memory_gib > task.gpu.memory_gib and _runs(gpu, task)
    }
    larger = [name for name, gpu in bigger.items() if fits(replace(task, gpu=gpu))]
    if larger:
        helps.append(f"--gpu {larger[0]}")
    lengths = [
        task.work.seq_length // n for n in (2, 4, 8, 16) if task.work.seq_length // n >= 1024
    ]
    shorter = next(
        (
            n
            for n in lengths
            if task.round is None and fits(replace(task, work=replace(task.work, seq_length=n)))
        ),
        None,
    )
    if shorter:
        helps.append(f"--seq-length {shorter}")
    return helps


def _runs(gpu: Gpu, task: Task) -> bool:
    return task.work.precision != "fp8" or gpu.fp8_tflops is not None


def _more(task: Task, factor: int) -> Round | None:
    return replace(task.round, engine_gpus=task.round.engine_gpus * factor) if task.round else None
