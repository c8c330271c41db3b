"""Finds where a start begins: fresh, from the newest good checkpoint, or on a new line.

Decided on the main rank, verified by all ranks together (each hashes a share of the files).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megaladder import parallel
from megaladder.checkpoint import lineage, store
from megaladder.checkpoint.checkpointer import remove_leftovers
from megaladder.config.sections.run import RunConfig
from megaladder.errors import CheckpointError
from megaladder.run_dir import RunDir
from megaladder.train.life.resume import check_same_run

Damage = Callable[[Path], str | None]
"""What is wrong with a checkpoint, None for a good one. Collective."""


@dataclass(frozen=True, slots=True)
class Start:
    """The checkpoint that a start continues from, and what the user should be told.

    path: None for a fresh run. line: the lineage that the step belongs to.
    """

    path: Path | None
    step: int
    line: lineage.Line
    notes: list[str]


def find_start(config: RunConfig, run: RunDir, damage: Damage) -> Start:
    """Finds the checkpoint that `checkpoint.resume` asks for.

    Sets aside what a new line leaves behind, and damaged checkpoints.

    Collective.

    Raises:
        CheckpointError: `never` in a folder that has checkpoints, a named step that is not
        committed or damaged, or no good checkpoint among several.
        ConfigError: a new line with settings that may not change.
    """
    remove_leftovers(run.checkpoints)
    parallel.on_main(lambda: lineage.settle(run.path))
    notes = parallel.on_main(lambda: store.strangers(run.checkpoints))
    wanted = config.checkpoint.resume
    if wanted == "never":
        _refuse_existing(run)
        return Start(None, 0, lineage.Line(), notes)
    if wanted == "auto" or _goes_on(config, run, Path(wanted)):
        return _newest_good(run, damage, notes)
    return _new_line(config, run, Path(wanted), damage, notes)


def _refuse_existing(run: RunDir) -> None:
    steps = parallel.on_main(lambda: store.committed_steps(run.checkpoints))
    if steps:
        raise CheckpointError(
            f"{run.checkpoints} holds step {steps[-1]} and checkpoint.resume is 'never'; fix:"
            " another run_dir, delete it, or resume auto"
        )


def _goes_on(config: RunConfig, run: RunDir, origin: Path) -> bool:
    """Whether the same command is repeated: its line is there already and has come further.

    A requeued job names the old step again and must not lose what it has done since. Other settings
    mean another experiment from the same step, and so another line.
    """

    def decide() -> bool:
        line = lineage.read_lineage(run.path).current
        return line.origin == str(origin.resolve()) and bool(store.committed_steps(run.checkpoints))

    return parallel.on_main(decide) and not check_same_run(config, run, resuming=True)


def _newest_good(run: RunDir, damage: Damage, notes: list[str]) -> Start:
    line = parallel.on_main(lambda: lineage.read_lineage(run.path).current)
    steps = parallel.on_main(lambda: store.committed_steps(run.checkpoints))
    for step in reversed(steps):
        path = store.step_dir(run.checkpoints, step)
        problem = damage(path)
        if problem is None:
            return Start(path, step, line, notes)
        notes = [*notes, f"{problem}; set aside, going back to an earlier checkpoint"]
        parallel.on_main(partial(_set_damaged_aside, run, path))
    if steps:
        raise CheckpointError(
            f"{run.checkpoints}: none of the checkpoints {steps} is good: {'; '.join(notes)}; they"
            f" lie in {run.path / lineage.SET_ASIDE}; fix: start in another run_dir, or with"
            " checkpoint.resume never"
        )
    return Start(None, 0, line, notes)


def _set_damaged_aside(run: RunDir, checkpoint: Path) -> None:
    """The checkpoint and the export of its step; rows and rollouts are of the line and stay."""
    target = run.path / lineage.SET_ASIDE / "damaged"
    lineage.move([checkpoint], target)
    export = run.path / "hf" / checkpoint.name
    if export.is_dir():
        lineage.move([export], target / "hf")


def _new_line(
    config: RunConfig, run: RunDir, origin: Path, damage: Damage, notes: list[str]
) -> Start:
    if not parallel.on_main(lambda: (origin / store.MARKER).is_file()):
        steps = parallel.on_main(lambda: store.committed_steps(run.checkpoints))
        raise CheckpointError(
            f"{origin}: no committed checkpoint (checkpoint.resume); committed steps in"
            f" {run.checkpoints}: {steps or 'none'}; fix: name one of them, or resume auto"
        )
    problem = damage(origin)
    if problem is not None:
        raise CheckpointError(problem)
    check_same_run(config, run, resuming=True)
    step = parallel.on_main(lambda: int(store.read_trainer(origin)["step"]))
    before = parallel.on_main(lambda: store.committed_steps(run.checkpoints))
    line = parallel.on_main(lambda: lineage.begin_line(run.path, origin, step)).current
    left = [other for other in before if other > line.fork]
    if left:
        aside = run.path / lineage.SET_ASIDE
        notes = [*notes, f"rewound to {origin}: steps {left} of the line before are now in {aside}"]
    return Start(origin, step, line, notes)
