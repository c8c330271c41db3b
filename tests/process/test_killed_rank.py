"""A killed rank, seen by another one of the same start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from megaladder.errors import StorageError
from megaladder.process import ending, heartbeat, last_word, ranks
from megaladder.process.heartbeat import FOLDER, Beat, Heartbeat, killed_rank_behind
from megaladder.process.ranks import LAUNCHER_PID, host, process_start

GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer.")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The run folder of rank 0 of two, under torchrun."""
    monkeypatch.setattr(last_word, "_run", last_word._Progress())
    monkeypatch.setattr(heartbeat, "_mine", None)
    monkeypatch.delenv(LAUNCHER_PID, raising=False)
    monkeypatch.delenv(heartbeat.FOLDER_VARIABLE, raising=False)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(heartbeat, "GONE_S", 0.0)
    last_word.begin(tmp_path, writer=True)
    Heartbeat(tmp_path, 30.0).write()
    return tmp_path


@pytest.fixture
def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def leave_beat(run, **values: object) -> None:
    known = Beat(1, host(), 1, "training step 6", 9, 0.1, 30.0, 5, 4, 7, os.getppid())
    (run / FOLDER / "rank_1.json").write_text(json.dumps(asdict(replace(known, **values))))


def test_a_killed_rank_is_the_ending_not_the_error_of_the_others(run, dead_pid) -> None:
    leave_beat(run, pid=dead_pid)
    error = killed_rank_behind(GLOO)
    assert error is not None and (error.exit_status, error.reason) == (3, "rank_died")
    assert f"rank 1 was killed (process {dead_pid} on" in str(error) and "fix: " in str(error)
    word = last_word.read(run)
    assert (word["reason"], word["status"], word["rank"]) == ("rank_died", 3, 1)


def test_a_rank_that_ended_by_itself_took_its_file_along(run) -> None:
    leave_beat(run, pid=os.getpid())
    assert killed_rank_behind(ValueError("a bug")) is None
    (run / FOLDER / "rank_1.json").unlink()
    assert killed_rank_behind(ValueError("a bug")) is None
    assert last_word.read(run)["reason"] == "running"


def test_what_another_start_left_means_nothing(run, dead_pid) -> None:
    leave_beat(run, pid=dead_pid, parent=1)
    assert killed_rank_behind(ValueError("a bug")) is None
    heartbeat.forget_earlier(run)
    assert not list((run / FOLDER).iterdir())


def test_a_rank_lost_on_another_machine_is_told_without_its_name(run) -> None:
    error = killed_rank_behind(GLOO)
    assert error is not None and "another rank, on another machine, was killed" in str(error)


def test_who_follows_another_ending_says_nothing(run, dead_pid) -> None:
    leave_beat(run, pid=dead_pid)
    last_word.leave(last_word.Ending("input", 2, "rank 1: train.jsonl:7 …", rank=1))
    error = killed_rank_behind(GLOO)
    assert error is not None and error.told_elsewhere
    assert last_word.read(run)["reason"] == "input"


def test_whoever_finds_a_killed_rank_first_says_it_at_once(
    run, dead_pid, monkeypatch, tmp_path, capfd
) -> None:
    """Under torchrun: the watchdog may leave the word before the error of the collective arrives,
    and what is left of the job may be ended before that error is told."""
    errors = tmp_path / "torchrun" / "attempt_0" / "0"
    errors.mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(errors / "error.json"))
    monkeypatch.setattr(ranks, "LAST_WORD_S", 0.0)
    leave_beat(run, pid=dead_pid)
    heartbeat.leave_killed_word(heartbeat.of_this_rank().lost())
    said = f"megaladder: rank 1 was killed (process {dead_pid} on"
    assert capfd.readouterr().err.startswith(said)
    error = killed_rank_behind(GLOO)
    assert error is not None and ending.of_error(error) == 3
    assert not capfd.readouterr().err


@pytest.mark.parametrize("cause", ["…/__0_0.distcp: its writer hangs", None])
def test_the_rank_with_the_cause_has_the_last_word(run, monkeypatch, cause) -> None:
    """Unless it never comes to it."""

    def meanwhile(*_: object) -> bool:
        if cause is not None:
            last_word.leave(last_word.Ending("storage", 3, cause))
        return False

    monkeypatch.setattr(ending, "may_speak", meanwhile)
    error = StorageError("step_4: another rank could not write its part")
    error.told_elsewhere = True
    assert ending.of_error(error) == 3
    assert last_word.read(run)["message"] == (cause or str(error))


def test_a_rank_in_good_order_leaves_no_file(run) -> None:
    heart = heartbeat.of_this_rank()
    assert (run / FOLDER / "rank_0.json").exists()
    heart.end()
    heart.write()  # of the watchdog's thread, a moment later
    assert not (run / FOLDER / "rank_0.json").exists()


def test_processes_are_told_apart(dead_pid) -> None:
    assert process_start(os.getpid()) is not None
    assert process_start(dead_pid) is None


def test_a_connection_may_break_before_the_process_is_gone(run, monkeypatch) -> None:
    """GONE_S is over at once here: the neighbour whose end is near is waited for all the same."""
    leave_beat(run, pid=4321)
    looks = iter(["started", "started", "started", None])
    monkeypatch.setattr(heartbeat, "process_start", lambda pid: next(looks))
    error = killed_rank_behind(GLOO)
    assert error is not None and "rank 1 was killed (process 4321 on" in str(error)
    assert next(looks, "all used") == "all used"
