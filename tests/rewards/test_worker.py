"""The pool: order, kills, user functions and their bugs, what a worker may not do, what it leaves
behind."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import subprocess
import sys

import pytest
from rewards.grader_corpus import children_of
from waiting import is_alive, pause, wait_until

from megaladder.errors import DataError
from megaladder.rewards import sandbox
from megaladder.rewards.grade import grade
from megaladder.rewards.worker import GradePool, GradeTask
from megaladder.types import GradeReason


def hanging(name: str) -> GradeTask:
    """A row whose pattern backtracks for ever on its answer."""
    return GradeTask(name, "a" * 64 + "b", "", "regex", {"pattern": "(a+)+"})


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


def test_hangs_cost_one_sample_each():
    tasks = [task for i in range(3) for task in (_tasks("\\boxed{5}")[0], hanging(f"hang {i}"))]
    before = children_of(os.getpid())
    with GradePool(num_workers=2, timeout_s=1.0) as pool:
        graded = pool.grade_many(tasks)
        again = pool.grade_many(_tasks("\\boxed{5}", "\\boxed{5}"))
    assert [found.correct for found in graded] == [True, None] * 3
    assert {found.reason for found in graded[1::2]} == {GradeReason.TIMEOUT}
    assert [found.correct for found in again] == [True, True]
    assert sorted(failure.id for failure in pool.failures) == ["hang 0", "hang 1", "hang 2"]
    assert children_of(os.getpid()) == before


def test_the_sample_that_hangs_is_known_within_its_batch():
    """What was found before it in the same batch goes again, and only it is tried alone."""
    good = _tasks(*["\\boxed{5}"] * 400)
    tasks = [*good[:30], hanging("hang"), *good[30:]]
    with GradePool(num_workers=1, timeout_s=0.5) as pool:
        graded = pool.grade_many(tasks)
        assert [failure.id for failure in pool.failures] == ["hang"]
    assert [found.correct for found in graded] == [True] * 30 + [None] + [True] * 370


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
    write=denied(open, {target!r}, "w"), append=denied(os.open, {kept!r}, os.O_APPEND | os.O_WRONLY), mkdir=denied(os.mkdir, {target!r}),
    remove=denied(os.remove, {kept!r}), rename=denied(os.rename, {kept!r}, {target!r}), link=denied(os.link, {kept!r}, {target!r}),
    truncate=denied(os.truncate, {kept!r}, 0), chmod=denied(os.chmod, {kept!r}, 0), socket=denied(socket.socket), fork=denied(os.fork),
    run=denied(os.execv, "/bin/true", ["true"]), kill=denied(os.kill, os.getppid(), 0))
open({kept!r}).read()
print(json.dumps([active, result]))
"""
    (tmp_path / "kept").write_text("kept")
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240
    )
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
    for machine, calls in sandbox._CALLS.items():
        assert {"openat", "process", "socket", "write"} <= set(calls), machine


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86_64 has second numbers")
def test_calls_by_their_second_numbers_are_refused():
    """The x32 numbers of getpid, fork and execve: EPERM from the filter, not ENOSYS of a kernel
    that happens not to have them."""
    script = """
import ctypes
from megaladder.rewards.sandbox import Limits, enter
active = enter(Limits(timeout_s=5, memory_bytes=1 << 30))
libc = ctypes.CDLL(None, use_errno=True)
found = [(libc.syscall(0x40000000 + number, 0, 0, 0), ctypes.get_errno()) for number in (39, 57, 520)]
print("seccomp" in active, all(pair == (-1, 1) for pair in found), found)
"""
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240
    )
    assert out.stdout.startswith(("True True", "False")), (out.stdout, out.stderr)


def test_workers_end_when_their_parent_is_killed():
    """The parent is killed with SIGKILL while its workers sleep in a sample: they end by themselves
    within their time limit, also the one that was stopped."""
    script = """
import sys, threading, time
from megaladder.rewards.worker import GradePool, GradeTask
pool = GradePool(num_workers=2, timeout_s=1.5)
pool.grade_many([GradeTask("a", "fine", "5")] * 200)
print(*[worker.process.pid for worker in pool._workers], flush=True)
pool.grade_many([GradeTask("a", "a" * 64 + "b", "", "regex", {"pattern": "(a+)+"})] * 8)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    pause(0.5)  # at whatever moment: before, in or between samples
    os.kill(pids[0], signal.SIGSTOP)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert pids
    wait_until(lambda: not any(is_alive(pid) for pid in pids), "end of the workers")


def test_throughput_is_far_above_what_a_step_needs():
    """In CPU seconds of the workers, which other work on the machine does not change; the measured
    figures are in the docs."""
    text = "Let us think. " * 400
    tasks = [GradeTask(str(i), f"{text}\\boxed{{{i}}}", str(i)) for i in range(3000)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with GradePool(num_workers=2) as pool:
        assert all(found.correct for found in pool.grade_many(tasks))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{used:.2f} CPU seconds for {len(tasks)} answers, the workers' start included")
    assert 0 < used < 30
