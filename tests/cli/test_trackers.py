"""Trackers: one identity a run, kept in its folder; what each of them is asked to do; a failure
costs the tracker and never the run."""

from __future__ import annotations

import io
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from waiting import wait_until

from megaladder.config.sections.shared import LogSection
from megaladder.events.run import Run
from megaladder.log import RunLog, StepMetrics
from megaladder.process import last_word
from megaladder.run_dir import RunDir
from megaladder.trackers.courier import Courier
from megaladder.trackers.services import chosen_trackers
from megaladder.trackers.tracker import IDENTITY, ROLLOUT_ROWS, run_identity


class Recorder:
    """A package whose every call is written down; `found`: what a search for runs gives."""

    def __init__(self, found=()):
        self.calls: list[tuple[str, dict]] = []
        self.found = list(found)

    def __getattr__(self, name):
        def call(*args, **given):
            self.calls.append((name, {"args": args, **given}))
            return self.found if name == "search_runs" else self

        return call

    def given(self, name: str) -> dict:
        return next(given for called, given in self.calls if called == name)


LOG = LogSection(
    wandb=True, mlflow=True, trackio=True, project="p", entity="team", group="g", tags=("a", "b")
)
STEP = StepMetrics(step=1, total_steps=1, loss=0.5, lr=1.0, grad_norm=1.0, tokens=1, step_s=1.0)


@pytest.fixture
def packages(monkeypatch) -> dict[str, Recorder]:
    found = {name: Recorder() for name in ("wandb", "mlflow", "trackio")}
    for name, recorder in found.items():
        monkeypatch.setitem(sys.modules, name, recorder)
    return found


def begun(folder: Path) -> RunDir:
    """A run folder as it is when the log opens."""
    run = RunDir(folder, writer=True)
    (folder / "config.yaml").write_text("seed: 1\n")
    return run


def test_identity_stays_with_the_folder_and_is_new_for_a_new_run(tmp_path) -> None:
    first = run_identity(tmp_path, anew=True)
    assert run_identity(tmp_path, anew=False) == first and len(first) == 16
    again = run_identity(tmp_path, anew=True)
    assert again != first  # deleted checkpoints, the same folder: another curve
    (tmp_path / "other").mkdir()
    assert run_identity(tmp_path / "other", anew=False) != again
    (tmp_path / IDENTITY).write_text("{torn")
    assert run_identity(tmp_path, anew=False) not in (first, again)


def test_each_tracker_gets_the_run_its_steps_and_its_end(tmp_path, packages) -> None:
    run = begun(tmp_path / "my-run")
    log = RunLog(run, stream=io.StringIO())
    log.start_trackers(chosen_trackers(LOG, run.path, 0))
    log.step(STEP)
    log.held_out(1, 2.5, flops=7)
    log.finish("done", [], None, exit_status=3)
    run.close()
    identity = json.loads((run.path / IDENTITY).read_text())["id"]
    started = packages["wandb"].given("init")
    assert (started["id"], started["entity"], started["group"]) == (identity, "team", "g")
    assert started["tags"] == ["a", "b"] and started["resume"] == "allow"
    assert started["config"] == {"seed": 1}
    assert packages["wandb"].given("finish")["exit_code"] == 3
    assert packages["mlflow"].given("start_run")["tags"]["megaladder_id"] == identity
    numbers = [given for name, given in packages["mlflow"].calls if name == "log_metrics"]
    assert numbers[0]["step"] == 1 and numbers[0]["args"][0]["loss"] == 0.5
    assert numbers[1]["args"] == ({"held_out_loss": 2.5},)
    assert packages["wandb"].given("log")["args"][0]["train_step"] == 1
    assert packages["mlflow"].given("end_run")["args"] == ("FAILED",)
    assert packages["trackio"].given("init")["name"] == f"my-run-{identity[:6]}"


