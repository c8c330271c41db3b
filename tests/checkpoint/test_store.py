"""Commit marker, integrity, retention: plain files, no torch."""

import json
import shutil

import pytest

from megaladder.checkpoint import store
from megaladder.errors import CheckpointError, StorageError


def _save(root, step, held_out_loss=None):
    path = store.step_dir(root, step)
    store.prepare_folder(path, 1000)
    (path / "__0_0.distcp").write_bytes(bytes(range(256)) * step)
    (path / "hf").mkdir()
    (path / "hf" / "config.json").write_text("{}")
    store.write_json(path / store.TRAINER, {"step": step, "held_out_loss": held_out_loss})
    store.commit(path)
    return path


def test_only_committed_folders_count(tmp_path):
    _save(tmp_path, 10)
    newer = _save(tmp_path, 20)
    (newer / store.MARKER).unlink()
    assert store.committed_steps(tmp_path) == [10]
    assert store.remove_uncommitted(tmp_path) == ["step_20"]
    assert not newer.exists() and store.committed_steps(tmp_path) == [10]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("name", ["__0_0.distcp", "hf/config.json", store.TRAINER, store.INTEGRITY])
def test_every_damaged_file_is_named_with_the_last_good_step(tmp_path, name, damage):
    _save(tmp_path, 10)
    path = _save(tmp_path, 20)
    file = path / name
    content = file.read_bytes()
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes(
            content[:-1] if damage == "truncate" else bytes([content[0] ^ 1]) + content[1:]
        )
    with pytest.raises(CheckpointError) as caught:
        store.verify(path)
    assert name in str(
        caught.value
    ) and f"--checkpoint.resume {store.step_dir(tmp_path, 10)}" in str(caught.value)


def test_notes_beside_a_conversion_are_no_part_of_it(tmp_path):
    """Of a folder that is converted again: its note of the first time changes after the commit."""
    path = store.step_dir(tmp_path, 1)
    store.prepare_folder(path, 1000)
    (path / ".metadata").write_text("{}")
    note = path / ".finished" / "settings.json"
    note.parent.mkdir()
    note.write_text("first")
    store.commit(path)
    note.write_text("second")
    store.verify(path)
    assert set(json.loads((path / store.INTEGRITY).read_text())) == {".metadata"}


def test_ranks_share_the_hashing_and_together_see_every_file(tmp_path):
    path = _save(tmp_path, 10)
    (path / store.TRAINER).write_text("x" * len((path / store.TRAINER).read_text()))
    failures = 0
    for part in range(3):
        try:
            store.verify(path, part=part, parts=3)
        except CheckpointError:
            failures += 1
    assert failures == 1


def test_retention_keeps_last_listed_and_best(tmp_path):
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, None), (50, 4.0), (60, 5.0)):
        _save(tmp_path, step, loss)
    removed = store.apply_retention(
        tmp_path, store.Retention(keep_last=1, keep_steps=(10, 99), keep_best=2)
    )
    assert removed == [40, 50]
    assert store.committed_steps(tmp_path) == [10, 20, 30, 60]


@pytest.mark.parametrize("damage", ["", "[]", '{"step": 10, "held_out_loss": "low"}'])
def test_a_damaged_older_step_ends_no_run_that_saves(tmp_path, damage):
    """It has no loss to be kept for; the newest are kept as ever."""
    for step, loss in ((10, 1.0), (20, 2.0), (30, 3.0), (40, 4.0)):
        _save(tmp_path, step, loss)
    (store.step_dir(tmp_path, 10) / store.TRAINER).write_text(damage)
    kept = store.Retention(keep_last=2, keep_best=1)
    assert store.apply_retention(tmp_path, kept) == [10]
    assert store.committed_steps(tmp_path) == [20, 30, 40]


def test_a_full_disk_is_told_before_writing_with_both_numbers(tmp_path, monkeypatch):
    _save(tmp_path, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 1199))
    with pytest.raises(StorageError, match=r"1,200 bytes.*1,199 free"):
        store.prepare_folder(store.step_dir(tmp_path, 20), 1000)
    assert store.committed_steps(tmp_path) == [10] and not store.step_dir(tmp_path, 20).exists()


def test_marker_is_the_last_file_written(tmp_path):
    path = _save(tmp_path, 10)
    marker = json.loads((path / store.MARKER).read_text())
    hashed = [
        file
        for file in path.rglob("*")
        if file.is_file() and file.name not in (store.MARKER, store.INTEGRITY)
    ]
    assert marker["files"] == len(hashed) == 3
    assert marker["bytes"] == sum(file.stat().st_size for file in hashed)
