"""Order: a pure function of (seed, epoch); resume and another data-parallel size change nothing of
it."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import store_of_samples

from megaladder.data.loader import SftLoader, epoch_order, eval_batches
from megaladder.data.pack import PackSpec
from megaladder.data.store import SampleStore
from megaladder.errors import CheckpointError, ConfigError
from megaladder.types import TokenSample


def make_store(rows: int, seed: int = 0) -> SampleStore:
    rng = np.random.default_rng(seed)
    samples = []
    for index in range(rows):
        length = int(rng.integers(2, 33))
        mask = np.arange(length) >= int(rng.integers(1, length))
        samples.append(
            TokenSample(f"r{index}", rng.integers(1, 500, length).astype(np.int32), mask)
        )
    return store_of_samples(samples)


def same(left, right) -> bool:
    fields = ("input_ids_t", "labels_t", "position_ids_t", "cu_seqlens", "sample_index")
    return len(left) == len(right) and all(
        np.array_equal(getattr(a, f), getattr(b, f))
        for a, b in zip(left, right, strict=True)
        for f in fields
    )


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(3, 40),
    batch=st.integers(1, 12),
    dp=st.integers(1, 3),
    new_dp=st.integers(1, 3),
    packing=st.booleans(),
    stop=st.integers(0, 14),
    seed=st.integers(0, 3),
)
def test_resumed_stream_equals_uninterrupted_stream(rows, batch, dp, new_dp, packing, stop, seed):
    """Bit-identical micro-batches at the same dp; the same samples, tokens and loss tokens at
    another dp; over epoch boundaries."""
    batch = min(batch, rows)
    store, spec = make_store(rows), PackSpec(32, packing=packing)
    whole = [SftLoader(store, batch, seed, spec, rank, dp) for rank in range(dp)]
    expected = [[next(loader) for loader in whole] for _ in range(stop + 4)]
    before = SftLoader(store, batch, seed, spec, 0, dp)
    for _ in range(stop):
        next(before)
    state = json.loads(json.dumps(before.state_dict()))
    resumed = [SftLoader(store, batch, seed, spec, rank, dp) for rank in range(dp)]
    moved = SftLoader(store, batch, seed, spec, 0, new_dp)
    for loader in (*resumed, moved):
        loader.load_state_dict(state)
    for step in range(stop, stop + 4):
        got = [next(loader) for loader in resumed]
        assert all(same(a[0], b[0]) for a, b in zip(got, expected[step], strict=True))
        stats, reference = next(moved)[1], expected[step][0][1]
        assert np.array_equal(stats.sample_ids, reference.sample_ids)
        assert (stats.num_tokens, stats.num_loss_tokens) == (
            reference.num_tokens,
            reference.num_loss_tokens,
        )


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 50), batch=st.integers(1, 50), dp=st.integers(1, 4))
def test_an_epoch_sees_each_row_at_most_once_and_drops_the_remainder(rows, batch, dp):
    store, batch = make_store(rows), min(batch, rows)
    loader = SftLoader(store, batch, 5, PackSpec(32), 0, dp)
    seen = Counter(
        i for _ in range(loader.steps_per_epoch) for i in next(loader)[1].sample_ids.tolist()
    )
    assert (
        set(seen.values()) == {1}
        and len(seen) == rows - loader.dropped_per_epoch == rows // batch * batch
    )


def test_stats_count_what_the_ranks_get():
    store = make_store(30)
    loaders = [SftLoader(store, 10, 1, PackSpec(32, align=4), rank, 3) for rank in range(3)]
    got = [next(loader) for loader in loaders]
    stats = got[0][1]
    batches = [batch for batches, _ in got for batch in batches]
    assert stats.num_loss_tokens == sum(batch.num_loss_tokens for batch in batches)
    assert stats.num_tokens == sum(batch.num_tokens for batch in batches)
    assert stats.total_tokens == sum(len(batch.input_ids_t) for batch in batches)
    assert [len(batches) for batches, _ in got] == [stats.num_micro_batches] * 3


def test_order_is_pinned():
    """Frozen numbers: a resumed run must see the order it started with, whatever numpy release it
    runs on."""
    assert epoch_order(8, 42, 0).tolist() == [1, 3, 7, 6, 0, 2, 5, 4]
    assert epoch_order(8, 42, 1).tolist() == [3, 5, 6, 0, 4, 2, 1, 7]


def test_file_order_is_kept_in_every_epoch():
    loader = SftLoader(make_store(11), 4, 0, PackSpec(32), shuffle=False)
    assert [next(loader)[1].sample_ids.tolist() for _ in range(4)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ] * 2


def test_epochs_differ_and_leave_out_others():
    loader = SftLoader(make_store(11), 4, 0, PackSpec(32))
    left_out = []
    for _ in range(12):
        seen = {
            i for _ in range(loader.steps_per_epoch) for i in next(loader)[1].sample_ids.tolist()
        }
        left_out.append(frozenset(range(11)) - seen)
    assert loader.dropped_per_epoch == 3 and len(set(left_out)) > 6


PUBLISHED = [(20480, 256, 8, 640), (20480, 256, 16, 1280), (20480, 32, 1, 640), (2560, 32, 8, 640)]


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"),
    [*PUBLISHED, (300, 10, 0.1, 3), (30, 3, 1.5, 15), (7, 2, 0.4, 2)],
)
def test_step_arithmetic(rows, batch, epochs, steps):
    """The published step counts of Rethinking SFT; ceil of fractions without rounding errors (30 ·
    0.1 is 3, not 4)."""
    store = store_of_samples(
        TokenSample(str(i), np.array([1, 2], np.int32), np.array([False, True]))
        for i in range(rows)
    )
    assert SftLoader(store, batch, 0, PackSpec(8)).total_steps(epochs) == steps


def test_refuses_another_data_set_seed_or_batch():
    store = make_store(20)
    state = SftLoader(store, 4, 0, PackSpec(32)).state_dict()
    with pytest.raises(
        CheckpointError, match=r"fingerprint: saved '[0-9a-f]{64}', now '[0-9a-f]{64}'; fix"
    ):
        SftLoader(make_store(20, seed=1), 4, 0, PackSpec(32)).load_state_dict(state)
    with pytest.raises(
        CheckpointError, match=r"global_batch_size: saved 4, now 5; seed: saved 0, now 7; fix"
    ):
        SftLoader(store, 5, 7, PackSpec(32)).load_state_dict(state)
    with pytest.raises(
        ConfigError,
        match=r"global_batch_size 21 is more than the 20 training samples; fix: at most 20",
    ):
        SftLoader(store, 21, 0, PackSpec(32))


def test_eval_batches_cover_everything_once_on_any_dp():
    store = make_store(23)
    for dp in (1, 2, 4):
        runs = [list(eval_batches(store, 8, PackSpec(32), rank, dp)) for rank in range(dp)]
        seen = Counter(
            int(i)
            for run in runs
            for batches, _ in run
            for batch in batches
            for i in batch.sample_index
            if i >= 0
        )
        assert seen == Counter(range(23))
        assert len({tuple(len(batches) for batches, _ in run) for run in runs}) == 1
        assert sum(stats.num_loss_tokens for _, stats in runs[0]) == int(store.loss_lengths.sum())
