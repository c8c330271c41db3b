"""HF → Megatron → HF of mixtures of experts: bit-exact at every (tp, pp, ep) in {1, 2}³, in process
and through checkpoint files, from per-expert and from stacked names."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints_conv.conv_models import differences, make_hf_folder
from distributed import run_ranks
from model_cases import read_all, rewrite_single

from megaladder.checkpoints_conv.hf_to_megatron import convert_to_megatron
from megaladder.checkpoints_conv.megatron_to_hf import convert_to_hf
from megaladder.checkpoints_conv.reader import HFReader

# ranks: as many as a layout takes at least, so that no replica is idle
GRID: dict[int, list[dict[str, int]]] = {1: [], 2: [], 4: []}
for tp, pp, ep in itertools.product((1, 2), repeat=3):
    GRID[pp * max(tp, ep)].append({"tp": tp, "pp": pp, "ep": ep})
GRID[2] += [{"tp": 2, "etp": 2}, {"pp": 2, "vpp": 2}]
GRID[4] += [{"ep": 4}, {"tp": 2, "ep": 4}, {"ep": 2, "etp": 2}, {"tp": 2, "ep": 2}]


def round_trip(work: Path, case: str, grid: dict[int, list[dict[str, int]]]) -> int:
    """Checks a case at every layout; how many there were."""
    make_hf_folder(case, work / case)
    convert_to_megatron(work / case, work / "offline")
    want, count = read_all(work / case), 0
    convert_to_hf(work / "offline", work / "back")
    assert differences(read_all(work / "back"), want) == []
    for world_size, layouts in grid.items():
        run_ranks("moe/conversion_worker.py", world_size, str(work), case, json.dumps(layouts))
        results = json.loads((work / f"results-{world_size}.json").read_text())
        assert len(results) == len(layouts)
        for layout, found in results.items():
            assert found == {"streamed": [], "offline": []}, layout
            assert differences(read_all(work / f"export-{world_size}-{layout}"), want) == [], layout
            out = work / f"back-{world_size}-{layout}"
            convert_to_hf(work / f"saved-{world_size}-{layout}", out)
            assert differences(read_all(out), want) == [], layout
            count += 1
    return count


def test_stacked_experts_are_read_as_single_ones(tmp_path: Path) -> None:
    """As transformers saves them with save_original_format=False."""
    make_hf_folder("qwen3-moe", tmp_path / "apart")
    shutil.copytree(tmp_path / "apart", tmp_path / "stacked")
    tensors = read_all(tmp_path / "apart")
    stacked = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in range(4):
        experts = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            torch.stack([tensors[f"{experts}.{e}.{kind}_proj.weight"] for e in range(8)])
            for kind in ("gate", "up", "down")
        )
        stacked[f"{experts}.gate_up_proj"] = torch.cat((gate, up), dim=1)
        stacked[f"{experts}.down_proj"] = down
    rewrite_single(tmp_path / "stacked", stacked)
    with HFReader(tmp_path / "stacked") as reader:
        assert reader.num_bytes == sum(tensor.nbytes for tensor in tensors.values())
        rows = reader.read("model.layers.1.mlp.experts.5.up_proj.weight", 0, 7, 9)
        assert torch.equal(rows, tensors["model.layers.1.mlp.experts.5.up_proj.weight"][7:9])
        columns = reader.read("model.layers.1.mlp.experts.5.down_proj.weight", 1, 7, 9)
        assert torch.equal(
            columns, tensors["model.layers.1.mlp.experts.5.down_proj.weight"][:, 7:9]
        )
    convert_to_megatron(tmp_path / "stacked", tmp_path / "megatron")
    convert_to_hf(tmp_path / "megatron", tmp_path / "back")
    assert differences(read_all(tmp_path / "back"), tensors) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", ["qwen3-moe", "qwen3-moe-mixed", "glm4-moe"])
def test_round_trip_is_bit_exact_at_every_layout(tmp_path: Path, case: str) -> None:
    assert round_trip(tmp_path, case, GRID) == 14
