"""kill -9 at any moment: the resumed run's record of trained groups, losses and gradient norms
equals the uninterrupted run's."""

from __future__ import annotations

import json
import random
import time

import pytest
from grpo_runs import GrpoRuns

POINTS = (
    "completion",
    "before_grading",
    "before_rollouts_stored",
    "rollouts_stored",
    "update",
    "before_save",
    "after_write",
    "before_commit",
    "after_commit",
    "after_sync",
)
FLAGS = ("--grpo.preset", "dapo", "--train.max-steps", "6")
LAG = (*FLAGS, "--grpo.lag", "1", "--grpo.mini-batches", "2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> GrpoRuns:
    return GrpoRuns(tmp_path_factory.mktemp("kill"))


@pytest.fixture(scope="module")
def whole(runs):
    """Uninterrupted runs at lag 0 and 1, and how long one takes."""
    began = time.monotonic()
    found = {flags: runs.run(f"whole{len(flags)}", *flags) for flags in (FLAGS, LAG)}
    assert all(one.status == 0 and len(one.rows) == 6 for one in found.values()), [
        one.error for one in found.values()
    ]
    return found, (time.monotonic() - began) / 2


def trial_plan(number: int, duration_s: float) -> dict:
    rng = random.Random(number)
    if number % 2:
        return {"kill_after_s": rng.uniform(0.05, 1.1) * duration_s}
    point = POINTS[number // 2 % len(POINTS)]
    last = 60 if point == "completion" else 2 if "commit" in point else 4
    return {"fault": f"{point}:{rng.randint(1, last)}:SIGKILL"}


@pytest.mark.parametrize("number", range(20))
def test_record_of_trained_groups_survives_a_kill(runs, whole, number):
    references, duration_s = whole
    flags = LAG if number % 4 >= 2 else FLAGS
    name = f"trial{number}"
    done = runs.run(name, *flags, **trial_plan(number, duration_s))
    assert done.status in (0, -9), done.error
    rounds_before = stored(done)
    if done.status == -9:
        done = runs.run(name, *flags)
    assert done.status == 0, done.error
    assert done.record() == references[flags].record()
    assert [row["step"] for row in done.rows] == list(range(1, 7))
    for path, lines in rounds_before.items():  # whatever was on disk was a whole round
        assert len(lines) == 12, path
    final = stored(done)
    assert {path: [line["response_ids"] for line in lines] for path, lines in final.items()} == {
        path: [line["response_ids"] for line in lines]
        for path, lines in stored(references[flags]).items()
    }


def stored(done) -> dict[str, list[dict]]:
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((done.folder / "rollouts").glob("step_*.jsonl"))
    }


def test_a_round_of_other_settings_is_not_used_again(runs):
    """Killed after the first round was stored; the temperature changes before the resume: that
    round is sampled anew."""
    killed = runs.run("settings", *FLAGS, fault="rollouts_stored:1:SIGKILL")
    assert killed.status == -9 and list(stored(killed)) == ["step_1.jsonl"]
    stamp = (killed.folder / "rollouts" / "step_1.jsonl").stat().st_mtime_ns
    same = runs.run("settings", *FLAGS, "--train.max-steps", "1")
    assert (
        same.status == 0 and (same.folder / "rollouts" / "step_1.jsonl").stat().st_mtime_ns == stamp
    )
    killed = runs.run("settings2", *FLAGS, fault="rollouts_stored:1:SIGKILL")
    stamp = (killed.folder / "rollouts" / "step_1.jsonl").stat().st_mtime_ns
    other = runs.run("settings2", *FLAGS, "--train.max-steps", "1", "--rollout.temperature", "0.9")
    assert (
        other.status == 0
        and (other.folder / "rollouts" / "step_1.jsonl").stat().st_mtime_ns != stamp
    )
