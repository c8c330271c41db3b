"""A training of adapters through the command: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from clean_fork import run_in_fork
from model_cases import read_all
from safetensors.torch import load_file
from tiny_models import build_tiny_model

FLAGS = (
    "--data.seq-length 128 --train.global-batch-size 8 --optim.lr 1e-2 --checkpoint.every 1"
    " --checkpoint.keep-last 9 --lora.rank 4 --train.max-steps 3 --checkpoint.export-hf true"
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    rows = [{"question": f"What is {n} + 3?", "answer": f"{n + 3}"} for n in range(40)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_tiny_model(folder / "model", hidden=32), folder / "data.jsonl"


class Run:
    """`megaladder sft` with adapters in one run folder, and the verbs that read it."""

    def __init__(self, inputs, folder: Path, name: str = "run"):
        self.model, self.data = inputs
        self.folder, self.out = folder / name, folder / f"{name}.txt"

    def __call__(self, *more: str, fault: str | None = None) -> int:
        given = ["--run-dir", str(self.folder), "--model.path", str(self.model)]
        words = ["sft", *given, "--data.path", str(self.data), *FLAGS.split(), *more]
        return self.verb(*words, fault=fault)

    def verb(self, *words: str, fault: str | None = None) -> int:
        def start() -> int:
            import os

            from megaladder.cli import main

            if fault:
                os.environ["MEGALADDER_FAULT"] = fault
            return main(list(words))

        return run_in_fork(start, stdout=self.out, stderr=self.out)

    @property
    def losses(self) -> list[tuple[float, float]]:
        rows = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [(row["loss"], row["grad_norm"]) for row in map(json.loads, rows)]

    def weights(self, folder: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    run = Run(inputs, tmp_path_factory.mktemp("whole"))
    assert run() == 0, run.out.read_text()
    return run


def test_only_adapters_are_trained_and_stored(whole):
    losses = [loss for loss, _ in whole.losses]
    assert len(losses) == 3 and losses[2] < losses[0]
    size = sum(
        path.stat().st_size for path in (whole.folder / "checkpoints/step_3").glob("*.dist*")
    )
    assert size < sum(path.stat().st_size for path in whole.model.glob("*.safetensors")) * 3
    trainer = json.loads((whole.folder / "checkpoints/step_3/trainer.json").read_text())
    assert trainer["adapter"]["r"] == 4 and "sha256" in trainer["base_fingerprint"]


@pytest.mark.slow
def test_the_export_is_the_adapter_and_the_merged_model(whole, tmp_path):
    assert (
        whole.verb(
            *("convert", "merge", "--hf", str(whole.model), "--out", str(tmp_path / "merged")),
            *("--adapter", str(whole.folder / "adapters/step_3")),
        )
        == 0
    ), whole.out.read_text()
    checkpoint = str(whole.folder / "checkpoints/step_3")
    for verb, out in (("megatron-to-hf", "whole"), ("adapter", "peft")):
        words = ("convert", verb, "--megatron", checkpoint, "--out", str(tmp_path / out))
        assert whole.verb(*words) == 0, whole.out.read_text()
    exported = read_all(whole.folder / "hf/step_3")
    base = read_all(whole.model)
    changed = {name for name in base if not torch.equal(base[name], exported[name])}
    assert {name.rpartition("_proj")[0] != "" for name in changed} == {True} and len(changed) == 14
    for folder in ("merged", "whole"):
        found = read_all(tmp_path / folder)
        assert max((found[name] - exported[name]).abs().max() for name in exported) <= 1e-6
    again = load_file(tmp_path / "peft/adapter_model.safetensors")
    stored = whole.weights("adapters/step_3")
    assert all(torch.equal(again[name], stored[name]) for name in stored)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(whole, inputs, tmp_path):
    run = Run(inputs, tmp_path)
    assert run(fault="update:3:SIGKILL") == -9
    assert run() == 0, run.out.read_text()
    assert "resumed after step 2" in run.out.read_text()
    assert run.losses == whole.losses
    mine, its = run.weights("adapters/step_3"), whole.weights("adapters/step_3")
    assert all(torch.equal(mine[name], its[name]) for name in its)


@pytest.mark.slow
def test_another_base_is_refused(inputs, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(inputs[0], model)
    run = Run((model, inputs[1]), tmp_path)
    assert run(fault="update:3:SIGKILL") == -9
    (weights,) = model.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert run() == 2 and "its adapters belong to a model with fingerprint" in run.out.read_text()


@pytest.mark.slow
def test_a_killed_run_goes_on_at_another_layout(inputs, whole, tmp_path):
    run = Run(inputs, tmp_path)
    assert run(fault="update:3:SIGKILL") == -9
    assert run("--parallel.tp", "2") == 0, run.out.read_text()
    for (loss, norm), (loss0, norm0) in zip(run.losses, whole.losses, strict=True):
        assert loss == pytest.approx(loss0, rel=1e-5) and norm == pytest.approx(norm0, rel=1e-4)


@pytest.mark.slow
def test_a_run_starts_from_a_folder(whole, inputs, tmp_path):
    run, start = Run(inputs, tmp_path), tmp_path / "start"
    shutil.copytree(whole.folder / "adapters/step_3", start)
    config = start / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_dropout": 0.0', '"lora_dropout": 0.05'))
    given = ["--run-dir", str(run.folder), "--model.path", str(run.model)]
    given += ["--lora.start", str(start), "--train.max-steps", "1"]
    flags = "--data.seq-length 128 --train.global-batch-size 8 --optim.lr 1e-30"
    words = ["sft", *given, "--data.path", str(run.data), *flags.split()]
    told = f"lora.start {start}: trained on without its lora_dropout 0.05"
    assert run.verb("check", *words[1:]) == 0 and told in run.out.read_text()
    assert run.verb(*words, "--checkpoint.export-hf", "true", "--lora.merged-export", "false") == 0
    assert told in run.out.read_text()
    mine, its = run.weights("adapters/step_1"), whole.weights("adapters/step_3")
    assert all(torch.allclose(mine[name], its[name], atol=1e-6) for name in its)
    assert not (run.folder / "hf/step_1").exists()
    assert run.verb(*words, "--lora.rank", "4") == 2
    assert "lora.rank 4" in run.out.read_text()


@pytest.mark.slow
def test_adapters_on_experts_go_on_bit_for_bit_and_at_another_layout(inputs, tmp_path):
    inputs = build_tiny_model(tmp_path / "model", "qwen3_moe", hidden=32), inputs[1]
    whole, same, moved = (Run(inputs, tmp_path, name) for name in ("whole", "same", "moved"))
    assert whole() == 0, whole.out.read_text()
    stored = whole.weights("adapters/step_3")
    assert stored["base_model.model.model.layers.1.mlp.experts.7.down_proj.lora_B.weight"].any()
    for run, layout in ((same, ()), (moved, ("--parallel.tp", "2", "--parallel.ep", "2"))):
        assert run(fault="update:3:SIGKILL") == -9
        assert run(*layout) == 0, run.out.read_text()
        assert "resumed after step 2" in run.out.read_text()
    assert same.losses == whole.losses
    mine = same.weights("adapters/step_3")
    assert all(torch.equal(mine[name], stored[name]) for name in stored)
    for (loss, norm), (loss0, norm0) in zip(moved.losses, whole.losses, strict=True):
        assert loss == pytest.approx(loss0, rel=1e-5) and norm == pytest.approx(norm0, rel=1e-4)
    checkpoint = str(moved.folder / "checkpoints/step_3")
    words = ("convert", "megatron-to-hf", "--megatron", checkpoint, "--out", str(tmp_path / "out"))
    assert moved.verb(*words) == 0, moved.out.read_text()
    found, want = read_all(tmp_path / "out"), read_all(moved.folder / "hf/step_3")
    assert all(torch.equal(found[name], want[name]) for name in want)
