"""The pool: order, kills, user functions and their bugs, what a worker may not do, what it leaves
behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from rewards.grader_corpus import children_of
from waiting import is_alive, pause, wait_until

from megaladder.errors import ConfigError, DataError, RewardError
from megaladder.rewards import sandbox
from megaladder.rewards.grade import grade
from megaladder.rewards.worker import FunctionReward, GradePool, GradeTask
from megaladder.types import GradeReason

FUNCTIONS = """
import ctypes, math, os, socket, subprocess, sys, threading, time

def length(response, gold, metadata):
    print("noise " * 100_000)                     # goes nowhere
    return len(response) + metadata.get("bonus", 0)

def everything(**task):
    assert sorted(task) == ["completion", "gold", "id", "kind", "metadata", "problem", "response"]
    return float(task["problem"]["id"] == task["id"])

def misbehave(response):
    if response == "loop":
        while True: pass
    if response == "sleep":
        time.sleep(1000)
    if response == "c loop":
        9 ** 9 ** 9
    if response == "exit":
        os._exit(3)
    if response == "segfault":
        ctypes.string_at(0)
    if response == "memory":
        return len(bytearray(2 << 30)) * 0.0
    if response == "fork bomb":
        while True:
            try: os.fork()
            except OSError: pass
    return 1.0

def bug(response):
    return {"raise": lambda: 1 / 0, "nan": lambda: math.nan, "none": lambda: None,
            "complex": lambda: 1j, "text": lambda: "1.0",
            "inf": lambda: math.inf, "list": lambda: [1.0], "exit": lambda: sys.exit(0),
            "huge": lambda: 10 ** 10_000,
            "absurd": lambda: 1e308}[response]()

def environment(response):
    threads = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}
    return float(dict(os.environ).keys() <= {*threads, "LC_CTYPE"})

def start_process(response):
    try:
        subprocess.run(["/bin/true"])
    except OSError as error:
        return float(error.errno)
    return 0.0

def threads(response):
    found = []
    thread = threading.Thread(target=lambda: found.append(1)); thread.start(); thread.join()
    return len(found)

def wants_more(response, weather):
    return 0.0
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    path = tmp_path_factory.mktemp("user") / "my_rewards.py"
    path.write_text(FUNCTIONS)
    return str(path)


def _tasks(*responses: str) -> list[GradeTask]:
    return [GradeTask(f"sample {text}", text, "5") for text in responses]


def test_verdicts_are_those_of_grade_in_the_order_of_the_tasks():
    tasks = [GradeTask(str(i), f"\\boxed{{{i % 7}}}", str(i % 5)) for i in range(500)]
    with GradePool(num_workers=2) as pool:
        graded = pool.grade_many(tasks)
        assert pool.grade_many([]) == []
    assert graded == [grade(task.response, task.gold, task.kind) for task in tasks]
    assert pool.counts.total() == 500 and pool.failures == []


def test_a_pool_is_reusable_after_close_and_leaves_no_process():
    before = children_of(os.getpid())
    pool = GradePool(num_workers=2)
    for _ in range(2):
        assert all(found.correct for found in pool.grade_many(_tasks("\\boxed{5}", "5", "#### 5")))
        assert len(children_of(os.getpid()) - before) >= 1
        pool.close()
        assert children_of(os.getpid()) == before


@pytest.mark.parametrize(
    "task", [GradeTask("q", "5", ""), GradeTask("q", "5", "5", "maths"), GradeTask("q", None, "5")]
)
def test_a_task_that_cannot_be_graded_is_named_before_anything_starts(task):
    with GradePool() as pool, pytest.raises(DataError, match="sample q"):
        pool.grade_many([GradeTask("fine", "5", "5"), task])
    assert pool.counts.total() == 0


def test_user_function_gets_what_it_names(functions):
    with GradePool(num_workers=1, function=f"{functions}:length") as pool:
        rewards = pool.reward_many(
            [GradeTask("a", "four", "5"), GradeTask("b", "four", "5", metadata={"bonus": 10})]
        )
    assert rewards == [FunctionReward(4.0), FunctionReward(14.0)]
    with GradePool(num_workers=1, function=f"{functions}:everything") as pool:
        assert pool.reward_many(_tasks("x")) == [FunctionReward(1.0)]


def test_hangs_crashes_and_bombs_cost_one_sample_each(functions):
    bad = ["loop", "sleep", "c loop", "fork bomb", "exit", "segfault", "memory"]
    names = [name for text in bad for name in ("fine", text)] + ["fine"]
    before = children_of(os.getpid())
    with GradePool(
        num_workers=2, timeout_s=1.0, memory_bytes=512 << 20, function=f"{functions}:misbehave"
    ) as pool:
        rewards = pool.reward_many(_tasks(*names))
        again = pool.reward_many(_tasks("fine", "fine"))
    by_name = {name: found for name, found in zip(names, rewards, strict=True) if name != "fine"}
    assert all(
        found == FunctionReward(1.0)
        for name, found in zip(names, rewards, strict=True)
        if name == "fine"
    )
    assert again == [FunctionReward(1.0)] * 2
    for name in ("loop", "sleep", "c loop", "fork bomb"):
        assert (by_name[name].reward, by_name[name].failure) == (None, GradeReason.TIMEOUT), name
    for name in ("exit", "segfault", "memory"):
        assert (by_name[name].reward, by_name[name].failure) == (None, GradeReason.CRASH), name
    assert (
        "exit status 3" in by_name["exit"].detail
        and "SIGSEGV" in by_name["segfault"].detail
        and "Memory" in by_name["memory"].detail
    )
    assert sorted(failure.id for failure in pool.failures) == sorted(
        f"sample {name}" for name in bad
    )
    assert children_of(os.getpid()) == before


