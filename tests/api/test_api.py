"""The Python API: what it refuses before anything starts, what callbacks hear, what a call gives
back, and one training on two ranks through it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import megaladder as ml
from megaladder.api.start import raise_for, run_verb
from megaladder.config.verbs.evaluation import EvalConfig
from megaladder.errors import ConfigError, MegaladderError, RunStopped
from megaladder.events.follower import Follower, NewRows

ROOT = Path(__file__).resolve().parents[2]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fake_run(folder: Path) -> Path:
    """A run folder as far as the API reads it."""
    (folder / "hf" / "step_2").mkdir(parents=True)
    (folder / "hf" / "step_2" / "config.json").write_text("{}")
    for step, files in ((1, ()), (2, ("COMMITTED",)), (10, ("COMMITTED",))):
        checkpoint = folder / "checkpoints" / f"step_{step}"
        checkpoint.mkdir(parents=True)
        for name in files:
            (checkpoint / name).write_text("")
    (folder / "config.yaml").write_text("run_dir: x\n")
    write_rows(folder / "metrics.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    score = {"step": 2, "benchmark": "b", "metric": "avg@1", "score": 0.5, "low": 0.25}
    write_rows(folder / "evaluations.jsonl", [{**score, "high": 0.75, "num_problems": 8, "n": 1}])
    return folder


class Listener:
    """Has only some of the methods."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def on_step(self, run: ml.Run, row: dict) -> None:
        self.heard.append(row["step"])

    def on_checkpoint(self, run: ml.Run, step: int, path: Path) -> None:
        self.heard.append(path.name)

    def on_end(self, run: ml.Run, exit_status: int) -> None:
        self.heard.append(f"end {exit_status}")


