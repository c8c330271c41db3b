"""The report of a ladder of runs: GRPO against SFT first, models in the ladder's order, curves of
each stage on axes of their own, hours named by their device, and the data."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from analysis.many_runs import write_many
from analysis.stored_runs import verdicts, write_eval, write_model, write_rows, write_run


@pytest.fixture
def page(tmp_path, verb):
    """The report of base → sft → grpo with evaluations, data stages and difficulty."""
    base = write_model(tmp_path / "models" / "tiny", 1)
    data = write_rows(tmp_path / "set.jsonl", [{"question": "q", "answer": "a"}])
    stages = {
        "recipe": "r",
        "name": "s1",
        "seed": 3,
        "rows_read": 1000,
        "rows": 10,
        "ids_sha256": "ab" * 32,
        "stages": [
            {"stage": "drop", "rows_in": 1000, "rows_out": 40, "dropped": {"too <b>long": 960}},
            {"stage": "sample", "rows_in": 40, "rows_out": 10, "published": 11},
        ],
    }
    (tmp_path / "set.jsonl.stages.json").write_text(json.dumps(stages))
    rates = [{"problem_id": str(i), "success_rate": i / 4} for i in range(5)]
    write_rows(tmp_path / "runs" / "pool.difficulty.jsonl", rates)
    sft_config = {"train": {"loss": "sft"}, "data": {"path": str(data)}}
    sft = write_run(tmp_path / "runs" / "z-sft", base, sft_config, (2, 4), device="NVIDIA H200")
    grpo = write_run(
        tmp_path / "runs" / "a-grpo", sft / "hf" / "step_4", {"grpo": {}}, (3,), device="CPU"
    )
    scores = {base: 0.2, sft / "hf/step_2": 0.4, sft / "hf/step_4": 0.6, grpo / "hf/step_3": 0.9}
    for i, (model, skill) in enumerate(scores.items()):
        write_eval(tmp_path / "eval" / str(i), model, "gsm8k", verdicts(i, skill))
    for run in (sft, grpo):
        rows = [
            {"step": i, "loss": 1 / i, "reward": i, "tokens": 10, "step_s": 1800.0} for i in (1, 2)
        ]
        write_rows(run / "metrics.jsonl", rows)
    done = verb("report", tmp_path / "runs", tmp_path / "eval", "--out", tmp_path / "r.html",
                with_json=False)  # fmt: skip
    assert done.status == 0, done.err
    numbers = (tmp_path / "r.csv").read_text(encoding="utf-8")
    return (tmp_path / "r.html").read_text(encoding="utf-8"), list(
        csv.DictReader(io.StringIO(numbers))
    )


def section(text: str, name: str) -> str:
    return re.search(rf'<section id="{name}"[^>]*>.*?</section>', text, flags=re.S)[0]


def test_grpo_against_sft_comes_first(page):
    text, rows = page
    figures = [row["figure"] for row in rows if row["section"] == "summary"]
    assert figures[:2] == ["a-grpo minus z-sft/step_4", "z-sft/step_4 minus tiny"]
    models = [row["series"] for row in rows if row["section"] == "accuracy" and row["x"] == "avg@n"]
    assert models == ["tiny", "z-sft/step_4", "a-grpo"]
    first = re.search(r"<li><bdi>(.*?)</bdi>", section(text, "summary"))[1]
    assert first.index("a-grpo") < first.index("z-sft/step_4")


def test_steps_have_their_own_curves(page):
    text, rows = page
    points = {(row["series"], row["x"]) for row in rows if row["section"] == "steps" and row["low"]}
    assert points == {("z-sft", "2"), ("z-sft", "4")}
    titles = section(text, "learning")
    assert "SFT: loss" in titles and "GRPO: loss" in titles


def test_hours_name_their_device(page):
    text, _ = page
    table = section(text, "runs")
    assert "1 NVIDIA H200-h" in table and "1 CPU-h" in table and "GPU-h" not in table


def test_data_stages_and_difficulty(page):
    text, rows = page
    stages = [(r["series"], r["y"]) for r in rows if r["figure"] == "set.jsonl"]
    assert stages == [("drop", "40.0"), ("sample", "10.0")]
    shown = section(text, "data")
    assert "too &lt;b&gt;long 960" in shown and "11" in shown and "seed 3, 1,000 rows read" in shown
    assert "5 problems; 1 always solved, 1 never" in shown
    bins = [float(r["y"]) for r in rows if r["figure"] == "difficulty pool"]
    assert sum(bins) == pytest.approx(100) and len(bins) == 10


def test_published_shift_files_and_several_budgets(tmp_path, verb):
    """Transferability's three files fill the shift section; results of several models are one chart
    each."""
    layers = [
        {
            "layer": i,
            "state": s,
            "shift": i * 3.0 * (s == "Updated"),
            "principle": 4.0 * (s[0] == "U"),
        }
        for i in (0, 2)
        for s in ("Original", "Updated")
    ]
    files = {
        "x_pca_shift": [{"benchmark": "MATH_PCA_Shift", "data": layers}],
        "kl": {
            "generation_model": "RL", "task": "ifeval", "tested_model": "base",
            "kl_divergence": 0.0187, "num_data_points": 100, "total_tokens": 127458,
            "avg_tokens_per_data_point": 1274.58,
        },
        "m_d_token_losses": {
            "model": "base", "dataset": "d", "average_perplexity": 1.5,
            "results": [{"avg_loss": 1, "perplexity": 2, "token_losses": [
                {"loss": 1, "token": "a", "rank": r} for r in (1, 1, 5, 2)]}],
        },
    }  # fmt: skip
    for name, value in files.items():
        (tmp_path / "f").mkdir(exist_ok=True)
        (tmp_path / "f" / f"{name}.json").write_text(json.dumps(value))
    for i in (0, 1):
        model = write_model(tmp_path / f"m{i}", i)
        write_eval(tmp_path / "eval", model, "gsm8k", verdicts(i, 0.5))
    verb("analyze budget", tmp_path / "eval", "--budgets", "9,12")
    (tmp_path / "result.json").rename(tmp_path / "f" / "budget.json")
    out = ("--out", tmp_path / "r.html")
    assert verb("report", tmp_path / "f", *out, with_json=False).status == 0
    numbers = (tmp_path / "r.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(numbers)))
    shift = {(r["figure"], r["series"]): r["y"] for r in rows if r["section"] == "shift"}
    assert float(shift["PCA distance with_padding", "x_pca_shift"]) == 5.0
    assert float(shift["KL, nats a token (Monte Carlo)", "kl"]) == 0.0187
    assert float(shift["mean rank shift", "m_d_token_losses"]) == 1.25
    assert float(shift["share of tokens shifted", "m_d_token_losses"]) == 0.5
    assert {r["figure"] for r in rows if r["section"] == "budget"} == {"m0/gsm8k", "m1/gsm8k"}


@pytest.mark.parametrize("num_runs", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_a_report_of_many_runs_stays_small(tmp_path, verb, num_runs):
    """Curves and rollouts share the room that there is."""
    write_many(tmp_path, num_runs)
    done = verb("report", tmp_path / "runs", tmp_path / "eval", "--out", tmp_path / "r.html",
                with_json=False)  # fmt: skip
    assert done.status == 0, done.err
    size = (tmp_path / "r.html").stat().st_size
    assert 1_000_000 < size < (3_000_000 if num_runs == 100 else 2_000_000)


def test_lines_of_many_runs_are_told_apart_without_colour_and_the_legend_shows_how(tmp_path, verb):
    """28 runs: dashes and mark of each are its own, in the chart and in its key."""
    for number in range(28):
        rows = [{"step": s, "loss": s + number, "tokens": 10, "step_s": 1.0} for s in (1, 2)]
        (tmp_path / f"r{number:02d}").mkdir()
        write_rows(tmp_path / f"r{number:02d}" / "metrics.jsonl", rows)
    runs = sorted(tmp_path.glob("r*"))
    done = verb("report", *runs, "--out", tmp_path / "page.html", with_json=False)
    assert done.status == 0, done.err
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script[^>]* id="data"[^>]*>(.*?)</script>', text, re.S)[1])
    [loss] = [c for c in data["charts"]["learning"]["charts"] if c["y"] == "loss"]
    drawn = {line["n"]: (line.get("dash", []), line.get("mark")) for line in loss["series"]}
    assert len({(tuple(dash), mark) for dash, mark in drawn.values()}) == len(runs)
    keys = re.findall(r'data-run="(r\d+)".*?(<svg class="key".*?</svg>)', text, flags=re.S)
    assert dict(keys).keys() == drawn.keys()
    for name, key in keys:
        dash, mark = (re.search(rf'{part}="([^"]*)"', key) for part in ("stroke-dasharray", " d"))
        shown = [int(n) for n in dash[1].split()] if dash else [], mark and mark[1]
        assert shown == drawn[name]
