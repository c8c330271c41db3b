"""Programs: right ones pass, hacks do not, and nothing gets out of the sandbox."""

from __future__ import annotations

import base64
import json
import os
import pickle
import platform
import zlib
from pathlib import Path

import pytest
from rewards.grader_corpus import children_of

from megaladder.errors import DataError
from megaladder.rewards.programs.judge import Test, pickled_text, read_tests, same_output
from megaladder.rewards.programs.runner import ProgramLimits, judge
from megaladder.rewards.verifiers import check_row
from megaladder.rewards.verifiers.pool import VerifierPool
from megaladder.rewards.worker import GradeTask

LIMITS = ProgramLimits(cpu_s=2, memory_bytes=512 << 20)
SUCCESSOR = [Test("1", "2"), Test("41", "42")]

ESCAPES = Path(__file__).with_name("escapes.jsonl")
TRY_TO_GET_OUT = """
import sys
code = sys.stdin.read()
try:
    exec(code)
except BaseException:
    print("stopped")
else:
    print("out")
"""


def test_nothing_gets_out(tmp_path):
    """All escapes in one sandbox, each in a process of its own that says whether it was stopped."""
    secret = tmp_path / "secret"
    secret.write_text("kept")
    children = children_of(os.getpid())
    rows = [json.loads(line) for line in ESCAPES.read_text(encoding="utf-8").strip().split("\n")]
    assert len({row["code"] for row in rows}) == len(rows) >= 100
    if platform.machine() != "x86_64":  # numbers of system calls mean others elsewhere
        rows = [row for row in rows if "syscall(" not in row["code"]]
    tests = [Test(row["code"].format(secret=secret, folder=tmp_path), "stopped") for row in rows]
    outcome = judge(TRY_TO_GET_OUT, tests, LIMITS)
    assert outcome.passed, (outcome, [row["why"] for row in rows])
    assert secret.read_text() == "kept" and [path.name for path in tmp_path.iterdir()] == ["secret"]
    assert not Path("/dev/shm/escape").exists()
    assert children_of(os.getpid()) == children


def test_thousands_of_threads_end_a_program():
    code = """
import threading
threading.stack_size(32768)
never = threading.Event()
for _ in range(2000):
    threading.Thread(target=never.wait, daemon=True).start()
never.wait()
"""
    outcome = judge(code, SUCCESSOR, LIMITS)
    assert outcome.passed is False and "threads" in outcome.detail, outcome


@pytest.mark.parametrize(
    "code",
    [
        "print(int(input()) + 1)",
        "import sys\nprint(int(sys.stdin.read()) + 1)",
        "def main():\n  print(int(input()) + 1)\nif __name__ == '__main__': main()",
        "import collections, heapq, math, functools\nprint(int(input()) + 1, end='')",
        "print(float(input()) + 1)",
    ],
)
def test_right_programs_pass(code):
    assert judge(code, SUCCESSOR, LIMITS).passed is True


def test_functions_are_called_with_their_arguments():
    tests = [Test("1\n[2, 3]", "[3, 4]", functional=True)]
    code = "class Solution:\n  def add(self, a, xs):\n    print('noise')\n    return [a + x for x in xs]"
    assert judge(code, tests, LIMITS, "add").passed is True
    assert judge(code.replace("a + x", "x"), tests, LIMITS, "add").passed is False
    assert judge("def add(a, xs): return tuple(a + x for x in xs)", tests, LIMITS, "add").passed


def encoded(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


class Bomb:
    def __reduce__(self):
        return os.system, ("touch /tmp/executed",)


def test_hidden_tests_are_read_and_no_pickle_is_loaded():
    cases = json.dumps([{"input": "1", "output": "2", "testtype": "stdin"}] * 300)
    for protocol in range(2, 6):
        assert len(read_tests(encoded(pickle.dumps(cases, protocol)))) == 300
    assert read_tests(cases)[0] == Test("1", "2")
    with pytest.raises(ValueError, match="only one text is read"):
        pickled_text(pickle.dumps(Bomb()))
    no_lists = ('{"inputs": true, "outputs": ["2"]}', '{"inputs": "12", "outputs": "34"}')
    for bad in ("nonsense!", encoded(b"\x80"), encoded(pickle.dumps([1])), "[1]", "{}", *no_lists):
        with pytest.raises(DataError, match="fix:"):
            check_row("code", bad, {})


def test_the_pool_runs_programs_beside_answers():
    public = json.dumps([{"input": "1", "output": "2", "testtype": "stdin"}])
    hidden = encoded(pickle.dumps(json.dumps([{"input": "5", "output": "6"}])))
    right, wrong = "print(int(input()) + 1)", "print(2)"
    tasks = [
        GradeTask("a", f"```python\n{right}\n```", public, "code", {"hidden_tests": hidden}),
        GradeTask("b", "\\boxed{2}", "2"),
        GradeTask("c", f"```python\n{wrong}\n```", public, "code", {"hidden_tests": hidden}),
        GradeTask("d", "no program", public, "code"),
    ]
    with VerifierPool(num_workers=2) as pool:
        assert [found.correct for found in pool.grade_many(tasks)] == [True, True, False, False]


def test_outputs_compare_by_line_and_exact_number():
    assert same_output("1 2\n3", "1 2  \n3\n") and same_output("0.5", "0.50")
    for other in ("1 2 3", "1 2\n3\n4", "1 2\n3.0001", "12\n3", "", "1 2\nx"):
        assert not same_output("1 2\n3", other)
