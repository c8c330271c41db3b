"""Model families as name tables: which HF tensors each megatron-core parameter is made of.

How to add a family: write its table of `Rule`s, list it in `FAMILIES` under the model_type of its
config.json, let `model.hf_config` accept that type, and add a tiny random model of it to
tests/checkpoints_conv/conv_models.py: the whole grid of tests then runs on it. `*` in a name is the
layer index. A name that no rule mentions is an error, on either side: nothing is dropped silently.

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
    FusedQKV,
    GatedMLP,
    Mapping,
    Replicated,
    RowParallel,
    Shape,
    TensorReader,
    Vocabulary,
)
from megaladder.errors import ConversionError, ModelError
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
    """HF tensors by name, with their shapes and a name for messages (`reader.HFReader`,
    `model.source.RandomTensors`)."""

    folder: Any
    shapes: dict[str, Shape]


Builder = Callable[[tuple[str, ...], ModelShape], Mapping]


def _norm(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return Replicated(names, ((d.hidden_size,),))


def _head_norm(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return Replicated(names, ((d.head_dim,),))


def _vocabulary(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return Vocabulary(names, ((d.vocab_size, d.hidden_size),))


def _qkv_rows(d: ModelShape) -> tuple[int, int, int]:
    return (
        d.num_attention_heads * d.head_dim,
        d.num_query_groups * d.head_dim,
        d.num_query_groups * d.head_dim,
    )


def _qkv_weight(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return FusedQKV(
        names, tuple((rows, d.hidden_size) for rows in _qkv_rows(d)), d.num_query_groups, d.head_dim
    )


def _qkv_bias(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return FusedQKV(names, tuple((rows,) for rows in _qkv_rows(d)), d.num_query_groups, d.head_dim)


def _attention_out(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return RowParallel(names, ((d.hidden_size, d.num_attention_heads * d.head_dim),))


def _gate_up(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return GatedMLP(names, ((d.ffn_hidden_size, d.hidden_size), (d.ffn_hidden_size, d.hidden_size)))


def _down(names: tuple[str, ...], d: ModelShape) -> Mapping:
    return RowParallel(names, ((d.hidden_size, d.ffn_hidden_size),))


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of a family's table."""

    megatron: str
    build: Builder
    hf: tuple[str, ...]


def _qkv(suffix: str) -> tuple[str, ...]:
    return tuple(f"model.layers.*.self_attn.{part}_proj.{suffix}" for part in "qkv")


_EMBEDDING = Rule("embedding.word_embeddings.weight", _vocabulary, ("model.embed_tokens.weight",))
_OUTPUT = Rule("output_layer.weight", _vocabulary, ("lm_head.weight",))
_FINAL_NORM = Rule("decoder.final_layernorm.weight", _norm, ("model.norm.weight",))
_LAYER = (
    Rule(
        "decoder.layers.*.self_attention.linear_qkv.layer_norm_weight",
        _norm,
        ("model.layers.*.input_layernorm.weight",),
    ),
    Rule("decoder.layers.*.self_attention.linear_qkv.weight", _qkv_weight, _qkv("weight")),
    Rule(
        "decoder.layers.*.self_attention.linear_proj.weight",
        _attention_out,
        ("model.layers.*.self_attn.o_proj.weight",),
    ),
    Rule(
        "decoder.layers.*.mlp.linear_fc1.layer_norm_weight",
        _norm,
        ("model.layers.*.post_attention_layernorm.weight",),
    ),
    Rule(
        "decoder.layers.*.mlp.linear_fc1.weight",
        _gate_up,
        ("model.layers.*.mlp.gate_proj.weight", "model.layers.*.mlp.up_proj.weight"),
    ),
    Rule("decoder.layers.*.mlp.linear_fc2.weight", _down, ("model.layers.*.mlp.down_proj.weight",)),
)
_QKV_BIAS = (Rule("decoder.layers.*.self_attention.linear_qkv.bias", _qkv_bias, _qkv("bias")),)
_QK_NORM = (
    Rule(
        "decoder.layers.*.self_attention.q_layernorm.weight",
        _head_norm,
        ("model.layers.*.self_attn.q_norm.weight",),
    ),
    Rule(
        "decoder.layers.*.self_attention.k_layernorm.weight",
        _head_norm,
        ("model.layers.*.self_attn.k_norm.weight",),
    ),
)


