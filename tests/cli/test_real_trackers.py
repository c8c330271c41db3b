"""The trackers with the packages themselves, where they are installed: a run that is stopped and goes
on is one curve, with its identity, group, tags, config, rollouts and scores; nothing leaves this
machine."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# steps 1 to 3, stopped after 2 were saved; then 3 and 4
RUN = """
import io, json, sys
from pathlib import Path
from megaladder.config.sections.shared import LogSection
from megaladder.log import RunLog, StepMetrics
from megaladder.run_dir import RunDir
from megaladder.trackers.services import chosen_trackers

tracker, resumed, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
section = LogSection(**{tracker: True}, project="reasoning", group="sweep", tags=("a", "b"))
run = RunDir(Path("my-run"), writer=True)
(run.path / "config.yaml").write_text("model: {path: m}\\ntrain: {seed: 7}\\n")
log = RunLog(run, resumed_step=resumed or -1, stream=io.StringIO())
log.start_trackers(chosen_trackers(section, run.path, resumed or -1))
for step in range(resumed + 1, last + 1):
    answers = run.rollouts(step)
    answers.parent.mkdir(exist_ok=True)
    answers.write_text("".join(json.dumps(
        {"step": step, "sample": i, "prompt": "2+3?", "completion": "a | b", "reward": i / 4}
    ) + "\\n" for i in range(4)))
    log.step(StepMetrics(step, 4, 1 / step, 1e-3, 1.0, 10, 1.0))
scores = {"metric": "avg@4", "num_problems": 8, "n": 4, "low": 0.25, "high": 0.75}
log.evaluated([{"step": last, "benchmark": "toy", "score": 0.5, **scores}])
log.sync()
if last == 4:
    log.finish("done", [], None)
else:
    log.close(3)
run.close()
"""


def track(tracker: str, folder: Path) -> str:
    """A run with this tracker in `folder`, stopped and resumed; its identity."""
    if find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed (pip install 'megaladder[{tracker}]')")
    environ = {
        **os.environ,
        "WANDB_MODE": "offline",
        "WANDB_ENTITY": "",
        "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "TRACKIO_DIR": str(folder / "trackio"),
        "HF_HUB_OFFLINE": "1",
    }
    for resumed, last in ((0, 3), (2, 4)):
        done = subprocess.run(
            [sys.executable, "-c", RUN, tracker, str(resumed), str(last)],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "called no more" not in done.stderr and "lost" not in done.stderr, done.stderr
    return str(json.loads((folder / "my-run" / "tracker.json").read_text())["id"])


def test_tensorboard_shows_each_step_once(tmp_path) -> None:
    track("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "my-run" / "tensorboard"))
    found.Reload()
    losses = {event.step: event.value for event in found.Scalars("loss")}
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3, 4]
    assert losses == pytest.approx({step: 1 / step for step in (1, 2, 3, 4)})
    assert found.Scalars("eval/toy")[-1].value == 0.5
    assert "rollouts/text_summary" in found.Tags()["tensors"]


def test_mlflow_has_one_run_with_its_tags_tables_and_end(tmp_path, monkeypatch) -> None:
    identity = track("mlflow", tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("reasoning")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "my-run" and run.info.status == "FINISHED"
    assert run.data.tags["megaladder_id"] == identity and {"a", "b"} <= run.data.tags.keys()
    history = client.get_metric_history(run.info.run_id, "loss")
    assert {metric.step for metric in history} == {1, 2, 3, 4}
    (stored,) = tmp_path.glob("mlruns/*/*/artifacts")
    assert json.loads((stored / "config.json").read_text())["train"] == {"seed": 7}
    names = {str(path.relative_to(stored)) for path in stored.rglob("step_*.json")}
    assert {f"rollouts/step_{step}.json" for step in (1, 2, 3, 4)} <= names
    assert json.loads((stored / "scores/step_4.json").read_text())[0]["value"] == 0.5


def wandb_records(file: Path) -> Iterator[Any]:
    """What a run wrote offline: LevelDB's log format behind a header of 7 bytes.

    Blocks of 32 KiB; a part has a checksum (4 bytes), a length (2) and a type (1: whole, first,
    middle, last)."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768


def test_wandb_continues_one_run(tmp_path) -> None:
    identity = track("wandb", tmp_path)
    files = sorted((tmp_path / "my-run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [file.name for file in files] == [f"run-{identity}.wandb"] * 2
    steps, exits, tables = [], [], []
    for file in files:
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run" and record.run.project:
                told = record.run
                assert (told.run_id, told.display_name) == (identity, "my-run")
                assert (told.project, told.run_group) == ("reasoning", "sweep")
                assert list(told.tags) == ["a", "b"]
            items = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            steps += [items["train_step"]] if "loss" in items else []
            # a table is a reference to a file: rollouts._type, rollouts.path …
            tables += {key.partition(".")[0] for key in items} & {"rollouts", "scores"}
            exits += [record.exit.exit_code] if kind == "exit" else []
    assert steps == [1, 2, 3, 3, 4] and exits == [3, 0]
    assert tables.count("rollouts") == 5 and tables.count("scores") == 2


def test_trackio_keeps_one_run(tmp_path, monkeypatch) -> None:
    identity = track("trackio", tmp_path)
    script = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as store;"
        f"print(json.dumps(store.get_logs('reasoning', 'my-run-{identity[:6]}'), default=str))"
    )
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    rows = json.loads(done.stdout.splitlines()[-1])
    losses = [row for row in rows if "loss" in row]
    assert sorted({row["step"] for row in losses}) == [1, 2, 3, 4]
