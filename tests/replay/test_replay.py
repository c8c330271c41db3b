"""Steps of small runs once more from their records: equal to the bit, or the difference by name."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from clean_fork import run_in_fork
from grpo_runs import GrpoRuns
from tiny_models import build_tiny_model

from megaladder.config.verbs.replay import ReplayConfig
from megaladder.errors import CheckpointError, DataError
from megaladder.replay.record import differences, read_step
from megaladder.run_dir import read_jsonl, read_object, sealed_line, write_object

ROWS = [
    {"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}
    for a in range(8)
    for b in range(8)
]


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> Path:
    """Six steps, a checkpoint after the fourth and the sixth: the first of three was deleted."""
    folder = tmp_path_factory.mktemp("replay_sft")
    model, data = build_tiny_model(folder / "model", hidden=32), folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    flags = ["--run-dir", str(folder / "run"), "--model.path", str(model), "--optim.lr", "1e-2"]
    flags += ["--data.path", str(data), "--data.seq-length", "128", "--data.holdout", "8"]
    flags += ["--train.global-batch-size", "8", "--train.max-steps", "6", "--checkpoint.every", "2"]
    flags += ["--checkpoint.export-hf", "false", "--train.eval-every", "3"]

    def run() -> int:
        from megaladder.config.resolve import resolve
        from megaladder.config.sft import SftConfig
        from megaladder.train.sft import run_sft

        return run_sft(resolve(SftConfig, flags, prog="test"))

    said = folder / "said"
    assert run_in_fork(run, stdout=Path(os.devnull), stderr=said) == 0, said.read_text()
    return folder / "run"


@pytest.fixture(scope="module")
def grpo(tmp_path_factory) -> Path:
    """Four steps of two updates each, with a reference; checkpoints after the second and fourth."""
    runs = GrpoRuns(tmp_path_factory.mktemp("replay_grpo"))
    done = runs.run("run", "--grpo.mini-batches", "2", "--grpo.kl", "k3", "--grpo.lag", "1")
    assert done.status == 0, done.error
    return done.folder


def replay(folder: Path, step: int, out: Path) -> tuple[int, dict[str, Any], str]:
    """The verb in a fork: status, what it wrote, what it said."""

    def run() -> int:
        from megaladder.cli import main

        return main(["replay", str(folder), "--step", str(step), "--json", str(out)])

    said = out.with_suffix(".txt")
    status = run_in_fork(run, stdout=out.with_suffix(".out"), stderr=said)
    return status, json.loads(out.read_text()) if out.exists() else {}, said.read_text()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(("step", "after"), [(2, 0), (6, 4)])
def test_a_step_of_sft_is_equal_to_the_bit(sft, tmp_path, step, after):
    """From the model, across an evaluation; and from a checkpoint. The run folder stays as it is."""
    before = contents(sft)
    status, found, said = replay(sft, step, tmp_path / "found.json")
    assert status == 0, said
    assert found == {"step": step, "after": after, "equal": True, "differences": [], "changed": []}
    assert contents(sft) == before


@pytest.mark.parametrize(("step", "after"), [(1, 0), (4, 2)])
def test_a_step_of_grpo_is_equal_to_the_bit(grpo, tmp_path, step, after):
    """Without an engine, from the stored rollouts; old and reference log-probs come out anew."""
    status, found, said = replay(grpo, step, tmp_path / "found.json")
    assert status == 0, said
    assert (found["equal"], found["after"], found["changed"]) == (True, after, [])


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(20))
@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_random_steps_are_equal_to_the_bit(request, tmp_path, kind, trial):
    folder = request.getfixturevalue(kind)
    last = len((folder / "metrics.jsonl").read_text().splitlines())
    step = random.Random(f"{kind}/{trial}").randint(1, last)
    status, found, said = replay(folder, step, tmp_path / "found.json")
    assert status == 0 and found["equal"], said


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def test_a_difference_is_named_with_what_has_changed(sft, tmp_path):
    run = copied(sft, tmp_path / "run")
    rows = list(read_jsonl(run / "metrics.jsonl"))
    rows[5]["grad_norm"] *= 1 + 1e-15
    (run / "metrics.jsonl").write_bytes(b"".join(map(sealed_line, rows)))
    stored = read_object(run / "fingerprint.json", "x")
    stored["environment"]["packages"]["torch"] = "1.0"
    write_object(run / "fingerprint.json", stored)
    status, found, said = replay(run, 6, tmp_path / "found.json")
    assert status == 2 and [one["quantity"] for one in found["differences"]] == ["grad_norm"]
    assert "step 6 came out otherwise: grad_norm: recorded" in said and "torch 1.0 → " in said


def test_the_loss_is_named_first_and_seconds_do_not_count():
    recorded = {"step": 1, "reward": 1.0, "loss": 2.0, "step_s": 1.0, "accuracy": 0.5}
    found = {"step": 1, "reward": 0.5, "loss": 2.5, "step_s": 9.0, "entropy": 1.0}
    expected = [("loss", 2.0, 2.5), ("reward", 1.0, 0.5), ("entropy", "not recorded", 1.0)]
    assert differences(recorded, found) == expected


def test_what_cannot_be_replayed_says_what_can(sft, grpo, tmp_path):
    with pytest.raises(DataError, match="no row of step 7, it has steps 1 to 6"):
        read_step(sft, 7)
    with pytest.raises(DataError, match=r"metrics\.jsonl: not found; fix"):
        read_step(tmp_path, 1)
    # other settings after step 2, whose checkpoint retention has deleted
    run = copied(sft, tmp_path / "run")
    (row,) = read_jsonl(run / "config_history.jsonl")
    later = {**row, "after_step": 2, "changes": ["optim.lr 0.01 → 0.02"]}
    (run / "config_history.jsonl").write_bytes(sealed_line(row) + sealed_line(later))
    shutil.rmtree(run / "checkpoints" / "step_2", ignore_errors=True)
    assert read_step(run, 2).checkpoint is None and read_step(run, 5).after == 4
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 2 to 3 is left.* 1–2, 5–6;"):
        read_step(run, 4)
    lost = copied(grpo, tmp_path / "lost")
    (lost / "rollouts" / "step_3.jsonl").unlink()
    assert read_step(lost, 2).after == 0
    with pytest.raises(CheckpointError, match="no rollouts of steps 3, which the replay needs"):
        read_step(lost, 4)


def test_the_settings_of_a_step_are_those_of_its_start(sft, tmp_path):
    run = copied(sft, tmp_path / "run")
    (row,) = read_jsonl(run / "config_history.jsonl")
    changed = {**row["config"], "optim": {**row["config"]["optim"], "lr": 0.5}}
    later = {**row, "after_step": 4, "config": changed}
    (run / "config_history.jsonl").write_bytes(sealed_line(row) + sealed_line(later))
    assert [read_step(run, step).config.optim.lr for step in (4, 5)] == [0.01, 0.5]


def test_the_step_counts_from_one():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        ReplayConfig(run_dir="runs/a", step=0)
