"""The processes that write a checkpoint: killed, failing, asked to stop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from clean_fork import run_in_fork

STOPPED = 3


def save(
    folder: Path, action: str | None, stopped_s: float = 10.0, background: bool = False
) -> int:
    """Two tensors through megatron-core's own save, by our writers; 3 for a StorageError.

    background: the action meets the process that saves, not its writers."""
    from megaladder.process import ranks

    ranks.STOPPED_S = stopped_s
    if action:
        place = "writing" if background else "write_files"
        os.environ["MEGALADDER_FAULT"] = f"{place}:1:{action}"
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

    from megaladder import parallel
    from megaladder.checkpoint import writers
    from megaladder.errors import StorageError

    state = {
        name: ShardedTensor.from_rank_offsets(name, torch.full((4, 8), 7.0)) for name in ("a", "b")
    }
    with parallel.session(parallel.Layout()):
        writers.install()
        try:
            with writers.failures_in_words(folder):
                queue = AsyncCallsQueue(persistent=False)
                request = dist_checkpointing.save(state, str(folder), async_sharded_save=background)
                if background:
                    queue.schedule_async_request(request)
                writers.SaverWatch().wait(queue)
                queue.maybe_finalize_async_calls(blocking=True)
        except StorageError as error:
            (folder.parent / "said").write_text(str(error))
            return STOPPED
        again = {
            name: ShardedTensor.from_rank_offsets(name, torch.zeros(4, 8)) for name in ("a", "b")
        }
        loaded = dist_checkpointing.load(again, str(folder))
    return 0 if all(bool((value == 7).all()) for value in loaded.values()) else 1


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "step_1"
    path.mkdir()
    return path


def test_a_killed_writer_is_told_at_once(folder) -> None:
    assert run_in_fork(save, folder, "SIGKILL") == STOPPED
    said = (folder.parent / "said").read_text()
    assert said.startswith(f"{folder}/__0_") and "was killed by SIGKILL" in said
    assert "was committed before is untouched" in said and "dmesg" in said


@pytest.mark.parametrize("action", [None, "SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_writer_finishes_whatever_signal_asks_for_a_stop(folder, action) -> None:
    assert run_in_fork(save, folder, action) == 0


def test_a_writer_that_raises_is_told(folder) -> None:
    assert run_in_fork(save, folder, "RAISE") == STOPPED
    assert "ended with 1" in (folder.parent / "said").read_text()


@pytest.mark.parametrize("end", [7, 0], ids=["half", "garbled"])
def test_a_writer_without_a_whole_answer_is_told(folder, end) -> None:
    """What it says is cut in the middle, or is other bytes; it has ended well."""
    assert run_in_fork(_save_by_one_that_says, folder, end) == STOPPED
    said = (folder.parent / "said").read_text()
    assert said.startswith(f"{folder}/__0_")
    assert "the process that wrote it ended with 0, without a whole answer" in said


def _save_by_one_that_says(folder: Path, end: int) -> int:
    """Only so many bytes of its answer, or others instead."""
    from multiprocessing.connection import Connection

    def say(self: Connection, answer: object) -> None:
        raw = b"\x00\x00\x00\x40" + bytes(64)
        os.write(self.fileno(), raw[:end] if end else raw)

    Connection.send = say  # type: ignore[method-assign]
    return save(folder, None)


def test_a_writer_that_stands_still_is_named(folder) -> None:
    """Nobody waits for the watchdog: the kernel says that it is stopped."""
    assert run_in_fork(save, folder, "SIGSTOP", 0.5) == STOPPED
    said = (folder.parent / "said").read_text()
    assert said.startswith(f"{folder}/__0_") and "its writer hangs: process" in said
    assert "has been stopped for 0.5 s (SIGSTOP" in said


def test_a_background_save_that_stands_still_is_named(folder) -> None:
    assert run_in_fork(save, folder, "SIGSTOP", 0.5, True) == STOPPED
    said = (folder.parent / "said").read_text()
    assert said.startswith("the process that saves in the background hangs: process")
    assert "has been stopped for 0.5 s (SIGSTOP" in said
