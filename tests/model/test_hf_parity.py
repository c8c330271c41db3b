"""fp32 logits through megatron-core equal transformers' at every layout, for every family we
name."""

import json

import numpy as np
import pytest
from distributed import run_ranks
from model.parity_worker import packed_tokens
from model_cases import CASES, make_folder, reference_logits

from megaladder.model.hf_config import model_shape, read_config_json

LAYOUTS = {
    1: [{"name": "tp1"}],
    2: [
        {"name": "tp2", "tp": 2},
        {"name": "tp2sp", "tp": 2, "sp": True},
        {"name": "pp2", "pp": 2},
        {"name": "pp2vpp2", "pp": 2, "vpp": 2},
        {"name": "tp2ep2", "tp": 2, "sp": True, "ep": 2},
    ],
    4: [{"name": "tp2pp2", "tp": 2, "pp": 2, "sp": True}],
}
# the families with the plainest layers go through every layout, all others through these
EVERYWHERE = ("qwen3-tied", "llama-llama3")
FOR_ALL = ("tp1", "tp2pp2")
EXPERTS = tuple(case for case in CASES if "moe" in case)
POINTS = [
    (case, layout["name"])
    for case in CASES
    for layouts in LAYOUTS.values()
    for layout in layouts
    if layout["name"] in FOR_ALL or case in (EXPERTS if "ep" in layout else EVERYWHERE)
]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def logits(tmp_path_factory):
    """(model, layout) → our logits; model → transformers' logits."""
    folder = tmp_path_factory.mktemp("parity")
    models = {case: make_folder(case, folder / case) for case in CASES}
    for world_size, layouts in LAYOUTS.items():
        cases = [
            {**layout, "name": f"{model}@{layout['name']}", "model": str(path)}
            for model, path in models.items()
            for layout in layouts
            if (model, layout["name"]) in POINTS
        ]
        run_ranks("model/parity_worker.py", world_size, json.dumps(cases), str(folder))
    ours = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    theirs = {}
    for case, path in models.items():
        sequences, _ = packed_tokens(model_shape(read_config_json(path)).vocab_size)
        theirs[case] = reference_logits(case, sequences).numpy()
    return ours, theirs


def test_logits_equal_transformers_at_every_layout(logits):
    ours, theirs = logits
    worst = {
        f"{model}@{name}": float(np.abs(ours[f"{model}@{name}"] - theirs[model]).max())
        for model, name in POINTS
    }
    assert max(worst.values()) <= TOLERANCE, worst
    # the logits are no zeros
    assert min(float(np.abs(value).max()) for value in theirs.values()) > 1.0
