"""The mappings are inverses of each other, cover every element once, and lay rows out as
megatron-core expects."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megaladder.checkpoints_conv.mapping import (
    ColumnParallel,
    FusedQKV,
    GatedMLP,
    Mapping,
    Replicated,
    RowParallel,
    Vocabulary,
    padded_vocab_size,
)
from megaladder.model import hf_config

TP_SIZES = (1, 2, 4)


class DictReader:
    """HF tensors in a dict."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors = tensors

    def read(
        self, name: str, dim: int = 0, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        whole = self.tensors[name]
        return whole.narrow(dim, start, (whole.shape[dim] if stop is None else stop) - start)


def tensors_of(mapping: Mapping) -> dict[str, torch.Tensor]:
    """Every element of every tensor is a different number."""
    found, start = {}, 1.0
    for name, shape in zip(mapping.hf_names, mapping.hf_shapes, strict=True):
        size = torch.Size(shape).numel()
        found[name] = torch.arange(start, start + size, dtype=torch.float64).view(shape)
        start += size
    return found


@st.composite
def mappings(draw: st.DrawFn) -> Mapping:
    hidden, unit = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    rows = 4 * unit
    groups, per_group, dim = (
        4 * draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
    )
    q, kv = groups * per_group * dim, groups * dim
    return draw(
        st.sampled_from(
            [
                Replicated(("a",), ((hidden,),)),
                ColumnParallel(("a",), ((rows, hidden),)),
                RowParallel(("a",), ((hidden, rows),)),
                Vocabulary(("a",), ((draw(st.integers(1, 70)), hidden),)),
                GatedMLP(("g", "u"), ((rows, hidden), (rows, hidden))),
                FusedQKV(("q", "k", "v"), ((q, hidden), (kv, hidden), (kv, hidden)), groups, dim),
                FusedQKV(("q", "k", "v"), ((q,), (kv,), (kv,)), groups, dim),
            ]
        )
    )


@given(mappings(), st.sampled_from(TP_SIZES))
@settings(max_examples=150, deadline=None)
def test_to_hf_undoes_from_hf_and_no_element_is_held_twice(mapping: Mapping, tp_size: int) -> None:
    want = tensors_of(mapping)
    shards = [mapping.from_hf(DictReader(want), rank, tp_size) for rank in range(tp_size)]
    assert all(tuple(shard.shape) == mapping.local_shape(tp_size) for shard in shards)
    back = mapping.to_hf(shards)
    assert all(torch.equal(back[name], want[name]) for name in want)
    held = torch.cat(
        [shard.flatten() for shard in (shards if mapping.tp_axis is not None else shards[:1])]
    )
    held = held[held != 0].sort().values  # zero: vocabulary padding
    assert torch.equal(held, torch.cat([t.flatten() for t in want.values()]).sort().values)


@given(mappings(), st.sampled_from(TP_SIZES))
@settings(max_examples=60, deadline=None)
def test_changing_tp_goes_through_the_same_hf_tensors(mapping: Mapping, tp_size: int) -> None:
    want = tensors_of(mapping)
    one = mapping.to_hf([mapping.from_hf(DictReader(want))])
    split = mapping.to_hf(
        [mapping.from_hf(DictReader(one), rank, tp_size) for rank in range(tp_size)]
    )
    assert all(torch.equal(split[name], want[name]) for name in want)


def test_qkv_is_grouped_per_query_group() -> None:
    """Against the published un-fusing: view(groups, heads/groups + 2, head_dim, hidden), split
    (heads/groups, 1, 1)."""
    groups, per_group, dim, hidden = 4, 3, 2, 5
    shapes = ((groups * per_group * dim, hidden), (groups * dim, hidden), (groups * dim, hidden))
    mapping = FusedQKV(("q", "k", "v"), shapes, groups, dim)
    want = tensors_of(mapping)
    for tp_size in (1, 2, 4):
        fused = torch.cat(
            [mapping.from_hf(DictReader(want), rank, tp_size) for rank in range(tp_size)]
        )
        parts = fused.view(groups, per_group + 2, dim, hidden).split([per_group, 1, 1], dim=1)
        for name, part in zip("qkv", parts, strict=True):
            assert torch.equal(part.reshape(-1, hidden), want[name]), (name, tp_size)


def test_gated_mlp_holds_its_own_halves() -> None:
    mapping = GatedMLP(("gate", "up"), ((8, 3), (8, 3)))
    want = tensors_of(mapping)
    for rank in range(4):
        expected = torch.cat([want["gate"].chunk(4)[rank], want["up"].chunk(4)[rank]])
        assert torch.equal(mapping.from_hf(DictReader(want), rank, 4), expected)


@pytest.mark.parametrize("vocab_size", [1, 17, 127, 128, 517, 1031, 31123, 151936])
@pytest.mark.parametrize("tp_size", [1, 2, 3, 4, 8])
def test_vocabulary_padding_is_zero_when_loaded_and_trimmed_when_exported(
    vocab_size: int, tp_size: int
) -> None:
    mapping = Vocabulary(("e",), ((vocab_size, 1),))
    shards = [
        mapping.from_hf(DictReader(tensors_of(mapping)), rank, tp_size) for rank in range(tp_size)
    ]
    rows = torch.cat(shards)
    assert (
        rows.shape[0]
        == padded_vocab_size(vocab_size, tp_size)
        == hf_config.padded_vocab_size(vocab_size, tp_size)
    )
    assert rows.shape[0] - vocab_size < torch.tensor([8]).lcm(torch.tensor([tp_size])).item()
    assert not rows[vocab_size:].any()
    rows[vocab_size:] = 7.0  # whatever training left there
    assert torch.equal(mapping.to_hf(list(rows.chunk(tp_size)))["e"], tensors_of(mapping)["e"])


def test_released_vocabularies_need_no_padding() -> None:
    assert all(
        padded_vocab_size(v, tp) == v for v in (151936, 152064, 128256) for tp in (1, 2, 4, 8)
    )


@pytest.mark.parametrize(
    ("mapping", "tp_size", "words"),
    [
        (
            FusedQKV(("q", "k", "v"), ((16, 4), (4, 4), (4, 4)), 2, 2),
            4,
            ("num_key_value_heads = 2", "tp = 4", "parallel.pp"),
        ),
        (
            FusedQKV(("q", "k", "v"), ((24, 4), (12, 4), (12, 4)), 6, 2),
            4,
            ("num_key_value_heads = 6", "tp = 4"),
        ),
        (GatedMLP(("g", "u"), ((6, 4), (6, 4))), 4, ("intermediate_size = 6", "tp = 4")),
        (RowParallel(("o",), ((4, 6),)), 4, ("columns = 6", "tp = 4")),
    ],
)
def test_a_layout_that_does_not_divide_is_refused_with_the_fix(
    mapping: Mapping, tp_size: int, words: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="fix") as caught:
        mapping.from_hf(DictReader(tensors_of(mapping)), 0, tp_size)
    assert all(word in str(caught.value) for word in words)


def test_wrong_shards_are_named() -> None:
    mapping = RowParallel(("layer.o_proj.weight",), ((4, 8),))
    with pytest.raises(
        ValueError,
        match=r"layer\.o_proj\.weight: shard 1 of 2 has shape \(4, 8\), expected \(4, 4\)",
    ):
        mapping.to_hf([torch.zeros(4, 4), torch.zeros(4, 8)])


def test_values_are_cast_only_when_asked() -> None:
    mapping = GatedMLP(("g", "u"), ((2, 2), (2, 2)))
    source = {name: tensor.to(torch.bfloat16) for name, tensor in tensors_of(mapping).items()}
    assert mapping.from_hf(DictReader(source)).dtype == torch.bfloat16
    assert mapping.from_hf(DictReader(source), dtype=torch.float32).dtype == torch.float32
