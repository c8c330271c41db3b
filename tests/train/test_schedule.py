"""Learning rates at hand-computed steps."""

import math

import pytest

from megaladder.config.sections.shared import OptimSection
from megaladder.train.schedule import build_schedule


def test_warmup_is_linear_and_reaches_the_peak():
    schedule = build_schedule(OptimSection(lr=5e-5, warmup_ratio=0.1), total_steps=640)
    assert schedule.warmup_steps == 64  # the published run: 640 steps, 10 %
    assert schedule.lr(1) == pytest.approx(5e-5 / 64)
    assert schedule.lr(64) == 5e-5


def test_cosine_half_way_and_end():
    schedule = build_schedule(OptimSection(lr=1.0, min_lr=0.1, warmup_steps=10), total_steps=109)
    assert schedule.lr(60) == pytest.approx(0.55)
    assert schedule.lr(35) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert schedule.lr(110) == pytest.approx(0.1)  # one past the end
    assert schedule.lr(109) > 0.1


def test_linear_and_constant():
    linear = build_schedule(OptimSection(lr=1.0, schedule="linear", warmup_steps=0), total_steps=9)
    assert [linear.lr(step) for step in (1, 5, 9)] == pytest.approx([0.9, 0.5, 0.1])
    constant = build_schedule(
        OptimSection(lr=1.0, schedule="constant", warmup_steps=2), total_steps=10
    )
    assert [constant.lr(step) for step in (1, 2, 10)] == [0.5, 1.0, 1.0]


def test_wsd_holds_then_decays_linearly():
    schedule = build_schedule(
        OptimSection(lr=1.0, schedule="wsd", warmup_steps=10, wsd_decay_ratio=0.19), total_steps=100
    )
    assert [schedule.lr(step) for step in (10, 50, 81)] == [1.0, 1.0, 1.0]
    assert [schedule.lr(step) for step in (91, 100)] == pytest.approx([0.5, 0.05])
