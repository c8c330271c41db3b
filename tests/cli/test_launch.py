"""The local launcher with real processes: environment, output, exit status, signals, and no rank
left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import is_alive, pause, wait_until

from megaladder.process.launch import available_cores, rank_environment
from megaladder.process.ranks import under_launcher
from megaladder.process.signals import SAME_PRESS_S

WORKER = Path(__file__).with_name("rank_worker.py")
LAUNCH = (
    "import sys; from megaladder.process.launch import launch_local;"
    " sys.exit(launch_local(int(sys.argv[1]), [sys.executable, *sys.argv[2:]]))"
)


def start(num_ranks: int, mode: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LAUNCH, str(num_ranks), str(WORKER), mode, str(folder)]
    variables = {**{k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}, **environment}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables
    )


def wait_for_ranks(folder: Path, count: int) -> list[dict[str, str]]:
    wait_until(lambda: len(list(folder.glob("rank_*.json"))) >= count, "start of the ranks")
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(count)]


def assert_gone(ranks: list[dict[str, str]]) -> None:
    wait_until(lambda: not any(is_alive(rank["pid"]) for rank in ranks), "end of every rank")


def test_environment_and_output(tmp_path) -> None:
    launcher = start(3, "ok", tmp_path)
    out, err = launcher.communicate(timeout=240)
    assert launcher.returncode == 0
    assert out == "hello from 0\n"
    assert sorted(err.splitlines()) == ["[rank 1] hello from 1", "[rank 2] hello from 2"]
    ranks = wait_for_ranks(tmp_path, 3)
    assert [
        (rank["RANK"], rank["LOCAL_RANK"], rank["WORLD_SIZE"], rank["LOCAL_WORLD_SIZE"])
        for rank in ranks
    ] == [(str(i), str(i), "3", "3") for i in range(3)]
    assert {rank["MASTER_ADDR"] for rank in ranks} == {"127.0.0.1"}
    assert len({rank["MASTER_PORT"] for rank in ranks}) == 1
    assert {rank["OMP_NUM_THREADS"] for rank in ranks} == {str(max(1, available_cores() // 3))}
    assert {rank["USE_HUB_KERNELS"] for rank in ranks} == {"NO"}


def test_the_users_thread_count_wins() -> None:
    assert rank_environment(0, 2, 1, {"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"
    assert rank_environment(0, 10_000, 1, {})["OMP_NUM_THREADS"] == "1"
    assert not any(
        name.startswith("TORCHELASTIC")
        for name in rank_environment(0, 2, 1, {"TORCHELASTIC_USE_AGENT_STORE": "True"})
    )
    assert under_launcher(rank_environment(0, 2, 1, {}))
    assert not under_launcher({"WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("mode", "status", "how"),
    [("exit2", 2, "exited with status 2"), ("SIGKILL", 3, "was killed by SIGKILL")],
)
def test_a_failed_rank_ends_the_others_soon_and_is_named(
    tmp_path, mode: str, status: int, how: str
) -> None:
    launcher = start(3, mode, tmp_path)
    ranks = wait_for_ranks(tmp_path, 3)
    _, err = launcher.communicate(timeout=240)
    assert launcher.returncode == status
    assert f"megaladder: rank 1 of 3 {how}; the other 2 ranks were stopped (2 by force)" in err
    assert_gone(ranks)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_every_rank_and_status_3_comes_back(tmp_path, number: signal.Signals) -> None:
    launcher = start(2, "sleep", tmp_path)
    wait_for_ranks(tmp_path, 2)
    launcher.send_signal(number)
    _, err = launcher.communicate(timeout=240)
    assert launcher.returncode == 3
    assert [(tmp_path / f"signal_{rank}").read_text() for rank in (0, 1)] == [
        number.name,
        number.name,
    ]
    assert "start the same command again" in err


def test_ranks_die_with_a_killed_launcher(tmp_path) -> None:
    launcher = start(2, "sleep", tmp_path)
    ranks = wait_for_ranks(tmp_path, 2)
    launcher.kill()
    launcher.wait()
    assert_gone(ranks)
    launcher.stdout.close()
    launcher.stderr.close()


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("all fail", "megaladder: from rank 0"),
        ("rank 1 fails", "megaladder: from rank 1"),
        ("rank 1 has the cause", "megaladder: from rank 1"),
    ],
)
def test_one_rank_speaks_for_all_and_leaves_the_status(tmp_path, mode: str, said: str) -> None:
    """Ranks that fail together, one that fails alone, and ranks that only follow another one's
    error."""
    launcher = start(3, mode, tmp_path, MEGALADDER_STATUS_FILE=str(tmp_path / "status"))
    _, err = launcher.communicate(timeout=240)
    assert launcher.returncode == 2
    assert [
        line.removeprefix("[rank 1] ") for line in err.splitlines() if "megaladder: from" in line
    ] == [said]
    assert (tmp_path / "status").read_text() == "2\n"


def test_without_a_launcher_everybody_speaks(monkeypatch, tmp_path) -> None:
    from megaladder.process.ranks import may_speak

    monkeypatch.setenv("MEGALADDER_STATUS_FILE", str(tmp_path / "status"))
    assert may_speak(2) and may_speak(2) and not (tmp_path / "status").exists()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MEGALADDER_STATUS_FILE", str(tmp_path / "no folder" / "status"))
    assert may_speak(3) and may_speak(3)  # nowhere to write: twice is better than never


def test_a_late_signal_does_not_undo_a_finished_rank(tmp_path) -> None:
    """SIGUSR1 while Python ends: status 3 stays 3."""
    code = (
        "import atexit, os, signal, sys; from megaladder.process.signals import ignore;"
        " signal.signal(signal.SIGUSR1, lambda *_: None); ignore(); atexit.register(os.kill,"
        " os.getpid(), signal.SIGUSR1);signal.raise_signal(signal.SIGUSR1); sys.exit(3)"
    )
    variables = {**os.environ, "RANK": "0", "WORLD_SIZE": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=variables, check=False).returncode == 3


def test_a_second_interrupt_kills(tmp_path) -> None:
    launcher = start(2, "sleep", tmp_path)
    ranks = wait_for_ranks(tmp_path, 2)
    for pid in [rank["pid"] for rank in ranks]:
        os.kill(pid, signal.SIGSTOP)  # a rank that does not react
    launcher.send_signal(signal.SIGINT)
    assert launcher.stderr is not None
    assert any("SIGINT" in line for line in launcher.stderr)  # the first press is taken
    pause(2 * SAME_PRESS_S)  # at least: what comes sooner counts as the same press
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=240)
    assert launcher.returncode == 3
    assert_gone(ranks)
