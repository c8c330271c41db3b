"""A real vLLM on this machine's CPU takes new weights of experts again and again: its numbers are
those of an engine that was started with them (two engines a case); and by hand what our
extension does for that."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from model_cases import make_folder, read_all
from safetensors.torch import load_file, save_file
from tiny_models import build_tokenizer

from megaladder.model.hf_config import model_shape, read_config_json
from megaladder.plan.hardware import find_model
from megaladder.rollout.engine import SamplingParams
from megaladder.rollout.process_engine import Limits
from megaladder.rollout.vllm_engine import VllmEngine, VllmOptions
from megaladder.rollout.weight_check import compare_checksums
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


def assert_experts_are_seen(said: list[dict[str, str]], folder: Path, other: Path) -> None:
    """All experts of all sparse layers are those of the folder, and none is the other's."""
    shape = model_shape(read_config_json(folder))
    same = compare_checksums(read_all(folder).items(), said, shape, tp=1)
    assert same.differing == ()
    experts = [name for name in same.equal if ".experts." in name]
    assert len(experts) == 2 * shape.moe.num_experts * shape.moe.num_sparse
    assert not any(".experts." in name for name in same.unseen)
    if other != folder:
        different = compare_checksums(read_all(other).items(), said, shape, tp=1)
        assert set(experts) <= set(different.differing)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_engines")
@pytest.mark.parametrize("case", ["qwen3-moe", "glm4-moe"])
def test_new_experts_compute_what_a_fresh_engine_computes(case: str, tmp_path: Path) -> None:
    first = make_folder(case, tmp_path / "first", **SIZES)
    build_tokenizer(first)
    second = other_weights(first, tmp_path / "second")
    found = {first: [], second: []}
    with start(first, tmp_path) as engine:
        found[first].append(answers(engine))
        for version, folder in enumerate((second, first, second, second), 1):
            engine.watch_weights()
            engine.update_weights(str(folder), version)
            assert_experts_are_seen(engine.weight_checksums(), folder, other=first)
            found[folder].append(answers(engine))
        again = engine.weight_checksums()[0]
        assert not any(".experts.0." in name for name in again)  # told once
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


@pytest.mark.parametrize("rank", [0, 1])
def test_experts_are_digested_before_their_kernel_orders_them(rank: int) -> None:
    """Two workers with half of each expert's width, 3 features filled up to 4; then packed."""
    width, hidden, num_experts = 6, 5, 2
    shape = replace(find_model("Qwen3-30B-A3B"), hidden_size=hidden)
    generator = torch.Generator().manual_seed(1)
    sizes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    weights = {
        f"model.layers.0.mlp.experts.{expert}.{name}_proj.weight": torch.randn(
            size, generator=generator
        )
        for expert in range(num_experts)
        for name, size in sizes.items()
    }

    def pack(layer: SimpleNamespace) -> None:
        layer.w13_weight, layer.w2_weight = layer.w13_weight.flip(1), layer.w2_weight.flip(1)

    layer = SimpleNamespace(
        w13_weight=torch.zeros(num_experts, 8, hidden),
        w2_weight=torch.zeros(num_experts, hidden, 4),
        quant_method=SimpleNamespace(process_weights_after_loading=pack),
        moe_config=SimpleNamespace(
            intermediate_size_per_partition_unpadded=3,
            hidden_dim_unpadded=hidden,
            moe_parallel_config=SimpleNamespace(use_ep=False),
        ),
    )
    modules = [("model", SimpleNamespace()), ("model.layers.0.mlp.experts.routed_experts", layer)]
    model = SimpleNamespace(named_modules=lambda: modules)
    worker = WorkerExtension()
    worker.model_runner = SimpleNamespace(get_model=lambda: model)
    worker._weight_checksum_prefix = lambda: f"dp0:pp0:pcp0:tp{rank}:"
    assert worker.expert_checksums() == {}
    worker.watch_experts()
    part = slice(3 * rank, 3 * rank + 3)
    for expert in range(num_experts):
        gate, up, down = (
            weights[f"model.layers.0.mlp.experts.{expert}.{name}_proj.weight"] for name in sizes
        )
        layer.w13_weight[expert, :3], layer.w13_weight[expert, 4:7] = gate[part], up[part]
        layer.w2_weight[expert, :, :3] = down[:, part]
    before = layer.w13_weight.clone()
    layer.quant_method.process_weights_after_loading(layer)
    assert torch.equal(layer.w13_weight, before.flip(1))
    said = worker.expert_checksums()
    found = compare_checksums(weights.items(), [said], shape, tp=2)
    assert len(found.equal) == 4 and found.differing == () and found.unseen == ()
    weights["model.layers.0.mlp.experts.1.up_proj.weight"][3 * rank] += 1
    found = compare_checksums(weights.items(), [said], shape, tp=2)
    assert [name.rpartition("experts.")[2] for name in found.differing] == ["1.gate_up_proj.weight"]
