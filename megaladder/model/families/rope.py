"""What a config.json says of rotary embeddings, in both of transformers' spellings.

transformers 5 writes `rope_parameters`; older files have `rope_theta` beside `rope_scaling`. Where
both are given, transformers takes `rope_scaling`, and so does this. No torch: the frequencies
themselves are made in `families.frequencies`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megaladder.errors import ModelError
from megaladder.model.families.fields import Fields

KINDS = ("default", "linear", "dynamic", "yarn", "llama3")
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding: `kind` is transformers' rope_type.

    The other fields only where the kind uses them (papers: arXiv 2104.09864; llama3: Llama 3.1
    model card; yarn: arXiv 2309.00071).

    rotary_share: part of a head's dimensions that is rotated. attention_factor: what cosines and
    sines are multiplied with. original_max_position_embeddings: positions of pre-training; for
    dynamic the length up to which nothing is scaled.
    """

    kind: str
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    rotary_share: float = 1.0

    def rotary_dim(self, head_dim: int) -> int:
        """How many of a head's dimensions are rotated."""
        return int(head_dim * self.rotary_share)

    def longest_sequence(self) -> int | None:
        """Tokens up to which the angles do not depend on a sequence's length; None: any."""
        return self.original_max_position_embeddings if self.kind == "dynamic" else None


def read_rope(fields: Fields, kinds: Sequence[str]) -> RopeConfig:
    """The rotary embedding of a model that has one for all layers; `kinds`: those of its family."""
    given = fields.object("rope_scaling") or fields.object("rope_parameters")
    if nested := [name for name in (FULL, SLIDING) if name in given]:
        raise ModelError(
            f"config.json: rope_parameters.{nested[0]} is not supported here: all layers of this"
            " family share one rotary embedding"
        )
    return _rope(given, fields, "rope_theta", kinds)


def read_layer_ropes(fields: Fields, local_base: str | float) -> tuple[RopeConfig, RopeConfig]:
    """(full attention, sliding attention) of a model whose layers differ.

    Scaling belongs to full attention only, unless `rope_parameters` says otherwise."""
    nested = fields.object("rope_parameters")
    unknown = [name for name in nested if name not in (FULL, SLIDING)]
    if unknown:
        raise ModelError(
            f"config.json: rope_parameters.{unknown[0]} is not supported here: this family has one"
            f" object each for {FULL} and {SLIDING}"
        )
    scaling = fields.object("rope_scaling")
    if "type" in scaling and "rope_type" not in scaling:
        raise ModelError(
            f"config.json: rope_scaling.type {scaling['type']!r}: transformers takes no notice of"
            " this key for this family; fix: rope_scaling.rope_type"
        )
    inner = Fields(nested, {})
    full = inner.object(FULL) | scaling
    local = inner.object(SLIDING)
    return _rope(full, fields, "rope_theta", KINDS), _rope(local, fields, local_base, KINDS)


def _rope(
    given: Mapping[str, Any], fields: Fields, base: str | float, kinds: Sequence[str]
) -> RopeConfig:
    """base: the rotary base, or the key that has it, where the object itself has none."""
    key = "rope_type" if given.get("rope_type") else "type"
    kind = given.get(key) or "default"
    if kind not in kinds:
        raise ModelError(
            f"config.json: {key} {kind!r} of the rotary embedding is not supported for this family;"
            f" supported: {', '.join(kinds)}"
        )
    inner = Fields(given, {"truncate": True}, "rope_scaling.")
    common: dict[str, Any] = {
        "kind": kind,
        "theta": _theta(inner, fields, base),
        "rotary_share": inner.number(
            "partial_rotary_factor", fields.number("partial_rotary_factor", 1.0)
        ),
    }
    return RopeConfig(**common, **_SCALING[kind](inner, fields))


def _theta(inner: Fields, fields: Fields, base: str | float) -> float:
    if inner.get("rope_theta") is not None:
        return inner.number("rope_theta")
    return fields.number(base) if isinstance(base, str) else base


def _positions(fields: Fields) -> int:
    return fields.count("max_position_embeddings")


def _original_positions(inner: Fields, fields: Fields) -> int:
    """A key beside the rotary ones goes first, then the one among them, then the model's length."""
    outer = fields.get("original_max_position_embeddings")
    if outer is not None:
        return fields.count("original_max_position_embeddings")
    return inner.count("original_max_position_embeddings", _positions(fields))


def _linear(inner: Fields, _fields: Fields) -> dict[str, Any]:
    return {"factor": inner.number("factor")}


def _dynamic(inner: Fields, fields: Fields) -> dict[str, Any]:
    return {
        "factor": inner.number("factor"),
        "original_max_position_embeddings": _positions(fields),
    }


def _llama3(inner: Fields, fields: Fields) -> dict[str, Any]:
    return {
        "factor": inner.number("factor"),
        "low_freq_factor": inner.number("low_freq_factor"),
        "high_freq_factor": inner.number("high_freq_factor"),
        "original_max_position_embeddings": _original_positions(inner, fields),
    }


def _yarn(inner: Fields, fields: Fields) -> dict[str, Any]:
    original = _original_positions(inner, fields)
    factor = inner.number("factor", _positions(fields) / original)
    return {
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": inner.number("beta_fast", 32.0),
        "beta_slow": inner.number("beta_slow", 1.0),
        "truncate": inner.flag("truncate"),
        "attention_factor": inner.number("attention_factor", _yarn_attention(inner, factor)),
    }


def _yarn_attention(inner: Fields, factor: float) -> float:
    """YaRN's temperature, 0.1·ln(factor) + 1 (arXiv 2309.00071 eq. 22).

    As transformers derives it where the file does not say it."""

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    weight, all_dim = inner.get("mscale"), inner.get("mscale_all_dim")
    if weight and all_dim:
        return scale(inner.number("mscale")) / scale(inner.number("mscale_all_dim"))
    return scale(1.0)


_SCALING = {
    "default": lambda _inner, _fields: {},
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}
