"""GRPO on countdown is paid for solved puzzles, and for bare targets where values are compared.

The shipped configuration grades and stores given answers; independent code judges them again.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from megaladder import cli
from megaladder.config.grpo import GrpoConfig
from megaladder.config.resolve import from_yaml, resolve
from megaladder.config.verbs.data import MakeCountdownConfig
from megaladder.curate.make.run import run_make
from megaladder.data.read_problems import ProblemOptions, read_problems
from megaladder.rewards.verifiers import verify
from megaladder.train.rl.records import Round, write_round
from megaladder.train.rl.rounds import Rewarder, with_advantages
from megaladder.types import Completion, FinishReason, Problem, RolloutGroup

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "examples" / "configs" / "grpo_countdown_cpu.yaml"


def _tool() -> Any:
    """tools/study/verify_countdown.py of this checkout, as a module."""
    path = ROOT / "tools" / "study" / "verify_countdown.py"
    spec = importlib.util.spec_from_file_location("verify_countdown", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = _tool()


def make_problems(path: Path, rows: int) -> None:
    """Puzzles as examples/countdown.sh makes them."""
    puzzles: dict[str, Any] = {"numbers": 2, "largest": 99, "max_target": 400}
    run_make(
        MakeCountdownConfig(kind="countdown", rows=rows, out=str(path), form="problem", **puzzles)
    )


def answers(problem: Problem) -> tuple[str, ...]:
    """A solution, the bare target, a sum that is not asked for, a solution with its target, one
    number left out, reasoning that never ends."""
    small, large = problem.metadata["numbers"]
    solution = next(
        text
        for text in (f"{large} {sign} {small}" for sign in "+-*/")
        # our own three words
        if eval(text) == int(problem.gold)
    )
    boxes = (solution, problem.gold, f"{large} + {small} + 1", f"{solution} = {problem.gold}")
    forms = [
        f"<think>\n\n</think>\n\n\\boxed{{{text}}}" for text in (*boxes, f"{problem.gold} + 0")
    ]
    return (*forms, f"<think>\n\\boxed{{{solution}}}")


def store_rounds(folder: Path, *flags: str) -> None:
    """Two rounds of given answers, graded and stored as the shipped run does."""
    config = resolve(GrpoConfig, [str(CONFIG), "--run-dir", str(folder), *flags], "test")
    kind = None if config.reward.kind == "auto" else config.reward.kind
    problems = read_problems(folder.parent / "problems.jsonl", ProblemOptions(kind=kind))
    rewarder = Rewarder(config)
    try:
        for step, chosen in ((1, problems[:10]), (2, problems[10:30])):
            groups = [
                RolloutGroup(
                    problem,
                    (1,),
                    tuple(Completion((1,), text, FinishReason.STOP) for text in answers(problem)),
                )
                for problem in chosen
            ]
            scored = with_advantages(rewarder.score(groups)[0], config)
            write_round(folder / "rollouts", Round(step, 0, scored, 0))
    finally:
        rewarder.close()


def table(text: str) -> list[list[float]]:
    """The numbers of the tool's rows: step, answers, reward, correct, solved, gap, bare."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "step" not in line]
    return [[float(cell.split()[0]) for cell in line.strip("| ").split(" | ")] for line in lines]


def test_the_task_is_paid_and_the_value_is_not(tmp_path: Path, capsys) -> None:
    make_problems(tmp_path / "problems.jsonl", 30)
    store_rounds(tmp_path / "task")
    store_rounds(tmp_path / "value", "--reward.kind", "math")
    assert TOOL.main([str(tmp_path / "task"), "--within", "0.5"]) == 0
    third, sixth = pytest.approx(100 / 3, abs=0.05), pytest.approx(100 / 6, abs=0.05)
    assert table(capsys.readouterr().out) == [
        [step, answered, third, third, third, 0, sixth] for step, answered in ((1, 60), (2, 120))
    ]
    assert TOOL.main([str(tmp_path / "value"), "--within", "0.5"]) == 1
    # the bare target, and the target with nothing added to it
    for row in table(capsys.readouterr().out):
        assert row[2:] == [pytest.approx(200 / 3, abs=0.05)] * 2 + [third, third, sixth]


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("<think>\\boxed{1}</think> \\boxed{2}", "2"),
        ("\\boxed{1} \\boxed{2}", "2"),
        ("<think></think>\\boxed{1}\\boxed{2", ""),
        ("<think></think><think>\\boxed{1}", ""),
        ("<think>\\boxed{1}", ""),
        ("1", ""),
    ],
)
def test_the_tool_finds_the_answer_that_was_given(completion: str, text: str) -> None:
    assert TOOL.boxed(completion) == text


def test_the_tool_refuses_what_is_no_countdown_run(tmp_path: Path, capsys) -> None:
    assert TOOL.main([str(tmp_path)]) == 2
    row = {"prompt": "What is 1 + 1?", "completion": "2", "reward": 1.0, "correct": True}
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "step_1.jsonl").write_text(json.dumps(row) + "\n")
    assert TOOL.main([str(tmp_path)]) == 2
    assert "no countdown question" in capsys.readouterr().err


def test_the_shipped_run_verifies_by_row_and_the_flag_compares_values(tmp_path, capsys) -> None:
    path = tmp_path / "problems.jsonl"
    make_problems(path, 30)
    config = from_yaml(GrpoConfig, str(CONFIG))
    assert config.reward.kind == "auto"
    flags = ["--data.path", str(path), "--reward.kind", "math", "--print-config"]
    assert cli.main(["grpo", str(CONFIG), *flags]) == 0
    assert "kind: math" in capsys.readouterr().out
    by_row = read_problems(path)
    by_value = read_problems(path, ProblemOptions(kind="math"))
    assert {problem.kind for problem in by_row} == {"countdown"}
    for task, value in zip(by_row, by_value, strict=True):
        bare = f"<think>\n\n</think>\n\n\\boxed{{{task.gold}}}"
        assert verify(task.kind, bare, task.gold, task.metadata).correct is False
        assert verify(value.kind, bare, value.gold, value.metadata).correct is True
