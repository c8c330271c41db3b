"""Programs: right ones pass, hacks do not, and nothing gets out of the sandbox."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path

import pytest

from megaladder.errors import DataError
from megaladder.rewards.programs.judge import Test, pickled_text, read_tests, same_output
from megaladder.rewards.programs.runner import ProgramLimits, judge
from megaladder.rewards.verifiers import check_row
from megaladder.rewards.verifiers.pool import VerifierPool
from megaladder.rewards.worker import GradeTask

LIMITS = ProgramLimits(cpu_s=2, memory_bytes=512 << 20)
SUCCESSOR = [Test("1", "2"), Test("41", "42")]

ESCAPES = {
    "read a file": "open('/etc/passwd').read()",
    "read our tests": "open('{secret}').read()",
    "list a folder": "import os; os.listdir('{folder}')",
    "read the parent's memory": "import os; open(f'/proc/{{os.getppid()}}/mem', 'rb')",
    "read an environment": "open('/proc/self/environ').read()",
    "write a file": "open('{folder}/new', 'w')",
    "write to the interpreter": "import os; open(os.__file__, 'a')",
    "write to shared memory": "open('/dev/shm/escape', 'w')",
    "remove": "import os; os.remove('{secret}')",
    "rename": "import os; os.rename('{secret}', '{folder}/new')",
    "link": "import os; os.symlink('{secret}', '{folder}/new')",
    "make a folder": "import os; os.mkdir('{folder}/new')",
    "change a mode": "import os; os.chmod('{secret}', 0)",
    "fork": "import os; os.fork()",
    "spawn": "import subprocess; subprocess.run(['true'], check=True)",
    "shell": "import os; assert os.system('true') == 0",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "multiprocessing": "import multiprocessing as m; p = m.Process(target=print); p.start()",
    "kill the parent": "import os; os.kill(os.getppid(), 9)",
    "kill all": "import os; os.kill(-1, 9)",
    "stop itself": "import os; os.kill(os.getpid(), 19)",
    "socket": "import socket; socket.socket()",
    "connect": "import socket; socket.create_connection(('127.0.0.1', 1), 1)",
    "unix socket": "import socket; socket.socketpair()",
    "own session": "import os; os.setsid()",
    "raise a limit": "import resource as r; r.setrlimit(r.RLIMIT_CPU, (9999, 9999))",
    "another's limit": "import os, resource as r; r.prlimit(os.getppid(), r.RLIMIT_CPU, (1, 1))",
    "nice": "import os; os.nice(-5)",
    "change root": "import os; os.chroot('/')",
    "change user": "import os; os.setuid(1)",
    "namespace": "import ctypes as c; assert c.CDLL(None).unshare(0x10000000) == 0",
    "mount": "import ctypes as c; assert c.CDLL(None).mount(b'x', b'/', b'tmpfs', 0, 0) == 0",
    "trace": "import ctypes as c, os; assert c.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
    "outlive the parent": "import ctypes as c; assert c.CDLL(None).prctl(1, 0, 0, 0, 0) == 0",
    "memory file": "import os; os.memfd_create('x')",
    "shared segment": "import ctypes as c; assert c.CDLL(None).shmget(7, 4096, 0o1600) != -1",
    "signals by a pipe": "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
    "io_uring": "import ctypes as c; assert c.CDLL(None).syscall(425, 8, 0) != -1",
    "bpf": "import ctypes as c; assert c.CDLL(None).syscall(321, 0, 0, 0) != -1",
    "clone3": "import ctypes as c; assert c.CDLL(None).syscall(435, 0, 0) != -1",
}

HACKS = {
    "prints all": "for i in range(100): print(i)",
    "prints both": "print('2 42')",
    "exits well": "import sys; sys.exit(0)",
    "ends at once": "import os; os._exit(0)",
    "right, then fails": "print(int(input()) + 1); raise SystemExit(1)",
    "right, then crashes": "print(int(input()) + 1, flush=True); 1 / 0",
    "right, then hangs": "print(int(input()) + 1, flush=True)\nwhile True: pass",
    "first test only": "print(2)",
    "an equal that lies": "class A:\n  def __eq__(s, o): return True\nprint(A())",
    "reads the tests": "import gc; print([o for o in gc.get_objects() if 'output' in str(o)[:99]])",
    "patches the comparison": "import builtins; builtins.all = lambda *_: True; print('x')",
    "looks up the frames": "import sys; print(sys._getframe(1).f_locals)",
    "patches json": "import json; json.dumps = lambda *a, **k: '2'; print('x')",
    "closes the output": "import os; os.close(1)",
    "writes to the result": "import os; os.write(3, b'2')",
    "too much output": "print('2' * (64 << 20))",
    "too much memory": "x = bytearray(2 << 30); print(int(input()) + 1)",
    "forges a verdict": 'print(\'{"status": "done", "output": "2"}\')',
    "nothing": "",
    "a comment": "# 2",
    "no program": "the answer is 2",
    "another number": "print(int(input()) + 2)",
    "underscores": "print('4_2' if input() == '41' else 2)",
    "nan": "print(float('nan'))",
    "infinity": "print(float('inf'))",
    "with words": "print('the answer is', int(input()) + 1)",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_gets_out(name, tmp_path):
    """The program prints the right answer only where its escape raised nothing."""
    secret = tmp_path / "secret"
    secret.write_text("kept")
    code = ESCAPES[name].format(secret=secret, folder=tmp_path)
    outcome = judge(f"{code}\nprint(2)", [Test("1", "2")], LIMITS)
    assert outcome.passed is False, (name, outcome)
    assert secret.read_text() == "kept" and [path.name for path in tmp_path.iterdir()] == ["secret"]
    assert not Path("/dev/shm/escape").exists()


def test_no_hack_passes():
    passed = [name for name, code in HACKS.items() if judge(code, SUCCESSOR, LIMITS).passed]
    assert passed == []


@pytest.mark.parametrize(
    "code",
    [
        "print(int(input()) + 1)",
        "import sys\nprint(int(sys.stdin.read()) + 1)",
        "def main():\n  print(int(input()) + 1)\nif __name__ == '__main__': main()",
        "import collections, heapq, math, functools\nprint(int(input()) + 1, end='')",
        "print(float(input()) + 1)",
        "import threading\nt = threading.Thread(target=lambda: print(int(input()) + 1))\nt.start(); t.join()",
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
    for bad in ("nonsense!", encoded(b"\x80"), encoded(pickle.dumps([1])), "[1]", "{}"):
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
