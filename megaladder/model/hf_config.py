"""What we read from a Hugging Face `config.json`, checked once. Imports transformers only to parse
the file; no torch, no weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder.errors import ModelError

FAMILIES = {"qwen3": "Qwen3", "qwen2": "Qwen2/2.5", "llama": "Llama 3.x"}


def require_model(path: str, revision: str | None) -> None:
    """Raises ModelError where `path` is neither a folder nor a hub id with its commit."""
    if Path(path).is_dir():
        return
    get = (
        "fix: make or download it (the comments on top of the run.yaml say how; hf download"
        " OWNER/NAME --local-dir FOLDER)"
    )
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ModelError(
            f"{path}: no such folder; {get}, or model.path a hub id like Qwen/Qwen3-14B-Base"
        )
    if revision is None:
        raise ModelError(
            f"{path}: no such folder; {get}; as a hub id it needs model.revision (a commit), so"
            " that the run can be repeated"
        )


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding: `kind` is transformers' rope_type; the other fields only where the kind
    uses them (papers: arXiv 2104.09864; llama3: Llama 3.1 model card; yarn: arXiv 2309.00071)."""

    kind: str
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that define a dense decoder. `hf_family` is a key of `FAMILIES`; sizes in
    elements."""

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
    qk_norm: bool
    torch_dtype: str

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
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        layer = attention + bias + norms + 3 * self.hidden_size * self.ffn_hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return self.num_layers * layer + embeddings + self.hidden_size

    def flops_per_token(self, mean_context: float) -> float:
        """Model FLOPs of forward and backward per token (6 per matmul parameter,
        12·layers·heads·dim·context for causal attention's two products halved by causality; PaLM
        appendix B, arXiv 2204.02311). `mean_context`: mean over tokens of their sequence's length.
        """
        matmul = self.num_parameters - self.vocab_size * self.hidden_size * (0 if self.tied else 1)
        attention = 6 * self.num_layers * self.num_attention_heads * self.head_dim * mean_context
        return 6.0 * matmul + attention


def read_config_json(model_dir: str | Path) -> dict[str, Any]:
    """The raw config.json of a local folder.

    Raises:
        ModelError: the folder or the file is missing or is no JSON object.
    """
    path = Path(model_dir) / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path}: not found; fix: model.path must be a Hugging Face model folder or a hub id"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path}: no valid JSON ({error}); fix: copy the model's config.json again"
        ) from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(raw).__name__}")
    return raw


def model_shape(raw: dict[str, Any]) -> ModelShape:
    """Reads and checks a config.json's content.

    Raises:
        ModelError: the architecture or one of its options is not supported; the message says which
        and what is.
    """
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise ModelError(
            f"model_type {family!r} is not supported; supported: {', '.join(FAMILIES)}; fix: add a"
            " family (README, 'Add a model family')"
        )
    _refuse_unsupported(raw)
    heads = _count(raw, "num_attention_heads")
    groups = _count(raw, "num_key_value_heads", heads)
    if heads % groups:
        raise ModelError(
            f"config.json: num_key_value_heads {groups} does not divide num_attention_heads {heads}"
        )
    hidden_size = _count(raw, "hidden_size")
    if raw.get("head_dim") is None and hidden_size % heads:
        raise ModelError(
            f"config.json: no head_dim, and hidden_size {hidden_size} is not a multiple of"
            f" num_attention_heads {heads}"
        )
    return ModelShape(
        hf_family=family,
        num_layers=_count(raw, "num_hidden_layers"),
        hidden_size=hidden_size,
        ffn_hidden_size=_count(raw, "intermediate_size"),
        num_attention_heads=heads,
        num_query_groups=groups,
        head_dim=_count(raw, "head_dim", hidden_size // heads),
        vocab_size=_count(raw, "vocab_size"),
        max_position_embeddings=_count(raw, "max_position_embeddings", 32768),
        norm_eps=_positive(raw, "rms_norm_eps", 1e-6),
        rope=_rope(raw),
        tied=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or bool(raw.get("attention_bias", False)),
        qk_norm=family == "qwen3",
        torch_dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
    )


def _count(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    """A whole number ≥ 1 under `key`; `default` where the key is absent or null."""
    value = raw.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        found = "nothing" if key not in raw else repr(value)
        raise ModelError(f"config.json: {key} should be a whole number above 0, found {found}")
    return value


def _positive(raw: dict[str, Any], key: str, default: float) -> float:
    """A finite number above 0 under `key`; `default` where the key is absent or null."""
    value = default if raw.get(key) is None else raw[key]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise ModelError(f"config.json: {key} should be a number above 0, found {value!r}")
    return float(value)


def _mapping(raw: dict[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise ModelError(f"config.json: {key} should be an object, found {value!r}")
    return value


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    refused = {"use_sliding_window": "sliding-window attention", "mlp_bias": "biases in the MLP"}
    for key, what in refused.items():
        if raw.get(key):
            raise ModelError(
                f"config.json sets {key}={raw[key]!r}: {what} is not supported; fix: use a model"
                " without it"
            )
    if raw["model_type"] != "qwen2" and raw.get("attention_bias"):
        raise ModelError(
            "config.json sets attention_bias=true for a family whose output projection would then"
            " have a bias: not supported"
        )
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelError(
            f"hidden_act {raw['hidden_act']!r} is not supported; supported: silu (gated)"
        )


def _rope(raw: dict[str, Any]) -> RopeConfig:
    """Both spellings: transformers 5 `rope_parameters`, and the older `rope_theta` +
    `rope_scaling`."""
    scaling = {**_mapping(raw, "rope_scaling"), **_mapping(raw, "rope_parameters")}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise ModelError(f"rope_type {kind!r} is not supported; supported: default, linear, llama3")
    return RopeConfig(
        kind=kind,
        theta=_positive(scaling, "rope_theta", _positive(raw, "rope_theta", 10000.0)),
        factor=_positive(scaling, "factor", 1.0),
        low_freq_factor=_positive(scaling, "low_freq_factor", 1.0),
        high_freq_factor=_positive(scaling, "high_freq_factor", 4.0),
        original_max_position_embeddings=_count(scaling, "original_max_position_embeddings", 8192),
    )


def padded_vocab_size(vocab_size: int, tp: int) -> int:
    """Rows of the embedding over all TP ranks: the vocabulary rounded up to a multiple of lcm(8,
    tp).

    A multiple of 8 lets TP change among 1, 2, 4, 8 between save and resume; published vocabularies
    divide already (151,936 = 16·9,496). Padded rows are zero, take no part in the softmax, and are
    cut on export.
    """
    multiple = math.lcm(8, tp)
    return -(-vocab_size // multiple) * multiple
