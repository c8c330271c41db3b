"""Loss and gradient norm of a training of adapters do not depend on the layout.

A few of the cases are in tests/train/test_layout_invariance.py, where their ranks run anyway.
"""

import json

import pytest
from distributed import run_ranks
from layout_steps import assert_same_steps
from tiny_models import build_bare_qwen3

CASES = {
    1: [
        {"name": "reference"},
        {"name": "micro2", "micro": 2},
        {"name": "recompute", "recompute": "full"},
        {"name": "log-prob head", "fused": False},
        {"name": "part-reference", "lora": "q_proj,v_proj,down_proj"},
        {"name": "part-recompute", "lora": "q_proj,v_proj,down_proj", "recompute": "full"},
        {"name": "last-reference", "lora": "down_proj"},
        {"name": "last-recompute", "lora": "down_proj", "recompute": "full"},
    ],
    2: [
        {"name": "tp2", "tp": 2},
        {"name": "tp2-sp", "tp": 2, "sp": True},
        {"name": "tp2-sp-recompute", "tp": 2, "sp": True, "recompute": "full"},
        {"name": "pp2", "pp": 2},
        {"name": "pp2-vpp2", "pp": 2, "vpp": 2},
        {"name": "dp2"},
        {"name": "cp2", "cp": 2},
        {"name": "part-tp2", "tp": 2, "lora": "q_proj,v_proj,down_proj"},
        {"name": "part-tp2-sp", "tp": 2, "sp": True, "lora": "q_proj,v_proj,down_proj"},
        {"name": "last-pp2", "pp": 2, "lora": "down_proj"},
    ],
    4: [
        {"name": "tp2-pp2-sp", "tp": 2, "pp": 2, "sp": True},
        {"name": "tp2-dp2-sp", "tp": 2, "sp": True},
    ],
}


def trained(folder, world_size: int, cases: list[dict]) -> dict[str, list]:
    """Case name → [(mean loss, gradient norm, loss tokens) of each step]."""
    out = folder / f"{world_size}.json"
    cases = [{"lora": "all", **case} for case in cases]
    run_ranks(
        "train/layout_worker.py", world_size, str(folder / "model"), json.dumps(cases), str(out)
    )
    return {result["name"]: result["steps"] for result in json.loads(out.read_text())}


@pytest.mark.slow
def test_adapters_train_the_same_at_every_layout(tmp_path):
    build_bare_qwen3(tmp_path / "model")
    found = {}
    for world_size, cases in CASES.items():
        found |= trained(tmp_path, world_size, cases)
    for name, rows in found.items():
        kind = name.partition("-")[0]
        reference = f"{kind}-reference" if kind in ("part", "last") else "reference"
        assert_same_steps(rows, found[reference], name)
