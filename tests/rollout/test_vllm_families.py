"""An export of every family loads in a real vLLM, which then chooses the same tokens as
transformers. An engine for each case."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_cases import make_folder, random_model
from tiny_models import build_tokenizer

from megaladder.checkpoints_conv.hf_to_megatron import convert_to_megatron
from megaladder.checkpoints_conv.megatron_to_hf import convert_to_hf
from megaladder.rollout.engine import SamplingParams
from megaladder.rollout.process_engine import Limits
from megaladder.rollout.vllm_engine import VllmEngine, VllmOptions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_engines")]
CASES = (  # vLLM refuses a Qwen whose window is on some layers only
    "qwen2-yarn",
    "llama-linear",
    "llama-llama3",
    "llama-dynamic",
    "mistral-nemo",
    "mistral-window",
    "internlm2",
    "phi3-partial",
    "glm",
    "glm4",
    "olmo2",
    "olmo3",
    "gemma3",
    "qwen3-moe",
    "glm4-moe",
)
# vLLM's attention on a CPU takes heads of a multiple of 32, in hidden states of any size
SIZES = {"hidden_size": 128, "head_dim": 32, "vocab_size": 512}
PROMPTS = [tuple(range(5, 5 + length)) for length in (9, 17, 33)]
ANSWER = 24


def greedy(case: str, prompt: tuple[int, ...]) -> tuple[list[int], float]:
    """transformers' choices without a cache, and by how much the least clear one was ahead."""
    model, ids, closest = random_model(case, **SIZES).float().eval(), list(prompt), float("inf")
    with torch.inference_mode():
        for _ in range(ANSWER):
            best = model(torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
            closest = min(closest, float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
    return ids[len(prompt) :], closest


@pytest.mark.parametrize("case", CASES)
def test_an_export_chooses_the_tokens_of_transformers(case: str, tmp_path: Path) -> None:
    source = make_folder(case, tmp_path / "source", **SIZES)
    build_tokenizer(source)
    convert_to_megatron(source, tmp_path / "megatron")
    convert_to_hf(tmp_path / "megatron", tmp_path / "export")
    options = VllmOptions(
        str(tmp_path / "export"),
        dtype="float32",
        max_model_len=128,
        max_num_seqs=4,
        trust_remote_code=case == "internlm2",
        log_dir=str(tmp_path),
    )
    params = SamplingParams(temperature=0.0, max_tokens=ANSWER, ignore_eos=True)
    with VllmEngine(options, Limits(start_s=300.0)) as engine:
        groups = engine.generate(PROMPTS, params)
    for prompt, (answer,) in zip(PROMPTS, groups, strict=True):
        expected, closest = greedy(case, prompt)
        assert closest > 1e-4, "a tie: another seed"
        assert list(answer.token_ids) == expected
