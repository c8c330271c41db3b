"""Trackers: one identity a run, kept in its folder; what each of them is asked to do; a failure
costs the tracker and never the run."""

from __future__ import annotations

import io
import json
import sys
import threading
from types import SimpleNamespace

import pytest
from waiting import wait_until

from megaladder.config.sections.shared import LogSection
from megaladder.log import ROLLOUT_ROWS, RunLog, StepMetrics
from megaladder.run_dir import RunDir
from megaladder.trackers.courier import Courier
from megaladder.trackers.sinks import IDENTITY, chosen_sinks, run_identity


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


@pytest.fixture
def packages(monkeypatch) -> dict[str, Recorder]:
    found = {name: Recorder() for name in ("wandb", "mlflow", "trackio")}
    for name, recorder in found.items():
        monkeypatch.setitem(sys.modules, name, recorder)
    return found


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
    run = RunDir(tmp_path / "my-run", writer=True)
    log = RunLog(run, stream=io.StringIO())
    log.start_sinks(chosen_sinks(LOG, run.path, 0), {"seed": 1})
    step = StepMetrics(step=1, total_steps=1, loss=0.5, lr=1.0, grad_norm=1.0, tokens=1, step_s=1.0)
    log.step(step)
    log.finish("done", [], None, exit_status=3)
    run.close()
    identity = json.loads((run.path / IDENTITY).read_text())["id"]
    started = packages["wandb"].given("init")
    assert (started["id"], started["entity"], started["group"]) == (identity, "team", "g")
    assert started["tags"] == ["a", "b"] and started["resume"] == "allow"
    assert packages["wandb"].given("finish")["exit_code"] == 3
    assert packages["mlflow"].given("start_run")["tags"]["megaladder_id"] == identity
    assert packages["mlflow"].given("log_metrics")["step"] == 1
    assert packages["wandb"].given("log")["args"][0]["train_step"] == 1
    assert packages["mlflow"].given("end_run")["args"] == ("FAILED",)
    assert packages["trackio"].given("init")["name"] == f"my-run-{identity[:6]}"


def test_rollouts_and_scores_are_tables(tmp_path, packages) -> None:
    run = RunDir(tmp_path / "my-run", writer=True)
    log = RunLog(run, stream=io.StringIO())
    log.start_sinks(chosen_sinks(LogSection(wandb=True, mlflow=True), run.path, 0), {})
    rollouts = run.rollouts(4)
    rollouts.parent.mkdir()
    row = {"step": 4, "prompt": "2+3?", "completion": "5", "reward": 1.0, "logprobs": [0.1]}
    rollouts.write_text("".join(json.dumps({**row, "sample": i}) + "\n" for i in range(40)))
    log.rollouts(4, rollouts)
    log.rollouts(5, run.rollouts(5))  # a replay keeps them elsewhere
    scored = {"step": 4, "benchmark": "toy", "metric": "avg@4", "score": 0.5, "low": 0.4}
    log.evaluated([{**scored, "high": 0.6, "work": {"tokens": 1}}])
    log.finish("done", [], None)
    run.close()
    table = packages["wandb"].given("Table")
    assert "completion" in table["columns"] and "logprobs" not in table["columns"]
    assert len(table["data"]) == ROLLOUT_ROWS
    names = [given["args"][1] for name, given in packages["mlflow"].calls if name == "log_dict"]
    assert names == ["config.json", "rollouts/step_4.json", "scores/step_4.json"]
    numbers = packages["mlflow"].given("log_metrics")
    assert numbers["args"][0] == {"eval/toy": 0.5, "eval/toy_low": 0.4, "eval/toy_high": 0.6}


class Stuck:
    """A tracker that answers when it is let go, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.let_go, self.begun, self.error = threading.Event(), threading.Event(), error
        self.steps: list[int] = []

    def start(self, run_name, config) -> None:
        pass

    def log(self, step, metrics) -> None:
        self.begun.set()
        self.steps.append(step)
        if self.error is not None:
            raise self.error
        self.let_go.wait()

    def table(self, step, name, rows) -> None:
        pass

    def finish(self, exit_status) -> None:
        pass


def test_a_tracker_that_hangs_is_given_up_and_costs_no_step() -> None:
    sink, reasons = Stuck(), []
    courier = Courier("w", sink, reasons.append, patience_s=0.02)
    courier.put("log", 1, {})
    sink.begun.wait()
    wait_until(lambda: courier.put("log", 2, {}) or reasons, "giving up")
    courier.put("log", 3, {})
    courier.rest(60.0)  # nothing is waited for any more
    courier.end(0)
    assert reasons == ["w gave no answer to log for 0.02 s; it is switched off for this run"]
    sink.let_go.set()
    courier._thread.join()
    assert sink.steps == [1]


def test_a_tracker_that_falls_behind_is_given_up() -> None:
    sink, reasons = Stuck(), []
    courier = Courier("w", sink, reasons.append, behind=3)
    courier.put("log", 0, {})
    sink.begun.wait()
    for step in range(5):
        courier.put("log", step, {})
    assert reasons == ["w is 3 events behind; it is switched off for this run"]
    sink.let_go.set()


def test_a_tracker_that_hangs_at_the_end_does_not_hold_the_run() -> None:
    sink, reasons = Stuck(), []
    courier = Courier("w", sink, reasons.append, end_s=0.02)
    courier.put("log", 1, {})
    sink.begun.wait()
    courier.end(0)
    assert reasons == ["w did not finish within 0.02 s; it is switched off for this run"]
    sink.let_go.set()


def test_a_tracker_that_raises_is_told_once() -> None:
    sink, reasons = Stuck(ValueError("no space")), []
    courier = Courier("w", sink, reasons.append)
    for step in (1, 2):
        courier.put("log", step, {})
    courier.end(0)
    assert reasons == ["w failed at log: ValueError: no space; it is switched off for this run"]
    assert sink.steps == [1]


def test_a_resumed_run_is_found_again_in_mlflow(tmp_path, packages) -> None:
    earlier = SimpleNamespace(info=SimpleNamespace(run_id="r7"))
    packages["mlflow"].found = [earlier]
    run_identity(tmp_path, anew=True)
    chosen_sinks(LOG, tmp_path, 5)["mlflow"].start("x", {})
    assert packages["mlflow"].given("start_run")["run_id"] == "r7"


@pytest.mark.parametrize("package", ["wandb", "mlflow", "trackio", "tensorboard"])
def test_a_tracker_without_its_package_names_the_command_and_the_run_goes_on(
    package: str, tmp_path, monkeypatch, capsys
) -> None:
    for name in (package, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    run = RunDir(tmp_path / "run", writer=True)
    log = RunLog(run, stream=io.StringIO())
    log.start_sinks(chosen_sinks(LogSection(**{package: True}), run.path, 0), {})
    log.info("goes on")
    log.close()
    run.close()
    assert f"pip install 'megaladder[{package}]'" in capsys.readouterr().err
    assert "goes on" in run.log_text.read_text()
