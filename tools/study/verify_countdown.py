"""The answers of GRPO runs on countdown, judged once more from their text alone.

    python tools/study/verify_countdown.py runs/countdown/task runs/countdown/value
    python tools/study/verify_countdown.py runs/countdown/task --within 0.5

Reads `rollouts/step_N.jsonl`: numbers and target from the question, the expression from the answer's
last box; `ast` and exact fractions (those of the generated data's checker) say whether it solves the
puzzle. The verifier that paid the reward is not asked. With `--within`, status 1 where reward and
this judgement differ by more than so many points at any step.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from megaladder.config.base import Positional, StrictModel
from megaladder.config.resolve import resolve
from megaladder.curate.make.check import is_countdown_solution
from megaladder.errors import DataError, MegaladderError
from megaladder.run_dir import read_jsonl
from megaladder.train.rl.records import rollouts_file, stored_steps

QUESTION = re.compile(r"Use each of the numbers ([\d, ]+) exactly once, .* to make (\d+)\.")


class VerifyCountdownConfig(StrictModel):
    """Reward and solved puzzles at every step of GRPO runs on countdown."""

    runs: Positional[tuple[str, ...]]
    """Run folders with rollouts/step_N.jsonl."""
    within: Annotated[float, Field(ge=0)] | None = None
    """Status 1 where a step's mean reward is further than this from its share of solved puzzles,
    in points. null = only show."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step's answers that have a reward; shares and the mean reward in percent.

    bare: answers that box the target itself. undecided: answers without a reward, left out.
    """

    step: int
    num_answers: int
    reward: float
    correct: float
    solved: float
    bare: float
    undecided: int

    @property
    def gap(self) -> float:
        """Reward minus solved, in points."""
        return self.reward - self.solved


def steps_of(run: str | Path) -> list[Step]:
    """All stored steps of a run. Raises DataError where there are none."""
    folder = Path(run) / "rollouts"
    found = [_step(number, rollouts_file(folder, number)) for number in stored_steps(folder)]
    if not found:
        raise DataError(f"{folder}: no step_N.jsonl; fix: the folder of a GRPO run")
    return found


def _step(number: int, path: Path) -> Step:
    rows = list(read_jsonl(path))
    paid = [row for row in rows if row["reward"] is not None]
    if not paid:
        raise DataError(f"{path}: no answer has a reward; fix: another run")
    answers = [(boxed(row["completion"]), *puzzle(row, path)) for row in paid]
    return Step(
        number,
        len(paid),
        _percent([row["reward"] for row in paid]),
        _percent([row["correct"] for row in paid]),
        _percent([solves(*answer) for answer in answers]),
        _percent([text.strip() == str(target) for text, _, target in answers]),
        len(rows) - len(paid),
    )


def puzzle(row: dict[str, Any], path: Path) -> tuple[list[int], int]:
    """Numbers and target as the question says them. Raises DataError for another question."""
    asked = QUESTION.search(row["prompt"])
    if asked is None:
        raise DataError(
            f"{path}: no countdown question: {row['prompt'][:80]!r}; fix: a run on problems of"
            " `megaladder data make countdown`"
        )
    return [int(number) for number in asked[1].split(", ")], int(asked[2])


def boxed(completion: str) -> str:
    r"""The last `\boxed{…}` behind the reasoning.

    Empty without one, where it never closes, and while the answer still thinks, or thinks again."""
    answer = completion.rpartition("</think>")[2]
    _before, opened, box = answer.rpartition("\\boxed{")
    if not opened or "<think>" in answer:
        return ""
    text, closed, _after = box.partition("}")
    return text if closed else ""


def solves(text: str, numbers: list[int], target: int) -> bool:
    """Whether `expression` or `expression = target` uses each number once and makes the target."""
    expression, equals, right = text.partition("=")
    if equals and right.strip() != str(target):
        return False
    return is_countdown_solution(expression.strip(), numbers, target)


def _percent(values: Sequence[float]) -> float:
    return 100 * sum(map(float, values)) / len(values)


def table(steps: Sequence[Step]) -> Iterator[str]:
    """A run as lines of a Markdown table."""
    yield "| step | answers | reward | correct | solved | reward − solved | bare target |"
    yield "|---|---|---|---|---|---|---|"
    for one in steps:
        cells = (one.reward, one.correct, one.solved)
        shares = " | ".join(f"{value:.1f} %" for value in cells)
        end = f"{one.gap:+.1f} points | {one.bare:.1f} %"
        yield f"| {one.step} | {one.num_answers} | {shares} | {end} |"


def main(args: list[str]) -> int:
    """Prints the table of each run; status 1 where `--within` does not hold."""
    try:
        config = resolve(VerifyCountdownConfig, args, "verify_countdown", takes_yaml=False)
        runs = {run: steps_of(run) for run in config.runs}
    except MegaladderError as error:
        print(f"verify_countdown: {error}", file=sys.stderr)
        return error.exit_status
    largest = 0.0
    for run, steps in runs.items():
        widest = max(steps, key=lambda one: abs(one.gap))
        largest = max(largest, abs(widest.gap))
        print(f"\n{run}\n", *table(steps), sep="\n")
        print(
            f"\n{sum(one.num_answers for one in steps):,} answers, largest difference of reward and"
            f" solved puzzles {widest.gap:+.1f} points (step {widest.step});"
            f" {sum(one.undecided for one in steps)} undecided"
        )
    return int(config.within is not None and largest > config.within)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
