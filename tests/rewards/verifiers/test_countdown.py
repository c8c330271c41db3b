"""Countdown: true solutions count, hacks do not."""

from __future__ import annotations

import pytest

from megaladder.curate.make.countdown import CountdownSpec, countdown_rows
from megaladder.errors import DataError
from megaladder.rewards.verifiers import check_row, verify

PUZZLE = {"numbers": [3, 5, 7, 20], "target": 24}


def answer(text: str) -> str:
    return f"<think>\nno work\n</think>\n\n\\boxed{{{text}}}"


def test_true_solutions_count_in_every_spelling():
    rows = list(countdown_rows(CountdownSpec(), 300, seed=1))
    for row in rows:
        solution = row["messages"][1]["content"]
        found = verify("countdown", solution, row["gold"], row)
        assert found.correct is True, (row, found)
        boxed = solution.rsplit("\\boxed{", 1)[1][:-1]
        latex = boxed.replace("*", "\\times").replace("/", "\\div")
        for text in (f"{boxed} = {row['target']}", latex, f"${boxed}$", boxed.replace(" ", "")):
            assert verify("countdown", answer(text), row["gold"], row).correct is True, text
        tagged = f"<think>x</think> <answer> {boxed} </answer>"
        assert verify("countdown", tagged, row["gold"], row).correct is True


def test_the_row_says_what_is_allowed():
    some = {**PUZZLE, "use": "some"}
    assert verify("countdown", answer("20 + 7 - 3"), "24", some).correct
    assert not verify("countdown", answer("20 + 7 - 3 + 3 - 3"), "24", some).correct
    plus = {"numbers": [4, 6], "target": 24, "operators": "+-"}
    assert not verify("countdown", answer("4 * 6"), "24", plus).correct
    exact = {"numbers": [1, 3, 3], "target": 1}
    assert verify("countdown", answer("\\frac{1}{3} * 3"), "1", exact).correct
    assert not verify("countdown", answer("1 / (3 - 3)"), "1", exact).correct


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"numbers": []},
        {"numbers": "3, 5"},
        {"numbers": [3.5], "target": 4},
        {"numbers": [3], "target": "x"},
        {"numbers": [3], "target": 3, "use": "any"},
        {"numbers": [3], "target": 3, "operators": "^"},
    ],
)
def test_a_row_that_cannot_be_verified_is_refused(row):
    with pytest.raises(DataError, match="fix:"):
        check_row("countdown", "", row)
