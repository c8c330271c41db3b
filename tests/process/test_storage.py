"""A failing disk becomes one message with path, meaning and fix, and status 3; other errors stay
what they are."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from pathlib import Path

import pytest

from megaladder.curate.rows import RowWriter
from megaladder.errors import ConfigError, StorageError
from megaladder.process.storage import (
    MEANINGS,
    fails_by_itself,
    naming,
    open_temporary,
    storage_error,
)
from megaladder.run_dir import JsonlFile, atomic_write


def test_a_file_that_was_not_complete_is_called_by_its_own_name(tmp_path) -> None:
    temporary, file = open_temporary(tmp_path / "rows.jsonl")
    file.close()
    error = storage_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary)))
    assert str(error).startswith(f"{tmp_path / 'rows.jsonl'}: no space left")


@pytest.mark.parametrize("number", sorted(MEANINGS))
def test_every_number_has_path_meaning_and_fix(number, tmp_path) -> None:
    path = tmp_path / "step_4" / "shard"
    error = storage_error(OSError(number, os.strerror(number), str(path)))
    assert isinstance(error, StorageError) and error.exit_status == 3 and error.reason == "storage"
    what, fix = MEANINGS[number]
    assert str(error).startswith(f"{path}: {what} (") and f"fix: {fix}" in str(error)
    assert "bytes free" in str(error) and "start the same command again" in str(error)


def test_the_usual_numbers_are_known() -> None:
    assert {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE} <= set(
        MEANINGS
    )


def test_a_cause_is_found_behind_other_errors(tmp_path) -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as cause:
            raise RuntimeError("unexpected pos 704 vs 598") from cause
    except RuntimeError as error:
        found = storage_error(error, tmp_path)
    assert "no space left on the disk" in str(found) and str(tmp_path) in str(found)


def test_torch_words_for_a_short_write_are_known(tmp_path) -> None:
    found = storage_error(RuntimeError("unexpected pos 704 vs 598"), tmp_path)
    assert found is not None and "could not be written completely" in str(found)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "no such file", "x"),
        RuntimeError("shapes differ"),
        ConfigError("unexpected pos"),
        OSError("no number"),
    ],
)
def test_other_errors_are_somebody_else_s(error) -> None:
    assert storage_error(error) is None


def test_a_write_that_fails_names_its_file(tmp_path) -> None:
    """Also when closing the file fails after it, without a name."""
    path = tmp_path / "metrics.jsonl"
    try:
        try:
            with naming(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        words = storage_error(error)
    assert words is not None and str(words).startswith(f"{path}: no space left on the disk (")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_a_file_of_rows_is_told_with_its_path(tmp_path) -> None:
    (tmp_path / "journal.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError) as raised:
        JsonlFile(tmp_path / "journal.jsonl").append({"a": 1})
    assert raised.value.filename == str(tmp_path / "journal.jsonl")


def test_what_a_killed_writer_left_goes_and_a_living_one_s_stays(tmp_path) -> None:
    target = tmp_path / "rows.jsonl"
    killed, file = open_temporary(target)
    file.close()  # as the kernel does it for a killed process
    other, living = open_temporary(target)
    assert not killed.exists() and other.exists()
    mine, file = open_temporary(target)
    assert other.exists() and mine.exists()
    strange = tmp_path / ".rows.jsonl.notes.tmp"
    strange.touch()
    for opened in (living, file):
        opened.close()
    atomic_write(target, "row\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [strange.name, target.name]


def test_a_file_that_torch_cannot_open_is_a_disk_s_fault(tmp_path) -> None:
    """Its C++ says so with the words of the system, not with its number."""
    failed = "[enforce fail at inline_container.cc:747] . open file failed with strerror: "
    for what in (failed + "Input/output error", "basic_ios::clear: iostream error"):
        words = storage_error(RuntimeError(what), tmp_path)
        assert words is not None and words.exit_status == 3
        assert str(words).startswith(f"{tmp_path}: ") and what in str(words)


def test_files_of_every_step_leave_nothing_in_memory(tmp_path) -> None:
    """A pattern for each name would stay in the caches of `re`, `fnmatch` and `pathlib`."""
    before = len(re._cache), fnmatch._compile_pattern.cache_info().currsize
    for step in range(20):
        atomic_write(tmp_path / f"step_{step}.jsonl", "row\n")
    assert (len(re._cache), fnmatch._compile_pattern.cache_info().currsize) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_is_full_at_the_end_leaves_no_file(tmp_path) -> None:
    """Closing a file whose write failed fails once more."""
    with pytest.raises(OSError, match="No space left"), RowWriter(tmp_path / "rows.jsonl") as rows:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, rows._file.fileno())
        os.close(full)
        rows.write({"a": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_is_no_wrong_choice_of_a_place() -> None:
    assert fails_by_itself(OSError(errno.ENOSPC, "")) and fails_by_itself(OSError(errno.EIO, ""))
    assert not fails_by_itself(PermissionError(errno.EACCES, ""))
    assert not fails_by_itself(FileNotFoundError(errno.ENOENT, ""))
