"""What we read from a Hugging Face `config.json`, checked once.

Imports transformers only to parse the file; no torch, no weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder.errors import ModelError
from megaladder.model.families.fields import MOST_LAYERS, Fields
from megaladder.model.families.rope import RopeConfig, read_layer_ropes, read_rope
from megaladder.model.families.table import (
    COMMON_DEFAULTS,
    FAMILIES,
    LAYER_NORMS,
    Family,
    check_layer_types,
)
from megaladder.model.moe.shape import MoeShape

# what transformers writes of quantised weights, and what MLX does
QUANTIZED = ("quantization_config", "quantization")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that define a decoder.

    `hf_family` is a key of `FAMILIES`; sizes in elements.

    ffn_hidden_size: of dense layers; moe: of those with experts, None where there are none.

    qk_norm: None, "head" (each head for itself) or "projection" (all heads of a query or key
    together). local_rope: of layers with a sliding window, None where it is `rope`. sliding_window:
    tokens that such a layer's token sees, itself included; sliding_layers: which, empty for none.
    softmax_scale: of attention scores.
    """

    hf_family: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    norm_eps: float
    rope: RopeConfig
    tied: bool
    qkv_bias: bool
    qk_norm: str | None
    torch_dtype: str
    local_rope: RopeConfig | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    softmax_scale: float = 0.0
    moe: MoeShape | None = None

    @property
    def family(self) -> Family:
        """The row of `families.table` that the model belongs to."""
        return FAMILIES[self.hf_family]

    @property
    def norms_per_layer(self) -> int:
        """Norms of hidden_size weights in one layer."""
        return sum(role in self.family.names for role in LAYER_NORMS)

    @property
    def qk_norm_size(self) -> int:
        """Weights of one layer's query and key norms together."""
        heads = {None: 0, "head": 2, "projection": self.num_attention_heads + self.num_query_groups}
        return self.head_dim * heads[self.qk_norm]

    @property
    def portable_only(self) -> str | None:
        """What Transformer Engine's layers of megatron-core do not compute.

        None where they do it all. Such a model runs on the portable layers, on a GPU too."""
        norms = {"input_norm", "mlp_norm"} <= set(self.family.names)
        if not norms or self.norms_per_layer > 2:
            return "norms after attention and MLP"
        if self.qk_norm == "projection":
            return "query and key norms over all heads"
        if self.rope.rotary_share < 1 or self.family.rotary_interleaved:
            return "a rotary embedding of a part of each head, or of interleaved pairs"
        if self.local_rope is not None:
            return "a rotary embedding of their own in sliding layers"
        return None

    @property
    def longest_sequence(self) -> int | None:
        """Tokens of a sequence up to which the rotary embedding is exact; None: any."""
        return self.rope.longest_sequence()

    def layer_context(self, mean_context: float) -> float:
        """Mean over layers of the tokens that a token's attention spans.

        Where a sequence has `mean_context` of them."""
        sliding = sum(self.sliding_layers) / self.num_layers
        seen = min(mean_context, self.sliding_window or mean_context)
        return sliding * seen + (1 - sliding) * mean_context

    @property
    def num_parameters(self) -> int:
        """All parameters, embeddings included, counted once when tied."""
        attention = (
            self.hidden_size
            * self.head_dim
            * (2 * self.num_attention_heads + 2 * self.num_query_groups)
        )
        bias = (
            self.head_dim * (self.num_attention_heads + 2 * self.num_query_groups)
            if self.qkv_bias
            else 0
        )
        norms = self.norms_per_layer * self.hidden_size + self.qk_norm_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        mlps = self.num_dense * 3 * self.hidden_size * self.ffn_hidden_size
        if self.moe is not None:
            mlps += self.moe.num_sparse * self.moe.layer_parameters(self.hidden_size)
        return self.num_layers * (attention + bias + norms) + mlps + embeddings + self.hidden_size

    @property
    def num_active_parameters(self) -> int:
        """Those of them that one token meets: of a layer's experts the ones that it is sent to."""
        if self.moe is None:
            return self.num_parameters
        _, routed = self.moe.layer_parts(self.hidden_size, 1)
        idle = self.moe.num_experts - self.moe.top_k
        return self.num_parameters - self.moe.num_sparse * routed * idle // self.moe.num_experts

    @property
    def num_dense(self) -> int:
        """Layers without experts."""
        return self.num_layers - (0 if self.moe is None else self.moe.num_sparse)

    @property
    def feed_forward_sizes(self) -> dict[str, int]:
        """Widths that tensor parallelism cuts, by what messages call them.

        Of an MLP that the model has: no dense layer, no shared experts, no width."""
        sizes = {"feed-forward size": self.ffn_hidden_size} if self.num_dense else {}
        if self.moe is not None and self.moe.shared_ffn_size:
            sizes["shared experts' feed-forward size"] = self.moe.shared_ffn_size
        return sizes

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer (from 0) has experts."""
        return self.moe is not None and self.moe.sparse_layers[layer]

    def forward_flops(self, tokens: float, seen_tokens: float, head_tokens: float) -> float:
        """Model FLOPs of a forward pass.

        2 per weight of a matrix product and token (PaLM, arXiv 2204.02311, appendix B); of experts
        those that a token is sent to.

        seen_tokens: pairs of a token and one that its attention sees, summed over layers, each of
        which costs two products of a head's size. head_tokens: how many tokens get logits.
        """
        attention = self.head_dim * (2 * self.num_attention_heads + 2 * self.num_query_groups)
        weights = self.num_layers * self.hidden_size * attention
        weights += self.num_dense * 3 * self.hidden_size * self.ffn_hidden_size
        if self.moe is not None:
            weights += self.moe.num_sparse * self.moe.active_weights(self.hidden_size)
        return (
            2.0 * weights * tokens
            + 4.0 * self.num_attention_heads * self.head_dim * seen_tokens
            + 2.0 * self.vocab_size * self.hidden_size * head_tokens
        )

    def flops_per_token(self, mean_context: float) -> float:
        """Model FLOPs of forward and backward per token, logits included.

        Where a token sees half of its sequence. `mean_context`: mean over tokens of their
        sequence's length."""
        seen_tokens = self.num_layers * self.layer_context(mean_context) / 2
        return 3.0 * self.forward_flops(1, seen_tokens, 1)


