"""kill -9 at any moment costs nothing but time: the resumed run's losses are bit-identical to the
uninterrupted run's."""

import json
import os
import random
import time
from pathlib import Path

import pytest
from clean_fork import run_in_fork
from distributed import run_ranks
from tiny_models import build_tiny_model

STEPS = 12
TRIALS = 20
FAULT_POINTS = ("update", "before_save", "after_write", "before_commit", "after_commit")


@pytest.fixture(scope="module")
def model_and_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    rows = [
        {"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}
        for a in range(10)
        for b in range(10)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_tiny_model(folder / "model", hidden=32), folder / "data.jsonl"


def sft_flags(model: Path, data: Path, run_dir: Path) -> list[str]:
    return [
        "--run-dir",
        str(run_dir),
        "--model.path",
        str(model),
        "--data.path",
        str(data),
        "--data.seq-length",
        "128",
        "--train.global-batch-size",
        "8",
        "--train.epochs",
        "10",
        "--optim.lr",
        "1e-2",
    ]


def run_sft_in_fork(
    model: Path,
    data: Path,
    run_dir: Path,
    async_save: bool = False,
    fault: str | None = None,
    kill_after_s: float | None = None,
) -> int:
    """Twelve steps with a save every second one; the exit status, or minus the signal."""
    flags = [
        *sft_flags(model, data, run_dir),
        "--train.max-steps",
        str(STEPS),
        "--checkpoint.every",
        "2",
        "--data.holdout",
        "0.1",
        "--train.eval-every",
        "4",
        "--checkpoint.async-save",
        str(async_save).lower(),
        "--data.cache-dir",
        str(run_dir.parent / "cache"),
    ]

    def run() -> int:
        from megaladder.config.resolve import resolve
        from megaladder.config.sft import SftConfig
        from megaladder.train.sft import run_sft

        if fault:
            os.environ["MEGALADDER_FAULT"] = fault
        return run_sft(resolve(SftConfig, flags, prog="test"))

    return run_in_fork(
        run,
        stdout=Path(os.devnull),
        stderr=run_dir.parent / "stderr.txt",
        kill_after_s=kill_after_s,
    )


def curves(run_dir: Path) -> tuple[list, list]:
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    held_out = [json.loads(line) for line in (run_dir / "held_out.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"], row["lr"]) for row in metrics], [
        (r["step"], r["held_out_loss"]) for r in held_out
    ]


@pytest.fixture(scope="module")
def whole(model_and_data, tmp_path_factory):
    """The curves of a run that nobody disturbed, and how long it took."""
    run_dir = tmp_path_factory.mktemp("whole") / "whole"
    began = time.monotonic()
    assert run_sft_in_fork(*model_and_data, run_dir) == 0
    return curves(run_dir), time.monotonic() - began


@pytest.mark.parametrize("trial", range(TRIALS))
def test_killed_runs_resume_bit_identically(model_and_data, whole, tmp_path, trial):
    """Odd trials die at a random moment, even ones at a named point of the step or of the save;
    every fourth saves asynchronously."""
    expected, duration_s = whole
    rng = random.Random(trial)
    how = {"fault": f"{FAULT_POINTS[trial // 2 % len(FAULT_POINTS)]}:{rng.randint(1, 5)}:SIGKILL"}
    if trial % 2:
        how = {"kill_after_s": rng.uniform(0.2, 0.9) * duration_s}
    async_save = trial % 4 == 3
    status = run_sft_in_fork(*model_and_data, tmp_path / "run", async_save, **how)
    assert status == -9 or (trial % 2 and status == 0), (tmp_path / "stderr.txt").read_text()
    if status:
        assert run_sft_in_fork(*model_and_data, tmp_path / "run", async_save) == 0, (
            tmp_path / "stderr.txt"
        ).read_text()
    assert curves(tmp_path / "run") == expected


def sft_on_ranks(model, data, run_dir, *extra, ranks=1, fault=""):
    """Eight steps with a save at the fourth; what rank 0 printed."""
    flags = [*sft_flags(model, data, run_dir), "--train.max-steps", "8", "--checkpoint.every", "4"]
    return run_ranks("faults/verb_worker.py", ranks, fault, "sft", *flags, *extra)


def losses(run_dir):
    return {
        row["step"]: row["loss"]
        for row in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    }


def test_saved_at_tp2_resumed_at_pp2(model_and_data, tmp_path):
    model, data = model_and_data
    sft_on_ranks(model, data, tmp_path / "whole")
    moved = tmp_path / "moved"
    kill = "after_commit:1:SIGKILL"
    with pytest.raises(AssertionError, match="of 2: status -9"):
        sft_on_ranks(model, data, moved, "--parallel.tp", "2", ranks=2, fault=kill)
    assert set(losses(moved)) == {1, 2, 3, 4}
    said = sft_on_ranks(model, data, moved, "--parallel.pp", "2", ranks=2)
    assert "resumed after step 4" in said
    reference, resumed = losses(tmp_path / "whole"), losses(tmp_path / "moved")
    assert set(resumed) == set(range(1, 9))
    for step, loss in resumed.items():
        assert loss == pytest.approx(reference[step], rel=1e-5)
