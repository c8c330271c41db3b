"""The commands of README's "Your own data, reward and exam", taken from the page, with files that a
stranger may bring: resolved and run as they stand, with a real vLLM."""

from __future__ import annotations

import json
import random
import re
from itertools import islice, product
from pathlib import Path

import pytest
from page_commands import ROOT, resolved_verbs, run_commands

SECTION = re.compile(r"^## Your own data, reward and exam$.*?^```bash\n(.*?)^```$", re.M | re.S)
# the README's problems a step are 16, in one pass
NUM_PROBLEMS, STEPS = 150, 9


def commands() -> str:
    """The block as it stands."""
    found = SECTION.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def bring_files(folder: Path) -> None:
    """chat.jsonl, problems.jsonl and exam.jsonl: sums that a model of a minute guesses now and then."""
    pairs = list(product(range(24), repeat=2))
    random.Random(7).shuffle(pairs)
    asked = iter([(f"What is {left} plus {right}?", left + right) for left, right in pairs])

    def chat(question: str, total: int) -> dict[str, object]:
        told = f"It is \\boxed{{{total}}}."
        roles = (("user", question), ("assistant", told))
        return {"messages": [{"role": role, "content": text} for role, text in roles]}

    def problem(question: str, total: int) -> dict[str, object]:
        return {"problem": question, "answer": str(total)}

    files = (("chat", 400, chat), ("problems", NUM_PROBLEMS, problem), ("exam", 20, problem))
    for name, count, make in files:
        rows = (json.dumps(make(*one)) + "\n" for one in islice(asked, count))
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")


def test_every_command_is_one_that_the_verb_takes(tmp_path, monkeypatch) -> None:
    verbs = resolved_verbs(commands(), tmp_path, monkeypatch)
    others = ["data stats", "sft", "grpo", "eval", "eval", "analyze compare", "chat", "push"]
    assert verbs == others


def check_own_reward(run: Path) -> None:
    """`short` of the README's reward.py, with its weight, in the reward of every answer."""
    files = sorted((run / "rollouts").glob("step_*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert rows, "no group had answers of different rewards"
    for row in rows:
        (own,) = (value for name, value in row["reward_terms"].items() if "short" in name)
        assert own == 0.2 * (len(row["completion"]) <= 60)
        assert row["reward"] == pytest.approx(own + row["correct"])


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_commands_run_as_they_stand(tmp_path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    bring_files(work)
    model = "python -m megaladder.tools.make_tiny_model --data chat.jsonl --out models/base\n"
    said = run_commands(model + commands(), tmp_path, typed="What is 2 plus 3?\n/quit\n")
    for name in ("sft", "grpo"):
        word = json.loads((work / "runs" / name / "last_word.json").read_text())
        assert word["reason"] == "finished"
        summary = json.loads((work / "runs" / "eval" / name / "summary.json").read_text())
        assert summary["benchmarks"]["exam"]["num_problems"] == 20
    rows = (work / "runs" / "grpo" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == STEPS
    check_own_reward(work / "runs" / "grpo")
    assert "next: megaladder chat" in said
    card = (work / "published" / "mine" / "README.md").read_text(encoding="utf-8")
    assert "| exam |" in card and "step_9" in card