@dataclass(frozen=True, slots=True)
class Family:
    """A model family. What of its config is refused (biases, sliding windows) says
    `model.hf_config`."""

    name: str
    layer_rules: tuple[Rule, ...]


FAMILIES = {  # by config.json's model_type
    "qwen3": Family("Qwen3", _LAYER + _QK_NORM),
    "qwen2": Family("Qwen2 / Qwen2.5", _LAYER + _QKV_BIAS),
    "llama": Family("Llama 3", _LAYER),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One megatron parameter of one model: its canonical name with the global layer index, and its
    mapping."""

    megatron: str
    layer: int | None
    mapping: Mapping

    @property
    def checkpoint_key(self) -> str:
        """Its key in a dist_checkpointing folder, where layers are stacked along a first axis."""
        return self.megatron.replace(f"layers.{self.layer}.", "layers.", 1)


class NameTable:
    """A family bound to one model's sizes: total on both sides."""

    def __init__(self, family: Family, shape: ModelShape):
        self.family, self.shape = family, shape

    def entries(self) -> Iterator[Entry]:
        """Every parameter, in the order of the model: embedding, layers, final norm, output layer
        (absent when tied)."""
        yield self._entry(_EMBEDDING)
        for layer in range(self.shape.num_layers):
            for rule in self.family.layer_rules:
                yield self._entry(rule, layer)
        yield self._entry(_FINAL_NORM)
        if not self.shape.tied:
            yield self._entry(_OUTPUT)

    def _entry(self, rule: Rule, layer: int | None = None) -> Entry:
        mapping = rule.build(rule.hf, self.shape)
        if layer is None:
            return Entry(rule.megatron, None, mapping)
        return Entry(rule.megatron.replace("*", str(layer)), layer, mapping.at_layer(layer))

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
        """Strict accounting of an HF folder's names and shapes. Returns names to ignore or to
        compare (see `tied_duplicate`).

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
        if missing == ["lm_head.weight"]:
            hint = (
                "; fix: config.json says tie_word_embeddings=false, but no output layer is stored:"
                " set it to true if the model is tied"
            )
        raise ConversionError(
            f"{where} does not hold a {self.family.name} model of the size its config.json says"
            + listed("missing", missing)
            + listed("unknown", extra)
            + listed("wrong shape", wrong)
            + hint
        )

    def check_source(self, source: TensorSource) -> None:
        """`check_hf` of a folder, and equality of an output layer that a tied model stores a second
        time."""
        for name in self.check_hf(source.shapes, str(source.folder)):
            if self.tied_duplicate(name) and not torch.equal(
                source.read(name), source.read("model.embed_tokens.weight")
            ):
                raise ConversionError(
                    f"{source.folder}: config.json says tie_word_embeddings=true, but {name}"
                    " differs from model.embed_tokens.weight; fix: set tie_word_embeddings to"
                    " false if the model has an output layer of its own"
                )

    def tied_duplicate(self, name: str) -> bool:
        """True for the output layer that some exports of tied models store a second time; readers
        must check that it is equal."""
        return self.shape.tied and name == "lm_head.weight"

    def tied_output(self) -> Entry:
        """What a tied model's last pipeline stage holds in `output_layer.weight`: the embedding."""
        return Entry("output_layer.weight", None, self._entry(_EMBEDDING).mapping)


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


def family_for(shape: ModelShape) -> Family:
    """The family of a model; ModelError names the known ones."""
    family = FAMILIES.get(shape.hf_family)
    if family is None:
        known = ", ".join(f"{key!r} ({value.name})" for key, value in FAMILIES.items())
        raise ModelError(
            f"model_type {shape.hf_family!r} is not known; known: {known}; fix: add a family in"
            " checkpoints_conv/families.py"
        )
    return family


def name_table(shape: ModelShape) -> NameTable:
    """The table of one model."""
    return NameTable(family_for(shape), shape)


def random_tensors(shape: ModelShape, seed: int) -> RandomTensors:
    """Stands in for an HF folder of this model whose weights are drawn from a seed."""
    return RandomTensors(
        dict(name_table(shape).hf_shapes), shape.num_layers, shape.hidden_size, seed
    )
