"""A config.json with values that no model has is refused by the key's name, whatever they are."""

from __future__ import annotations

import pytest

from megaladder.errors import ModelError
from megaladder.model.hf_config import model_shape

GOOD = {
    "model_type": "qwen3",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}
COUNTS = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "head_dim")
NO_COUNT = (-1, 0, "x", 1.5, True, [1], {})
NO_NUMBER = (-1, 0, "x", float("nan"), float("inf"), True, [1])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in COUNTS for value in NO_COUNT),
        *((key, value) for key in ("rms_norm_eps", "rope_theta") for value in NO_NUMBER),
        ("num_attention_heads", "x"),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", -2),
        ("rope_scaling", [1]),
        ("rope_parameters", "yarn"),
    ],
)
def test_impossible_values_are_named(key, value):
    with pytest.raises(ModelError, match=key):
        model_shape({**GOOD, key: value})


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_missing_sizes_are_named(key):
    with pytest.raises(ModelError, match=f"{key} should be a whole number above 0, found nothing"):
        model_shape({name: value for name, value in GOOD.items() if name != key})


def test_nulls_and_absent_optional_keys_take_the_defaults():
    shape = model_shape({**GOOD, "head_dim": None, "num_key_value_heads": None})
    assert (shape.head_dim, shape.num_query_groups) == (16, 4)
    assert (shape.norm_eps, shape.rope.theta) == (1e-6, 10000.0)
