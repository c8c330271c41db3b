"""A conversion that is killed, and the one after it; an export whose disk fails."""

import errno
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clean_fork import run_in_fork
from tiny_models import build_tiny_model

from megaladder.checkpoint import store
from megaladder.checkpoints_conv import live_model, writer
from megaladder.checkpoints_conv.adapters import peft_folder
from megaladder.checkpoints_conv.adapters.run import adapter_folder
from megaladder.checkpoints_conv.hf_to_megatron import convert_to_megatron
from megaladder.checkpoints_conv.writer import HFWriter, TensorSpec, WriteOptions
from megaladder.errors import StorageError
from megaladder.run_dir import RunDir
from megaladder.train.life.run_life import RunLife


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


@pytest.mark.parametrize("lora", [False, True])
def test_an_export_that_ended_before_its_digests_is_made_again(tmp_path, monkeypatch, lora):
    """Its weights and its configuration are there, so it looks complete to others; the run that
    wrote it does not take it for exported."""
    run = RunDir(tmp_path / "run", writer=False)
    folder = adapter_folder(run, 2) if lora else run.hf_folder(2)
    section = SimpleNamespace(enabled=lora, merged_export=False)
    life = SimpleNamespace(_run=run, _config=SimpleNamespace(lora=section))
    (tmp_path / "config.json").write_text("{}")

    def export() -> None:
        weights = {"w": torch.zeros(2)}
        if lora:
            return peft_folder.write_peft(folder, weights, {"r": 1})
        specs = [TensorSpec("w", (2,), torch.float32)]
        with HFWriter(folder, specs, WriteOptions(force=True)) as written:
            written.write("w", weights["w"])
            written.commit(tmp_path)

    def fails(*given: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(peft_folder if lora else writer, "write_sums", fails)
        export()
    assert not RunLife._is_exported(life, 2)
    export()
    assert RunLife._is_exported(life, 2)
    assert not (folder / ".incomplete").exists()
