"""Runs that are stopped, disturbed or left alone by a rank: status, last word, who is named, and
what the resumed run has.

The moments are fault points, so nothing here waits for a time to pass. The whole table of signals
and moments is `tools/signal_table.py`; here is one cell of each kind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from distributed import environment
from tiny_models import build_tiny_model

from megaladder.process.last_word import read

TWO_RANKS = ("--parallel.tp", "2", "--parallel.ranks", "2")


@dataclass(frozen=True)
class Ended:
    """An ended run."""

    status: int
    error: str
    folder: Path

    @property
    def word(self) -> dict:
        return read(self.folder)

    def kept(self) -> tuple:
        return self.word["reason"], self.word["status"], self.word["saved"], self.word["step"]


class Sft:
    """SFT runs as a person starts them, by command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = [
            {"question": f"What is {a} + {b}?", "answer": f"#### {a + b}"}
            for a in range(10)
            for b in range(10)
        ]
        self.data = folder / "data.jsonl"
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.model = build_tiny_model(folder / "model", hidden=32)

    def command(self, run: Path, *flags: str) -> list[str]:
        return [
            *(sys.executable, "-m", "megaladder", "sft", "--run-dir", str(run)),
            *("--model.path", str(self.model), "--data.path", str(self.data)),
            *("--data.seq-length", "128", "--train.global-batch-size", "8"),
            *("--train.max-steps", "6", "--checkpoint.every", "4"),
            *("--checkpoint.export-hf", "false", *flags),
        ]

    def start(self, run: Path, *flags: str, fault: str = "") -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(run, *flags),
            env=environment() | {"MEGALADDER_FAULT": fault},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, run: Path, *flags: str, fault: str = "") -> Ended:
        child = self.start(run, *flags, fault=fault)
        _, error = child.communicate(timeout=300)
        return Ended(child.returncode, error, run)


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> Sft:
    return Sft(tmp_path_factory.mktemp("stopping"))


def test_a_first_interrupt_saves_and_the_same_command_goes_on(sft, tmp_path) -> None:
    ended = sft.run(tmp_path / "run", fault="update:2:SIGINT@group")
    assert ended.status == 3, ended.error
    assert ended.kept() == ("signal", 3, True, 2)
    assert "Ctrl-C again ends it now" in ended.error and "Traceback" not in ended.error
    ended = sft.run(tmp_path / "run")
    assert ended.status == 0 and ended.word["reason"] == "finished", ended.error


def test_a_signal_while_the_data_are_read_ends_at_once(sft, tmp_path) -> None:
    ended = sft.run(tmp_path / "run", fault="data:1:SIGTERM")
    assert ended.status == 3 and ended.kept() == ("signal_at_start", 3, True, None), ended.error
    lines = [line for line in ended.error.splitlines() if line.startswith("megaladder: ")]
    assert len(lines) == 1 and "stopped by SIGTERM; what was finished before is on disk" in lines[0]


def test_a_disk_that_fills_while_saving_is_told_with_status_3(sft, tmp_path) -> None:
    """A limit on the size of files stands in for a full disk."""
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "-", *sft.command(tmp_path / "run")]
    done = subprocess.run(
        limited, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    assert "the file is too large for the file system" in done.stderr
    assert read(tmp_path / "run")["reason"] == "storage"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["launcher", "group", "rank1"])
def test_a_signal_to_any_of_them_stops_all_ranks(sft, tmp_path, target) -> None:
    ended = sft.run(tmp_path / "run", *TWO_RANKS, fault=f"update:2:SIGTERM@{target}")
    assert ended.status == 3 and ended.kept() == ("signal", 3, True, 2), ended.error
    assert "step 2 is saved" in ended.error


@pytest.mark.slow
def test_a_group_signal_in_the_middle_of_a_save_lets_it_end(sft, tmp_path) -> None:
    ended = sft.run(tmp_path / "run", *TWO_RANKS, fault="writing:1:SIGTERM@group")
    assert ended.status == 3 and ended.word["saved"], ended.error
    assert (tmp_path / "run" / "checkpoints" / f"step_{ended.word['step']}" / "COMMITTED").exists()


@pytest.mark.slow
@pytest.mark.parametrize("background", ["false", "true"])
def test_a_killed_writer_is_told_and_earlier_steps_stay(sft, tmp_path, background) -> None:
    flags = ("--checkpoint.async-save", background)
    ended = sft.run(tmp_path / "run", *flags, fault="write_files:1:SIGKILL")
    assert ended.status == 3 and ended.word["reason"] == "storage", ended.error
    assert "was killed by SIGKILL" in ended.error and "Traceback" not in ended.error


@pytest.mark.slow
def test_a_hung_rank_is_named_and_all_end(sft, tmp_path) -> None:
    """SIGSTOP: a process that does nothing at all, not even die of SIGTERM."""
    flags = (*TWO_RANKS, "--train.timeout-s", "20")
    ended = sft.run(tmp_path / "run", *flags, fault="update:5:SIGSTOP@rank1")
    assert ended.status == 3, ended.error
    assert ended.kept() == ("hang", 3, True, 4) and ended.word["rank"] == 1
    assert "rank 1 of 2 gave no sign of life" in ended.error or "waiting for rank 1" in ended.error
    assert "training step 5" in ended.error


@pytest.mark.slow
def test_a_killed_rank_is_named(sft, tmp_path) -> None:
    ended = sft.run(tmp_path / "run", *TWO_RANKS, fault="update:6:SIGKILL@rank1")
    assert ended.status == 3 and ended.kept() == ("rank_died", 3, False, 5), ended.error
    assert ended.word["rank"] == 1 and ended.word["saved_step"] == 4
    assert "rank 1 of 2 was killed by SIGKILL while training step 6" in ended.error


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_under_torchrun_is_the_last_word(sft, tmp_path, rank) -> None:
    """Nobody but the other rank is there to write it."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "-m", "megaladder"]
    command = [*torchrun, *sft.command(tmp_path / "run", *TWO_RANKS)[3:]]
    env = environment() | {"MEGALADDER_FAULT": f"update:6:SIGKILL@rank{rank}"}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    word = read(tmp_path / "run")
    assert (word["reason"], word["status"], word["rank"]) == ("rank_died", 3, rank), done.stderr
    assert (word["step"], word["saved_step"], word["saved"]) == (5, 4, False)
    assert f"megaladder: rank {rank} was killed (process" in done.stderr


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once_and_tears_nothing(sft, tmp_path) -> None:
    """The rank stands still, so the first Ctrl-C cannot be answered."""
    run = tmp_path / "run"
    child = sft.start(run, *TWO_RANKS, fault="update:6:SIGSTOP@rank1")
    said = []
    for line in child.stderr:
        said.append(line)
        if line.startswith("[rank 1] fault point"):
            child.send_signal(signal.SIGINT)
        if line.startswith("megaladder: SIGINT"):
            # later than SAME_PRESS_S counts, so pressed until it does
            pressing = subprocess.Popen(
                ["bash", "-c", f"while kill -INT {child.pid} 2>/dev/null; do sleep 0.1; done"]
            )
    child.communicate(timeout=240)
    pressing.wait(timeout=240)
    assert child.returncode == 3, said
    word = read(run)
    assert (word["reason"], word["saved"], word["saved_step"]) == ("interrupted", False, 4)
    assert sft.run(run, *TWO_RANKS).status == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_became_read_only_is_told(sft, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o555)
    ended = sft.run(tmp_path / "run")
    assert ended.status == 3 and "permission denied" in ended.error
