"""The memory estimate against published arithmetic: Qwen3-14B, Bridge's 6 + 12/dp bytes a parameter (peers.md §4.2)."""
from __future__ import annotations

import pytest

from megaladder.config.train import SftConfig
from megaladder.model.hf_config import ModelShape, model_shape
from megaladder.preflight.memory import estimate_memory

QWEN3_14B = {
    "model_type": "qwen3", "num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size": 17408, "num_attention_heads": 40,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False, "rope_theta": 1000000,
}  # fmt: skip


@pytest.fixture
def shape() -> ModelShape:
    return model_shape(QWEN3_14B)


def config(parallel: dict | None = None, seq_length: int = 4096, **train: object) -> SftConfig:
    return SftConfig(model={"path": "m"}, data={"path": "d", "seq_length": seq_length}, parallel=parallel or {}, train=train)


def test_state_bytes_are_the_published_ones(shape) -> None:
    assert shape.num_parameters == pytest.approx(14.77e9, rel=1e-3)
    one = estimate_memory(config(), shape, dp=8, precision="bf16")
    assert one.weights + one.gradients + one.optimizer == pytest.approx((6 + 12 / 8) * shape.num_parameters, rel=1e-9)
    assert one.weights + one.gradients + one.optimizer == pytest.approx(111e9, rel=0.01)
    fp32 = estimate_memory(config(), shape, dp=1, precision="fp32")
    assert fp32.weights + fp32.gradients + fp32.optimizer == 16 * shape.num_parameters


def test_tensor_parallelism_divides_state_and_head_exactly(shape) -> None:
    one, four = (estimate_memory(config({"tp": tp}), shape, dp=1, precision="bf16") for tp in (1, 4))
    assert four.weights == pytest.approx(one.weights / 4, rel=1e-6)
    assert four.head == one.head / 4 == 2 * 4096 * 151936 / 4 * 4
    assert four.activations == pytest.approx(one.activations / 4, rel=1e-3)  # with sequence parallelism nothing is kept twice


def test_activations_per_token_and_layer(shape) -> None:
    """4·5120 norms + 128·(2·40 + 2·8) attention + 3·17408 MLP = 84,992 values a token and layer, two bytes each."""
    one = estimate_memory(config(), shape, dp=1, precision="bf16")
    assert one.activations == 4096 * 40 * 84_992 * 2
    unsplit = estimate_memory(config({"tp": 4, "sequence_parallel": False}), shape, dp=1, precision="bf16")
    assert unsplit.activations == 4096 * 40 * (4 * 5120 + (12_288 + 52_224) // 4) * 2
    full = estimate_memory(config(recompute="full"), shape, dp=1, precision="bf16")
    assert full.activations == 4096 * (40 * 5120 + 84_992) * 2


def test_pipeline_stages_keep_as_many_activations_in_flight(shape) -> None:
    """1F1B: the first of pp stages holds pp micro-batches of 1/pp of the layers; interleaving adds (pp-1)/(pp·vpp)."""
    one, four, interleaved = (
        estimate_memory(config(parallel), shape, dp=1, precision="bf16") for parallel in ({}, {"pp": 4}, {"pp": 4, "vpp": 5})
    )
    assert four.activations == one.activations
    assert interleaved.activations == pytest.approx(one.activations * (1 + 3 / 20), rel=1e-3)
    assert four.weights < one.weights / 3
    assert four.total == four.weights + four.gradients + four.optimizer + four.activations + four.head


def test_the_shipped_14b_layout_fits_an_h200(shape) -> None:
    from pathlib import Path

    from megaladder.config.resolve import from_yaml
    from megaladder.config.rules import validate_layout

    shipped = from_yaml(SftConfig, str(Path(__file__).resolve().parents[2] / "examples" / "configs" / "sft_qwen3_14b.yaml"))
    validate_layout(shipped, shape)
    estimate = estimate_memory(shipped, shape, dp=1, precision="bf16")
    assert estimate.total < 0.8 * 141e9