def test_every_name_is_there_and_asking_for_one_imports_no_torch() -> None:
    script = (
        "import sys, megaladder as ml\n"
        "before = set(sys.modules)\n"
        "found = [getattr(ml, name) for name in ml.__all__]\n"
        "print('pydantic' in before, *sorted(set(sys.modules) & {'torch', 'transformers', 'vllm'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]
    with pytest.raises(AttributeError, match="no attribute 'stf'"):
        ml.stf  # noqa: B018


def test_a_wrong_key_is_an_error_before_anything_starts(tmp_path) -> None:
    with pytest.raises(ConfigError, match="modle"):
        ml.sft({"run_dir": str(tmp_path / "run"), "modle": {}})
    with pytest.raises(ConfigError, match="no such file"):
        ml.grpo(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="benchmark is empty"):
        ml.evaluate({"model": {"path": "x"}})
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_read_from_its_folder(tmp_path) -> None:
    run = ml.load(fake_run(tmp_path / "run"))
    assert [row["loss"] for row in run.metrics] == [2.0, 1.0]
    assert list(run.checkpoints) == [2, 10]
    assert run.exports == {2: run.folder / "hf" / "step_2"} and run.model == run.exports[2]
    assert run.ending == "unknown" and run.config == {"run_dir": "x"}
    assert str(run.scores[0]) == "b avg@1 50.0 % [25.0, 75.0], 8 problems × 1"
    with pytest.raises(ConfigError, match="expected a run folder"):
        ml.load(tmp_path)


def test_scores_are_found_by_benchmark(tmp_path) -> None:
    score = ml.load(fake_run(tmp_path / "run")).scores[0]
    assert ml.Evaluation(tmp_path, (score,))["b"] is score
    with pytest.raises(KeyError, match="not among the benchmarks"):
        ml.Evaluation(tmp_path, (score,))["c"]


def test_rows_that_a_resumed_run_made_again_are_new_and_the_rest_is_not(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = [{"step": step, "step_s": 1.0} for step in (1, 2, 3)]
    write_rows(path, first)
    new = NewRows(path, (), print)
    assert new.look() == []
    write_rows(path, first[:2])  # resumed after step 2
    assert new.look() == []
    again = [{"step": step, "step_s": 2.0} for step in (3, 4)]
    write_rows(path, [*first[:2], *again])
    assert new.look() == again
    with path.open("a") as file:
        file.write('{"step": 5')  # on its way
    assert new.look() == []


def test_callbacks_hear_what_is_new_once_and_a_failing_one_is_left_out(tmp_path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    listener, broken = Listener(), Listener()
    broken.on_step = lambda run, row: 1 / 0
    warned: list[str] = []
    follower = Follower(folder, {"broken": broken, "good": listener}, warned.append)
    follower.look()
    fake_run(folder)
    follower.look()
    follower.end(3)
    assert warned == [
        "broken failed at on_step and is called no more: ZeroDivisionError: division by zero"
    ]
    assert listener.heard == [1, 2, "step_2", "step_10", "end 3"]
    assert broken.heard == []


@pytest.mark.parametrize("during", ["metrics.jsonl", "held_out.jsonl", "evaluations.jsonl"])
def test_what_comes_during_a_look_is_told_in_its_order(tmp_path, monkeypatch, during) -> None:
    """A run writes a step, then its score, while the files are looked at: after each of them."""
    folder, heard = tmp_path / "run", []
    folder.mkdir()
    (folder / "config.yaml").write_text("run_dir: x\n")
    listener = Listener()
    listener.on_step = lambda run, row: heard.append("step")
    listener.on_evaluation = lambda run, score: heard.append("score")
    follower = Follower(folder, {"one": listener}, pytest.fail)
    files = {
        "metrics.jsonl": follower._metrics,
        "held_out.jsonl": follower._held_out,
        "evaluations.jsonl": follower._scores,
    }
    look = files[during].look

    def writes_after() -> list[dict]:
        found = look()
        monkeypatch.setattr(files[during], "look", look)
        fake_run(folder)
        return found

    monkeypatch.setattr(files[during], "look", writes_after)
    follower.look()
    follower.look()
    assert heard == ["step", "step", "score"]


CAUSE, LAUNCHER = "megaladder: data.jsonl: no rows; fix: rows", "megaladder: rank 0 of 2 exited"
STOPPING, STOPPED = "megaladder: SIGINT: a step that has begun is finished", "megaladder: stopped"


@pytest.mark.parametrize(
    ("status", "said", "error", "message"),
    [
        (
            2,
            ["line", CAUSE, "more", LAUNCHER],
            MegaladderError,
            r"^data\.jsonl: no rows; fix: rows",
        ),
        (3, [STOPPING, "step 4", STOPPED], RunStopped, "^stopped$"),
        (130, [], RunStopped, "^$"),
        (1, ["Traceback", "ValueError: x"], RuntimeError, "status 1, a bug:\nTraceback"),
    ],
)
def test_an_ending_becomes_the_exception_of_its_status(status, said, error, message) -> None:
    with pytest.raises(error, match=message):
        raise_for("sft", status, said)
    raise_for("sft", 0, said)


@pytest.mark.slow
def test_what_a_verb_refuses_is_raised_with_its_words(tmp_path, capfd) -> None:
    config = EvalConfig.model_validate(
        {"model": {"path": str(tmp_path / "absent")}, "benchmark": ["gsm8k"], "out": str(tmp_path)}
    )
    with pytest.raises(MegaladderError, match=r"absent.*; fix: ") as raised:
        run_verb("eval", config, lambda: None)
    assert "Traceback" not in str(raised.value)


@pytest.mark.slow
def test_two_ranks_train_through_the_api(tmp_path) -> None:
    from tiny_models import build_tiny_model

    rows = [
        {"message": f"What is {i} + {i}?", "response": f"It is {2 * i}.", "advantage": 1.0}
        for i in range(64)
    ]
    write_rows(tmp_path / "data.jsonl", rows)
    listener = Listener()
    config = {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": str(build_tiny_model(tmp_path / "model"))},
        "data": {"path": str(tmp_path / "data.jsonl"), "seq_length": 256, "cache_dir": None},
        "parallel": {"tp": 2},
        "train": {"global_batch_size": 16, "max_steps": 4, "precision": "fp32"},
        "checkpoint": {"every": 2, "keep_last": 2, "export_hf": True},
    }
    run = ml.sft(config, callbacks=[listener])
    assert run.ending == "finished" and run.config["parallel"]["tp"] == 2
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4]
    assert list(run.checkpoints) == [2, 4] and run.model == run.exports[4]
    assert [step for step in listener.heard if isinstance(step, int)] == [1, 2, 3, 4]
    assert set(listener.heard) >= {"step_2", "step_4"} and listener.heard[-1] == "end 0"
    later = Listener()
    assert ml.sft(config, callbacks=[later]).metrics == run.metrics  # all done: answered at once
    assert later.heard == ["end 0"]
