"""The verb `dryrun`.

A step of the run at its full size, on this machine, without data or GPUs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from megaladder.config.grpo import GrpoConfig
from megaladder.config.rules.layout import batch_line, check_world, validate_layout
from megaladder.config.sft import SftConfig
from megaladder.errors import ConfigError, MegaladderError
from megaladder.plan.hardware import find_gpu, find_model
from megaladder.plan.memory import GIB, MemoryEstimate, stage_memory
from megaladder.plan.throughput import Cluster, StepTime, step_time
from megaladder.plan.verb import shares
from megaladder.preflight.check import is_grpo, planned
from megaladder.run_dir import atomic_write, to_json

if TYPE_CHECKING:
    from megaladder.dryrun.ranks import Simulation

MOST_RANKS = 4096


class DryrunSft(SftConfig):
    """One update of a supervised fine-tuning run on all its ranks, without data, weights or GPUs.

    Bytes of every rank, every collective and transfer, and whether they fit together.

    megaladder dryrun examples/configs/sft_qwen3_14b.yaml --parallel.ranks 512
    """

    gpu_kind: str = "h200"
    """GPU whose memory the bytes are held against: h100, h200, … (megaladder/plan/hardware.yaml)."""
    json_file: Annotated[Path | None, arg(name="json")] = None
    """Write everything as one JSON object, operations in their order."""


class DryrunGrpo(GrpoConfig):
    """One update of a GRPO run on all its ranks, and the log-prob passes before it.

    Without data, weights or GPUs: bytes of every rank, every collective and transfer, and whether
    they fit together. The engine and the way of the weights to it are not in it.

    megaladder dryrun examples/configs/grpo_qwen3_14b.yaml --parallel.ranks 512
    """

    gpu_kind: str = "h200"
    """GPU whose memory the bytes are held against: h100, h200, … (megaladder/plan/hardware.yaml)."""
    json_file: Annotated[Path | None, arg(name="json")] = None
    """Write everything as one JSON object, operations in their order."""


def config_class(args: Sequence[str]) -> type[DryrunSft] | type[DryrunGrpo]:
    """By the sections of the file and the flags."""
    return DryrunGrpo if is_grpo(args) else DryrunSft


def run_dryrun(config: DryrunSft | DryrunGrpo) -> None:
    """Prints what one update does; raises where the ranks do not fit together.

    Raises:
        ConfigError: layout, batch or number of ranks is not possible.
        MegaladderError: the ranks would wait for each other, or disagree.
    """
    began = time.perf_counter()
    ranks = config.parallel.ranks or config.parallel.least_ranks
    if ranks > MOST_RANKS:
        raise ConfigError(
            f"parallel.ranks {ranks} is more than the {MOST_RANKS} that a dry run takes; fix:"
            f" --parallel.ranks {MOST_RANKS // config.parallel.least_ranks * config.parallel.least_ranks}"
        )
    dp = check_world(config, ranks)
    shape = find_model(config.model.path)
    validate_layout(config, shape)
    gpu = find_gpu(config.gpu_kind)
    # torch and megatron-core: after all that needs neither
    from megaladder import platform

    platform.prepare_megatron()
    from megaladder.dryrun import report
    from megaladder.dryrun.ranks import run_all, simulated_micro_batches
    from megaladder.dryrun.step import Job

    precision = config.train.precision
    precision = "bf16" if precision == "auto" else precision
    layout, work, software = planned(config, shape, dp, precision)
    asked = work.micro_batches(layout)
    job = Job(config, shape, dp, simulated_micro_batches(asked, layout.pp), asked)
    simulation = run_all(job)
    estimates = [stage_memory(shape, layout, work, stage, software) for stage in range(layout.pp)]
    print(f"{config.model.path} on {ranks:,} ranks: {layout}")
    print(
        f"batch: {batch_line(config, ranks)}; {asked} micro-batches an update, {job.micro_batches} run"
    )
    for line in report.table(job, simulation, estimates):
        print(line)
    print()
    for line in _summary(simulation, estimates, gpu.memory_bytes):
        print(line)
    print(_seconds(step_time(shape, layout, work, Cluster(gpu, software)), gpu.name))
    if config.json_file:
        found = report.as_dict(job, simulation, estimates)
        atomic_write(config.json_file, to_json(found, sort_keys=True, indent=1) + "\n")
    print(f"took {time.perf_counter() - began:.1f} s")
    if simulation.faults:
        raise MegaladderError(
            "the ranks do not fit together: "
            + " | ".join(simulation.faults)
            + "; fix: this run would hang or stop with wrong results; what both sides ask for at"
            " the place named has to be the same"
        )


def _seconds(step: StepTime, gpu_name: str) -> str:
    """What `plan` predicts for the update."""
    return f"plan predicts {step.total:.2f} s an update on {gpu_name}: {shares(step.by_part())}"


def _summary(
    simulation: Simulation, estimates: list[MemoryEstimate], gpu_bytes: int
) -> Iterator[str]:
    """The verdicts."""
    from megaladder.dryrun.report import largest_difference, memory_rows

    pairs = list(zip(simulation.programs, estimates, strict=True))
    worst = max(largest_difference(list(memory_rows(*pair))) for pair in pairs)
    yield f"bytes of a rank against plan's: at most {worst:.1%} apart"
    fullest = max(list(memory_rows(*pair))[-1][1] + pair[1].head for pair in pairs)
    yield (
        f"the fullest rank holds {fullest / GIB:.1f} of {gpu_bytes / GIB:.1f} GiB, without the"
        " framework's own and fragmentation"
    )
    ranks = [program.rank for program in simulation.programs]
    yield (
        f"run in full: ranks {', '.join(map(str, ranks))}; held against them:"
        f" {', '.join(map(str, simulation.compared)) or 'no others'}"
    )
    if not simulation.faults:
        yield "every group asks for the same in the same order, every transfer meets its partner"
