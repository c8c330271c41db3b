"""A real vLLM that is given adapters answers as one that has the merged model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lora.adapter_cases import TrainedAdapters
from tiny_models import build_tiny_model
from transformers import AutoModelForCausalLM

from megaladder.checkpoints_conv.adapters.merge import merge_folders
from megaladder.checkpoints_conv.adapters.peft_folder import write_peft
from megaladder.checkpoints_conv.adapters.tensors import AdapterTable
from megaladder.model.hf_config import model_shape, read_config_json
from megaladder.model.lora.peft_config import peft_config
from megaladder.model.lora.spec import LoraSpec
from megaladder.rollout.engine import FileWeights, SamplingParams
from megaladder.rollout.process_engine import Limits
from megaladder.rollout.vllm_engine import VllmEngine, VllmOptions

PROMPTS = [[5, 40, 41, 42], [5, 90, 17, 200, 33], [7], [11, 12, 13, 14, 15, 16, 17, 18]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(model: Path, out: Path, scale: float) -> Path:
    shape = model_shape(read_config_json(model))
    spec = LoraSpec(8, 16.0, TARGETS)
    source = TrainedAdapters(AdapterTable(shape, spec), scale)
    tensors = {name: source.read(name) for name in source.shapes}
    write_peft(out, tensors, peft_config(spec, str(model)))
    return out


def answers(engine: VllmEngine) -> list[tuple[int, ...]]:
    return [completion.token_ids for (completion,) in engine.generate(PROMPTS, GREEDY)]


@torch.no_grad()
def greedy(folder: Path) -> list[tuple[int, ...]]:
    """What transformers says by the model in a folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(GREEDY.max_tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        found.append(tuple(ids[len(prompt) :]))
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("forked_engines")
def test_vllm_with_an_adapter_says_what_the_merged_model_says(tmp_path):
    model = build_tiny_model(tmp_path / "model")
    how = {"dtype": "float32", "max_model_len": 64, "log_dir": str(tmp_path / "log")}
    adapters = [
        write_adapter(model, tmp_path / f"a{n}", scale) for n, scale in ((1, 0.1), (2, 0.2))
    ]
    options = VllmOptions(str(model), lora_rank=8, **how)
    with VllmEngine(options, Limits(start_s=900.0, stall_s=900.0)) as engine:
        plain = answers(engine)
        adapted = []
        for version, adapter in enumerate(adapters, start=1):
            engine.update_weights(FileWeights(str(adapter)), version)
            adapted.append(answers(engine))
    assert plain != adapted[0] != adapted[1]
    assert greedy(model) == plain
    for number, adapter in enumerate(adapters):
        merged = tmp_path / f"merged{number}"
        merge_folders(model, adapter, merged)
        assert greedy(merged) == adapted[number]
