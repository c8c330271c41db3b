"""Programs judged by a command of the user's: its verdict counts, its failure stops the run, none of
its processes stays behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tiny_models import build_tokenizer

from megaladder.cli import main
from megaladder.errors import ConfigError, RewardError
from megaladder.evaluation import sandbox
from megaladder.evaluation.sandbox import SandboxPool
from megaladder.rewards.verifiers.code import last_program
from megaladder.rewards.worker import GradeTask
from megaladder.types import GradeReason

JUDGE = """
import json, sys, time
job = json.load(sys.stdin)
if "sleep" in job["code"]: time.sleep(30)
if "broken" in job["code"]: sys.exit("no container")
print(json.dumps({"passed": job["tests"][0]["output"] in job["code"], "detail": "checked"}))
"""


@pytest.fixture
def command(tmp_path) -> str:
    (tmp_path / "judge.py").write_text(JUDGE)
    return f"{sys.executable} {tmp_path / 'judge.py'}"


def task(response: str) -> GradeTask:
    return GradeTask("lcb/0", response, json.dumps([{"input": "1", "output": "42"}]), "exact")


def test_verdicts(command):
    with SandboxPool(command, 2, 5.0) as pool:
        found = pool.grade_many(
            [
                task("```python\nprint(1)\n```\nbetter:\n```python\nprint(42)\n```"),
                task("```python\nprint(42)\n```\nno:\n```py\nprint(7)\n```"),
                task("print(42)"),
                task("<think>```python\nprint(42)\n```"),
            ]
        )
    assert [verdict.correct for verdict in found] == [True, False, False, False]
    assert [verdict.reason for verdict in found[1:]] == [
        GradeReason.DIFFERENT,
        GradeReason.NO_ANSWER,
        GradeReason.NO_ANSWER,
    ]
    assert last_program("```python\n" + "x" * 300_000 + "\n```") is None


def test_hang_is_one_wrong_answer_and_a_broken_sandbox_is_none(command):
    pool = SandboxPool(command, 1, 1.0)
    [verdict] = pool.grade_many([task("```python\nsleep\n```")])
    assert verdict.reason is GradeReason.TIMEOUT and pool.failures[0].id == "lcb/0"
    with pytest.raises(RewardError, match=r"sample lcb/0.*status 1: no container"):
        pool.grade_many([task("```python\nbroken\n```")])
    with pytest.raises(ConfigError, match="cannot be started"):
        SandboxPool("/no/such/sandbox", 1, 1.0).grade_many([task("```python\nx\n```")])


@pytest.mark.parametrize(
    ("prints", "found"),
    [
        (r"b'\xff\xfe'", "status 0: \ufffd\ufffd"),
        ("b'[' * 100_000", r"status 0: \[\[\["),
        ("b'x' * (64 << 20)", "status 0: xxx"),
    ],
    ids=["no text", "deep", "without end"],
)
def test_what_is_no_verdict_is_told(tmp_path, monkeypatch, prints, found):
    """However much it is: the end of it is kept."""
    monkeypatch.setattr(sandbox, "MAX_SAID_BYTES", 1 << 18)
    (tmp_path / "judge.py").write_text(f"import sys; sys.stdout.buffer.write({prints})")
    pool = SandboxPool(f"{sys.executable} {tmp_path / 'judge.py'}", 1, 600.0)
    done = sandbox._run(pool._command, "{}", 600.0)
    assert len(done.stdout) <= 1 << 18
    with pytest.raises(RewardError, match=found):
        pool.grade_many([task("```python\nprint(1)\n```")])


def test_what_a_command_leaves_behind_is_ended(tmp_path):
    """A child in the background, one in a session of its own, and one whose parent has ended."""
    note = tmp_path / "pids"
    script = (
        f"sleep 1000 & echo $! >> {note}; setsid sleep 1000 & echo $! >> {note};"
        f" (sleep 1000 & echo $! >> {note}); sleep 1000"
    )
    with SandboxPool(f"bash -c '{script}'", 1, 1.0) as pool:
        [verdict] = pool.grade_many([task("```python\nprint(1)\n```")])
    pids = [int(line) for line in note.read_text().split()]
    assert verdict.reason is GradeReason.TIMEOUT and len(pids) == 3
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_the_verb_runs_programs_in_our_sandbox_or_the_users(tmp_path, command, capsys):
    (tmp_path / "data" / "livecodebench").mkdir(parents=True)
    row = {
        "question_id": "a",
        "question_content": "Print 42.",
        "starter_code": "",
        "public_test_cases": json.dumps([{"input": "", "output": "42", "testtype": "stdin"}]),
    }
    (tmp_path / "data" / "livecodebench" / "test.jsonl").write_text(json.dumps(row) + "\n")
    arguments = ["eval", "--engine", "fake", "--benchmark", "livecodebench"]
    arguments += ["--tokenizer", str(build_tokenizer(tmp_path / "t"))]
    arguments += ["--data-dir", str(tmp_path / "data"), "--out"]
    assert main([*arguments, str(tmp_path / "ours")]) == 0
    said = capsys.readouterr().out
    assert "programs run with no network" in said
    assert "livecodebench  avg@3 = 0.0 % [no interval: one problem]" in said
    assert main([*arguments, str(tmp_path / "theirs"), "--sandbox", command]) == 0
    assert "avg@3 = 0.0 %" in capsys.readouterr().out
