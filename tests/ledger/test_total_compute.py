"""SFT against GRPO over all that each learned from: the ledgers of two run folders and a teacher."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from megaladder.analysis.studies.compute import matched_scores, read_compute
from megaladder.analysis.studies.trajectory import Point
from megaladder.analysis.tables import Warnings
from megaladder.ledger.book import row_of
from megaladder.ledger.sampled import teacher_ledger, write_sampled_ledger
from megaladder.ledger.work import Work


def run_folder(
    folder: Path, config: str, rows: Sequence[dict], held_out: Sequence[dict] = ()
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(config)
    for name, content in (("metrics.jsonl", rows), ("held_out.jsonl", held_out)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """SFT: 2 steps of 30 FLOPs on a teacher's rows of 100. GRPO: 2 steps of 30 + 10 + 40."""
    data = tmp_path / "data.jsonl"
    write_sampled_ledger(teacher_ledger(data), "teacher", Work(50, 10, 100.0, 2.0))
    train = {"train": Work(5, flops=30.0)}
    sft = [{"step": step, "tokens": 5, "step_s": 1.0, **row_of(train)} for step in (1, 2)]
    measured = [{"step": 0, "held_out_loss": 1.0, **row_of({"held_out": Work(3, flops=7.0)})}]
    more = {"old_logprobs": Work(5, flops=10.0), "generation": Work(20, 4, 40.0)}
    grpo = [{"step": step, "tokens": 5, "step_s": 1.0, **row_of(train | more)} for step in (1, 2)]
    asked = [
        {"step": step, "benchmark": "b", **row_of({"evaluation": Work(4, 1, 5.0, 0.25)})}
        for step in (0, 2)
    ]
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "evaluations.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in asked)
    )
    return (
        run_folder(tmp_path / "sft", f"data: {{path: {data}}}\n", sft, measured),
        run_folder(tmp_path / "rl", f"data: {{path: {data}}}\ngrpo: {{lag: 0}}\n", grpo),
    )


def test_total_compute_holds_the_teacher_and_the_rollouts(folders):
    sft, rl = (read_compute(folder, Warnings()) for folder in folders)
    assert sft.totals() == {
        "tokens": 10,
        "train_flops": 60,
        "flops": 160,  # a held-out loss teaches nothing
        "gpu_hours": 2 / 3600,
        "generated_tokens": None,
    }
    assert [sft.at("flops", step) for step in (0, 1, 2)] == [100, 130, 160]
    assert [sft.at("train_flops", step) for step in (0, 1, 2)] == [0, 30, 60]
    assert set(sft.ledger) == {"train", "held_out", "teacher", "evaluation"}
    # of both evaluations, and in no cost of what was learned
    assert sft.ledger["evaluation"] == Work(8, 2, 10.0, 0.5)
    found = rl.totals()
    assert (found["flops"], found["train_flops"], found["generated_tokens"]) == (160, 60, 32)


def test_scores_at_equal_total_compute(folders):
    """At equal tokens both are compared at step 2; at 130 FLOPs SFT has made one step and GRPO
    more than one and a half."""
    sft, rl = (read_compute(folder, Warnings()) for folder in folders)
    curves = {
        ("sft", "b"): [Point(0, 0.0), Point(1, 10.0)],
        ("rl", "b"): [Point(0, 0.0), Point(1, 20.0), Point(2, 40.0)],
    }
    found = matched_scores(curves, {"sft": sft, "rl": rl}, Warnings())["b"]
    assert found["flops"] == {"at": 130, "sft": 10.0, "rl": pytest.approx(20 + 20 * 50 / 80)}
    assert found["train_flops"] == {"at": 30, "sft": 10.0, "rl": 20.0}
