"""Which ranks of a world are run, and what they prove about the others.

One rank of every pipeline stage runs the whole step. Its tensor, context and data parallel
neighbours can differ from it only where the program asks for their coordinates, and layers and
micro-batches do not. So of every stage further ranks (the next and the last along each axis, and
the last of all axes) run the step with one layer a chunk and the fewest micro-batches; each must
ask for exactly what the first of its stage does.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace

from megaladder.dryrun.match import differences, run_together
from megaladder.dryrun.step import Job, RankProgram, simulate
from megaladder.dryrun.world import Place
from megaladder.model.hf_config import ModelShape
from megaladder.train.trainer import layout_of


@dataclass(frozen=True, slots=True)
class Simulation:
    """programs: the first rank of every stage, whole.

    compared: the ranks that were held against them. faults: what does not fit together, in words;
    empty where all does."""

    programs: tuple[RankProgram, ...]
    compared: tuple[int, ...]
    faults: tuple[str, ...]


def simulated_micro_batches(asked: int, pp: int) -> int:
    """Enough for the steady state of every schedule: the rest of a step repeats it."""
    return min(asked, max(3, 2 * pp))


def run_all(job: Job) -> Simulation:
    """The step on as many ranks as it takes to know all of them."""
    layout = layout_of(job.config)
    programs = tuple(_simulate(job, Place(pp=stage)) for stage in range(layout.pp))
    faults = run_together(programs)
    compared: list[int] = []
    small = replace(
        job, shape=with_layers(job.shape, layout.pp * layout.num_chunks), micro_batches=layout.pp
    )
    for stage in range(layout.pp):
        others = [place for place in neighbours(job) if place != Place()]
        if not others:
            continue
        first = _simulate(small, Place(pp=stage))
        for place in others:
            other = _simulate(small, replace(place, pp=stage))
            compared.append(other.rank)
            found = differences(first, other)
            faults += [] if found is None else [found]
    return Simulation(programs, tuple(compared), tuple(dict.fromkeys(faults)))


def with_layers(shape: ModelShape, count: int) -> ModelShape:
    """The model with fewer layers, with experts in each if it has any."""
    moe = shape.moe and replace(shape.moe, sparse_layers=(True,) * count)
    return replace(shape, num_layers=count, moe=moe)


def neighbours(job: Job) -> Iterator[Place]:
    """Places within a stage, without repetition: next and last along each axis, last along all."""
    layout = layout_of(job.config)
    sizes = {"tp": layout.tp, "cp": layout.cp, "dp": job.dp}
    corner = Place(**{axis: size - 1 for axis, size in sizes.items()})
    along = [
        Place(**{axis: index})
        for axis, size in sizes.items()
        for index in (1, size - 1)
        if size > 1
    ]
    yield from dict.fromkeys([*along, corner])


def _simulate(job: Job, place: Place) -> RankProgram:
    program = simulate(job, place)
    gc.collect()
    return program
