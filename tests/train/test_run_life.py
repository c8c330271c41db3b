"""The joints of a run's life, on one rank in a clean fork: rewind, damage, progress, finished."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from clean_fork import run_in_fork
from tiny_models import build_tiny_model

from megaladder.process import heartbeat, last_word
from megaladder.process.storage import open_temporary

SMALL = (
    "--data.seq-length 128 --train.global-batch-size 8 --train.epochs 10 --optim.lr 1e-2"
    " --checkpoint.every 2 --checkpoint.keep-last 20"
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("life")
    rows = [
        {"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}
        for a in range(10)
        for b in range(10)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_tiny_model(folder / "model", hidden=32), folder / "data.jsonl"


class Run:
    """`megaladder sft` in one run folder."""

    def __init__(self, inputs, folder: Path):
        self.model, self.data = inputs
        self.folder = folder / "run"
        self.out, self.err = folder / "out.txt", folder / "err.txt"

    def __call__(self, *more: str, fault: str | None = None) -> int:
        flags = ["--run-dir", str(self.folder), "--model.path", str(self.model)]
        flags += ["--data.path", str(self.data), *SMALL.split(), *more]

        def start() -> int:
            import os

            from megaladder.cli import main

            if fault:
                os.environ["MEGALADDER_FAULT"] = fault
            return main(["sft", *flags])

        return run_in_fork(start, stdout=self.out, stderr=self.err)

    @property
    def said(self) -> str:
        return self.out.read_text() + self.err.read_text()

    @property
    def steps(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in (self.folder / "checkpoints").glob("step_*"))

    def rows(self, file: str = "metrics.jsonl") -> list[dict]:
        return [json.loads(line) for line in (self.folder / file).read_text().splitlines()]


@pytest.fixture
def run(inputs, tmp_path):
    return Run(inputs, tmp_path)


def test_a_rewound_run_goes_on_from_its_own_newest_step(run):
    assert run("--train.max-steps", "8") == 0 and run.steps == [2, 4, 6, 8]
    rewind = ["--train.max-steps", "8", "--optim.lr", "1e-3"]
    rewind += ["--checkpoint.resume", str(run.folder / "checkpoints/step_4")]
    assert run(*rewind, fault="update:3:SIGKILL") == -9
    assert run.steps == [2, 4, 6]
    assert run(*rewind) == 0  # a requeue repeats the command
    assert "resumed after step 6" in run.said and run.steps == [2, 4, 6, 8]
    assert [row["step"] for row in run.rows()] == list(range(1, 9))
    aside = run.rows("set_aside/line_1/metrics.jsonl")
    assert [row["step"] for row in aside] == [5, 6, 7, 8]
    assert run.rows()[5]["lr"] != aside[1]["lr"]
    history = run.rows("config_history.jsonl")
    assert [row["after_step"] for row in history] == [0, 4]
    assert history[1]["changes"] == ["optim.lr: 0.01 → 0.001"]


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_last_good_one_taken(run):
    assert run("--train.max-steps", "6") == 0
    expected = [row["loss"] for row in run.rows()]
    for step in (6, 4):
        (file, *_) = (run.folder / f"checkpoints/step_{step}").glob("*.distcp")
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    (run.folder / "finished.json").unlink()
    assert run("--train.max-steps", "6") == 0
    assert "resumed after step 2" in run.said and "content has changed" in run.said
    assert [row["loss"] for row in run.rows()] == expected
    aside = run.folder / "set_aside/damaged"
    assert sorted(path.name for path in aside.glob("step_*")) == ["step_4", "step_6"]


def test_rows_that_a_power_cut_took_are_told(run):
    assert run("--train.max-steps", "4") == 0
    rows = (run.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.folder / "metrics.jsonl").write_text(rows[0] + rows[3])
    assert run("--train.max-steps", "5") == 0
    assert "no rows of steps 2–3" in run.said


def test_a_start_that_was_killed_without_a_word_is_told_by_the_next(run):
    assert run("--train.max-steps", "4", fault="update:3:SIGKILL") == -9
    assert last_word.truth(run.folder)["reason"] == "killed"
    assert run("--train.max-steps", "4") == 0 and "ended without a last word" in run.said
    assert run("--train.max-steps", "6") == 0 and "ended without a last word" not in run.said


def test_progress_is_updates_not_checkpoints(run):
    """Every start allows no new series of updates that are not finite."""
    broken = ["--train.max-steps", "8", "--checkpoint.every", "1", "--optim.lr", "1e30"]
    assert run(*broken) == 3 and "in a row" in run.said
    newest = run.steps[-1]
    assert run(*broken) == 3 and "in a row" in run.said
    assert run.steps[-1] == newest


def test_a_finished_run_answers_at_once_and_only_for_the_same_settings_and_inputs(run):
    assert run("--train.max-steps", "2") == 0 and "SFT finished" in run.said
    log = (run.folder / "log.txt").read_text()
    assert run("--train.max-steps", "2", "--log.every", "5") == 0
    assert (
        "finished by an earlier start" in run.said and (run.folder / "log.txt").read_text() == log
    )
    assert run("--train.max-steps", "3") == 0  # goes on
    assert "resumed after step 2" in run.said and "finished by an earlier start" not in run.said
    run.data.touch()
    assert run("--train.max-steps", "3") == 0 and "finished by an earlier start" not in run.said


def test_an_export_that_was_changed_is_not_taken_for_finished(run):
    words = ["--train.max-steps", "2", "--checkpoint.export-hf", "true"]
    assert run(*words) == 0
    weights = run.folder / "hf/step_2/model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert run(*words) == 0 and "finished by an earlier start" not in run.said
    assert weights.read_bytes() == good  # exported again
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    run.model = weights.parent
    run.folder = run.folder.parent / "next"
    assert run("--train.max-steps", "1") == 2 and "model.safetensors: its content has" in run.said


def test_a_rank_has_left_a_sign_of_life_before_any_begins_a_step(tmp_path, monkeypatch):
    """One that is killed in the first second has to be named too."""
    from megaladder.train.life import run_life

    monkeypatch.setattr(heartbeat, "_mine", None)
    heartbeat.Heartbeat(tmp_path, 30.0)
    seen = []

    def at_the_barrier() -> None:
        seen.extend(beat.rank for beat in heartbeat.read_beats(tmp_path / heartbeat.FOLDER))

    monkeypatch.setattr(run_life.parallel, "barrier", at_the_barrier)
    monkeypatch.setattr(run_life, "StopSignals", object)
    run_life.RunLife.listen(SimpleNamespace())
    assert seen == [0]


def test_a_last_word_that_a_kill_cut_short_goes_at_the_next_start(run):
    """A finished run is answered without its lock, and nobody else would come by."""
    assert run("--train.max-steps", "2") == 0
    names = sorted(path.name for path in run.folder.iterdir())
    held, file = open_temporary(run.folder / "last_word.json")
    with file:  # of a start that writes right now
        (run.folder / f".last_word.json.{'0' * 32}.tmp").write_text("{")
        assert run("--train.max-steps", "2") == 0
        assert held.exists()
    held.unlink()
    assert sorted(path.name for path in run.folder.iterdir()) == names