def test_rollouts_and_scores_are_tables(tmp_path, packages) -> None:
    run = begun(tmp_path / "my-run")
    log = RunLog(run, stream=io.StringIO())
    log.start_trackers(chosen_trackers(LogSection(wandb=True, mlflow=True), run.path, 0))
    rollouts = run.rollouts(1)
    rollouts.parent.mkdir()
    row = {"step": 1, "prompt": "2+3?", "completion": "5", "reward": 1.0, "logprobs": [0.1]}
    rollouts.write_text("".join(json.dumps({**row, "sample": i}) + "\n" for i in range(40)))
    log.step(STEP)
    scored = {"step": 4, "metric": "avg@4", "score": 0.5, "low": 0.4, "high": 0.6}
    asked = {**scored, "num_problems": 8, "n": 4, "work": {"tokens": 1}}
    log.evaluated([{**asked, "benchmark": "toy"}, {**asked, "benchmark": "hard", "low": None}])
    log.finish("done", [], None)
    run.close()
    table = packages["wandb"].given("Table")
    assert "completion" in table["columns"] and "logprobs" not in table["columns"]
    assert len(table["data"]) == ROLLOUT_ROWS
    tables = [given["args"] for name, given in packages["mlflow"].calls if name == "log_dict"]
    scores, name = tables[-1]
    assert name == "scores/step_4.json" and [row["benchmark"] for row in scores] == ["toy", "hard"]
    assert [name for _, name in tables[:2]] == ["config.json", "rollouts/step_1.json"]
    numbers = [
        given["args"][0] for name, given in packages["mlflow"].calls if name == "log_metrics"
    ]
    assert {"eval/toy": 0.5, "eval/toy_low": 0.4, "eval/toy_high": 0.6} in numbers
    assert {"eval/hard": 0.5, "eval/hard_high": 0.6} in numbers


class Stuck:
    """A tracker that answers when it is let go, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.let_go, self.begun, self.error = threading.Event(), threading.Event(), error
        self.steps: list[int] = []
        self.ended: list[int] = []

    def on_step(self, run: Run, row) -> None:
        self.begun.set()
        self.steps.append(row["step"])
        if self.error is not None:
            raise self.error
        self.let_go.wait()

    def on_end(self, run: Run, exit_status: int) -> None:
        self.ended.append(exit_status)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "metrics.jsonl").write_text("")
    return tmp_path


def add_step(folder: Path, courier: Courier, step: int) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + "\n")
    courier.wake()


def test_a_tracker_that_hangs_costs_no_step_and_gets_the_rest_when_it_answers(folder) -> None:
    tracker, told = Stuck(), []
    courier = Courier("w", tracker, folder, told.append, patience_s=0.02)
    add_step(folder, courier, 1)
    tracker.begun.wait()
    wait_until(lambda: courier.wake() or told, "words about it")
    add_step(folder, courier, 2)
    courier.rest(0.01)
    courier.rest(1e9)  # the last wait was in vain
    tracker.let_go.set()
    wait_until(lambda: tracker.steps == [1, 2], "the rest")
    courier.rest(240.0)
    courier.end(0)
    assert told == [
        "w has given no answer for 0.02 s; the run goes on, it gets the rest when it answers"
    ]
    assert tracker.ended == [0]


def test_a_tracker_that_hangs_at_the_end_does_not_hold_the_run(folder) -> None:
    tracker, told = Stuck(), []
    courier = Courier("w", tracker, folder, told.append, end_s=0.02)
    add_step(folder, courier, 1)
    tracker.begun.wait()
    courier.end(0)
    assert told == ["w did not finish with the run; what it had not taken is lost"]
    tracker.let_go.set()
    courier._thread.join()


def test_a_tracker_that_raises_is_told_once(folder) -> None:
    tracker, told = Stuck(ValueError("no space")), []
    courier = Courier("w", tracker, folder, told.append)
    for step in (1, 2):
        add_step(folder, courier, step)
    courier.end(0)
    assert told == ["w failed at on_step and is called no more: ValueError: no space"]
    assert tracker.steps == [1]


@pytest.mark.parametrize(("reason", "status"), [("signal", 3), ("bug", 1), ("running", None)])
def test_a_run_that_ends_without_its_table_ends_as_its_last_word_says(
    reason: str, status: int | None, folder, monkeypatch
) -> None:
    word = {"reason": reason, "status": status}
    monkeypatch.setattr(last_word, "read", lambda folder: word)
    tracker = Stuck()
    Courier("w", tracker, folder, print).end()
    assert tracker.ended == [status or 1]


def test_a_resumed_run_is_found_again_in_mlflow(folder, packages) -> None:
    earlier = SimpleNamespace(info=SimpleNamespace(run_id="r7"))
    packages["mlflow"].found = [earlier]
    run_identity(folder, anew=True)
    chosen_trackers(LOG, folder, 5)["mlflow"].on_start(Run(folder))
    assert packages["mlflow"].given("start_run")["run_id"] == "r7"


@pytest.mark.parametrize("package", ["wandb", "mlflow", "trackio", "tensorboard"])
def test_a_tracker_without_its_package_names_the_command_and_the_run_goes_on(
    package: str, tmp_path, monkeypatch, capsys
) -> None:
    for name in (package, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    run = begun(tmp_path / "run")
    log = RunLog(run, stream=io.StringIO())
    log.start_trackers(chosen_trackers(LogSection(**{package: True}), run.path, 0))
    log.info("goes on")
    log.close()
    run.close()
    assert f"pip install 'megaladder[{package}]'" in capsys.readouterr().err
    assert "goes on" in run.log_text.read_text()
