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
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

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
from megaladder.model.source import RandomTensors

PORTABLE_NAMES = {  # Transformer Engine spec (and dist_checkpointing) → portable spec
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
_CANONICAL_NAMES = {portable: fused for fused, portable in PORTABLE_NAMES.items()}
# a buffer that old exports carry; recomputed from the config
_HARMLESS = re.compile(r"(^|\.)rotary_emb\.inv_freq$")


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


@dataclass(frozen=True, slots=True)
class Rule:
    """What a role is to megatron-core."""

    megatron: str
    build: Builder


_LAYERS = "decoder.layers.*."
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
    "gate_up": Rule(_LAYERS + "mlp.linear_fc1.weight", _gate_up),
    "down": Rule(_LAYERS + "mlp.linear_fc2.weight", _down),
    "mlp_post_norm": Rule(_LAYERS + "mlp_bda.norm.weight", _norm),
    "final_norm": Rule("decoder.final_layernorm.weight", _norm),
    "output": Rule("output_layer.weight", _vocabulary),
}


def _roles(shape: ModelShape) -> list[str]:
    """What this model has of its family's roles.

    No bias where its config.json says so, no output layer where it is the embedding."""
    without = {"qkv_bias": not shape.qkv_bias, "output": shape.tied}
    return [role for role in RULES if role in shape.family.names and not without.get(role)]


@dataclass(frozen=True, slots=True)
class Entry:
    """One megatron parameter of one model.

    Its canonical name with the global layer index, and its mapping."""

    megatron: str
    layer: int | None
    mapping: Mapping

    @property
    def checkpoint_key(self) -> str:
        """Its key in a dist_checkpointing folder, where layers are stacked along a first axis."""
        return self.megatron.replace(f"layers.{self.layer}.", "layers.", 1)


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
            for role in in_layer:
                yield self._entry(role, layer)
        for role in around[1:]:
            yield self._entry(role)

    def _entry(self, role: str, layer: int | None = None) -> Entry:
        rule = RULES[role]
        mapping = rule.build(self.family.names[role], self.shape)
        if layer is None:
            return Entry(rule.megatron, None, mapping)
        return Entry(rule.megatron.replace("*", str(layer)), layer, mapping.at_layer(layer))

    def hf_names(self, role: str) -> tuple[str, ...]:
        """A role's HF tensors; `*` is the layer index."""
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

    def check_layout(self, tp_size: int) -> None:
        """Raises ConversionError when the model can't be split over `tp_size` ranks."""
        problems = [
            p
            for e in self.entries()
            if (e.layer or 0) == 0 and (p := e.mapping.layout_problem(tp_size)) is not None
        ]
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
            if n not in want and not _HARMLESS.search(n) and not self.tied_duplicate(n)
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
        return Entry("output_layer.weight", None, self._entry("embedding").mapping)


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
