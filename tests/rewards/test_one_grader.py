"""Reward and score come from one grader, rollouts and benchmarks from one engine: by construction
(who imports what) and by verdict."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from tiny_models import build_tokenizer

from megaladder.analysis import grade as grade_verb
from megaladder.config.grpo import GrpoConfig
from megaladder.curate.teacher import sample as teacher_sample
from megaladder.evaluation import verb as evaluation_verb
from megaladder.evaluation.run import Task, run_task
from megaladder.evaluation.store import Journal
from megaladder.rewards import worker
from megaladder.rewards.grade import grade
from megaladder.rewards.verifiers.pool import VerifierPool
from megaladder.rollout import vllm_engine
from megaladder.rollout.engine import SamplingParams
from megaladder.rollout.fake_engine import FakeEngine
from megaladder.train.life import engines
from megaladder.train.rl import rounds
from megaladder.types import Completion, FinishReason, Message, Problem, RolloutGroup

TEXTS = (
    r"\boxed{7}",
    r"so \boxed{14/2}",
    "#### 7",
    r"\boxed{8}",
    "no answer",
    r"\boxed{",
    "The final answer is 7.0.",
    r"\boxed{7\%}",
)
GOLDS = ("7", "0.07", r"\frac{14}{2}")


def imports(path: Path) -> set[str]:
    """Every `module.name` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_only_the_worker_process_calls_the_grader(repository):
    """`grade` is called by the registry of verifiers alone, that by the killable child (and a trial
    on Hugging Face models); nobody else compares answers: math-verify is for rewards/ only."""
    sources = {
        path.relative_to(repository).as_posix(): imports(path)
        for path in (repository / "megaladder").rglob("*.py")
    }
    assert [
        name for name, found in sources.items() if "megaladder.rewards.grade.grade" in found
    ] == ["megaladder/rewards/verifiers/__init__.py"]
    assert [
        name for name, found in sources.items() if "megaladder.rewards.verifiers.verify" in found
    ] == ["megaladder/rewards/child.py"]
    comparers = {
        name
        for name, found in sources.items()
        if any(one.split(".")[0] == "math_verify" for one in found)
    }
    comparers |= {
        name
        for name, found in sources.items()
        if any(one.startswith("megaladder.rewards.compare") for one in found)
    }
    assert comparers and all(name.startswith("megaladder/rewards/") for name in comparers)


def test_training_evaluation_and_sampling_share_grader_and_engine():
    for module in (rounds, evaluation_verb, teacher_sample, grade_verb):
        assert module.VerifierPool is VerifierPool, module
    assert (
        evaluation_verb.VllmEngine is vllm_engine.VllmEngine
        and engines.ProcessEngine in vllm_engine.VllmEngine.__mro__
    )
    # the same child processes, here with those of other nodes beside them
    assert engines.vllm_children is vllm_engine.vllm_children


def test_reward_and_score_agree_on_every_text(tmp_path):
    """The same completions through GRPO's rewarder and through a benchmark run: verdict by verdict
    what `grade` says."""
    problems = tuple(
        Problem(f"p{i}", (Message("user", "?"),), gold, "math", source="toy")
        for i, gold in enumerate(GOLDS)
    )
    completions = tuple(Completion((1, 2), text, FinishReason.STOP) for text in TEXTS)
    config = GrpoConfig(
        model={"path": str(build_tokenizer(tmp_path / "m"))},
        data={"path": "unused.jsonl"},
        run_dir=str(tmp_path / "run"),
    )
    rewarder = rounds.Rewarder(config)
    groups, counts = rewarder.score(
        [RolloutGroup(problem, (1,), completions) for problem in problems]
    )
    rewarder.close()
    assert not counts

    answers = iter(completions * len(problems))
    params = SamplingParams(n=len(TEXTS), seed=1)
    task = Task(
        "toy", problems, ("?",) * 3, tuple((10 + i,) for i in range(3)), params, graded=True
    )
    with worker.GradePool(num_workers=1) as pool, Journal(tmp_path / "eval", {}) as journal:
        run_task(task, FakeEngine(lambda request: next(answers)), pool, journal)
    rows = {
        (row["id"], row["response"]): row
        for row in map(json.loads, (tmp_path / "eval" / "journal.jsonl").open())
    }

    for group, gold in zip(groups, GOLDS, strict=True):
        for text, verdict, value in zip(TEXTS, group.graded, group.rewards, strict=True):
            row, expected = rows[group.problem.id, text], grade(text, gold, "math")
            assert (
                (verdict.correct, verdict.answer)
                == (row["correct"], row["answer"])
                == (expected.correct, expected.answer)
            ), (text, gold)
            assert value == float(expected.correct)
    assert 0 < sum(row["correct"] for row in rows.values()) < len(rows) == len(TEXTS) * len(GOLDS)
