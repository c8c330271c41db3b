"""Packing: nothing lost, no budget broken, the layout of PackedBatch, bins near the optimum, equal
work for ranks."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import REAL_DATA

from megaladder.data.pack import (
    PackSpec,
    best_fit_decreasing,
    build_micro_batches,
    plan_global_batch,
    unpack,
)
from megaladder.errors import ConfigError, DataError
from megaladder.types import IGNORE_INDEX, TokenSample

GSM8K = REAL_DATA / "gsm8k/train.jsonl"


def make_sample(index: int, length: int, prompt: int = 1, **extra) -> TokenSample:
    mask = np.zeros(length, bool)
    mask[prompt:] = True
    return TokenSample(
        str(index), (1000 * index + np.arange(length)).astype(np.int32), mask, **extra
    )


def test_worked_example_of_packed_batch():
    """The example in the docstring of types.PackedBatch, number by number."""
    samples = [
        TokenSample("a", np.array([5, 6, 7, 2], np.int32), np.array([0, 0, 1, 1], bool)),
        TokenSample("b", np.array([8, 9], np.int32), np.array([0, 1], bool)),
    ]
    plan = plan_global_batch([4, 2], [0, 1], PackSpec(seq_length=8, static=True), 1)
    (batch,) = build_micro_batches(plan, 0, samples.__getitem__)
    assert batch.input_ids_t.tolist() == [5, 6, 7, 2, 8, 9, 0, 0]
    assert batch.labels_t.tolist() == [-100, 7, 2, -100, 9, -100, -100, -100]
    assert batch.position_ids_t.tolist() == [0, 1, 2, 3, 0, 1, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 4, 6, 8] and batch.cu_seqlens.dtype == np.int32
    assert (batch.max_seqlen, batch.sample_index.tolist(), batch.num_tokens) == (4, [0, 1, -1], 6)
    assert batch.input_ids_t.dtype == batch.labels_t.dtype == batch.position_ids_t.dtype == np.int64


SPECS = st.builds(
    PackSpec,
    seq_length=st.just(96),
    micro_batch_size=st.integers(1, 3),
    packing=st.booleans(),
    static=st.booleans(),
    align=st.sampled_from([1, 2, 8, 16]),
    micro_batches_multiple_of=st.integers(1, 2),
)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 96), min_size=1, max_size=40), spec=SPECS, dp=st.integers(1, 4)
)
def test_plan_and_batches_keep_every_token(lengths, spec, dp):
    ids = list(range(100, 100 + len(lengths)))
    samples = {
        sample: make_sample(sample, length) for sample, length in zip(ids, lengths, strict=True)
    }
    plan = plan_global_batch(lengths, ids, spec, dp)
    assert Counter(plan.sample_ids) == Counter(ids)
    assert {len(micros) for micros in plan.ranks} == {
        plan.num_micro_batches
    } and plan.num_micro_batches >= 1
    assert plan.num_micro_batches % spec.micro_batches_multiple_of == 0
    for micros in plan.ranks:
        for micro in micros:
            assert len(micro.bins) == spec.micro_batch_size
            assert all(
                sum(samples[s].num_tokens for s in members) <= spec.seq_length
                for members in micro.bins
            )
            assert spec.packing or all(len(members) <= 1 for members in micro.bins)
    seen: Counter[int] = Counter()
    for rank in range(dp):
        for batch, micro in zip(
            build_micro_batches(plan, rank, samples.__getitem__), plan.ranks[rank], strict=True
        ):
            total = len(batch.input_ids_t)
            assert total == micro.total_tokens and total % spec.align == 0
            assert (
                total == spec.max_tokens
                if spec.static
                else total < max(batch.num_tokens, 1) + spec.align
            )
            assert (
                batch.cu_seqlens[0] == 0
                and batch.cu_seqlens[-1] == total
                and (np.diff(batch.cu_seqlens) > 0).all()
            )
            assert batch.max_seqlen == np.diff(batch.cu_seqlens).max()
            assert (np.diff((batch.sample_index == -1).astype(int)) >= 0).all(), "padding is last"
            for index, begin, end in zip(
                batch.sample_index, batch.cu_seqlens, batch.cu_seqlens[1:], strict=False
            ):
                seen[int(index)] += 1
                assert batch.position_ids_t[begin:end].tolist() == list(range(end - begin))
                if index < 0:
                    assert (batch.labels_t[begin:end] == IGNORE_INDEX).all()
                    continue
                assert batch.input_ids_t[begin:end].tolist() == samples[index].input_ids.tolist()
                assert (
                    batch.labels_t[begin : end - 1].tolist()
                    == samples[index].input_ids[1:].tolist()
                )
                assert batch.labels_t[end - 1] == IGNORE_INDEX
    assert {index: count for index, count in seen.items() if index >= 0} == dict.fromkeys(ids, 1)


def optimal_bins(lengths, capacity):
    """Fewest bins, by trying everything."""

    def place(rest, free, best):
        if not rest or len(free) >= best:
            return min(len(free), best)
        for index in {space: i for i, space in enumerate(free) if space >= rest[0]}.values():
            best = place(
                rest[1:], [space - rest[0] * (i == index) for i, space in enumerate(free)], best
            )
        return place(rest[1:], [*free, capacity - rest[0]], best)

    return place(sorted(lengths, reverse=True), [], len(lengths))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=9))
def test_best_fit_decreasing_is_within_its_proven_bound(lengths):
    """At most 11/9 of the true optimum plus one (Johnson 1973), and no two bins that would fit into
    one."""
    bins = best_fit_decreasing(lengths, 60)
    assert optimal_bins(lengths, 60) <= len(bins) <= 11 / 9 * optimal_bins(lengths, 60) + 1
    assert sorted(position for members in bins for position in members) == list(range(len(lengths)))
    totals = sorted(sum(lengths[p] for p in members) for members in bins)
    assert len(totals) < 2 or totals[0] + totals[1] > 60, "two bins that fit into one"


def test_best_fit_beats_first_come():
    """Textbook case: items in the given order waste a third of the bins."""
    lengths = [6, 5, 5, 4, 4, 3, 3]
    assert len(best_fit_decreasing(lengths, 10)) == 3


def test_equal_split_of_cost_over_ranks():
    """Lengths of long reasoning traces, log-normal around 4k: no rank has more than 3 % above the
    mean cost."""
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.lognormal(8.3, 0.7, 256), 200, 16384).astype(int)
    spec = PackSpec(16384)
    plan = plan_global_batch(lengths, range(256), spec, 8)
    cost = [
        sum(
            lengths[s] + lengths[s] ** 2 / spec.attention_cost_tokens
            for m in micros
            for s in m.sample_ids
        )
        for micros in plan.ranks
    ]
    assert max(cost) / np.mean(cost) < 1.03 + 1 / plan.num_micro_batches


def test_plan_is_deterministic_and_dp_keeps_its_samples():
    lengths = [7, 7, 7, 3, 3, 9, 2, 2]
    plans = [plan_global_batch(lengths, range(8), PackSpec(16), dp) for dp in (1, 2, 4)]
    assert plans[1] == plan_global_batch(lengths, range(8), PackSpec(16), 2)
    assert all(
        sorted(plan.sample_ids) == list(range(8)) and plan.num_tokens == 40 for plan in plans
    )


def test_empty_rank_gets_a_padding_micro_batch_with_all_arrays():
    """One sample on four ranks: three ranks still take part in every collective, with arrays of the
    same kinds."""
    sample = make_sample(0, 5, 2, advantage=0.5, old_logprobs_n=-np.arange(5, dtype=np.float32))
    plan = plan_global_batch([5], [0], PackSpec(8, align=4), 4)
    batches = [build_micro_batches(plan, rank, lambda _: sample) for rank in range(4)]
    assert [len(b) for b in batches] == [1, 1, 1, 1]
    assert sorted(b[0].num_tokens for b in batches) == [0, 0, 0, 5]
    empty = next(b[0] for b in batches if b[0].num_tokens == 0)
    assert len(empty.input_ids_t) == 4 and empty.num_loss_tokens == 0
    assert (
        empty.advantages_t.tolist() == [0] * 4
        and empty.old_logprobs_t.tolist() == [0] * 4
        and empty.rollout_logprobs_t is None
    )


def test_per_token_arrays_are_aligned_with_labels_and_come_back():
    logprobs = [np.array([0, 0, -1, -2], np.float32), np.array([0, -3, -4], np.float32)]
    samples = [
        make_sample(0, 4, 2, advantage=2.0, rollout_logprobs_n=logprobs[0]),
        make_sample(1, 3, 1, advantage=-1.0, rollout_logprobs_n=logprobs[1]),
    ]
    (batch,) = build_micro_batches(
        plan_global_batch([4, 3], [0, 1], PackSpec(8), 1), 0, samples.__getitem__
    )
    assert batch.rollout_logprobs_t.tolist() == [0, -1, -2, 0, -3, -4, 0]
    assert batch.advantages_t.tolist() == [0, 2, 2, 0, -1, -1, 0]
    returned = dict(unpack(batch, batch.rollout_logprobs_t))
    assert all(returned[i].tolist() == logprobs[i].tolist() for i in (0, 1))


def test_refusals_name_values_and_the_fix():
    with pytest.raises(DataError, match=r"sample 3 has 9 tokens, expected 1 to seq_length 8; fix"):
        plan_global_batch([9], [3], PackSpec(8), 1)
    with pytest.raises(
        ConfigError, match=r"= 100 tokens is not a multiple of 16.*fix: seq_length 112"
    ):
        PackSpec(100, static=True, align=16)
    mixed = [make_sample(0, 4, advantage=1.0), make_sample(1, 4)]
    with pytest.raises(
        DataError, match=r"sample 1 \(1\) has no advantage, sample 0 is the opposite"
    ):
        build_micro_batches(plan_global_batch([4, 4], [0, 1], PackSpec(8), 1), 0, mixed.__getitem__)


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"{GSM8K} is not there")
@pytest.mark.parametrize("dp", [1, 2])
def test_gsm8k_non_padding_share(dp):
    """Real lengths (UTF-8 bytes / 3.2, about a 4k vocabulary's tokens): at least 97 % of the tokens
    are real, at sequence length 1024."""
    rows = [json.loads(line) for line in GSM8K.open(encoding="utf-8")]
    lengths = np.array(
        [len((row["question"] + row["answer"]).encode()) / 3.2 + 10 for row in rows]
    ).astype(int)
    trimmed, static = PackSpec(1024, align=8), PackSpec(1024, static=True)
    for spec, batch, at_least in ((trimmed, 64, 0.985), (static, 512, 0.97)):
        plans = [
            plan_global_batch(lengths[b : b + batch], range(batch), spec, dp)
            for b in range(0, len(rows) - batch, batch)
        ]
        assert (
            sum(plan.num_tokens for plan in plans) / sum(plan.total_tokens for plan in plans)
            >= at_least
        )
