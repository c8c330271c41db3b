"""A share of the long batches in seconds: foreign bytes, flipped bytes, power cuts, histories."""

import json
import subprocess
import sys

import pytest
from chaos import stateful, tiny_life
from clean_fork import run_in_fork
from distributed import environment

from megaladder import log
from megaladder.checkpoint import lineage


def batch(module: str, *words: str) -> str:
    """What `python -m chaos.MODULE` says; it has to hold."""
    command = [sys.executable, "-m", f"chaos.{module}", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout


def test_mutated_bytes_are_accepted_or_told():
    """The readers that need no torch."""
    names = ("yaml", "metrics", "journal", "manifest", "trainer", "lineage", "rows.jsonl")
    names += (
        "rows.json",
        "rows.csv",
        "rows.jsonl.gz",
        "import script",
        "last word",
        "samples",
        "results",
        "analysis",
        "adapter_config.json",
        "export's digests",
    )
    readers = [word for name in names for word in ("--reader", name)]
    batch("fuzz", "--inputs", "40", "--seed", "1", *readers)


@pytest.mark.slow
def test_mutated_bytes_of_every_reader():
    batch("fuzz", "--inputs", "500", "--seed", "2")


def test_power_cuts_lose_nothing_and_the_next_start_goes_on():
    names = ("results", "study record", "teacher", "rows")
    words = [word for name in names for word in ("--workload", name)]
    assert "none lost something" in batch("power_cuts", "--states", "200", *words)


@pytest.mark.slow
def test_power_cuts_of_every_program():
    assert "none lost something" in batch("power_cuts", "--states", "3000")


def test_histories_of_a_run_folder(tmp_path):
    said = tmp_path / "said.txt"
    assert run_in_fork(stateful.explore, 12, 6, stdout=said, stderr=said) == 0, said.read_text()


@pytest.mark.parametrize(
    ("place", "name", "wrong"),
    [
        (lineage, "set_aside", lambda *_, **__: None),
        (log, "drop_rows_after", lambda *_: 0),
        (tiny_life.TinyCheckpoints, "damage", lambda *_: None),
    ],
    ids=["nothing is set aside", "rows of lost steps stay", "damage is not seen"],
)
@pytest.mark.slow
def test_histories_find_what_is_broken(tmp_path, place, name, wrong):
    def check() -> None:
        setattr(place, name, wrong)
        stateful.explore(100, 8, shrink=False)

    said = tmp_path / "said.txt"
    assert run_in_fork(check, stdout=said, stderr=said) == 1
    assert "AssertionError" in said.read_text(), said.read_text()[-2000:]


@pytest.mark.slow
def test_flipped_bytes_are_told():
    assert "100.000%" in batch("flipped", "--positions", "25")


@pytest.mark.slow
def test_a_short_soak(tmp_path):
    """Too short for slopes: statuses, rows and what is left behind count."""
    flags = ["--minutes", "0.5", "--faults", "4", "--every", "8", "--pause", "0.2"]
    command = [sys.executable, "-m", "chaos.soak", *flags, "--out", str(tmp_path / "soak.json")]
    subprocess.run(command, env=environment(), capture_output=True, check=False)
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["broken"] == [] and found["steps"] <= found["quiet_steps"]
    assert found["temporary_left"] == [] and sum(found["faults"].values()) >= 4
