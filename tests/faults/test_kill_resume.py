"""kill -9 at any moment costs nothing but time: the resumed run's losses are bit-identical to the uninterrupted run's."""
import json
import subprocess
import sys

import pytest
from distributed import ROOT, environment
from tiny_models import build_tiny_model

TRIALS = 20


@pytest.fixture(scope="module")
def model_and_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    rows = [{"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"} for a in range(10) for b in range(10)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_tiny_model(folder / "model", hidden=32), folder / "data.jsonl"


def _sft(model, data, run_dir, *extra, ranks=1, fault=None):
    command = [sys.executable, "-m", "megaladder", "sft", "--run-dir", run_dir, "--model.path", model, "--data.path", data,
               "--data.seq-length", "128", "--train.global-batch-size", "8", "--train.max-steps", "8", "--train.epochs", "10",
               "--checkpoint.every", "4", "--optim.lr", "1e-2", "--parallel.ranks", ranks, *extra]
    env = environment() | ({"MEGALADDER_FAULT": fault} if fault else {})
    return subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=200, check=False)


def _losses(run_dir):
    return {row["step"]: row["loss"] for row in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())}


@pytest.mark.timeout(420)
def test_killed_runs_resume_bit_identically(model_and_data, tmp_path):
    model, data = model_and_data
    command = [sys.executable, str(ROOT / "tests/faults/killed_sft.py"), str(model), str(data), str(tmp_path), str(TRIALS)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=400, check=False)
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) == TRIALS, done.stderr[-4000:]
    failed = [trial for trial in trials if not (trial["status"] == 0 and trial["identical"])]
    assert not failed, f"{failed}\n{done.stderr[-3000:]}"
    assert sum(trial["starts"] > 1 for trial in trials) >= TRIALS // 2  # most of them were really killed


def test_saved_at_tp2_resumed_at_pp2(model_and_data, tmp_path):
    model, data = model_and_data
    whole = _sft(model, data, tmp_path / "whole", ranks=1)
    assert whole.returncode == 0, whole.stderr
    cut = _sft(model, data, tmp_path / "moved", "--parallel.tp", 2, ranks=2, fault="after_commit:1:SIGKILL")
    assert cut.returncode == 1 and "rank" in cut.stderr
    moved = _sft(model, data, tmp_path / "moved", "--parallel.pp", 2, ranks=2)
    assert moved.returncode == 0, moved.stderr
    assert "resumed after step 4" in moved.stdout
    reference, resumed = _losses(tmp_path / "whole"), _losses(tmp_path / "moved")
    assert set(resumed) == set(range(1, 9))
    for step, loss in resumed.items():
        assert loss == pytest.approx(reference[step], rel=1e-5)
