"""The slices of a packed micro-batch that context-parallel ranks hold: a partition, in Transformer
Engine's order, equally dear, and with the same attention as the whole. That loss and gradients
agree over ranks is in tests/train/test_layout_invariance.py (cp cases).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from megaladder.data.pack import PackSpec, build_micro_batches, plan_global_batch
from megaladder.errors import ConfigError
from megaladder.model.context_parallel import rank_tokens, whole_order
from megaladder.types import IGNORE_INDEX, TokenSample


def cumulative(lengths: list[int]) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int32)


layouts = st.tuples(
    st.sampled_from([2, 3, 4, 8]), st.lists(st.integers(1, 6), min_size=1, max_size=6)
).map(lambda drawn: (drawn[0], [2 * drawn[0] * n for n in drawn[1]]))


def test_the_example_in_transformer_engines_documentation() -> None:
    """context_parallel.py of TE 2.12: sequences of 8 and 4 tokens, cp 2."""
    cu_seqlens = cumulative([8, 4])
    assert rank_tokens(cu_seqlens, 2, 0).tolist() == [0, 1, 6, 7, 8, 11]
    assert rank_tokens(cu_seqlens, 2, 1).tolist() == [2, 3, 4, 5, 9, 10]


@given(layouts)
def test_ranks_share_all_tokens_and_the_order_brings_them_back(
    layout: tuple[int, list[int]],
) -> None:
    cp, lengths = layout
    cu_seqlens = cumulative(lengths)
    parts = [rank_tokens(cu_seqlens, cp, rank) for rank in range(cp)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(sum(lengths)))
    assert {len(part) for part in parts} == {sum(lengths) // cp}
    values = np.random.default_rng(0).normal(size=sum(lengths))
    assert (
        np.concatenate([values[part] for part in parts])[whole_order(cu_seqlens, cp)] == values
    ).all()


@given(layouts)
def test_causal_attention_costs_every_rank_the_same(layout: tuple[int, list[int]]) -> None:
    cp, lengths = layout
    cu_seqlens = cumulative(lengths)
    position = np.concatenate([np.arange(length) for length in lengths])
    # keys that its queries see
    work = {int((position[rank_tokens(cu_seqlens, cp, rank)] + 1).sum()) for rank in range(cp)}
    assert len(work) == 1


@pytest.mark.parametrize(("cp", "lengths"), [(2, [8, 4, 12]), (4, [16, 8]), (3, [6, 18])])
def test_slices_attend_as_the_whole_does(cp: int, lengths: list[int]) -> None:
    """Each rank's queries against all keys, masked by original position, against the unsliced
    attention."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, sum(lengths), 8, dtype=torch.float64) for _ in range(3))
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    visible = (sequence[:, None] == sequence[None, :]).tril()
    whole = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    cu_seqlens = cumulative(lengths)
    parts = []
    for rank in range(cp):
        tokens = torch.from_numpy(rank_tokens(cu_seqlens, cp, rank))
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, tokens], key, value, attn_mask=visible[tokens]
            )
        )
    gathered = torch.cat(parts, dim=2)[:, :, torch.from_numpy(whole_order(cu_seqlens, cp))]
    torch.testing.assert_close(gathered, whole, rtol=1e-12, atol=1e-12)


def sample(index: int, length: int) -> TokenSample:
    ids = np.arange(100 * index + 1, 100 * index + 1 + length, dtype=np.int32)
    return TokenSample(id=str(index), input_ids=ids, loss_mask=np.arange(length) >= 1)


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=12),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 4]),
    st.booleans(),
)
def test_the_packer_pads_each_sequence_for_the_chunks_and_loses_no_token(
    lengths: list[int], cp: int, shards: int, static: bool
) -> None:
    sequence_align = 2 * cp if cp > 1 else 1
    align = int(np.lcm(cp * shards, sequence_align))
    spec = PackSpec(
        seq_length=64, micro_batch_size=2, static=static, align=align, sequence_align=sequence_align
    )
    plan = plan_global_batch(lengths, range(len(lengths)), spec, 1)
    batches = build_micro_batches(plan, 0, lambda i: sample(i, lengths[i]))
    seen: dict[int, list[int]] = {}
    for batch in batches:
        assert not (np.diff(batch.cu_seqlens) % sequence_align).any()
        assert len(batch.input_ids_t) % align == 0
        assert len(batch.input_ids_t) == 128 or not static
        for index, begin, end in zip(
            batch.sample_index, batch.cu_seqlens, batch.cu_seqlens[1:], strict=False
        ):
            if index >= 0:
                seen[int(index)] = batch.input_ids_t[begin : begin + lengths[index]].tolist()
                # no loss past the sample's end
                assert (batch.labels_t[begin + lengths[index] - 1 : end] == IGNORE_INDEX).all()
                assert end - begin == spec.slot(lengths[index])
            assert batch.position_ids_t[begin:end].tolist() == list(range(end - begin))
    assert seen == {
        index: sample(index, length).input_ids.tolist() for index, length in enumerate(lengths)
    }
    assert plan.num_tokens == sum(lengths)
    assert sum(batch.num_loss_tokens for batch in batches) == sum(length - 1 for length in lengths)


def test_a_row_that_no_slot_fits_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"not multiples of 8, .* fix: seq_length 72"):
        PackSpec(seq_length=66, align=8, sequence_align=8)
