"""Scores along a training in the report: curves with intervals, the best step, and no table of
models made of its steps."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from megaladder.cli import main


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))


def write_scores(folder: Path, right: int, of: int) -> None:
    """Samples of `of` problems, the first `right` of them right."""
    rows = [{"id": f"p{i}", "correct": [i < right]} for i in range(of)]
    write_rows(folder / "gsm8k" / "samples_gsm8k.jsonl", rows)


def test_scores_of_the_training_are_a_curve_beside_those_that_eval_asked_for(
    tmp_path, capsys
) -> None:
    run = tmp_path / "grpo"
    write_rows(run / "metrics.jsonl", [{"step": step, "loss": 1 / step} for step in (1, 2)])
    (run / "config.yaml").write_text("grpo: {preset: dapo}\n")
    write_scores(run / "evaluations" / "step_0", 2, of=8)
    write_scores(run / "evaluations" / "step_2", 4, of=8)
    write_scores(run / "eval" / "step_2", 7, of=16)
    best = {"step": 2, "score": 0.5, "checkpoint": "checkpoints/step_2", "hf": None}
    scored = [{"benchmark": "gsm8k", "metric": "avg@1", "score": 0.5}]
    (run / "best.json").write_text(json.dumps({**best, "benchmarks": scored}))
    out = tmp_path / "report.html"
    assert main(["report", str(run), "--out", str(out)]) == 0, capsys.readouterr().err
    page = out.read_text()
    assert "step 2 scored highest (gsm8k avg@1 50.0 %)" in page
    assert "grpo/checkpoints/step_2" in page
    with (tmp_path / "report.csv").open() as file:
        lines = list(csv.DictReader(file))
    curve = [line for line in lines if line["section"] == "steps"]
    assert [(line["series"], line["x"], line["y"]) for line in curve] == [
        ("grpo while training", "0", "25.0"),
        ("grpo while training", "2", "50.0"),
    ]
    assert all(float(line["low"]) < float(line["y"]) < float(line["high"]) for line in curve)
    # the table of models has what eval asked for
    shown = {line["series"] for line in lines if line["section"] == "accuracy"}
    assert shown and not any("while training" in name for name in shown)