def test_a_bug_in_a_user_function_stops_with_the_sample(functions):
    with GradePool(num_workers=1, function=f"{functions}:bug") as pool:
        said_by_kind = {
            "raise": "ZeroDivisionError",
            "nan": "float nan",
            "none": "NoneType None",
            "complex": "complex 1j",
            "text": "str '1.0'",
            "inf": "float inf",
            "list": "list [1.0]",
            "exit": "SystemExit",
            "huge": "int",
            "absurd": "float 1e+308; expected a finite number between -1e+09 and 1e+09",
        }
        for kind, said in said_by_kind.items():
            with pytest.raises(RewardError, match=f"sample {kind}: ") as error:
                pool.reward_many(_tasks(kind))
            assert said in str(error.value) and "my_rewards.py:bug" in str(error.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{0}:no_such", "has no function 'no_such'"),
        ("{0}:wants_more", "wants weather"),
        ("nowhere.py:f", "no file"),
        ("rewards", "path.py:function"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_a_config_error(functions, spec, said):
    with (
        pytest.raises(ConfigError, match=said),
        GradePool(num_workers=1, function=spec.format(functions)) as pool,
    ):
        pool.reward_many(_tasks("x"))


def test_workers_have_an_empty_environment_may_use_threads_but_no_processes(functions, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    for name, expected in (("environment", 1.0), ("threads", 1.0)):
        with GradePool(num_workers=1, function=f"{functions}:{name}") as pool:
            assert pool.reward_many(_tasks("x")) == [FunctionReward(expected)], name
    with GradePool(num_workers=1, function=f"{functions}:start_process") as pool:
        found = pool.reward_many(_tasks("x"))
        if "seccomp" not in pool.protections:
            pytest.skip(f"no seccomp filter on this machine: {pool.protections}")
    assert found[0].reward > 0  # an errno: EPERM from the filter


def test_the_sandbox_denies_files_sockets_and_processes(tmp_path):
    """In a process of its own: everything below fails with EPERM or EFBIG, and reading goes on."""
    kept, target = str(tmp_path / "kept"), str(tmp_path / "created")
    script = f"""
import json, os, socket
from megaladder.rewards.sandbox import Limits, enter
active = enter(Limits(timeout_s=5, memory_bytes=1 << 30))
def denied(call, *arguments):
    try: call(*arguments)
    except OSError as error: return error.errno
    return 0
result = dict(
    write=denied(open, {target!r}, "w"),
    append=denied(os.open, {kept!r}, os.O_APPEND | os.O_WRONLY),
    mkdir=denied(os.mkdir, {target!r}),
    remove=denied(os.remove, {kept!r}),
    rename=denied(os.rename, {kept!r}, {target!r}),
    link=denied(os.link, {kept!r}, {target!r}),
    truncate=denied(os.truncate, {kept!r}, 0),
    chmod=denied(os.chmod, {kept!r}, 0),
    socket=denied(socket.socket),
    fork=denied(os.fork),
    run=denied(os.execv, "/bin/true", ["true"]), kill=denied(os.kill, os.getppid(), 0))
open({kept!r}).read()
print(json.dumps([active, result]))
"""
    (tmp_path / "kept").write_text("kept")
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    active, result = json.loads(out.stdout)
    if "seccomp" not in active:
        pytest.skip(f"no seccomp filter on this machine: {active}")
    assert all(code == 1 for code in result.values()), result
    assert (
        sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
        and (tmp_path / "kept").read_text() == "kept"
    )


def test_filter_tables_cover_the_same_calls():
    for machine, (_, calls) in sandbox._ARCHITECTURES.items():
        assert {"clone", "clone3", "openat", "process", "socket", "write"} <= set(calls), machine


def test_workers_end_when_their_parent_is_killed(functions):
    """The parent is killed with SIGKILL while its workers sleep in a sample: they end by themselves
    within their time limit."""
    script = f"""
import sys, threading, time
from megaladder.rewards.worker import GradePool, GradeTask
pool = GradePool(num_workers=2, timeout_s=1.5, function={functions + ":misbehave"!r})
pool.reward_many([GradeTask("a", "fine", "5")] * 200)
print(*[worker.process.pid for worker in pool._workers], flush=True)
pool.reward_many([GradeTask("a", "sleep", "5")] * 8)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    pause(0.5)  # at whatever moment: before, in or between samples
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert pids
    wait_until(lambda: not any(is_alive(pid) for pid in pids), "end of the workers")


def test_throughput_is_far_above_what_a_step_needs():
    """A smoke limit (a busy laptop); the measured figures are in the docs."""
    text = "Let us think. " * 400
    tasks = [GradeTask(str(i), f"{text}\\boxed{{{i}}}", str(i)) for i in range(3000)]
    with GradePool(num_workers=2) as pool:
        pool.grade_many(tasks[:200])
        started = time.monotonic()
        assert all(found.correct for found in pool.grade_many(tasks))
        assert len(tasks) / (time.monotonic() - started) > 500
