"""A model's name table: which HF tensors each megatron-core parameter is made of.

What the tensors of a family are called stands in megaladder/model/families/table.py, by role; here
a role becomes a megatron-core parameter and the way in which tensor parallelism cuts it. A name
that no role mentions is an error, on either side: nothing is dropped silently.

Megatron names are those of the Transformer Engine spec, which are also the keys of a
dist_checkpointing folder (there without the layer index: layers are stacked). The portable spec has
the two layer norms as modules of their own; `PORTABLE_NAMES` says which.

It does not read weights, and knows nothing of shapes on a rank (mapping.py) or of process groups
(live_model.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import torch

from megaladder.checkpoints_conv.mapping import (
    ColumnParallel,
    FusedQKV,
    GatedMLP,
    GroupedQKV,
    Mapping,
    Replicated,
    RowParallel,
    Shape,
    TensorReader,
    Vocabulary,
)
from megaladder.errors import ConversionError
from megaladder.model.hf_config import ModelShape
from megaladder.model.moe.shape import MoeShape
from megaladder.model.source import RandomTensors

PORTABLE_NAMES = {  # Transformer Engine spec (and dist_checkpointing) → portable spec
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
_CANONICAL_NAMES = {portable: fused for fused, portable in PORTABLE_NAMES.items()}
# a buffer that old exports carry; recomputed from the config
_HARMLESS = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
_LAYER_INDEX = re.compile(r"model\.layers\.(\d+)\.")


class TensorSource(TensorReader, Protocol):
    """HF tensors by name, with their shapes and a name for messages.

    `reader.HFReader`, `model.source.RandomTensors`."""

    folder: Any
    shapes: dict[str, Shape]


Builder = Callable[[tuple[str, ...], ModelShape], Mapping]


def _norm(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return Replicated(names, ((d.hidden_size,),))


def _vocabulary(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return Vocabulary(names, ((d.vocab_size, d.hidden_size),))


def _qkv_rows(d: ModelShape) -> tuple[int, int, int]:
    return (
        d.num_attention_heads * d.head_dim,
        d.num_query_groups * d.head_dim,
        d.num_query_groups * d.head_dim,
    )


def _qkv_weight(names: tuple[str, ...], d: ModelShape) -> Mapping:
    rows = _qkv_rows(d) if len(names) == 3 else (sum(_qkv_rows(d)),)
    return FusedQKV(
        names, tuple((count, d.hidden_size) for count in rows), d.num_query_groups, d.head_dim
    )


def _grouped_qkv(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return GroupedQKV(names, ((sum(_qkv_rows(d)), d.hidden_size),), d.num_query_groups)


def _qkv_bias(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return FusedQKV(names, tuple((rows,) for rows in _qkv_rows(d)), d.num_query_groups, d.head_dim)


def _q_norm(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return _qk_norm(names, d, d.num_attention_heads)


def _k_norm(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return _qk_norm(names, d, d.num_query_groups)


def _qk_norm(names: tuple[str, ...], d: ModelShape, heads: int) -> Mapping:
    """One head's weights on every rank, or those of all heads, split with them."""
    if d.qk_norm == "head":
        return Replicated(names, ((d.head_dim,),))
    return ColumnParallel(names, ((heads * d.head_dim,),))


