"""Scores along a training in the report: curves with intervals, the best step, and no table of
models made of its steps."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from megaladder.cli import main


def row(step: int, score: float, benchmark: str = "gsm8k") -> dict:
    return {
        "step": step,
        "benchmark": benchmark,
        "metric": "avg@4",
        "score": score,
        "low": score - 0.1,
        "high": score + 0.1,
        "num_problems": 64,
        "n": 4,
    }


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))


def test_scores_by_step_are_curves_with_intervals(tmp_path, capsys) -> None:
    run = tmp_path / "grpo"
    write_rows(run / "metrics.jsonl", [{"step": step, "loss": 1 / step} for step in (1, 2)])
    write_rows(run / "evaluations.jsonl", [row(0, 0.25), row(2, 0.5)])
    write_rows(run / "eval" / "evaluations.jsonl", [row(2, 0.4375)])
    samples = run / "evaluations" / "step_2" / "gsm8k" / "samples_gsm8k.jsonl"
    write_rows(samples, [{"id": "a", "correct": [True]}])
    best = {
        "step": 2,
        "score": 0.5,
        "benchmarks": [row(2, 0.5)],
        "checkpoint": "checkpoints/step_2",
    }
    (run / "best.json").write_text(json.dumps({**best, "hf": None}))
    out = tmp_path / "report.html"
    assert main(["report", str(run), "--out", str(out)]) == 0, capsys.readouterr().err
    page = out.read_text()
    assert "Scores along the training" in page
    assert "step 2 scored highest (gsm8k avg@4 50.0 %)" in page
    assert "grpo/checkpoints/step_2" in page
    assert "evaluations/step_2" not in page
    with (tmp_path / "report.csv").open() as file:
        found = [line for line in csv.DictReader(file) if line["section"] == "scores_along"]
    points = {(line["series"], line["x"]): [line["y"], line["low"], line["high"]] for line in found}
    assert points["grpo", "0"] == ["25.0", "15.0", "35.0"]
    assert points["grpo", "2"] == ["50.0", "40.0", "60.0"]
    assert points["grpo (eval)", "2"][0] == "43.75"
