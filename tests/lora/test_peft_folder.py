"""What a PEFT folder may say, and what merging it makes; one process, no ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from lora.adapter_cases import TrainedAdapters
from model_cases import make_folder, read_all
from safetensors.torch import load_file, save_file

from megaladder.checkpoints_conv.adapters.merge import merge_folders
from megaladder.checkpoints_conv.adapters.peft_folder import open_peft, write_peft
from megaladder.checkpoints_conv.adapters.tensors import AdapterTable, FreshAdapters
from megaladder.config.sections.shared import LoraSection
from megaladder.errors import ModelError
from megaladder.model.hf_config import model_shape, read_config_json
from megaladder.model.lora.peft_config import (
    CONFIG,
    WEIGHTS,
    lora_spec,
    peft_config,
    spec_from_config,
    start_notes,
)
from megaladder.model.lora.spec import LoraSpec, check_targets
from megaladder.plan.hardware import find_model

SPEC = LoraSpec(4, 6.0, ("k_proj", "down_proj"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_folder("qwen3-tied", tmp_path_factory.mktemp("model") / "qwen3")


def adapter(model: Path, out: Path, **said) -> Path:
    table = AdapterTable(model_shape(read_config_json(model)), SPEC)
    source = TrainedAdapters(table)
    tensors = {name: source.read(name) for name in source.shapes}
    write_peft(out, tensors, {**peft_config(SPEC, "base"), **said})
    return out


def test_a_merge_adds_the_scaled_product_and_leaves_the_rest(model, tmp_path):
    merge_folders(model, adapter(model, tmp_path / "a"), tmp_path / "merged")
    before, after = read_all(model), read_all(tmp_path / "merged")
    stored = load_file(tmp_path / "a" / WEIGHTS)
    assert before.keys() == after.keys()
    for name, weight in before.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" in stored:
            a, b = (stored[f"{module}.lora_{matrix}.weight"] for matrix in "AB")
            weight = weight + 6.0 / 4 * (b @ a)
            assert not torch.equal(before[name], after[name])
        assert torch.allclose(after[name], weight, atol=1e-6, rtol=0), name


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"use_dora": True}, "use_dora True is more than plain LoRA"),
        ({"bias": "all"}, "bias 'all' is more than plain LoRA"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"r": 0}, "r should be a whole number from 1, found 0"),
        ({"target_modules": "all-linear"}, "target_modules should be a list of names"),
        ({"target_modules": ["k_proj"]}, "unknown"),
        ({"r": 5}, "wrong shape"),
    ],
)
def test_what_is_no_plain_adapter_of_this_model_is_refused(model, tmp_path, said, words):
    folder = adapter(model, tmp_path / "a", **said)
    with pytest.raises(ModelError, match=words):
        open_peft(folder, model_shape(read_config_json(model)))


def test_damaged_folders_are_told(model, tmp_path):
    shape, folder = model_shape(read_config_json(model)), adapter(model, tmp_path / "a")
    with pytest.raises(ModelError, match="no such file; fix: a folder with a PEFT adapter"):
        open_peft(tmp_path, shape)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:50])
    with pytest.raises(ModelError, match="missing or damaged"):
        open_peft(folder, shape)
    (folder / CONFIG).write_text("[]")
    with pytest.raises(ModelError, match="expected a JSON object, found list"):
        open_peft(folder, shape)
    (folder / CONFIG).write_text('{"r": 8, "lora_alpha": Infinity, "target_modules": ["q_proj"]}')
    with pytest.raises(ModelError, match="lora_alpha should be a number above 0, found inf"):
        open_peft(folder, shape)


def test_tensors_named_after_their_adapter_are_read(model, tmp_path):
    folder = adapter(model, tmp_path / "a")
    stored = load_file(folder / WEIGHTS)
    save_file(
        {name.replace(".weight", ".default.weight"): one for name, one in stored.items()},
        folder / WEIGHTS,
    )
    table, reader = open_peft(folder, model_shape(read_config_json(model)))
    assert all(torch.equal(reader.read(name), stored[name]) for name in table.shapes)


def test_new_adapters_do_nothing_and_depend_on_seed_and_name_alone(model):
    table = AdapterTable(model_shape(read_config_json(model)), SPEC)
    one, same, other = (FreshAdapters(table, seed) for seed in (1, 1, 2))
    for name, (rows, columns) in table.shapes.items():
        whole = one.read(name)
        assert whole.shape == (rows, columns)
        assert torch.equal(whole[1:3], same.read(name, 0, 1, 3))
        if ".lora_B." in name:
            assert not whole.any()
        else:
            assert 0 < whole.abs().max() <= columns**-0.5
            assert not torch.equal(whole, other.read(name))


def test_a_target_that_a_model_does_not_have_is_named(model):
    shape = model_shape(read_config_json(model))
    with pytest.raises(ModelError, match=r"lora.targets wqkv: .* fix: some of q_proj,k_proj"):
        check_targets(shape, LoraSpec(4, 8.0, ("q_proj", "wqkv")))


def test_the_folder_says_what_peft_reads(model, tmp_path):
    raw = json.loads((adapter(model, tmp_path / "a") / CONFIG).read_text())
    assert (raw["r"], raw["lora_alpha"], raw["peft_type"]) == (4, 6, "LORA")
    assert raw["target_modules"] == ["k_proj", "down_proj"] and raw["bias"] == "none"


ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# the fields of peft 0.15's files, and those that came by 0.19, as published with trained adapters
PEFT_0_15: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "bias": "none",
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "init_lora_weights": True,
    "inference_mode": True,
    **dict.fromkeys(("fan_in_fan_out", "lora_bias", "use_dora", "use_rslora"), False),
    **{key: {} for key in ("alpha_pattern", "rank_pattern", "loftq_config")},
    **dict.fromkeys(("auto_mapping", "corda_config", "eva_config", "exclude_modules", "revision")),
    **dict.fromkeys(("layer_replication", "layers_pattern", "layers_to_transform")),
    **dict.fromkeys(("megatron_config", "modules_to_save", "trainable_token_indices")),
    "megatron_core": "megatron.core",
}
PEFT_0_19: dict[str, Any] = {
    **PEFT_0_15,
    **dict.fromkeys(("alora_invocation_tokens", "arrow_config", "lora_ga_config", "use_bdlora")),
    **dict.fromkeys(("ensure_weight_tying", "use_qalora"), False),
    "target_parameters": None,
    "qalora_group_size": 16,
    "peft_version": "0.19.1",
}
PUBLISHED = {  # who wrote it, on what model
    "LLaMA-Factory, Llama-3-8B": PEFT_0_15 | {"target_modules": list(ALL[::-1])},
    "peft 0.19.1, Qwen2-2B": PEFT_0_19 | {"target_modules": list(ALL), "lora_dropout": 0.05},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_read(tmp_path, name):
    raw = PUBLISHED[name]
    (tmp_path / CONFIG).write_text(json.dumps(raw))
    section = LoraSection(start=str(tmp_path))
    spec = lora_spec(section, find_model("Llama-3-8B"))
    assert spec == LoraSpec(8, 16.0, ALL) and spec.scaling == 2.0
    said = f"lora.start {tmp_path}: trained on without its lora_dropout {raw['lora_dropout']}"
    assert start_notes(section) == ([said] if raw["lora_dropout"] else [])


def test_a_published_pattern_of_targets_is_refused():
    pattern = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$"
    with pytest.raises(ModelError, match="target_modules should be a list of names"):
        spec_from_config(PEFT_0_19 | {"target_modules": pattern}, CONFIG)


def test_stacked_adapters_of_experts_are_taken_apart(tmp_path):
    """A [E·r, columns]: rows of an expert follow each other. B [rows, r·E]: columns lie E apart."""
    shape = replace(find_model("Qwen3-30B-A3B"), num_layers=2, hidden_size=6)
    moe = replace(shape.moe, sparse_layers=(True, True), num_experts=3, ffn_hidden_size=4)
    shape, rank, experts = replace(shape, moe=moe), 2, 3
    front = "base_model.model.model.layers.{}.mlp.experts."
    sizes = {"base_layer.": (8, 6), "": (6, 4)}  # rows, columns: gate and up; down
    stored = {}
    for layer, (inner, (rows, columns)) in product(range(2), sizes.items()):
        parent = front.format(layer) + inner
        stored[f"{parent}lora_A.weight"] = torch.randn(experts * rank, columns)
        stored[f"{parent}lora_B.weight"] = torch.randn(rows, rank * experts)
    save_file(stored, tmp_path / WEIGHTS)
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = {"r": rank, "lora_alpha": 4, "target_modules": [], "target_parameters": names}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    table, reader = open_peft(tmp_path, shape)
    assert table.spec.targets == ("gate_proj", "up_proj", "down_proj")
    # as peft 0.21 forms the product: einsum("o r e, e r i -> e o i")
    for layer, (inner, _) in product(range(2), sizes.items()):
        a, b = (stored[f"{front.format(layer)}{inner}lora_{m}.weight"] for m in "AB")
        whole = torch.einsum(
            "ore,eri->eoi", b.reshape(len(b), rank, experts), a.reshape(experts, rank, -1)
        )
        for expert in range(experts):
            parts = ("gate_proj", "up_proj") if inner else ("down_proj",)
            named = [f"{front.format(layer)}{expert}.{part}" for part in parts]
            found = [
                reader.read(f"{n}.lora_B.weight") @ reader.read(f"{n}.lora_A.weight") for n in named
            ]
            assert torch.allclose(torch.cat(found), whole[expert], atol=1e-6)


def test_parameters_that_are_no_experts_are_refused():
    raw = PEFT_0_19 | {"target_modules": [], "target_parameters": ["embed_tokens.weight"]}
    with pytest.raises(
        ModelError, match=r"target_parameters 'embed_tokens\.weight' is none of the"
    ):
        spec_from_config(raw, CONFIG)
