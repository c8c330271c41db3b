r"""Where answers stand, dialect by dialect: reasoning blocks, several boxes, tags, last lines."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import get_args

import pytest

from megaladder import __version__, cli
from megaladder.rewards.dialects import DIALECTS, Mark
from megaladder.rewards.extract import _MARKS, answer_part, extract
from megaladder.rewards.grade import grade
from megaladder.rewards.worker import GradePool, GradeTask
from megaladder.types import DialectName

# what a model writes before its answer: (text, the answer part that is left; None: it still thinks)
REASONING = [
    ("<think>a</think>b", "b"),
    ("a</think>b", "b"),  # the template opened the block
    ("<think>a</think>b<think>c</think>d", "d"),
    ("<think>a<think>b</think>c", "c"),
    ("<think>a", None),
    ("<think>a</think>b<think>c", None),  # a second block that never ends
    ("a</think>b<think>c", None),
    ("<think></think>", ""),
    ("b", "b"),
    ("<|think|>a<|/think|>b", "b"),
    ("<|im_start|>think\na\n<|im_start|>answer\nb", "\nb"),
    ("<|im_start|>think\na", None),
    ("<think>a</think>b<|im_end|><|endoftext|>", "b"),
]


@pytest.mark.parametrize(("response", "left"), REASONING)
def test_only_what_follows_the_reasoning_is_an_answer(response: str, left: str | None) -> None:
    assert answer_part(response) == left


@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_dialect_takes_an_answer_from_the_reasoning(dialect: DialectName) -> None:
    said = {
        "answer-tag": "<answer>7</answer>",
        "hashes": "#### 7",
        "answer-is": "The answer is 7.",
        "minerva": "Final Answer: The final answer is 7. I hope it is correct.",
        "dapo": "Answer: 7",
        "last-line": "7",
    }.get(dialect, "\\boxed{7}")
    assert extract(f"<think>no</think>{said}", "math", dialect).text == "7"
    for thought in (f"<think>{said}", f"<think>{said}</think>", f"x</think>y<think>{said}"):
        assert extract(thought, "math", dialect).text != "7", thought


# (dialect, kind, response, answer)
CASES = [
    # several boxes
    ("megaladder", "math", r"\boxed{1} then \boxed{2}", "2"),
    ("last-box", "math", r"\boxed{1} then \boxed{2}", "2"),
    ("first-box", "math", r"\boxed{1} then \boxed{2}", "1"),
    ("all-boxes", "math", r"\boxed{1} then \fbox{2} and \boxed 3.", "1, 2, 3"),
    ("all-boxes", "math", r"\boxed{\boxed{3}}", "3"),
    ("all-boxes", "math", r"\boxed{1} then \boxed{2", None),
    ("first-box", "math", r"\boxed{1} then \boxed{2", "1"),
    ("last-box", "math", r"\boxed{1} then \boxed{2", None),
    ("first-box", "math", r"\boxedtext \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    # a box or nothing
    ("last-box", "math", "The answer is 7.", None),
    ("last-box", "math", "<answer>7</answer>", None),
    ("last-box", "choice", r"\boxed{\text{(B)}}", r"\text{(B)}"),
    # tags
    ("answer-tag", "math", "<answer>1</answer><answer> 7 </answer>", "7"),
    ("answer-tag", "math", r"<answer>7</answer> \boxed{8}", "7"),
    ("answer-tag", "math", "<answer>7", None),
    ("answer-tag", "math", r"\boxed{7}", None),
    ("answer-tag", "choice", "<answer>B</answer>", "B"),
    # GSM8K
    ("hashes", "gsm8k", "so\n#### 1,234", "1,234"),
    ("hashes", "gsm8k", "#### 1\n#### 2", "2"),
    ("hashes", "gsm8k", "the total is 7", None),
    ("hashes", "math", "#### 3. Simplify\n#### 7", "7"),
    ("last-number", "gsm8k", "first 3, then 7 apples", "7"),
    ("last-number", "math", "first 3, then 7 apples", "7"),
    # chain-of-thought prompts
    ("answer-is", "math", "The answer is 7. Done.", "7"),
    ("answer-is", "math", "The answer is 1.5.\nThanks", "1.5"),
    ("answer-is", "math", "The answer is 3. No: the answer is $x+1$.", "x+1"),
    ("answer-is", "choice", "So the answer is (C).", "(C)"),
    ("answer-is", "exact", "The answer is Paris.", "Paris"),
    ("answer-is", "math", "Answer: 7", None),
    ("answer-is", "math", r"\boxed{7}", None),
    # Minerva
    ("minerva", "math", "Final Answer: The final answer is $17$. I hope it is correct.", "17"),
    ("minerva", "math", "Final Answer: The final answer is $17$.", "17"),
    ("minerva", "math", "Final Answer: 17", None),
    # DAPO
    ("dapo", "math", "Answer: 3\nNo.\nAnswer: 7", "7"),
    ("dapo", "math", "Answer: \\boxed{7}", "\\boxed{7}"),
    ("dapo", "math", "The answer is 7", None),
    # s1, reasoning_ladder
    ("ladder", "math", "<|im_start|>think\n\\boxed{1}<|im_start|>answer\nAnswer: 2", "2"),
    ("ladder", "math", r"Answer: 2, that is \boxed{3}", "3"),
    ("ladder", "math", "7", None),
    # Qwen2.5-Math
    ("qwen", "math", r"The answer is 3. \boxed{4}", "4"),
    ("qwen", "math", "The answer is 3. There are 9 more.", "3"),
    ("qwen", "math", "first 3, then 7 apples", "7"),
    # Rethinking SFT
    ("rethinking", "math", "<answer>$5$</answer>\nbye", "$5$"),
    ("rethinking", "math", "so\n$\\frac{1}{2}$", r"\frac{1}{2}"),
    ("rethinking", "math", "#### 5\nthe end is 7", "7"),
    ("last-line", "exact", "x\nParis", "Paris"),
    # all of them
    ("megaladder", "math", "#### 5\nthe end is 7", "5"),
    ("megaladder", "math", "Answer: 6", "6"),
    ("megaladder", "choice", "\\boxed{42} so the answer is B", "B"),
]


@pytest.mark.parametrize(("dialect", "kind", "response", "answer"), CASES)
def test_the_answer_stands_where_the_dialect_says(dialect, kind, response, answer) -> None:
    assert extract(response, kind, dialect).text == answer


def test_every_dialect_has_cases_and_every_mark_a_reader() -> None:
    assert set(DIALECTS) == set(get_args(DialectName)) == {dialect for dialect, *_ in CASES}
    assert set(_MARKS) == set(get_args(Mark))
    assert {mark for dialect in DIALECTS.values() for mark in dialect.marks} == set(_MARKS)


def test_the_page_has_every_dialect_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "answers.md").read_text()
    rows = [
        f"| `{name}` | {', '.join(dialect.marks)} | {dialect.source} |"
        for name, dialect in DIALECTS.items()
    ]
    assert [row for row in rows if row not in page] == []


def test_the_dialect_decides_the_verdict_and_the_comparison_stays_ours() -> None:
    two = r"\boxed{0.5} or \boxed{7}"
    assert grade(two, "7").correct and not grade(two, "7", dialect="first-box").correct
    assert grade(two, r"\frac{1}{2}", dialect="first-box").correct
    assert grade(two, r"7, \frac12", dialect="all-boxes").correct
    assert not grade("Yes, so No", "no", "exact", dialect="answer-tag").correct
    assert grade("<answer>No</answer>", "no", "exact", dialect="answer-tag").correct
    assert grade("Paris", "Paris", "exact").correct
    assert not grade("Paris", "Paris", "exact", dialect="last-box").correct


def test_a_pool_looks_where_it_was_told() -> None:
    task = GradeTask("x", r"\boxed{1} then \boxed{2}", "1")
    with GradePool(num_workers=1, dialect="first-box") as pool:
        assert pool.grade_many([task])[0].correct is True


def test_grade_writes_which_grader_and_which_dialect_it_was(tmp_path, capsys) -> None:
    rows, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows.write_text(json.dumps({"id": "a", "gold": "1", "response": r"\boxed{1} \boxed{2}"}))
    command = ["grade", "--input", str(rows), "--output", str(out), "--workers", "1"]
    assert cli.main([*command, "--extract", "first-box"]) == 0
    said, row = capsys.readouterr().out, json.loads(out.read_text())
    assert row["correct"] is True
    assert row["grader"] == f"megaladder {__version__}, answers by first-box"
    assert said.startswith(f"grader {row['grader']}: graded 1")
    assert cli.main([*command, "--extract", "first-box", "--grader", "qwen"]) == 2
    assert "extract" in capsys.readouterr().err


@pytest.mark.parametrize("unit", ["\\boxed{", "\\boxed{6} ", "Answer: ", "the answer is ", "#### "])
def test_every_dialect_is_linear_in_the_response(unit: str) -> None:
    """Ten times the text takes at most some twenty times the CPU time."""

    def seconds(text: str) -> float:
        start = time.thread_time()
        for dialect in DIALECTS:
            extract(text, "math", dialect)
        return time.thread_time() - start

    small, large = (min(seconds(unit * n) for _ in range(3)) for n in (5_000, 50_000))
    assert large < 20 * small + 0.25, (small, large)


def test_special_tokens_at_the_end_are_no_part_of_an_answer() -> None:
    for count in (0, 1, 64_000):  # in linear time: none of them is copied
        assert answer_part("\\boxed{42} " + "<|endoftext|> \n" * count).rstrip() == "\\boxed{42}"
    assert answer_part("2 < 3 > 1<|im_end|>") == "2 < 3 > 1"
