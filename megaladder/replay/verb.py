"""The verb `replay`.

Computes a step of a run again and compares it with the recorded row, bit by bit."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megaladder.config.rules.layout import check_world
from megaladder.config.verbs.replay import ReplayConfig
from megaladder.errors import DataError
from megaladder.process.launch import launch_local
from megaladder.process.ranks import die_with_launcher, under_launcher
from megaladder.replay.record import (
    RecordedStep,
    changed_surroundings,
    compared,
    differences,
    read_step,
    recorded_threads,
)
from megaladder.run_dir import RunDir, atomic_write, read_jsonl, to_json


def run_replay(config: ReplayConfig) -> int:
    """The verb; starts the ranks of the run's layout where there are more than one.

    Raises:
        DataError: the step came out otherwise; names the first quantity, and what has changed
        around the run. CheckpointError: nothing is left to replay it from.
    """
    recorded = read_step(Path(config.run_dir), config.step)
    section = recorded.config.parallel
    if not under_launcher():
        num_ranks = section.ranks or section.least_ranks
        check_world(recorded.config, num_ranks)
        threads = recorded_threads(recorded.folder)
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads
        if num_ranks > 1:
            return launch_local(num_ranks, _command(config))
    else:
        die_with_launcher()
        check_world(recorded.config, int(os.environ["WORLD_SIZE"]))
    return _replay(config, recorded)


def _command(config: ReplayConfig) -> list[str]:
    command = [sys.executable, "-m", "megaladder", "replay", config.run_dir]
    command += ["--step", str(config.step)]
    return [*command, "--json", config.json_path] if config.json_path else command


def _replay(config: ReplayConfig, recorded: RecordedStep) -> int:
    # torch is imported in ranks only, after the number of threads is known
    from megaladder import parallel
    from megaladder.replay.steps import compute_again
    from megaladder.train.trainer import layout_of

    timeout_s = recorded.config.collective_timeout_s
    with (
        parallel.session(layout_of(recorded.config), timeout_s=timeout_s),
        _scratch() as folder,
        RunDir(folder, parallel.is_main()) as run,
    ):
        identity = compute_again(recorded, run)
        parallel.on_main(lambda: _tell(config, recorded, run, identity))
    return 0


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder of the main rank's, the same path on every rank; gone afterwards. Collective."""
    from megaladder import parallel

    folder = Path(parallel.on_main(lambda: tempfile.mkdtemp(prefix="megaladder-replay-")))
    try:
        yield folder
    finally:
        if parallel.is_main():
            shutil.rmtree(folder)


def _tell(
    config: ReplayConfig, recorded: RecordedStep, run: RunDir, identity: dict[str, Any]
) -> None:
    """Compares, writes and says what was found."""
    found = next(row for row in read_jsonl(run.metrics) if row["step"] == recorded.step)
    different = differences(recorded.row, found)
    around = changed_surroundings(recorded.folder, identity)
    if config.json_path:
        result = {
            "step": recorded.step,
            "after": recorded.after,
            "equal": not different,
            "differences": [
                {"quantity": name, "recorded": then, "found": now} for name, then, now in different
            ],
            "changed": around,
        }
        atomic_write(config.json_path, to_json(result, sort_keys=True, indent=1) + "\n")
    if different:
        name, then, now = different[0]
        others = f" and {len(different) - 1} others" if len(different) > 1 else ""
        raise DataError(
            f"{recorded.folder}: step {recorded.step} came out otherwise: {name}{others}: recorded"
            f" {then!r}, now {now!r}; what has changed since: {', '.join(around) or 'nothing known'};"
            " fix: the versions, machine and data that the run had"
        )
    print(
        f"step {recorded.step}: equal to the bit: loss {found['loss']!r}, gradient norm"
        f" {found['grad_norm']!r} and {len(compared(found)) - 2} others"
        + (f" (although this has changed: {', '.join(around)})" if around else ""),
        flush=True,
    )
