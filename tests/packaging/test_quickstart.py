"""How `make quickstart` judges its numbers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

from megaladder.tools.quickstart.verdict import (
    RUNS,
    SEED,
    TITLES,
    Found,
    expected,
    expected_range,
    verdict_lines,
)

ROOT = Path(__file__).resolve().parents[2]
RANGES = {"base": (0.0, 0.02), "sft": (0.2, 0.4), "grpo": (0.5, 0.9)}


def found(**scores: float) -> dict[str, Found]:
    return {name: Found(score, score - 0.03, score + 0.03, 41.4) for name, score in scores.items()}


def test_a_run_within_the_ranges_is_as_expected() -> None:
    lines = verdict_lines(found(base=0.0, sft=0.3, grpo=0.7), RANGES)
    assert lines[-1] == "as expected" and len(lines) == 5
    assert "30.0% [27.0%, 33.0%]" in lines[2] and "20% to 40%" in lines[2]


def test_without_ranges_there_is_no_verdict() -> None:
    lines = verdict_lines(found(base=0.0), {})
    assert "not known" in lines[1] and lines[-1].startswith("no verdict: too few whole runs")
    assert expected("of another kind") == {}


def test_what_differs_is_named_with_its_score_and_the_side() -> None:
    lines = verdict_lines(found(base=0.0, sft=0.12, grpo=0.95), RANGES)
    assert lines[-1] == (
        "not as expected: after SFT 12.0% is below 20%; after SFT and GRPO 95.0% is above 90%"
    )


def test_the_range_is_where_one_run_more_falls() -> None:
    """By hand: mean 0.3, s 0.1, t(0.975, 2) = 4.303, half 4.303 · 0.1 · sqrt(4/3) = 0.497."""
    assert expected_range([0.2, 0.3, 0.4]) == (0.0, 0.8)
    assert expected_range([0.6, 0.6, 0.6]) == (0.59, 0.61)
    assert expected_range([0.0, 0.0]) == (0.0, 0.01)


def test_ranges_come_from_several_runs_each_within_its_own() -> None:
    told = yaml.safe_load(RUNS.read_text(encoding="utf-8"))
    runs = [run for run in told if (run["kind"], run["seed"]) == ("dense", SEED)]
    assert len({run["rounding"] for run in runs}) == len(runs) >= 3
    for name in ("sft", "grpo"):
        low, high = expected("dense")[name]
        assert all(low <= run[name] <= high for run in runs)


def test_the_readme_has_the_same_ranges() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"\| (\d+) to (\d+) % \|", text)
    assert [(int(low), int(high)) for low, high in told] == [
        (round(100 * low), round(100 * high)) for low, high in expected("dense").values()
    ]


def test_the_last_words_come_from_the_folders(tmp_path) -> None:
    for name in TITLES:
        score = sum(expected("dense")[name]) / 2
        (tmp_path / "eval" / name).mkdir(parents=True)
        metrics = {"avg@4": score, "response_length": 41.4}
        told = {"metrics": metrics, "ci95": {"avg@4": [score, score]}}
        summary = {"benchmarks": {"arithmetic": told}}
        (tmp_path / "eval" / name / "summary.json").write_text(json.dumps(summary))
    command = [sys.executable, "-m", "megaladder.tools.quickstart.verdict", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2] == "as expected"