def read_config_json(model_dir: str | Path) -> dict[str, Any]:
    """The raw config.json of a local folder.

    Raises:
        ModelError: the folder or the file is missing or is no JSON object.
    """
    fix = "model.path must be a Hugging Face model folder or a hub id"
    return read_json_object(Path(model_dir) / "config.json", fix)


def read_json_object(path: Path, absent: str) -> dict[str, Any]:
    """A JSON object of a model's or an adapter's folder. absent: what to do where there is none.

    Raises:
        ModelError: the file is missing, cannot be read, or is no JSON object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; fix: {absent}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: no readable JSON ({error}); fix: copy the file again") from None
    if not isinstance(raw, dict):
        found = type(raw).__name__
        raise ModelError(f"{path}: expected a JSON object, found {found}; fix: copy the file again")
    return raw


def model_shape(raw: dict[str, Any]) -> ModelShape:
    """Reads and checks a config.json's content; absent keys mean what transformers takes them for.

    Raises:
        ModelError: the architecture or one of its options is not supported; the message says which
        and what is.
    """
    kind = raw.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None or not isinstance(kind, str):
        raise ModelError(
            f"model_type {kind!r} is not supported; supported: {', '.join(FAMILIES)}; fix: a model"
            " of these, or a row of its own in megaladder/model/families/table.py"
        )
    fields = Fields(raw, COMMON_DEFAULTS | family.defaults)
    _refuse_unsupported(fields, family)
    num_layers = fields.count("num_hidden_layers", most=MOST_LAYERS)
    window, sliding = family.windows(fields, num_layers)
    check_layer_types(fields, sliding)
    rope, local_rope = _ropes(fields, family)
    hidden_size, head_dim = fields.count("hidden_size"), _head_dim(fields)
    bias = family.qkv_bias
    return ModelShape(
        hf_family=kind,
        num_layers=num_layers,
        hidden_size=hidden_size,
        ffn_hidden_size=fields.count("intermediate_size"),
        num_attention_heads=fields.count("num_attention_heads"),
        num_query_groups=_groups(fields),
        head_dim=head_dim,
        vocab_size=fields.count("vocab_size"),
        max_position_embeddings=fields.count("max_position_embeddings"),
        norm_eps=fields.number("rms_norm_eps"),
        rope=rope,
        tied=fields.flag("tie_word_embeddings"),
        qkv_bias=fields.flag(bias) if isinstance(bias, str) else bias,
        qk_norm=family.qk_norm if _has_qk_norm(fields, family) else None,
        torch_dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        local_rope=local_rope,
        sliding_window=window,
        sliding_layers=sliding if window is not None else (),
        softmax_scale=_score_size(fields, family, head_dim) ** -0.5,
        moe=None if family.experts is None else family.experts(fields, num_layers),
    )


def _has_qk_norm(fields: Fields, family: Family) -> bool:
    return family.qk_norm_key is None or fields.flag(family.qk_norm_key)


def _groups(fields: Fields) -> int:
    heads = fields.count("num_attention_heads")
    groups = fields.count("num_key_value_heads", heads)
    if heads % groups:
        meant = "" if "num_key_value_heads" in fields.raw else " (transformers' default)"
        raise ModelError(
            f"config.json: num_key_value_heads {groups}{meant} does not divide num_attention_heads"
            f" {heads}"
        )
    return groups


def _head_dim(fields: Fields) -> int:
    hidden_size, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    if fields.get("head_dim") is None and hidden_size % heads:
        raise ModelError(
            f"config.json: no head_dim, and hidden_size {hidden_size} is not a multiple of"
            f" num_attention_heads {heads}"
        )
    return fields.count("head_dim", hidden_size // heads)


def _score_size(fields: Fields, family: Family, head_dim: int) -> float:
    """Attention scores are divided by its root."""
    key = family.score_scalar
    return head_dim if key is None else fields.number(key, head_dim)


def _ropes(fields: Fields, family: Family) -> tuple[RopeConfig, RopeConfig | None]:
    """Of full attention, and of sliding layers where they have their own."""
    if family.layer_ropes is not None:
        return read_layer_ropes(fields, family.layer_ropes)
    return read_rope(fields, family.rope_kinds), None


def _refuse_unsupported(fields: Fields, family: Family) -> None:
    _refuse_other_heads(fields, family)
    for key in QUANTIZED:
        if quantized := fields.get(key):
            method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
            raise ModelError(
                f"config.json: {key} ({method or 'no quant_method'}): quantised weights are neither"
                " trained nor converted; fix: the model that they were made from, in bf16"
            )
    for key, allowed in family.fixed.items():
        fields.one_of(key, allowed, f"{family.title} is built without it")
    fields.one_of(family.activation, (family.gate,), "the gate of the MLP")


def _refuse_other_heads(fields: Fields, family: Family) -> None:
    """Classifiers, reward models, drafts and bare decoders share a family's model_type."""
    given = fields.get("architectures") or [family.architecture]
    names = [str(name) for name in (given if isinstance(given, list) else [given])]
    if family.architecture.lower() in [name.lower() for name in names]:
        return
    fix = "a model that generates text, saved with its output layer"
    if f"FSDP{family.architecture}" in names:  # torch's wrapper has a class of its own
        fix = f'"architectures": ["{family.architecture}"] there: engines do not know FSDP2\'s name'
    raise ModelError(
        f"config.json: architectures {', '.join(names)} is not supported: of model_type"
        f" {fields.get('model_type')} it is {family.architecture}; fix: {fix}"
    )


def padded_vocab_size(vocab_size: int, tp: int) -> int:
    """Rows of the embedding over all TP ranks.

    The vocabulary rounded up to a multiple of lcm(8, tp).

    A multiple of 8 lets TP change among 1, 2, 4, 8 between save and resume; published vocabularies
    divide already (151,936 = 16·9,496). Padded rows are zero, take no part in the softmax, and are
    cut on export.
    """
    multiple = math.lcm(8, tp)
    return -(-vocab_size // multiple) * multiple
