"""A real vLLM on this machine's CPU takes new weights of experts again and again: its numbers are
those of an engine that was started with them (two engines a case, half a minute); and by hand what our
extension does for that."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from model_cases import make_folder
from safetensors.torch import load_file, save_file
from tiny_models import build_tokenizer

from megaladder.rollout.engine import SamplingParams
from megaladder.rollout.process_engine import Limits
from megaladder.rollout.vllm_engine import VllmEngine, VllmOptions
from megaladder.rollout.worker_extension import WorkerExtension

# 48: vLLM fills an expert's width up to 64 on a CPU
SIZES = {"hidden_size": 128, "head_dim": 32, "vocab_size": 512, "moe_intermediate_size": 48}
PROMPTS = [tuple(range(5, 5 + length)) for length in (9, 17, 33)]
PARAMS = SamplingParams(max_tokens=24, ignore_eos=True, logprobs=True, seed=3)


def other_weights(folder: Path, out: Path) -> Path:
    """The same model with every tensor moved at random."""
    shutil.copytree(folder, out)
    torch.manual_seed(7)
    for shard in sorted(out.glob("*.safetensors")):
        tensors = {
            name: value + 0.05 * torch.randn_like(value) for name, value in load_file(shard).items()
        }
        save_file(tensors, shard, {"format": "pt"})
    return out


def start(folder: Path, log_dir: Path) -> VllmEngine:
    options = VllmOptions(
        str(folder), dtype="float32", max_model_len=128, max_num_seqs=4, log_dir=str(log_dir)
    )
    return VllmEngine(options, Limits(start_s=300.0))


def answers(engine: VllmEngine) -> list[tuple]:
    groups = engine.generate(PROMPTS, PARAMS)
    return [(one.token_ids, one.logprobs) for group in groups for one in group]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["qwen3-moe", "glm4-moe"])
def test_new_experts_compute_what_a_fresh_engine_computes(case: str, tmp_path: Path) -> None:
    first = make_folder(case, tmp_path / "first", **SIZES)
    build_tokenizer(first)
    second = other_weights(first, tmp_path / "second")
    found = {first: [], second: []}
    with start(first, tmp_path) as engine:
        found[first].append(answers(engine))
        for version, folder in enumerate((second, first, second, second), 1):
            engine.update_weights(str(folder), version)
            found[folder].append(answers(engine))
    with start(second, tmp_path) as fresh:
        found[second].append(answers(fresh))
    assert found[first][0] != found[second][0]
    for same in found.values():
        assert all(one == same[0] for one in same)


@pytest.mark.parametrize(("device", "kernel"), [("cpu", None), ("cuda", "kernel")])
def test_kernels_of_experts_are_made_again_where_they_pack(device: str, kernel: str | None) -> None:
    """On CUDA they stay: graphs know their addresses, and vLLM writes into them."""
    experts = SimpleNamespace(quant_method=SimpleNamespace(moe_kernel="kernel"))
    linear = SimpleNamespace(quant_method=SimpleNamespace())
    model = SimpleNamespace(modules=lambda: [SimpleNamespace(), linear, experts])
    found = []

    class Worker(WorkerExtension):
        def reload_weights(self, weights_path: str) -> None:
            found.append((weights_path, experts.quant_method.moe_kernel))

    worker = Worker()
    worker.device = SimpleNamespace(type=device)
    worker.model_runner = SimpleNamespace(get_model=lambda: model)
    worker.load_folder("folder")
    assert found == [("folder", kernel)]
    assert vars(linear.quant_method) == {}
