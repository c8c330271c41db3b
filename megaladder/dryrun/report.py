"""What a dry run found, as a table and as one JSON object; `plan`'s figures beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from megaladder.dryrun.ranks import Simulation
from megaladder.dryrun.record import Event
from megaladder.dryrun.step import Job, RankProgram
from megaladder.plan.memory import MemoryEstimate

GB = 1e9
PARTS = ("weights", "gradients", "optimizer", "fp8_copies", "activations")
# communicators whose work is asked for by every micro-batch
_EACH_MICRO_BATCH = (
    "tensor_model_parallel",
    "context_parallel",
    "pipeline_model_parallel",
    "expert_model_parallel",
    "expert_tensor_parallel",
    "expert_tensor_and_model_parallel",
    "tensor_and_data_parallel_group_with_cp",  # of the balancing loss
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Operations of one kind on a rank in one update."""

    op: str
    group: str
    size: int
    dtype: str
    num_bytes: int
    count: int

    @property
    def total_bytes(self) -> int:
        return self.num_bytes * self.count


def traffic(job: Job, program: RankProgram) -> list[Traffic]:
    """By kind, the largest sum first.

    Micro-batches that were not run are counted: what each of those run asked for is taken as often
    as the update has micro-batches."""
    counts = Counter(
        (event.op, event.group.name, event.group.size, event.dtype, event.num_bytes)
        for event in program.events
        if event.op != "wait"
    )
    found = [Traffic(*kind, count=_scaled(job, kind[1], count)) for kind, count in counts.items()]
    return sorted(found, key=lambda kind: -kind.total_bytes)


def _scaled(job: Job, group: str, count: int) -> int:
    repeated, rest = divmod(count, job.micro_batches)
    if rest or group not in _EACH_MICRO_BATCH:
        return count
    return repeated * job.asked_micro_batches


def memory_rows(program: RankProgram, planned: MemoryEstimate) -> Iterator[tuple[str, int, int]]:
    """(part, bytes of the dry run, bytes of `plan`), and their sum."""
    rows = [(part, getattr(program.held, part), getattr(planned, part)) for part in PARTS]
    yield from rows
    yield ("sum", sum(row[1] for row in rows), sum(row[2] for row in rows))


def largest_difference(rows: list[tuple[str, int, int]]) -> float:
    """|dry run / plan − 1| of the sum."""
    held, planned = rows[-1][1:]
    return abs(held / planned - 1)


def table(job: Job, simulation: Simulation, planned: list[MemoryEstimate]) -> list[str]:
    """Lines for a terminal."""
    lines = []
    for program, estimate in zip(simulation.programs, planned, strict=True):
        lines += [
            "",
            f"stage {program.place.pp} (rank {program.rank}, {len(program.events)} operations run)",
        ]
        lines += [f"  {'GB':<12} {'dry run':>10} {'plan':>10} {'difference':>11}"]
        for name, held, expected in memory_rows(program, estimate):
            change = f"{held / expected - 1:+.1%}" if expected else "–"
            lines.append(f"  {name:<12} {held / GB:>10.3f} {expected / GB:>10.3f} {change:>11}")
        lines.append(f"  {'head':<12} {'':>10} {estimate.head / GB:>10.3f}   plan's rule")
        lines += ["", *_traffic_lines(job, program)]
    return lines


def _traffic_lines(job: Job, program: RankProgram) -> list[str]:
    lines = [
        f"  {'operation':<20} {'communicator':<36} {'type':<9} {'MB each':>10} {'an update':>9} {'GB':>9}"
    ]
    for kind in traffic(job, program):
        lines.append(
            f"  {kind.op:<20} {f'{kind.group} of {kind.size}':<36} {kind.dtype:<9}"
            f" {kind.num_bytes / 1e6:>10,.3f} {kind.count:>9,} {kind.total_bytes / GB:>9,.2f}"
        )
    return lines


def as_dict(job: Job, simulation: Simulation, planned: list[MemoryEstimate]) -> dict[str, Any]:
    """Everything, operations in their order."""
    return {
        "ranks": job.world_size,
        "data_parallel": job.dp,
        "micro_batches": job.asked_micro_batches,
        "micro_batches_run": job.micro_batches,
        "compared_ranks": list(simulation.compared),
        "faults": list(simulation.faults),
        "stages": [
            {
                "stage": program.place.pp,
                "rank": program.rank,
                "bytes": asdict(program.held),
                "plan_bytes": estimate.by_part(),
                "traffic": [
                    {**asdict(kind), "total_bytes": kind.total_bytes}
                    for kind in traffic(job, program)
                ],
                "operations": [_operation(event) for event in program.events],
            }
            for program, estimate in zip(simulation.programs, planned, strict=True)
        ],
    }


def _operation(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = {
        "op": event.op,
        "group": event.group.name,
        "size": event.group.size,
        "dtype": event.dtype,
        "bytes": event.num_bytes,
        "where": event.where,
    }
    if event.peer is not None:
        found |= {"peer": event.peer, "batch": event.batch}
    return found
