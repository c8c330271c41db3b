"""`megaladder dryrun` through the product's own step: bytes against formulas and `plan`, every rank
in agreement at every kind of layout, and planted mistakes found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from dryrun.against_plan import assert_bytes_are_plans
from yaml import safe_dump

from megaladder import parallel
from megaladder.cli import main
from megaladder.config.resolve import resolve
from megaladder.config.sft import SftConfig
from megaladder.dryrun import ranks, step
from megaladder.dryrun.report import traffic
from megaladder.model.families.table import FAMILIES
from megaladder.model.hf_config import ModelShape, model_shape

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
SHAPE: ModelShape = model_shape(CONFIG)
TOKENS = 256


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """A run.yaml with a model folder that has a config.json only."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))

    def made(parallel_section: dict[str, Any], **more: Any) -> Path:
        batch = {} if "grpo" in more else {"global_batch_size": 32}
        sections = {
            "run_dir": str(tmp_path / "run"),
            "model": {"path": str(folder)},
            "data": {"path": "data.jsonl", "seq_length": TOKENS},
            "train": {**batch, **more.pop("train", {})},
            "parallel": parallel_section,
            **more,
        }
        path = tmp_path / "run.yaml"
        path.write_text(safe_dump(sections))
        return path

    return made


def job(write: Any, dp: int = 2, micro_batches: int = 4, **layout: Any) -> step.Job:
    config = resolve(SftConfig, [str(write(layout))], prog="test", takes_yaml=True)
    return step.Job(config, SHAPE, dp, micro_batches, micro_batches)


@pytest.mark.parametrize(
    "layout",
    [
        {"tp": 2, "pp": 2, "ranks": 8},
        {"pp": 2, "vpp": 2, "ranks": 4},
        {"tp": 2, "cp": 2, "ranks": 8, "train": {"recompute": "full"}},
        {"pp": 4, "ranks": 4},
        {"tp": 2, "pp": 2, "ranks": 8, "lora": {"rank": 8}},
    ],
    ids=["tp2-pp2", "interleaved", "cp2-recompute", "pp4", "adapters"],
)
def test_ranks_agree_and_bytes_are_plans(write, tmp_path, capsys, layout: dict[str, Any]) -> None:
    out = tmp_path / "found.json"
    more = {name: layout.pop(name) for name in ("train", "lora") if name in layout}
    assert main(["dryrun", str(write(layout, **more)), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "every group asks for the same in the same order" in text
    found = json.loads(out.read_text())
    assert found["faults"] == []
    assert found["ranks"] == layout["ranks"]
    assert_bytes_are_plans(found["stages"])


@pytest.mark.parametrize("kind", ["glm4", "olmo3", "gemma3_text"])
def test_ranks_of_every_kind_of_layer_agree(write, tmp_path, kind: str) -> None:
    run, out = write({"tp": 2, "pp": 2, "ranks": 4}), tmp_path / "found.json"
    architectures = [FAMILIES[kind].architecture]
    config = {**CONFIG, "model_type": kind, "architectures": architectures, "num_hidden_layers": 2}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert main(["dryrun", str(run), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["faults"] == []
    for stage in found["stages"]:
        held, planned = stage["bytes"], stage["plan_bytes"]
        assert held["weights"] == planned["weights"]
        assert held["activations"] == pytest.approx(planned["activations"], rel=0.2)


@pytest.mark.parametrize(
    "lora", [{}, pytest.param({"rank": 8}, marks=pytest.mark.slow)], ids=["weights", "adapters"]
)
def test_grpo_with_reference_and_old_log_probs(write, capsys, lora: dict[str, int]) -> None:
    run = write(
        {"tp": 2, "pp": 2, "ranks": 4},
        rollout={"engine": "fake", "n": 4, "max_tokens": 64},
        grpo={"prompts_per_step": 8, "mini_batches": 2, "kl": "k3"},
        reward={"kind": "math"},
        lora=lora,
    )
    assert main(["dryrun", str(run)]) == 0
    assert "every transfer meets its partner" in capsys.readouterr().out


def test_tensor_parallel_traffic_by_hand(write) -> None:
    """Sequence parallel: a layer gathers [T, H] before its two column products and scatters after
    its two row products; backward the same the other way round, and gathers both inputs again for
    the weight gradients. Embedding and head: one scatter, one gather, and the reverse."""
    asked = job(write, dp=1, micro_batches=2, tp=2, ranks=2)
    program = step.simulate(asked, step.Place())
    whole = 2 * TOKENS * SHAPE.hidden_size
    kinds = [kind for kind in traffic(asked, program) if kind.num_bytes == whole]
    counts = {kind.op: kind.count for kind in kinds}
    layers, passes = SHAPE.num_layers, 2
    assert counts["all_gather"] == passes * (6 * layers + 2)
    assert counts["reduce_scatter sum"] == passes * (4 * layers + 2)


def test_a_stage_with_another_number_of_micro_batches_is_named(write, monkeypatch) -> None:
    own = step.micro_batches

    def fewer(asked: step.Job) -> Any:
        batches = own(asked)
        return batches[:-1] if parallel.is_last_pipeline_stage() else batches

    monkeypatch.setattr(step, "micro_batches", fewer)
    faults = ranks.run_all(job(write, dp=1, pp=2, ranks=2)).faults
    assert any("4 sends meet 3 receives" in fault for fault in faults), faults


def test_a_receive_that_the_schedule_skips_is_named(write, monkeypatch) -> None:
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

    own, calls = P2PCommunicator.recv_forward, []

    def skipping(self: Any, shapes: Any, is_first_stage: bool) -> Any:
        if not is_first_stage:
            calls.append(shapes)
            if len(calls) == 1:
                shape = shapes[0] if isinstance(shapes, list) else shapes
                tensor = torch.empty(shape, dtype=torch.bfloat16, requires_grad=True)
                return [tensor] if isinstance(shapes, list) else tensor
        return own(self, shapes, is_first_stage)

    monkeypatch.setattr(P2PCommunicator, "recv_forward", skipping)
    faults = ranks.run_all(job(write, dp=1, pp=2, ranks=2)).faults
    assert any("4 sends meet 3 receives" in fault for fault in faults), faults


def test_a_rank_that_swaps_two_collectives_is_named(write, monkeypatch, capsys) -> None:
    own = step.guarded_update

    def swapping(optimizer: Any, loss: float, lr: float) -> tuple[float, bool]:
        calls = [dist.barrier, lambda: dist.all_reduce(torch.ones(3))]
        for call in reversed(calls) if parallel.tp_rank() == 1 else calls:
            call()
        return own(optimizer, loss, lr)

    monkeypatch.setattr(step, "guarded_update", swapping)
    assert main(["dryrun", str(write({"tp": 2, "ranks": 4}))]) == 2
    said = capsys.readouterr().err
    assert "rank 0 (pp 0 dp 0 cp 0 tp 0) asks for barrier" in said
    assert "rank 1 (pp 0 dp 0 cp 0 tp 1) asks for all_reduce sum 12 B float32" in said
    assert "fix:" in said


def test_more_ranks_than_a_dry_run_takes(write, capsys) -> None:
    assert main(["dryrun", str(write({"tp": 256, "ranks": 8192}))]) == 2
    assert "fix: --parallel.ranks 4096" in capsys.readouterr().err
