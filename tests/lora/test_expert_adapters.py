"""Adapters on experts: the library `peft` reads and computes what is written here, and is read, with
each expert's name and with stacked ones; merged they are the same model at every layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import run_ranks
from lora.adapter_cases import TrainedAdapters
from lora.test_peft_parity import load_with_peft, logits_of
from model.parity_worker import packed_tokens
from model_cases import make_folder, read_all
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megaladder.checkpoints_conv.adapters.merge import merge_folders
from megaladder.checkpoints_conv.adapters.peft_folder import open_peft, write_peft
from megaladder.checkpoints_conv.adapters.tensors import AdapterTable
from megaladder.model.hf_config import model_shape, read_config_json
from megaladder.model.lora.peft_config import WEIGHTS, peft_config
from megaladder.model.lora.spec import LoraSpec

peft = pytest.importorskip("peft", reason="peft is not installed")

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYOUTS: dict[int, list[dict]] = {
    1: [{"name": "tp1"}],
    2: [
        {"name": "ep2", "ep": 2},
        {"name": "tp2-ep2", "tp": 2, "sp": True, "ep": 2},
        {"name": "tp2-ep1", "tp": 2, "sp": True},
        {"name": "pp2", "pp": 2},
    ],
}


def write_adapter(model: Path, out: Path, targets: tuple[str, ...] = ALL) -> Path:
    shape = model_shape(read_config_json(model))
    spec = LoraSpec(4, 8.0, targets)
    source = TrainedAdapters(AdapterTable(shape, spec), 0.05)
    tensors = {name: source.read(name) for name in source.shapes}
    write_peft(out, tensors, peft_config(spec, str(model)))
    return out


def merged_logits(model: Path, adapter: Path, out: Path, sequences: list) -> np.ndarray:
    merge_folders(model, adapter, out)
    return logits_of(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32), sequences)


@pytest.fixture(scope="module", params=["qwen3-moe", "glm4-moe"])
def found(request, tmp_path_factory):
    """The case, a folder with what ranks made of an adapter at each layout, the model in it, and
    the sequences."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_folder(request.param, folder / "model")
    adapter = write_adapter(model, folder / "adapter")
    sequences, _ = packed_tokens(json.loads((model / "config.json").read_text())["vocab_size"])
    for world_size, layouts in LAYOUTS.items():
        cases = [{**one, "model": str(model), "adapter": str(adapter)} for one in layouts]
        run_ranks("model/parity_worker.py", world_size, json.dumps(cases), str(folder))
    return request.param, folder, model, sequences


@pytest.mark.slow
def test_adapted_and_merged_are_the_same_at_every_layout(found) -> None:
    _, folder, model, sequences = found
    plain = logits_of(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), sequences)
    want = merged_logits(model, folder / "adapter", folder / "merged", sequences)
    assert np.abs(plain - want).max() > 1e-2
    whole = read_all(folder / "merged")
    theirs = load_file(folder / "adapter" / WEIGHTS)
    for name in (layout["name"] for some in LAYOUTS.values() for layout in some):
        assert np.abs(np.load(folder / f"{name}.npy") - want).max() <= 1e-5, name
        ours = load_file(folder / f"{name}.adapter" / WEIGHTS)
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[key], ours[key]) for key in theirs), name
        other = read_all(folder / f"{name}.merged")
        assert max((other[key] - whole[key]).abs().max().item() for key in whole) <= 1e-6, name


@pytest.mark.slow
def test_peft_computes_what_is_written(found) -> None:
    """peft 0.21 stacks the experts' tensors as it reads them. It takes no names that are an
    expert's and another linear's too, as GLM-4.5's are: those it is given for attention only."""
    case, folder, model, sequences = found
    adapter = folder / "adapter"
    if case == "glm4-moe":
        adapter = write_adapter(model, folder / "attention", ALL[:4])
    want = merged_logits(model, adapter, folder / "merged_for_peft", sequences)
    assert np.abs(load_with_peft(model, adapter, sequences) - want).max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("parameters", [["gate_up_proj", "down_proj"], ["gate_up_proj"]], ids=str)
def test_stacked_adapters_of_peft_are_read(tmp_path: Path, parameters: list[str]) -> None:
    model = make_folder("qwen3-moe", tmp_path / "model")
    shape = model_shape(read_config_json(model))
    sequences, _ = packed_tokens(shape.vocab_size)
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    stacked = {"target_parameters": [f"mlp.experts.{name}" for name in parameters]}
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], **stacked)
    adapted = peft.get_peft_model(base, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    want = logits_of(adapted.eval(), sequences)
    found = merged_logits(model, tmp_path / "adapter", tmp_path / "merged", sequences)
    assert np.abs(found - want).max() <= 1e-5
    table, reader = open_peft(tmp_path / "adapter", shape)
    assert ("down_proj" in table.spec.targets) == ("down_proj" in parameters)
    name = "base_model.model.model.layers.1.mlp.experts.5.up_proj.lora_B.weight"
    assert torch.equal(reader.read(name, 0, 3, 7), reader.read(name)[3:7])
