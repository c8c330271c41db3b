"""A real vLLM that is given adapters answers as one that has the merged model."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora.adapter_cases import TrainedAdapters
from tiny_models import build_tiny_model

from megaladder.checkpoints_conv.adapters.merge import merge_folders
from megaladder.checkpoints_conv.adapters.peft_folder import write_peft
from megaladder.checkpoints_conv.adapters.tensors import AdapterTable
from megaladder.model.hf_config import model_shape, read_config_json
from megaladder.model.lora.peft_config import peft_config
from megaladder.model.lora.spec import LoraSpec
from megaladder.rollout.engine import FileWeights, SamplingParams
from megaladder.rollout.vllm_engine import VllmEngine, VllmOptions

PROMPTS = [[5, 40, 41, 42], [5, 90, 17, 200, 33], [7], [11, 12, 13, 14, 15, 16, 17, 18]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=True)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(model: Path, out: Path, scale: float) -> Path:
    shape = model_shape(read_config_json(model))
    spec = LoraSpec(8, 16.0, TARGETS)
    source = TrainedAdapters(AdapterTable(shape, spec), scale)
    tensors = {name: source.read(name) for name in source.shapes}
    write_peft(out, tensors, peft_config(spec, str(model)))
    return out


def answers(engine: VllmEngine) -> tuple[list[tuple[int, ...]], list[float]]:
    found = [completion for (completion,) in engine.generate(PROMPTS, GREEDY)]
    return [one.token_ids for one in found], [value for one in found for value in one.logprobs]


@pytest.mark.slow
def test_vllm_with_an_adapter_says_what_the_merged_model_says(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    model = build_tiny_model(tmp_path / "model")
    options = {"dtype": "float32", "max_model_len": 64, "log_dir": str(tmp_path / "log")}
    adapters = [
        write_adapter(model, tmp_path / f"a{n}", scale) for n, scale in ((1, 0.1), (2, 0.2))
    ]
    with VllmEngine(VllmOptions(str(model), lora_rank=8, **options)) as engine:
        plain = answers(engine)
        adapted = []
        for version, adapter in enumerate(adapters, start=1):
            engine.update_weights(FileWeights(str(adapter)), version)
            adapted.append(answers(engine))
    assert plain[0] != adapted[0][0] != adapted[1][0]
    for number, adapter in enumerate(adapters):
        merged = tmp_path / f"merged{number}"
        merge_folders(model, adapter, merged)
        with VllmEngine(VllmOptions(str(merged), **options)) as engine:
            ids, logprobs = answers(engine)
        assert ids == adapted[number][0]
        assert logprobs == pytest.approx(adapted[number][1], abs=1e-4)
