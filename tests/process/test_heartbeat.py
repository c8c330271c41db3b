"""Which rank hangs, from what the ranks said last."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from megaladder.process.heartbeat import FOLDER_VARIABLE, Beat, Heartbeat, read_beats, suspect


def beat(rank: int, turns: int = 5, silent_s: float = 0.5) -> Beat:
    return Beat(
        rank, "node", 100 + rank, "training step 5", turns, 2.0, 30.0, 4, 4, 1, 99, silent_s
    )


def test_the_silent_rank_is_named_first() -> None:
    found = suspect(beat(0), [beat(1, silent_s=25.0), beat(2, turns=3)])
    assert found is not None and found.rank == 1


def test_else_the_one_that_has_come_less_far() -> None:
    found = suspect(beat(0), [beat(1), beat(2, turns=3)])
    assert found is not None and found.rank == 2
    found = suspect(beat(0, turns=2), [beat(1)])
    assert found is not None and found.rank == 0


def test_nobody_when_all_are_at_the_same_place() -> None:
    assert suspect(beat(0), [beat(1), beat(2)]) is None
    assert suspect(beat(0), []) is None


def test_files_go_round_and_age_by_the_file_system_s_clock(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        heart = Heartbeat(tmp_path / "no run folder yet", 30.0)
        heart.turn(f"training step {rank}")
    old = tmp_path / "rank_0.json"
    stamp = (tmp_path / "rank_1.json").stat().st_mtime - 40
    os.utime(old, (stamp, stamp))
    first, second = read_beats(tmp_path)
    assert (first.rank, first.doing, first.turns) == (0, "training step 0", 1)
    assert first.silent_s == pytest.approx(40, abs=1e-3) and second.silent_s == 0
    assert replace(first, silent_s=0.0) == heart.others()[0] or heart.others()[0].rank == 0


def test_a_torn_file_and_a_missing_folder_are_no_error(tmp_path, monkeypatch) -> None:
    (tmp_path / "rank_3.json").write_text('{"rank": 3, "ho')
    assert read_beats(tmp_path) == [] and read_beats(tmp_path / "nowhere") == []
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "nowhere" / "deep"))
    Heartbeat(tmp_path, 30.0).write()
