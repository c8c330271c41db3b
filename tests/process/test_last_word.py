"""The last word in a run folder: written by whoever sees the ending, once a start."""

from __future__ import annotations

import json

import pytest

from megaladder.process import last_word
from megaladder.process.last_word import Ending


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """No other test's run."""
    monkeypatch.setattr(last_word, "_run", last_word._Progress())


def test_the_first_ending_stays(tmp_path) -> None:
    last_word.begin(tmp_path, writer=True)
    running = last_word.read(tmp_path)
    assert running["reason"] == "running" and running["status"] is None
    last_word.note_step(3)
    last_word.note_saved(3)
    last_word.note_step(4)
    last_word.leave(Ending("hang", 3, "rank 1 …", rank=1, host="node7"))
    last_word.leave(Ending("bug", 1, "later"))
    found = last_word.read(tmp_path)
    assert {key: found[key] for key in ("reason", "status", "saved", "step", "saved_step")} == {
        "reason": "hang",
        "status": 3,
        "saved": False,
        "step": 4,
        "saved_step": 3,
    }
    assert (found["rank"], found["host"], found["message"]) == (1, "node7", "rank 1 …")
    assert [path.name for path in tmp_path.iterdir()] == ["last_word.json"]


def test_a_new_start_begins_anew(tmp_path) -> None:
    last_word.begin(tmp_path, writer=True)
    last_word.leave(Ending("finished", 0, ""))
    last_word.begin(tmp_path, writer=True)
    assert last_word.read(tmp_path)["reason"] == "running"


def test_another_start_s_word_is_left_alone(tmp_path, monkeypatch) -> None:
    last_word.begin(tmp_path, writer=True)
    monkeypatch.setenv("MEGALADDER_LAUNCHER_PID", "1")
    last_word.leave(Ending("bug", 1, "of a start that found the folder in use"))
    assert last_word.read(tmp_path)["reason"] == "running"


def test_nothing_is_written_without_a_run_folder(tmp_path) -> None:
    last_word.leave(Ending("input", 2, "no such key"))
    assert last_word.read(tmp_path) is None


def test_what_a_killed_writer_of_one_left_goes(tmp_path) -> None:
    (tmp_path / f".last_word.json.{'0' * 32}.tmp").write_text("{")
    last_word.begin(tmp_path, writer=True)
    assert [path.name for path in tmp_path.iterdir()] == ["last_word.json"]


def test_a_full_disk_does_not_hide_the_ending(tmp_path, monkeypatch) -> None:
    last_word.begin(tmp_path, writer=True)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(last_word.os, "fsync", full)
    last_word.leave(Ending("storage", 3, "no space"))
    assert last_word.read(tmp_path)["reason"] == "running"
    assert [path.name for path in tmp_path.iterdir()] == ["last_word.json"]


def test_what_is_saved_is_read_from_the_folder_for_a_process_that_is_gone(tmp_path) -> None:
    for step in (2, 4, 10):
        (tmp_path / "checkpoints" / f"step_{step}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"step_{step}" / "COMMITTED").touch()
    (tmp_path / "checkpoints" / "step_5").mkdir()
    assert last_word.committed_step(tmp_path, 6) == 4
    assert last_word.committed_step(tmp_path, None) is None


def test_one_line_for_job_scripts(tmp_path, capsys) -> None:
    assert last_word.main(str(tmp_path)) == 2
    last_word.begin(tmp_path, writer=True)
    last_word.note_step(7)
    last_word.leave(Ending("storage", 3, "no space", rank=1, host="node7"))
    assert last_word.main(str(tmp_path)) == 0
    said = capsys.readouterr().out.splitlines()[1]
    assert said.startswith(
        "storage, status 3: the disk failed; step 7 was finished, nothing is saved (rank 1 on"
    )


def test_running_is_killed_for_a_reader_when_its_process_is_gone(tmp_path) -> None:
    (tmp_path / "checkpoints" / "step_4").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_4" / "COMMITTED").touch()
    last_word.begin(tmp_path, writer=True)
    assert last_word.truth(tmp_path) == last_word.read(tmp_path)
    found = last_word.read(tmp_path)
    (tmp_path / "last_word.json").write_text(json.dumps({**found, "started": "1"}))
    truth = last_word.truth(tmp_path)
    assert (truth["reason"], truth["status"], truth["saved_step"]) == ("killed", 3, 4)
    assert "killed without a word, or a power cut; step 4 is saved" in last_word.how_it_ended(truth)
    (tmp_path / "last_word.json").write_text(json.dumps({**found, "host": "node7", "started": "1"}))
    assert last_word.truth(tmp_path)["reason"] == "running"  # cannot be seen from here
