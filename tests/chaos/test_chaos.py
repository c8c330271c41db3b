"""A share of `make chaos` in seconds, and that the harness itself finds what it is there to find."""

import os
import socket
import subprocess
import sys

import pytest
from chaos import power_cut, run
from chaos.calls import Call
from chaos.kernel import notify
from chaos.kernel.faults import Fault
from chaos.programs.forked import forked_programs
from chaos.programs.nursery import Nursery
from distributed import environment

needs_notify = pytest.mark.skipif(
    not notify.supported(), reason="no table of system calls for this architecture"
)


def chaos(*words: str, status: int = 0) -> str:
    """What `make chaos` says, in a process of its own: forks of one that has imported little are
    cheap."""
    command = [sys.executable, "-m", "chaos.run", "--seed", "0", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr[-2000:]
    return done.stdout


@needs_notify
def test_faults_and_power_cuts_lose_nothing():
    few = ("--schedules", "10", "--per-prefix", "1", "--processes", "1")
    names = ("training", "evaluation", "rewinding")
    assert "all held" in chaos(*few, *(word for name in names for word in ("--workload", name)))


@pytest.mark.slow
def test_faults_and_power_cuts_lose_no_tensor():
    chaos("--schedules", "150", "--workload", "export", "--workload", "conversion")


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


@needs_notify
def test_a_promise_that_is_broken_is_found_and_made_short():
    said = chaos("--replay", "careless", "0:SIGKILL,90:EIO", "1:torn", "99:EIO", status=1)
    assert "lost" in said
    said = chaos("--workload", "careless", "--schedules", "20", "--per-prefix", "5", status=1)
    assert ": lost; lost ['open state', 'write state']" in said and "did not hold" in said
    assert "--replay careless 1:torn\n" in said or "--replay careless 1:SIGKILL\n" in said


@needs_notify
def test_what_outlives_its_start_is_named():
    assert "sleep 1000" in chaos("--replay", "leaving", "0:SIGSTOP", status=1)


@needs_notify
def test_shared_memory_that_outlives_its_run_is_named():
    assert "shared memory are left: ['megaladder-weights'" in chaos(
        "--replay", "hoarding", "0:SIGSTOP", status=1
    )


@needs_notify
def test_what_is_asked_of_the_kernel_is_no_wire():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as asking:
        asking.bind((0, 0))
        assert notify.to_kernel(os.readlink(f"/proc/self/fd/{asking.fileno()}"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not notify.to_kernel(os.readlink(f"/proc/self/fd/{ours.fileno()}"))


@pytest.mark.parametrize(
    "text", ["12:ENOSPC", "0:SIGTERM@all", "w3:garble", "7:clock+", "w1:SIGSTOP"]
)
def test_a_fault_is_written_as_it_is_read(text):
    assert str(Fault.parse(text)) == text


def test_a_forked_program_is_in_its_session_once_it_is_started(tmp_path):
    """As with the real Popen: whoever kills its group at once has to meet it."""
    (tmp_path / "nothing.py").write_text("")
    for _ in range(20):
        with forked_programs():
            words = [sys.executable, str(tmp_path / "nothing.py")]
            started = subprocess.Popen(words, start_new_session=True)
        assert os.getpgid(started.pid) == started.pid
        assert started.wait() == 0


def test_a_program_of_the_nursery_is_what_was_asked_for(tmp_path, monkeypatch):
    """A child of the one that asks, in a session and an environment of its own, as the nursery was
    when it came about."""
    said = "import os, sys; print(os.getppid(), os.getsid(0) == os.getpid(), os.environ)"
    (tmp_path / "nursed.py").write_text(f"{said}; sys.exit('late' in sys.modules)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with Nursery() as nursery, forked_programs(nursery.popen("nursed")):
        monkeypatch.setitem(sys.modules, "late", os)
        started = subprocess.Popen(
            [sys.executable, "-m", "nursed"],
            start_new_session=True,
            env={"OWN": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        found, _ = started.communicate()
    assert found == f"{os.getpid()} True environ({{'OWN': '1'}})\n"
    assert started.returncode == 0


@pytest.mark.slow
@needs_notify
def test_faults_beside_the_real_vllm_lose_nothing():
    pytest.importorskip("vllm", reason="vLLM is not installed")
    chaos("--schedules", "4", "--workload", "eval-vllm", "--workload", "grpo-vllm")


def test_programs_share_the_time_that_is_left(monkeypatch):
    """By weight, among those that wait; what a program took too long is taken from the others, and
    none is planned beyond the end."""
    monkeypatch.setattr(run, "weight_of", {"dear": 3.0, "cheap": 1.0}.__getitem__)
    monkeypatch.setattr(run.time, "monotonic", lambda: 100.0)
    assert run.share_ends(["dear", "cheap"], 180.0, [], free=2) == 180.0
    assert run.share_ends(["cheap", "cheap"], 180.0, [], free=1) == 140.0
    # 80 s of a free process, and 40 s of the one that works until 140
    assert run.share_ends(["cheap", "dear"], 180.0, [140.0], free=1) == 130.0
    assert run.share_ends(["dear"], 90.0, [140.0], free=1) == 90.0  # late: its first, no more
