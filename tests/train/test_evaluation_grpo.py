"""Benchmarks between the steps of GRPO: the training does not notice them, a kill in the middle
leaves each of them once and in order, the best step is kept, and patience ends the run."""

from __future__ import annotations

import json

import pytest
from grpo_runs import GrpoRuns

EVERY_2 = ("--evaluate.benchmarks", "arithmetic", "--evaluate.every", "2")
SMALL = ("--evaluate.limit", "6", "--evaluate.n", "2", "--evaluate.max-tokens", "40")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> GrpoRuns:
    runs = GrpoRuns(tmp_path_factory.mktemp("grpo"))
    rows = [
        {"id": f"t{i}", "question": f"What is {i} + {i} + 1?", "answer": str(2 * i + 1)}
        for i in range(8)
    ]
    (runs.folder / "bench" / "arithmetic").mkdir(parents=True)
    (runs.folder / "bench" / "arithmetic" / "test.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    return runs


def flags(runs: GrpoRuns, *more: str) -> list[str]:
    return [*EVERY_2, *SMALL, "--evaluate.data-dir", str(runs.folder / "bench"), *more]


def scores(runs: GrpoRuns, name: str) -> list[dict]:
    """Rows of evaluations.jsonl without what no two runs share."""
    lines = (runs.folder / name / "evaluations.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        {
            key: row[key]
            for key in row
            if not key.endswith("_s") and key not in ("seconds", "sha256")
        }
        for row in rows
    ]


@pytest.fixture(scope="module")
def plain(runs):
    return runs.run("plain")


@pytest.fixture(scope="module")
def evaluated(runs):
    return runs.run("evaluated", *flags(runs))


@pytest.mark.parametrize("lag", ["0", "1"])
def test_losses_are_bit_equal_to_a_run_without_evaluation(runs, plain, evaluated, lag) -> None:
    assert evaluated.status == 0, evaluated.error
    without, with_it = plain, evaluated
    if lag == "1":
        without = runs.run("plain_lag", "--grpo.lag", "1")
        with_it = runs.run("evaluated_lag", "--grpo.lag", "1", *flags(runs))
    assert with_it.record() == without.record()
    assert [row["version"] for row in with_it.rows] == [row["version"] for row in without.rows]
    assert [row["step"] for row in scores(runs, with_it.folder.name)] == [0, 2, 4]


def test_a_score_is_that_of_eval_and_says_how_sure_it_is(runs, evaluated) -> None:
    rows = scores(runs, "evaluated")
    for row in rows:
        assert (row["benchmark"], row["metric"]) == ("arithmetic", "avg@2")
        assert (row["num_problems"], row["n"]) == (6, 2)
        assert 0 <= row["low"] <= row["score"] <= row["high"] <= 1
        folder = evaluated.folder / "evaluations" / f"step_{row['step']}"
        summary = json.loads((folder / "summary.json").read_text())
        found = summary["benchmarks"]["arithmetic"]
        assert (summary["step"], summary["line"]) == (row["step"], "line_1")
        assert found["metrics"]["avg@2"] == row["score"]
        assert found["protocol"]["limit"] == 6
        assert len((folder / "arithmetic" / "journal.jsonl").read_text().splitlines()) == 12
        assert (folder / "arithmetic" / "samples_arithmetic.jsonl").is_file()


def test_a_kill_in_the_middle_leaves_each_evaluation_once_and_in_order(
    runs, plain, evaluated
) -> None:
    name = "killed"
    # an evaluation appends 12 samples: the second one is hit
    assert runs.run(name, *flags(runs), fault="before_append:17:SIGKILL").status == -9
    done = runs.run(name, *flags(runs))
    assert done.status == 0, done.error
    assert done.record() == plain.record()
    assert scores(runs, name) == scores(runs, "evaluated")
    assert json.loads((done.folder / "best.json").read_text())["step"] in (0, 2, 4)


def test_a_stop_in_the_middle_is_saved_and_the_evaluation_is_done_by_the_next_start(
    runs, plain, evaluated
) -> None:
    assert runs.run("stopped", *flags(runs), fault="before_append:17:SIGTERM").status == 3
    # the handler runs in the main thread, which may hear of it when the last samples are there
    assert [row["step"] for row in scores(runs, "stopped")] in ([0], [0, 2])
    done = runs.run("stopped", *flags(runs))
    assert done.status == 0, done.error
    assert done.record() == plain.record() and scores(runs, "stopped") == scores(runs, "evaluated")


def better_until(step: int):
    """Right answers to the benchmark up to a version of the weights, wrong ones after it; the
    fake engine is told the version by the number of calls that it has had."""
    calls = {"benchmark": 0}

    def respond(request, gold, tokenizer):
        text = tokenizer.decode(list(request.prompt_ids))
        right = True
        if text.count("+") == 2:
            calls["benchmark"] += 1
            right = (calls["benchmark"] - 1) // 12 == step
        elif request.params.seed % 2:
            right = False
        said = gold if right else "-1"
        return [*tokenizer.encode(f"\\boxed{{{said}}}"), *request.params.stop_token_ids[:1]]

    return respond


def test_the_best_step_is_saved_kept_and_named_and_patience_ends_the_run(runs) -> None:
    """Evaluations of steps 0, 1, 2 …: the second is the best, two without a gain are enough."""
    more = flags(runs, "--evaluate.patience", "2", "--evaluate.every", "1")
    more += ["--checkpoint.every", "0", "--checkpoint.keep-last", "1", "--train.max-steps", "9"]
    more += ["--checkpoint.export-hf", "true"]
    done = runs.run("patient", *more, respond=better_until(1))
    assert done.status == 0, done.error
    assert [row["score"] for row in scores(runs, "patient")] == [0, 1, 0, 0]
    assert [row["step"] for row in done.rows] == [1, 2, 3]
    kept = sorted(path.name for path in (done.folder / "checkpoints").iterdir())
    assert kept == ["step_1", "step_3"]
    best = json.loads((done.folder / "best.json").read_text())
    assert (best["step"], best["score"]) == (1, 1.0)
    assert (best["checkpoint"], best["hf"]) == ("checkpoints/step_1", "hf/step_1")
    assert (done.folder / "hf" / "step_3" / "config.json").is_file()
    log = (done.folder / "log.txt").read_text()
    assert "step 3 is the last one of 9" in log
    assert "arithmetic avg@2 100.0 %" in log.split("GRPO finished")[1]


def test_answers_that_do_not_fit_the_engine_are_refused_before_it_starts(runs) -> None:
    done = runs.run("refused", *flags(runs), "--evaluate.max-tokens", "127")
    assert done.status == 2 and "fix: a smaller evaluate.max_tokens" in done.error
    assert not (done.folder / "evaluations").exists()
