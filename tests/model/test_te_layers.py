"""Our model built from Transformer Engine's layers, for every FP8 recipe, without a GPU: modules,
recipes, weights, checkpoints.

Skipped where Transformer Engine is not installed (it is no part of the CPU environment; docs/fp8.md
says how to add it).
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from distributed import environment

pytestmark = pytest.mark.skipif(
    find_spec("transformer_engine") is None, reason="Transformer Engine is not installed"
)
RECIPES = {
    "None": None,
    "tensorwise": "Float8CurrentScaling",
    "blockwise": "Float8BlockScaling",
    "delayed": "TEDelayedScaling",
    "mxfp8": "MXFP8BlockScaling",
}


@pytest.fixture(scope="module")
def found() -> dict:
    worker = Path(__file__).with_name("te_worker.py")
    done = subprocess.run(
        [sys.executable, str(worker)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("recipe", RECIPES)
def test_layers_of_each_recipe(found: dict, recipe: str) -> None:
    built = found[recipe]
    assert built["modules"] == {
        "linear_qkv": "TELayerNormColumnParallelLinear",
        "core_attention": "TEDotProductAttention",
        "linear_proj": "TERowParallelLinear",
        "q_layernorm": "RMSNorm",
        "linear_fc1": "TELayerNormColumnParallelLinear",
        "linear_fc2": "TERowParallelLinear",
        "input_layernorm": "IdentityOp",
        "final_layernorm": "RMSNorm",
        "output_layer": "VocabularyHead",
    }
    assert built["recipe"] == RECIPES[recipe]
    assert built["fused_accumulation"], "weight gradients must go to DDP's fp32 buffer"
    assert built["dtypes"] == ["torch.bfloat16"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_from_hugging_face_are_bit_exact_in_either_specification(
    found: dict, recipe: str
) -> None:
    assert found[recipe]["same_weights"]


def test_a_checkpoint_of_the_portable_layers_loads(found: dict) -> None:
    """It has none of Transformer Engine's scaling state; missing scales start fresh, anything else
    missing is an error."""
    assert found["checkpoint"]
