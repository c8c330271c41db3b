"""Mixtures: exact counts over any number of epochs, whole passes, a resumed order."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import names_of, store_of_samples

from megaladder.data.loader import SftLoader
from megaladder.data.mixture import MixedStore, Mixture
from megaladder.data.pack import PackSpec
from megaladder.data.store import SampleStore, split_holdout
from megaladder.errors import DataError
from megaladder.types import TokenSample

WEIGHTS = st.sampled_from((0.001, 0.1, 0.3, 1.0, 2.0, 7.0, 50.0))
PARTS = st.lists(st.tuples(st.integers(1, 30), WEIGHTS), min_size=1, max_size=5)


@given(PARTS, st.integers(5, 60), st.booleans())
def test_counts_are_exact_to_a_row_and_never_taken_back(parts, length, shuffle) -> None:
    sizes, weights = zip(*parts, strict=True)
    mixture = Mixture(sizes, weights)
    total = sum(Fraction(str(weight)) for weight in weights)
    part_of = np.repeat(np.arange(len(sizes)), sizes)
    seen = Counter()
    for epoch in range(4):
        order = mixture.order(3, epoch, length, shuffle)
        assert len(order) == length == sum(mixture.counts(epoch, length))
        assert min(mixture.counts(epoch, length)) >= 0
        seen.update(part_of[order].tolist())
        for part, weight in enumerate(weights):
            exact = Fraction(str(weight)) / total * length * (epoch + 1)
            assert abs(seen[part] - exact) < 1


@given(PARTS, st.integers(5, 60), st.booleans())
def test_no_row_repeats_before_its_part_is_through(parts, length, shuffle) -> None:
    sizes, weights = zip(*parts, strict=True)
    mixture = Mixture(sizes, weights)
    rows = np.concatenate([mixture.order(1, epoch, length, shuffle) for epoch in range(3)])
    times = Counter(rows.tolist())
    ends = np.cumsum(sizes).tolist()
    for begin, end in zip([0, *ends], ends, strict=False):
        counts = [times[row] for row in range(begin, end)]
        assert max(counts) - min(counts) <= 1


def test_file_order_spreads_the_parts_and_sizes_are_the_default_weights() -> None:
    order = Mixture((2, 4)).order(0, 0, 6, shuffle=False).tolist()
    assert order == [2, 0, 3, 4, 1, 5]
    assert Mixture((10, 30)).counts(0, 40) == (10, 30)


def store_of(begin: int, count: int, advantage: float | None = None) -> SampleStore:
    return store_of_samples(
        TokenSample(
            f"s{token}",
            np.array([1, token, 2], np.int32),
            np.array([False, True, True]),
            advantage=advantage,
        )
        for token in range(begin, begin + count)
    )


def loader_of(store: SampleStore) -> SftLoader:
    return SftLoader(store, 8, 5, PackSpec(seq_length=16, micro_batch_size=2))


def test_three_sources_over_two_epochs_killed_and_resumed() -> None:
    """Counts over two epochs are exact; a loader that starts from the saved state of any step
    gives the batches that would have followed."""
    store = MixedStore([store_of(100, 10), store_of(200, 20), store_of(300, 30)], (5.0, 3.0, 2.0))
    loader = loader_of(store)
    assert loader.steps_per_epoch == 7
    states, batches = [], []
    for _ in range(14):
        states.append(loader.state_dict())
        batches.append(next(loader)[1].sample_ids)
    tokens = [int(store[int(index)].input_ids[1]) for index in np.concatenate(batches)]
    assert Counter(token // 100 for token in tokens) == {1: 56, 2: 34, 3: 22}
    for start in (0, 3, 7, 10):
        again = loader_of(store)
        again.load_state_dict(states[start])
        for expected in batches[start:]:
            np.testing.assert_array_equal(next(again)[1].sample_ids, expected)


def test_holdout_of_a_mixture_keeps_its_shares() -> None:
    store = MixedStore([store_of(100, 10), store_of(200, 30)], (1.0, 1.0))
    train, held = split_holdout(store, 8, seed=0)
    assert isinstance(train, MixedStore) and len(train) == 32 and len(held) == 8
    assert train.mixture.counts(0, 32) == (16, 16)
    assert not set(names_of(train)) & set(names_of(held))
    assert train.fingerprint != held.fingerprint != store.fingerprint


def test_parts_need_the_same_columns() -> None:
    with pytest.raises(DataError, match="expected advantages as in"):
        MixedStore([store_of(100, 2), store_of(200, 2, advantage=1.0)], None)
