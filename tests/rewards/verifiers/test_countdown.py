"""Countdown: true solutions count, hacks do not."""

from __future__ import annotations

import pytest

from megaladder.curate.make.countdown import CountdownSpec, countdown_rows
from megaladder.errors import DataError
from megaladder.rewards.verifiers import check_row, verify

PUZZLE = {"numbers": [3, 5, 7, 20], "target": 24}
HACKS = (
    *("24", "No work at all. 24", "=24", "24=24", "20+4", "12*2", "(24)", "24*1", "24+0", "48/2"),
    *("3*8", "3+5+7+20", "35", "20+7-3", "20+7-3-0", "20+7-3+5-5", "20+7-3+(5-5)", "20+7-3*1"),
    *("3+5+7+9", "20-3+7+5-5", "20+7-3=24", "20+7-3=24=24", "3*5+7+2", "7*5-3-20+12", "3*7+5-2"),
    *("20+5-3+7-5", "5**2-1", "5^2-1", "3!+18", "4!", "5!/5", "20//1+4", "20%7+18", "2 0+4", "357"),
    *("35-7-3+20-21", "3.0+5+7+20", "3e1+5+7+20", "0x18", "２４", "³+24", "3_0-6", "int(24)"),
    *("__import__('os')", "(lambda:24)()", "24 or 1", "24 if 1 else 3", "[24][0]", "24;3", "3,24"),
    *(
        "\\sqrt{576}",
        "\\text{24}",
        "20+7-3 or 24",
        "x=24",
        "24\\,",
        "--24",
        "+24",
        "(20+7-3",
        "20+7-3)",
    ),
    *("\\frac{24}{1}", "20+7-3+5/7*0", "20\\cdot1.2", "target", "numbers", "", " ", "NaN", "inf"),
    *("3+5+7+20=24", "(3*5+7)+20-18", "20*5/(7-3)", "7*3+5-20/20", "20+7-(3)", "3*20/5+7+7"),
)


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


def test_no_hack_counts():
    assert len(set(HACKS)) >= 60
    passed = [hack for hack in HACKS if verify("countdown", answer(hack), "24", PUZZLE).correct]
    assert passed == []
    whole = (
        "24",
        "the target is 24",
        "20+7-3",
        "\\boxed{",
        "<answer>24</answer>",
        "",
        "</think>24",
    )
    assert not any(verify("countdown", text, "24", PUZZLE).correct for text in whole)


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
