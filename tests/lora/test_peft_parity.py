"""Adapters of the library `peft`: read, computed with, written and merged at every layout as it and
transformers do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import run_ranks
from model.parity_worker import packed_tokens
from model_cases import read_all
from safetensors.torch import load_file
from tiny_models import build_bare_qwen3
from transformers import AutoModelForCausalLM

from megaladder.checkpoints_conv.adapters.merge import merge_folders

pytestmark = pytest.mark.slow
peft = pytest.importorskip("peft", reason="peft is not installed")

LAYOUTS: dict[int, list[dict]] = {
    1: [{"name": "tp1"}],
    2: [
        {"name": "tp2", "tp": 2},
        {"name": "tp2-sp", "tp": 2, "sp": True},
        {"name": "pp2-vpp2", "pp": 2, "vpp": 2},
    ],
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "all": {"r": 8, "lora_alpha": 16, "target_modules": ALL},
    "some": {"r": 3, "lora_alpha": 5, "target_modules": ["v_proj", "up_proj"], "use_rslora": True},
}


def logits_of(model, sequences) -> np.ndarray:
    with torch.no_grad():
        found = [model(torch.as_tensor(tokens)[None]).logits[0] for tokens in sequences]
    return torch.cat(found).numpy()


def save_with_peft(model_dir: Path, out: Path, settings: dict, sequences) -> np.ndarray:
    """A random adapter in a folder, as peft writes it, and the logits that it gives."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(out)
    return logits_of(model.eval(), sequences)


def load_with_peft(model_dir: Path, adapter: Path, sequences) -> np.ndarray:
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    return logits_of(peft.PeftModel.from_pretrained(base, adapter).eval(), sequences)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The folder with what ranks made of each adapter at each layout, peft's logits of each
    adapter, the model, and the sequences."""
    folder = tmp_path_factory.mktemp("peft")
    model = folder / "model"
    build_bare_qwen3(model)
    sequences, _ = packed_tokens(json.loads((model / "config.json").read_text())["vocab_size"])
    want = {
        kind: save_with_peft(model, folder / kind, settings, sequences)
        for kind, settings in ADAPTERS.items()
    }
    for world_size, layouts in LAYOUTS.items():
        cases = [
            {
                **layout,
                "name": f"{kind}@{layout['name']}",
                "model": str(model),
                "adapter": str(folder / kind),
            }
            for kind in ADAPTERS
            for layout in layouts
        ]
        run_ranks("model/parity_worker.py", world_size, json.dumps(cases), str(folder))
    return folder, want, model, sequences


NAMES = [
    f"{kind}@{layout['name']}" for kind in ADAPTERS for some in LAYOUTS.values() for layout in some
]


def test_logits_equal_pefts_at_every_layout(found):
    folder, want, model, sequences = found
    plain = logits_of(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), sequences)
    for name in NAMES:
        kind = name.partition("@")[0]
        ours = np.load(folder / f"{name}.npy")
        assert np.abs(ours - want[kind]).max() <= 1e-5, name
        assert np.abs(plain - want[kind]).max() > 1e-2, name  # the adapter does something


def test_adapters_come_back_bit_for_bit_and_peft_reads_them(found):
    folder, want, model, sequences = found
    for name in NAMES:
        kind = name.partition("@")[0]
        theirs = load_file(folder / kind / "adapter_model.safetensors")
        ours = load_file(folder / f"{name}.adapter" / "adapter_model.safetensors")
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[key], ours[key]) for key in theirs), name
    for kind in ADAPTERS:
        again = load_with_peft(model, folder / f"{kind}@tp1.adapter", sequences)
        assert np.array_equal(again, want[kind])


def test_the_merged_model_computes_the_same_at_every_layout_and_from_folders(found):
    folder, want, model, sequences = found
    for kind in ADAPTERS:
        merge_folders(model, folder / kind, folder / f"{kind}.merged")
        whole = read_all(folder / f"{kind}.merged")
        merged = AutoModelForCausalLM.from_pretrained(
            folder / f"{kind}.merged", dtype=torch.float32
        )
        assert np.abs(logits_of(merged, sequences) - want[kind]).max() <= 1e-5
        for name in (name for name in NAMES if name.startswith(f"{kind}@")):
            other = read_all(folder / f"{name}.merged")
            assert other.keys() == whole.keys()
            largest = max((other[key] - whole[key]).abs().max().item() for key in whole)
            assert largest <= 1e-6, name


@pytest.mark.parametrize("kind", ADAPTERS)
def test_merged_and_adapted_compute_the_same_to_1e_6(found, kind):
    """Beyond what sums of float32 do to either of them: computed in float64, W' rounded once."""
    folder, _, model, sequences = found
    merge_folders(model, folder / kind, folder / f"{kind}.once")
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, folder / kind)
    merged = AutoModelForCausalLM.from_pretrained(folder / f"{kind}.once", dtype=torch.float32)
    exact = [logits_of(one.eval().double(), sequences) for one in (adapted, merged)]
    assert np.abs(exact[0] - exact[1]).max() <= 1e-6


def test_a_merge_is_what_peft_merges(found):
    folder, _, model, _ = found
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, folder / "all").merge_and_unload().state_dict()
    merge_folders(model, folder / "all", folder / "all.again")
    ours = read_all(folder / "all.again")
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) <= 1e-6
