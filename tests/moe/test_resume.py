"""kill -9 at one layout of experts, resumed at another: the same losses, and the same balance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from distributed import run_ranks
from tiny_models import build_tiny_model

SFT = (
    "--data.seq-length 128 --train.global-batch-size 8 --train.epochs 10 --optim.lr 1e-2"
    " --train.max-steps 8 --checkpoint.every 4 --moe.aux-loss sequence"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "data.jsonl"
    rows = [
        {"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}
        for a in range(10)
        for b in range(10)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(run_dir: Path) -> dict[int, dict]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines)}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "glm4_moe"])
def test_killed_at_one_ep_and_resumed_at_another(data: Path, tmp_path: Path, family: str) -> None:
    model = build_tiny_model(tmp_path / "model", family, hidden=32)

    def sft(run_dir: Path, *extra: str, ranks: int, fault: str = "") -> str:
        flags = ["--run-dir", str(run_dir), "--model.path", str(model), "--data.path", str(data)]
        if family == "glm4_moe":
            flags += ["--moe.bias-update-rate", "1e-2"]
        words = ["sft", *flags, *SFT.split(), *extra]
        return run_ranks("faults/verb_worker.py", ranks, fault, *words)

    sft(tmp_path / "whole", ranks=1)
    moved, tp_ep = tmp_path / "moved", ("--parallel.tp", "2", "--parallel.ep", "2")
    with pytest.raises(AssertionError, match="of 2: status -9"):
        sft(moved, "--parallel.ep", "2", ranks=2, fault="after_commit:1:SIGKILL")
    assert set(rows_of(moved)) == {1, 2, 3, 4}
    assert "resumed after step 4" in sft(moved, *tp_ep, "--parallel.pp", "2", ranks=4)
    reference, resumed = rows_of(tmp_path / "whole"), rows_of(moved)
    assert set(resumed) == set(range(1, 9))
    for step, row in resumed.items():
        assert row["loss"] == pytest.approx(reference[step]["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(reference[step]["grad_norm"], rel=1e-4)
        assert row["moe_max_load_by_layer"] == reference[step]["moe_max_load_by_layer"]
        assert len(row["moe_aux_loss_by_layer"]) == 2
