"""The memory model against bytes that are really held: a tiny model, megatron-core's DDP buffers
and optimizer, on two gloo ranks."""

from __future__ import annotations

import json

import pytest
from distributed import run_ranks
from tiny_models import build_tiny_model

from megaladder.model.hf_config import model_shape, read_config_json
from megaladder.plan.layout import PlannedLayout, Work
from megaladder.plan.memory import layer_activation_bytes, stage_memory


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model", num_layers=4, hidden=256)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (1, 1)])
def test_states_of_every_rank(model, tmp_path, tp: int, pp: int) -> None:
    """Weights exactly; gradients and optimizer within 1 % (buffers are padded). One rank a stage:
    dp is what tp and pp leave of two."""
    out = tmp_path / "bytes.json"
    run_ranks("plan/memory_worker.py", 2, str(model), str(tp), str(pp), str(out))
    shape = model_shape(read_config_json(model))
    layout = PlannedLayout(tp=tp, pp=pp, dp=2 // (tp * pp))
    for rank, row in enumerate(json.loads(out.read_text())):
        estimate = stage_memory(shape, layout, Work(row["tokens"], 2), rank if pp == 2 else 0)
        assert row["weights"] == estimate.weights
        assert row["gradients"] == pytest.approx(estimate.gradients, rel=0.01)
        assert row["optimizer"] == pytest.approx(estimate.optimizer, rel=0.01)
        # the portable layers are not fused: the formula, of fused ones, is their lower bound
        if row["activations"] is not None:
            kept = (
                shape.num_layers
                * row["tokens"]
                * layer_activation_bytes(shape, layout, Work(row["tokens"], 2))
            )
            assert 1.0 < row["activations"] / kept < 2.5
