"""A conversion that is killed, and the one after it; an export whose disk fails."""

import errno
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from clean_fork import run_in_fork
from tiny_models import build_tiny_model

from megaladder.checkpoint import store
from megaladder.checkpoints_conv import live_model, writer
from megaladder.checkpoints_conv.hf_to_megatron import convert_to_megatron
from megaladder.checkpoints_conv.writer import WriteOptions


def test_what_a_killed_conversion_left_is_no_part_of_the_next(tmp_path):
    """Killed when the marker gets its name: its temporary file is no file that is to stay."""
    model, out = tmp_path / "model", tmp_path / "megatron"

    def convert(kill: bool) -> None:
        if not model.exists():
            build_tiny_model(model)
        real = os.replace

        def replace(old: Path, new: Path) -> None:
            if kill and Path(new).name == store.MARKER:
                os.kill(os.getpid(), signal.SIGKILL)
            real(old, new)

        os.replace = replace
        convert_to_megatron(model, out, force=True)

    assert run_in_fork(convert, True) == -signal.SIGKILL
    left = [path.name for path in out.iterdir() if path.suffix == ".tmp"]
    assert len(left) == 1 and store.MARKER in left[0]
    assert run_in_fork(convert, False) == 0
    store.verify(out)
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_at_the_very_end_of_an_export_is_no_wrong_input(
    tmp_path, monkeypatch, number
):
    """Among several ranks, which wait meanwhile: status 3, and the folder is named."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")

    def fails(folder: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writer, "fsync_folder", fails)
    table, out = SimpleNamespace(hf_shapes={}), tmp_path / "out"
    options = WriteOptions(digests=False)
    error = live_model._write_and_drain(iter(()), table, out, tmp_path / "model", options)
    assert error is not None and error.exit_status == 3
    assert str(error).startswith(f"{out}: ") and "fix: " in str(error)
