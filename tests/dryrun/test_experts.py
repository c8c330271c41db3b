"""`megaladder dryrun` of a mixture of experts: bytes are `plan`'s, every rank agrees, all-to-alls by
hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dryrun.against_plan import assert_bytes_are_plans
from yaml import safe_dump

from megaladder.cli import main
from megaladder.dryrun.experts import even_counts

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
TOKENS = 256


def dryrun(
    folder: Path, layout: dict[str, Any], lora: dict[str, Any] | None = None, **train: Any
) -> dict[str, Any]:
    """What a dry run of two micro-batches a rank found."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rows = 2 * layout["ranks"] // layout.get("tp", 1) // layout.get("pp", 1)
    sections = {
        "run_dir": str(folder / "run"),
        "model": {"path": str(folder)},
        "data": {"path": "data.jsonl", "seq_length": TOKENS},
        "train": {"global_batch_size": rows, **train},
        "moe": {"aux_loss": "global_batch", "z_loss_coef": 1e-3},
        "parallel": layout,
        "lora": lora or {},
    }
    (folder / "run.yaml").write_text(safe_dump(sections))
    assert main(["dryrun", str(folder / "run.yaml"), "--json", str(folder / "found.json")]) == 0
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(
    ("layout", "train"),
    [
        ({"tp": 2, "ep": 2, "pp": 2, "ranks": 8}, {"recompute": "full"}),
        ({"tp": 2, "ep": 2, "etp": 2, "ranks": 4}, {}),
    ],
    ids=["tp2-ep2-pp2-recompute", "tp2-ep2-etp2"],
)
def test_bytes_are_plans(tmp_path, capsys, layout: dict[str, Any], train: dict[str, Any]) -> None:
    found = dryrun(tmp_path, layout, **train)
    assert found["faults"] == []
    assert_bytes_are_plans(found["stages"])
    said = capsys.readouterr().out
    assert "all_to_all" in said and "plan predicts" in said


def test_adapters_of_experts_are_plans(tmp_path) -> None:
    """A rank has adapters on its own experts: half of them here."""
    found = dryrun(tmp_path, {"tp": 2, "ep": 2, "ranks": 4}, lora={"rank": 8})
    assert found["faults"] == []
    assert_bytes_are_plans(found["stages"])


def test_all_to_alls_by_hand(tmp_path) -> None:
    """Of a layer and micro-batch: hidden states, their weights (a number each in fp32) and the
    outputs back, and the gradients of the three."""
    (stage,) = dryrun(tmp_path, {"ep": 4, "ranks": 4})["stages"]
    sent = {kind["num_bytes"]: kind["count"] for kind in _of(stage, "all_to_all")}
    choices, passes = TOKENS * 2, 2 * 2  # tokens · K; micro-batches · layers
    assert sent == {choices * 256 * 2: 4 * passes, choices * 4: 2 * passes}
    (group,) = {(kind["group"], kind["size"]) for kind in _of(stage, "all_to_all")}
    assert group == ("expert_model_parallel", 4)


def _of(stage: dict[str, Any], op: str) -> list[dict[str, Any]]:
    return [kind for kind in stage["traffic"] if kind["op"] == op]


@pytest.mark.parametrize(("choices", "expected"), [(16, [4, 4, 4, 4]), (18, [5, 5, 4, 4])])
def test_an_even_load_leaves_nothing_out(choices: int, expected: list[int]) -> None:
    assert even_counts(choices, 4).tolist() == expected
