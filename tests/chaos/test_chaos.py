"""A share of `make chaos` in seconds: every call of the small workloads fails once in some way, and
the power goes after every call; and the harness itself finds what it is there to find."""

import random
import subprocess
import sys

import pytest
from chaos import power_cut, run, schedules
from chaos.calls import Call, Fault
from clean_fork import run_in_fork
from distributed import environment


def test_faults_and_power_cuts_lose_nothing():
    """In a process of its own: forks of one that has imported little are cheap."""
    flags = ["--quick", "--minutes", "0", "--per-prefix", "2"]
    plain = [
        flag for name in ("training", "evaluation", "rewinding") for flag in ("--workload", name)
    ]
    command = [sys.executable, "-m", "chaos.run", *flags, *plain]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "all held" in done.stdout


@pytest.mark.slow
def test_faults_and_power_cuts_lose_no_tensor():
    flags = ["--quick", "--minutes", "0", "--workload", "export", "--workload", "conversion"]
    command = [sys.executable, "-m", "chaos.run", *flags]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_a_rename_without_its_folder_synced_can_be_lost():
    calls = [
        Call("mkdir", "/r/a"),
        Call("fsync", "/r"),
        Call("open", "/r/a/t", True),
        Call("write", "/r/a/t", (0, b"new")),
        Call("fsync", "/r/a/t", b"new"),
        Call("rename", "/r/a/t", "/r/a/f"),
    ]
    trees = [state.tree for state in power_cut.states(calls, "/r", per_prefix=50)]
    assert {"/r": None, "/r/a": None} in trees  # lost with its name
    assert {"/r": None, "/r/a": None, "/r/a/f": b"new"} in trees
    assert {"/r": None, "/r/a": None, "/r/a/t": b""} in trees  # before the sync
    synced = [*calls, Call("fsync", "/r/a"), Call("mark", "promised")]
    after = [s.tree for s in power_cut.states(synced, "/r", 50) if s.marks]
    assert after == [{"/r": None, "/r/a": None, "/r/a/f": b"new"}]


def test_a_write_behind_our_back_counts_from_its_sync():
    calls = [Call("open", "/r/x", True), Call("fsync", "/r/x", b"from C++"), Call("fsync", "/r")]
    whole = power_cut.with_unseen([Call("mkdir", "/r/d"), *calls])
    last = list(power_cut.states(whole, "/r", 50))[-1]
    assert last.tree["/r/x"] == b"from C++"


class Careless:
    """Writes over its only copy, and promises."""

    name = "careless"

    def run(self, folder, mark) -> None:
        with (folder / "state").open("w") as file:
            file.write("1" * 100)
        mark("written")

    def result(self, folder):
        return (folder / "state").read_text()

    def broken_promise(self, folder, marks):
        file = folder / "state"
        lost = "written" in marks and not (file.exists() and file.read_text() == "1" * 100)
        return "lost" if lost else None


def test_the_harness_finds_and_shrinks(tmp_path):
    def check() -> None:
        bench = schedules.Bench(Careless(), tmp_path)
        count, lost = run.power_cuts(bench, per_prefix=10)
        assert 0 < len(lost) <= count
        bench.workload.run = lambda folder, mark: (folder / "other").write_text(
            "1" if (folder / "state").exists() else (folder / "state").write_text("1" * 100) * "0"
        )
        starts = ((Fault(90, "EIO"), Fault(1, "SIGKILL")), (Fault(99, "EIO"),))
        assert bench.broken(((Fault(1, "torn"),),)) is not None
        drawn = schedules.drawn(5, random.Random(0))
        assert 2 <= len(drawn) <= 3
        assert bench.shrunk((*starts, (Fault(1, "torn"),))) in ((), ((Fault(1, "torn"),),))

    said = tmp_path / "said.txt"
    assert run_in_fork(check, stderr=said) == 0, said.read_text()[-3000:]


def test_mutated_bytes_are_accepted_or_told():
    """A taste of `python -m chaos.fuzz`, for the readers that need no torch."""
    names = ("yaml", "metrics", "journal", "manifest", "trainer", "lineage", "rows", "rows.csv")
    command = [sys.executable, "-m", "chaos.fuzz", "--inputs", "40", "--seed", "1"]
    command += [word for name in names for word in ("--reader", name)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
