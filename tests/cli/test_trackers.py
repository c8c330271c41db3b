"""Trackers: one identity a run, kept in its folder; what each of them is asked to do; a failure
costs the tracker and never the run."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest

from megaladder.config.sections.shared import LogSection
from megaladder.log import RunLog, StepMetrics
from megaladder.run_dir import RunDir
from megaladder.trackers.sinks import IDENTITY, chosen_sinks, run_identity


class Recorder:
    """A package whose every call is written down; `found`: what a search for runs gives."""

    def __init__(self, found=()):
        self.calls: list[tuple[str, dict]] = []
        self.found = list(found)

    def __getattr__(self, name):
        def call(*args, **given):
            self.calls.append((name, given or {"args": args}))
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
    assert packages["wandb"].given("finish") == {"exit_code": 3}
    assert packages["mlflow"].given("start_run")["tags"]["megaladder_id"] == identity
    assert packages["mlflow"].given("log_metrics")["step"] == 1
    assert packages["mlflow"].given("end_run")["args"] == ("FAILED",)
    assert packages["trackio"].given("init")["name"] == f"my-run-{identity[:6]}"


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
