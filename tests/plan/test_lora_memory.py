"""What adapters take by `plan`, and what one 80 GB GPU holds with them."""

from __future__ import annotations

import pytest

from megaladder.cli.dispatch import main
from megaladder.config.verbs.plan import PlanConfig
from megaladder.errors import ConfigError
from megaladder.model.lora.spec import num_adapter_parameters
from megaladder.plan.hardware import find_gpu, find_model
from megaladder.plan.layout import PlannedLayout, Work
from megaladder.plan.memory import GIB, adapter_parameters, stage_memory
from megaladder.plan.search import search
from megaladder.plan.verb import adapters_of, task_of

SHAPE = find_model("Qwen3-14B")
ASKED = {
    "model": "Qwen3-14B",
    "gpus": 1,
    "gpu": "h100",
    "seq_length": 16384,
    "global_batch_size": 32,
}
RANK_32 = PlanConfig(**ASKED, lora_rank=32)


def work() -> Work:
    return Work(16384, 32, lora=True, adapters=adapters_of(RANK_32, SHAPE))


def test_adapters_of_a_14b_model_by_hand():
    """40 layers, H 5,120, heads 40 × 128, key/value groups 8 × 128, F 17,408, rank 32."""
    hidden, heads, keys, wide = 5120, 40 * 128, 8 * 128, 17408
    sides = (hidden + heads) + 2 * (hidden + keys) + (heads + hidden) + 3 * (hidden + wide)
    assert 40 * 32 * sides == 128_450_560
    spec = adapters_of(RANK_32, SHAPE)
    assert spec is not None and num_adapter_parameters(SHAPE, spec) == 128_450_560
    assert adapter_parameters(SHAPE, PlannedLayout(), work(), 0).total == 128_450_560


def test_tensor_parallelism_splits_one_matrix_of_two():
    hidden, heads, keys, wide = 5120, 40 * 128, 8 * 128, 17408
    columns = (hidden + heads / 4) + 2 * (hidden + keys / 4) + 2 * (hidden + wide / 4)
    rows = (heads / 4 + hidden) + (wide / 4 + hidden)
    layout = PlannedLayout(tp=4, pp=2)
    assert adapter_parameters(SHAPE, layout, work(), 0).total == 20 * 32 * (columns + rows)


def test_only_adapters_have_gradients_and_optimizer_states():
    found = stage_memory(SHAPE, PlannedLayout(recompute="full"), work(), 0)
    assert found.gradients == 4 * 128_450_560 and found.optimizer == 12 * 128_450_560
    assert found.weights == 2 * (SHAPE.num_parameters + 128_450_560)


def test_plan_says_what_of_adapters_it_does_not_predict(capsys):
    asked = ["plan", "--model", "Qwen3-14B", "--gpus", "1", "--gpu", "h200", "--seq-length", "4096"]
    asked += ["--global-batch-size", "32", "--lora-rank", "32"]
    said = "note: the products of the adapters are not in the predicted time; their memory is"
    assert main(asked) == 0 and said in capsys.readouterr().out
    assert main([*asked[:-2], "--gpus", "8"]) == 0 and said not in capsys.readouterr().out


def test_one_80_gb_gpu_holds_a_14b_model_with_adapters_and_not_without():
    best = search(task_of(RANK_32))[0]
    assert best.layout.gpus == 1 and best.memory.total < find_gpu("h100").memory_bytes
    assert 40 < best.memory.total / GIB < 79
    with pytest.raises(ConfigError, match="no layout fits"):
        search(task_of(PlanConfig(**ASKED)))
