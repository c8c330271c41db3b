"""Group advantages and token weights against loops over plain Python numbers, and the promises
about degenerate groups and samples."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaladder.train.objectives.advantages import (
    filter_truncated,
    group_advantages,
    group_statistics,
    token_weights,
    zero_variance,
)

AGGREGATIONS = (
    "token_mean",
    "sequence_mean_token_mean",
    "sequence_mean_token_sum",
    "sequence_mean_token_sum_norm",
)
MAX_TOKENS = 50


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("std", [True, False])
def test_advantages_equal_a_loop_over_groups(baseline, std):
    rewards = np.random.default_rng(0).normal(size=(5, 7))
    found = group_advantages(rewards, baseline=baseline, std=std, eps=1e-6)
    for group, row in enumerate(rewards.tolist()):
        for i, reward in enumerate(row):
            others = row if baseline == "mean" else row[:i] + row[i + 1 :]
            expected = (reward - statistics.fmean(others)) / (
                (statistics.stdev(row) + 1e-6) if std else 1.0
            )
            assert found[group, i] == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_one_right_answer_in_four_by_hand():
    """R = 1,0,0,0: mean 1/4, s = 1/2; leave-one-out: 1 − 0 and 0 − 1/3."""
    rewards = [[1.0, 0.0, 0.0, 0.0]]
    assert group_advantages(rewards, baseline="mean", std=True, eps=0.0).tolist() == [
        [1.5, -0.5, -0.5, -0.5]
    ]
    assert group_advantages(rewards, baseline="mean", std=False).tolist() == [
        [0.75, -0.25, -0.25, -0.25]
    ]
    assert group_advantages(rewards, baseline="leave_one_out", std=False)[0] == pytest.approx(
        [1.0, -1 / 3, -1 / 3, -1 / 3], abs=1e-15
    )


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("std", [True, False])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1e6 / 3])
def test_a_group_without_variance_gets_exactly_zero(baseline, std, reward):
    rewards = np.full((2, 7), reward)
    rewards[1, 0] += 1.0  # its neighbour does not
    advantages = group_advantages(rewards, baseline=baseline, std=std)
    assert not advantages[0].any() and advantages[1].all()
    assert zero_variance(rewards).tolist() == [True, False]


def test_rewards_that_differ_by_rounding_only_are_equal():
    rewards = [[0.1 + 0.2, 0.3, 0.3]]
    assert rewards[0][0] != rewards[0][1]
    assert (
        zero_variance(rewards).all()
        and not group_advantages(rewards, baseline="mean", std=True).any()
    )


@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=1, max_size=4),
    st.floats(-3, 3),
)
def test_advantages_sum_to_zero_and_do_not_see_a_shift_of_all_rewards(rewards, shift):
    rewards = np.round(np.array(rewards), 3)  # differences well above the eps of the deviation
    for baseline in ("mean", "leave_one_out"):
        advantages = group_advantages(rewards, baseline=baseline, std=True)
        assert np.abs(advantages.sum(axis=1)).max() < 1e-6
        assert np.allclose(
            group_advantages(rewards + shift, baseline=baseline, std=True), advantages, atol=1e-6
        )
    normalised = group_advantages(rewards, baseline="mean", std=True)[~zero_variance(rewards)]
    assert np.allclose((normalised**2).sum(axis=1), 3.0, rtol=0.01)  # Σ(R − mean)²/s² = n − 1


def test_groups_of_one_of_none_and_no_group():
    for shape in ((3, 1), (3, 0), (0, 4)):
        for baseline in ("mean", "leave_one_out"):
            advantages = group_advantages(np.ones(shape), baseline=baseline, std=True)
            assert advantages.shape == shape and not advantages.any()
    assert (
        group_statistics(np.ones((0, 4))).reward_mean == 0.0
        and group_statistics(np.ones((3, 1))).num_zero_variance == 3
    )


def test_statistics_by_hand():
    found = group_statistics([[1, 0], [1, 1], [0, 0], [0, 1]])
    assert (found.num_groups, found.num_zero_variance, found.reward_mean) == (4, 2, 0.5)
    assert found.reward_std_mean == pytest.approx(math.sqrt(0.5) / 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_named(bad):
    rewards = np.zeros((3, 4))
    rewards[2, 1] = bad
    with pytest.raises(ValueError, match=rf"group 2, sample 1 is {bad}"):
        group_advantages(rewards, baseline="mean", std=True)


def _step_loss(losses_by_sample, aggregation):
    """The step's loss as its definition says: means of means, sums of sums; samples without tokens
    are not there."""
    samples = [losses for losses in losses_by_sample if losses]
    if not samples:
        return 0.0
    if aggregation == "token_mean":
        return statistics.fmean([loss for losses in samples for loss in losses])
    per_sample = {
        "sequence_mean_token_mean": statistics.fmean,
        "sequence_mean_token_sum": math.fsum,
        "sequence_mean_token_sum_norm": lambda losses: math.fsum(losses) / MAX_TOKENS,
    }[aggregation]
    return statistics.fmean([per_sample(losses) for losses in samples])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(st.lists(st.lists(st.floats(-2, 2), max_size=6), max_size=6))
def test_weights_turn_a_plain_sum_into_the_aggregation(aggregation, losses):
    weights = token_weights(
        np.array([len(sample) for sample in losses], dtype=int), aggregation, MAX_TOKENS
    )
    total = math.fsum(
        weight * loss for weight, sample in zip(weights, losses, strict=True) for loss in sample
    )
    assert total == pytest.approx(_step_loss(losses, aggregation), abs=1e-12)
    assert all(weight == 0.0 for weight, sample in zip(weights, losses, strict=True) if not sample)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_no_active_token_in_the_whole_step_weighs_nothing(aggregation):
    assert token_weights(np.zeros(3, dtype=int), aggregation, MAX_TOKENS).tolist() == [
        0.0,
        0.0,
        0.0,
    ]
    assert token_weights(np.zeros(0, dtype=int), aggregation, MAX_TOKENS).tolist() == []


def test_overlong_filtering_takes_the_sample_out_of_the_denominators():
    lengths = filter_truncated(np.array([3, 50, 5]), np.array([False, True, False]))
    assert lengths.tolist() == [3, 0, 5]
    assert token_weights(lengths, "token_mean", MAX_TOKENS) == pytest.approx([1 / 8, 0, 1 / 8])
    assert token_weights(lengths, "sequence_mean_token_mean", MAX_TOKENS) == pytest.approx(
        [1 / 6, 0, 1 / 10]
    )


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="expected one of token_mean"):
        token_weights(np.array([1]), "mean", MAX_TOKENS)
    with pytest.raises(ValueError, match="divides by max_tokens, found 0"):
        token_weights(np.array([1]), "sequence_mean_token_sum_norm", 0)
    with pytest.raises(ValueError, match="none negative"):
        token_weights(np.array([1, -1]), "token_mean", MAX_TOKENS)
    with pytest.raises(ValueError, match="expected mean or leave_one_out"):
        group_advantages(np.zeros((1, 2)), baseline="median", std=True)
