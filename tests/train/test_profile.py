"""Profiles are written for the chosen steps and ranks only, one file a capture, with the named
ranges in it."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from megaladder.config.sections.shared import TrainSection
from megaladder.train.profile import StepProfiler

SECTION = TrainSection(profile_steps=(2, 3), profile_ranks=(0,), profiler="torch")


def run_steps(profiler: StepProfiler, steps: list[int]) -> None:
    for step in steps:
        with profiler.step(step), profiler.phase("forward and backward"):
            torch.ones(4, 4) @ torch.ones(4, 4)


def test_chosen_steps_are_captured_with_their_ranges(tmp_path) -> None:
    run_steps(StepProfiler(SECTION, tmp_path / "profile", 0), [1, 2, 2, 3, 4])
    names = ["step_2_2_rank_0.json.gz", "step_2_rank_0.json.gz", "step_3_rank_0.json.gz"]
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == names
    for name in names:
        events = json.loads(gzip.decompress((tmp_path / "profile" / name).read_bytes()))[
            "traceEvents"
        ]
        assert {"forward and backward", "aten::mm"} <= {event.get("name") for event in events}


@pytest.mark.parametrize(
    "section",
    [
        TrainSection(profile_steps=(2,), profile_ranks=(1,), profiler="torch"),
        TrainSection(profile_steps=(), profile_ranks=(0,), profiler="torch"),
    ],
)
def test_other_ranks_and_other_steps_write_nothing(tmp_path, section) -> None:
    run_steps(StepProfiler(section, tmp_path / "profile", 0), [1, 2, 3])
    assert not (tmp_path / "profile").exists()


def test_an_error_inside_a_captured_step_comes_through(tmp_path) -> None:
    with pytest.raises(ZeroDivisionError), StepProfiler(SECTION, tmp_path / "profile", 0).step(2):
        _ = 1 / 0