def _attention_out(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return RowParallel(names, ((d.hidden_size, d.num_attention_heads * d.head_dim),))


def _gate_up(names: tuple[str, ...], d: ModelShape) -> Mapping:
    rows = 2 * d.ffn_hidden_size // len(names)
    return GatedMLP(names, ((rows, d.hidden_size),) * len(names))


def _down(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return RowParallel(names, ((d.hidden_size, d.ffn_hidden_size),))


def _moe(d: ModelShape) -> MoeShape:
    assert d.moe is not None, "a role of experts"
    return d.moe


def _router(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return Replicated(names, ((_moe(d).num_experts, d.hidden_size),))


def _router_bias(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return Replicated(names, ((_moe(d).num_experts,),))


def _shared_gate_up(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return GatedMLP(names, ((_moe(d).shared_ffn_size, d.hidden_size),) * 2)


def _shared_down(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return RowParallel(names, ((d.hidden_size, _moe(d).shared_ffn_size),))


def _expert_gate_up(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return GatedMLP(names, ((_moe(d).ffn_hidden_size, d.hidden_size),) * 2)


def _expert_down(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return RowParallel(names, ((d.hidden_size, _moe(d).ffn_hidden_size),))


@dataclass(frozen=True, slots=True)
class Rule:
    """What a role is to megatron-core. layers: which of them have it, where not all do."""

    megatron: str
    build: Builder
    layers: Literal["all", "dense", "sparse"] = "all"

    def holds(self, shape: ModelShape, layer: int) -> bool:
        """Whether a layer has the role."""
        return self.layers == "all" or shape.is_sparse(layer) == (self.layers == "sparse")


_LAYERS = "decoder.layers.*."
# megatron-core's SequentialMLP and TEGroupedMLP write the same keys; `@` is the expert's index over
# all ranks
_EXPERTS = _LAYERS + "mlp.experts.experts.@."
_ATTENTION = _LAYERS + "self_attention."
RULES = {  # by role, in the order of the model
    "embedding": Rule("embedding.word_embeddings.weight", _vocabulary),
    "input_norm": Rule(_ATTENTION + "linear_qkv.layer_norm_weight", _norm),
    "qkv": Rule(_ATTENTION + "linear_qkv.weight", _qkv_weight),
    "grouped_qkv": Rule(_ATTENTION + "linear_qkv.weight", _grouped_qkv),
    "qkv_bias": Rule(_ATTENTION + "linear_qkv.bias", _qkv_bias),
    "q_norm": Rule(_ATTENTION + "q_layernorm.weight", _q_norm),
    "k_norm": Rule(_ATTENTION + "k_layernorm.weight", _k_norm),
    "attention_out": Rule(_ATTENTION + "linear_proj.weight", _attention_out),
    "attention_post_norm": Rule(_LAYERS + "self_attn_bda.norm.weight", _norm),
    "mlp_norm": Rule(_LAYERS + "mlp.linear_fc1.layer_norm_weight", _norm),
    "gate_up": Rule(_LAYERS + "mlp.linear_fc1.weight", _gate_up, "dense"),
    "down": Rule(_LAYERS + "mlp.linear_fc2.weight", _down, "dense"),
    "router": Rule(_LAYERS + "mlp.router.weight", _router, "sparse"),
    "router_bias": Rule(_LAYERS + "mlp.router.expert_bias", _router_bias, "sparse"),
    "shared_gate_up": Rule(
        _LAYERS + "mlp.shared_experts.linear_fc1.weight", _shared_gate_up, "sparse"
    ),
    "shared_down": Rule(_LAYERS + "mlp.shared_experts.linear_fc2.weight", _shared_down, "sparse"),
    "expert_gate_up": Rule(_EXPERTS + "linear_fc1.weight", _expert_gate_up, "sparse"),
    "expert_down": Rule(_EXPERTS + "linear_fc2.weight", _expert_down, "sparse"),
    "mlp_post_norm": Rule(_LAYERS + "mlp_bda.norm.weight", _norm),
    "final_norm": Rule("decoder.final_layernorm.weight", _norm),
    "output": Rule("output_layer.weight", _vocabulary),
}


def _roles(shape: ModelShape) -> list[str]:
    """What this model has of its family's roles.

    No bias and no query and key norms where its config.json says so, no output layer where it is
    the embedding."""
    without = {"qkv_bias": not shape.qkv_bias, "output": shape.tied}
    without |= dict.fromkeys(("q_norm", "k_norm"), shape.qk_norm is None)
    return [role for role in RULES if role in shape.family.names and not without.get(role)]


@dataclass(frozen=True, slots=True)
class Stacked:
    """Where a parameter lies in a tensor of a checkpoint that stacks several along first axes."""

    index: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


WHOLE = Stacked()


@dataclass(frozen=True, slots=True)
class Entry:
    """One megatron parameter of one model.

    Its canonical name with the indices of layer and expert over all ranks, and its mapping.
    checkpoint_key: its key in a dist_checkpointing folder, which stacks experts, and layers where
    all are alike."""

    megatron: str
    layer: int | None
    mapping: Mapping
    checkpoint_key: str
    stacked: Stacked = WHOLE
    expert: int | None = None


class NameTable:
    """A model's parameters by name: total on both sides."""

    def __init__(self, shape: ModelShape):
        self.family, self.shape = shape.family, shape

    def entries(self) -> Iterator[Entry]:
        """Every parameter, in the order of the model.

        Embedding, layers, final norm, output layer (absent when tied)."""
        roles = _roles(self.shape)
        in_layer = [role for role in roles if "*" in RULES[role].megatron]
        around = [role for role in roles if role not in in_layer]
        yield self._entry(around[0])
        for layer in range(self.shape.num_layers):
            yield from self._layer(in_layer, layer)
        for role in around[1:]:
            yield self._entry(role)

    def _layer(self, roles: list[str], layer: int) -> Iterator[Entry]:
        """A layer's parameters: those of all experts one expert after the other."""
        held = [role for role in roles if RULES[role].holds(self.shape, layer)]
        experts = [role for role in held if "@" in RULES[role].megatron]
        for role in held:
            if role not in experts:
                yield self._entry(role, layer)
        for expert in range(self.shape.moe.num_experts if self.shape.moe and experts else 0):
            for role in experts:
                yield self._entry(role, layer, expert)

    def _entry(self, role: str, layer: int | None = None, expert: int | None = None) -> Entry:
        rule, moe = RULES[role], self.shape.moe
        mapping = rule.build(self.family.names[role], self.shape)
        if layer is None:
            return Entry(rule.megatron, None, mapping, rule.megatron)
        key, name, index, sizes = rule.megatron, rule.megatron, [], []
        if moe is not None and moe.mixed:
            key = key.replace("*", str(layer))
        else:
            key, index, sizes = key.replace("*.", ""), [layer], [self.shape.num_layers]
        if expert is not None:
            key, index = key.replace("@.", ""), [*index, expert]
            sizes = [*sizes, _moe(self.shape).num_experts]
        name = _filled(name, layer, expert)
        names = tuple(_filled(one, layer, expert) for one in mapping.hf_names)
        stacked = Stacked(tuple(index), tuple(sizes))
        return Entry(name, layer, replace(mapping, hf_names=names), key, stacked, expert)

    def hf_names(self, role: str) -> tuple[str, ...]:
        """A role's HF tensors; `*` is the layer index, `@` the expert's."""
        return self.family.names[role]

    @cached_property
    def by_name(self) -> dict[str, Entry]:
        """Canonical megatron name → entry."""
        return {entry.megatron: entry for entry in self.entries()}

    @cached_property
    def hf_shapes(self) -> dict[str, Shape]:
        """Every HF tensor that the model must have, in export order."""
        return {
            name: shape
            for e in self.entries()
            for name, shape in zip(e.mapping.hf_names, e.mapping.hf_shapes, strict=True)
        }

    def check_layout(self, tp_size: int, etp_size: int = 1) -> None:
        """Raises ConversionError when the model can't be split over `tp_size` ranks.

        Or an expert over `etp_size`."""
        problems = dict.fromkeys(
            p
            for e in self.entries()
            if (e.layer or 0) == 0 and not e.expert
            if (p := e.mapping.layout_problem(tp_size if e.expert is None else etp_size))
        )
        if problems:
            raise ConversionError("\n".join(problems))

    def check_hf(self, shapes: dict[str, Shape], where: str) -> list[str]:
        """Strict accounting of an HF folder's names and shapes.

        Returns names to ignore or to compare (see `tied_duplicate`).

        Raises ConversionError listing every missing and unknown name and every wrong shape.
        """
        want = self.hf_shapes
        extra = [
            n
            for n in shapes
            if n not in want and not self._left_out(n) and not self.tied_duplicate(n)
        ]
        missing = [n for n in want if n not in shapes]
        wrong = [
            f"{n}: {shapes[n]}, expected {want[n]}"
            for n in want
            if n in shapes and tuple(shapes[n]) != tuple(want[n])
        ]
        if not (extra or missing or wrong):
            return [n for n in shapes if n not in want]
        hint = ""
        if missing == list(self.hf_names("output")):
            hint = (
                "; fix: config.json says tie_word_embeddings=false, but no output layer is stored:"
                " set it to true if the model is tied"
            )
        raise ConversionError(
            f"{where} does not hold a {self.family.title} model of the size its config.json says"
            + listed("missing", missing)
            + listed("unknown", extra)
            + listed("wrong shape", wrong)
            + hint
        )

    def _left_out(self, name: str) -> bool:
        """Whether a tensor is known to be of no use here."""
        layer = _LAYER_INDEX.match(name)
        if layer and self.family.prediction_layers and int(layer[1]) >= self.shape.num_layers:
            return True
        return _HARMLESS.search(name) is not None

    def check_source(self, source: TensorSource) -> None:
        """Checks a folder, as `check_hf` and for its output layer.

        A tied model may store that a second time; then it has to be equal."""
        (embedding,) = self.hf_names("embedding")
        for name in self.check_hf(source.shapes, str(source.folder)):
            if self.tied_duplicate(name) and not torch.equal(
                source.read(name), source.read(embedding)
            ):
                raise ConversionError(
                    f"{source.folder}: config.json says tie_word_embeddings=true, but {name}"
                    f" differs from {embedding}; fix: set tie_word_embeddings to false if the model"
                    " has an output layer of its own"
                )

    def tied_duplicate(self, name: str) -> bool:
        """True for the output layer that some exports of tied models store a second time.

        Readers must check that it is equal."""
        return self.shape.tied and name in self.hf_names("output")

    def tied_output(self) -> Entry:
        """What a tied model's last pipeline stage holds in `output_layer.weight`: the embedding."""
        name = "output_layer.weight"
        return Entry(name, None, self._entry("embedding").mapping, name)


def _filled(name: str, layer: int, expert: int | None) -> str:
    """A name with its indices."""
    return name.replace("*", str(layer)).replace("@", str(expert))


def listed(what: str, names: Iterable[str], limit: int = 20) -> str:
    """`what` and its names as the tail of an error message; empty when there are none."""
    names = list(names)
    if not names:
        return ""
    more = f"\n    … and {len(names) - limit} more" if len(names) > limit else ""
    return f"\n  {what} ({len(names)}):\n    " + "\n    ".join(names[:limit]) + more


def canonical_name(name: str) -> str:
    """A parameter name of either spec → the Transformer Engine spec's name.

    >>> canonical_name("decoder.layers.3.input_layernorm.weight")
    'decoder.layers.3.self_attention.linear_qkv.layer_norm_weight'
    """
    match = re.match(r"(decoder\.layers\.(?:\d+\.)?)(.+)$", name)
    return match[1] + _CANONICAL_NAMES.get(match[2], match[2]) if match else name


def name_table(shape: ModelShape) -> NameTable:
    """The table of one model."""
    return NameTable(shape)


def random_tensors(shape: ModelShape, seed: int) -> RandomTensors:
    """Stands in for an HF folder of this model whose weights are drawn from a seed."""
    return RandomTensors(shape, dict(name_table(shape).hf_shapes), seed)
