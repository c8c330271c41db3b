"""The user's command: one file that bash, torchrun and Python all read, with overrides, from a
checkout that is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import build_tiny_model

from megaladder.preflight.examples import ExamplesConfig, run_examples

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "sft_qwen3_14b.sh"
FORMS = {
    "bash": ["bash", str(SCRIPT)],
    "executed": [str(SCRIPT)],
    "python": [sys.executable, str(SCRIPT)],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", str(SCRIPT)],
}
OVERRIDES = ["--optim.lr", "1e-5", "--run-dir", "runs/a b", "--data.packing", "false"]


def run(
    command: list[str], cwd: Path, timeout_s: float = 120, **more: str
) -> subprocess.CompletedProcess[str]:
    environment = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        "PYTHON": sys.executable,
        **more,
    }
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.mark.parametrize("form", FORMS)
def test_every_form_resolves_the_same_run(form: str, tmp_path) -> None:
    done = run([*FORMS[form], *OVERRIDES, "--print-config"], tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for wanted in (
        "run_dir: runs/a b",
        "  lr: 1.0e-05",
        "  tp: 2",
        "  pp: 2",
        "  ranks: 8",
        "  epochs: 8.0",
        "  packing: false",
    ):
        assert wanted in lines


@pytest.mark.parametrize("form", ["bash", "torchrun"])
def test_a_copied_script_runs_the_file_of_its_name(form: str, tmp_path, capsys) -> None:
    run_examples(ExamplesConfig(names=("grpo_qwen3_30b_a3b.sh",), out=str(tmp_path / "copied")))
    assert capsys.readouterr().out.count(": written") == 4
    script = tmp_path / "copied" / "grpo_qwen3_30b_a3b.sh"
    linked = tmp_path / "mine.sh"
    linked.symlink_to(script)
    command = [*FORMS[form][:-1], str(linked), "--print-config"]
    done = run(command, tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert "Qwen3-30B-A3B" in done.stdout and "grpo:" in done.stdout.splitlines()


def test_several_nodes_are_torchruns_of_the_same_script(tmp_path) -> None:
    (tmp_path / "torchrun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    nodes = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node0"}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = run([*FORMS["bash"], *OVERRIDES], tmp_path, PATH=path, **nodes)
    assert done.returncode == 0, done.stderr
    wanted = "--nnodes 2 --node-rank 1 --nproc-per-node 8 --master-addr node0 --master-port 29500"
    assert done.stdout.splitlines() == [*wanted.split(), str(SCRIPT), *OVERRIDES]
    nodes.pop("MASTER_ADDR")
    done = run(FORMS["bash"], tmp_path, PATH=path, **nodes)
    assert done.returncode != 0 and "host of node 0" in done.stderr


def test_errors_come_through_with_their_status(tmp_path) -> None:
    done = run([*FORMS["bash"], "--parallel.vpp", "2", "--parallel.pp", "1"], tmp_path)
    assert done.returncode == 2
    assert "parallel.vpp 2 needs pipeline stages" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("form", ["bash", "torchrun"])
def test_the_14b_recipe_trains_a_tiny_model_on_two_ranks(form: str, tmp_path) -> None:
    model = build_tiny_model(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    rows = [
        {"message": f"What is {i} + {i}?", "response": f"It is {2 * i}.", "advantage": 1.0}
        for i in range(64)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [
        "--model.path",
        str(model),
        "--data.path",
        str(data),
        "--data.seq_length",
        "256",
        "--data.cache_dir",
        "null",
    ]
    flags += ["--parallel.tp", "2", "--parallel.pp", "1", "--parallel.ranks", "2"]
    flags += ["--train.precision", "fp32", "--train.global_batch_size", "16"]
    flags += ["--train.max_steps", "2", "--run-dir", str(tmp_path / "run")]
    done = run([*FORMS[form], *flags], tmp_path, timeout_s=240)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2]
    assert (tmp_path / "run" / "hf" / "step_2" / "config.json").is_file()
