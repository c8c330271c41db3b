"""A grading process that is not itself any more: it does not read, or says what is no answer. It
costs the samples it had, never the run or its time."""

import textwrap

import pytest

from megaladder.errors import ConfigError
from megaladder.rewards import child, worker
from megaladder.rewards.worker import GradePool, GradeTask
from megaladder.types import GradeReason

STUB = """\
import struct, sys, time
def frame(raw): return struct.pack(">I", len(raw)) + raw
def say(raw): sys.stdout.buffer.write(raw); sys.stdout.buffer.flush()
def read():
    head = sys.stdin.buffer.read(4)
    return sys.stdin.buffer.read(struct.unpack(">I", head)[0]) if head else sys.exit()
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Makes grading processes run a program of our own."""

    def set_program(program: str) -> None:
        path = tmp_path / "stub.py"
        path.write_text(STUB + textwrap.dedent(program))

        class Stub:
            __file__ = str(path)
            frame, PROGRESS = staticmethod(child.frame), child.PROGRESS

        monkeypatch.setattr(worker, "child", Stub)

    return set_program


def tasks(count: int, chars: int = 1) -> list[GradeTask]:
    return [GradeTask(f"q{number}", "5" * chars, "5") for number in range(count)]


@pytest.mark.parametrize(
    ("does", "how"),
    [("time.sleep(100_000)", "slept"), ("os.kill(os.getpid(), signal.SIGSTOP)", "was stopped")],
)
def test_a_process_that_does_nothing_is_noticed_within_the_samples_time(
    stub, monkeypatch, does, how
):
    """More than a pipe holds, and nobody takes it."""
    monkeypatch.setattr(worker, "LOOK_S", 0.05)
    stub(f"""
        import os, signal
        read()
        say(frame(b'{{"ready": []}}'))
        {does}
    """)
    with GradePool(num_workers=1, timeout_s=0.2) as pool:
        graded = pool.grade_many(tasks(1, chars=200_000))
        assert [verdict.reason for verdict in graded] == [GradeReason.TIMEOUT]
        assert graded[0].correct is None and pool.failures[0].id == "q0"
        assert pool.failures[0].detail == f"the process {how} for 0.2 s and owed answers"


NONSENSE = {
    "no JSON": "frame(b'{')",
    "no text": r"frame(b'\xff\xfe')",
    "deep": "frame(b'[' * 100_000)",
    "a number": "frame(b'7')",
    "too many": 'frame(b\'[[true, "5", "correct", ""], [true, "5", "correct", ""]]\')',
    "no verdict": 'frame(b\'[[1.5, null, "correct", ""]]\')',
    "unknown reason": 'frame(b\'[[true, "5", "because", ""]]\')',
    "no reason": 'frame(b\'[[true, "5", ["exact"], ""]]\')',
    "a number for true": 'frame(b\'[[1, "5", "exact", ""]]\')',
    "too long": r"b'\xff\xff\xff\xff'",
    "half": "frame(b'[[true]]')[:6]",
}


@pytest.mark.parametrize("said", NONSENSE.values(), ids=NONSENSE.keys())
def test_answers_that_are_none_cost_their_sample(stub, said):
    stub(f"""
        read()
        say(frame(b'{{"ready": []}}'))
        read()
        say({said})
    """)
    with GradePool(num_workers=1) as pool:
        graded = pool.grade_many(tasks(1))
        assert [verdict.reason for verdict in graded] == [GradeReason.CRASH]
        assert pool.failures[0].id == "q0" and "the process" in pool.failures[0].detail


@pytest.mark.parametrize("said", [b"[]", b"{}", b"{", b"7", b'{"ready": 5}'])
def test_a_beginning_that_is_none_is_told(stub, said):
    stub(f"""
        read()
        say(frame({said!r}))
    """)
    with GradePool(num_workers=1) as pool, pytest.raises(ConfigError, match="cannot start"):
        pool.grade_many(tasks(1))


def test_a_process_that_somebody_killed_while_it_started_is_replaced(stub, tmp_path):
    """Once: a grader that never starts is told."""
    stub(f"""
        import os, signal
        if not os.path.exists({str(tmp_path / "first")!r}):
            open({str(tmp_path / "first")!r}, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        read()
        say(frame(b'{{"ready": []}}'))
        read()
        say(frame(b'[[true, "5", "exact", ""]]'))
    """)
    with GradePool(num_workers=1) as pool:
        assert pool.grade_many(tasks(1))[0].correct and pool.failures == []


def test_processes_that_end_before_they_have_work_do_so_so_often_only(stub, monkeypatch):
    """Each is ready and talks nonsense at once: nobody is to blame, so no sample ends it."""
    monkeypatch.setattr(worker, "MAX_LOST_IDLE", 3)
    stub("""
        read()
        say(frame(b'{"ready": []}') + frame(b'7'))
    """)
    with GradePool(num_workers=1) as pool:
        with pytest.raises(ConfigError, match="ended before it had work"):
            pool.grade_many(tasks(1))


def test_large_batches_travel_in_pieces():
    """Responses larger than any pipe, to real processes that read."""
    long = "x " * 150_000 + "\\boxed{5}"
    given = [GradeTask(f"q{number}", long, "5") for number in range(12)]
    with GradePool(num_workers=2) as pool:
        assert all(verdict.correct for verdict in pool.grade_many(given))
