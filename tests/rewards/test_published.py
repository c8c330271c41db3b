"""Graders of published studies: the verdicts that their descriptions give, faults included."""

from __future__ import annotations

from typing import get_args

import pytest

from megaladder.config.verbs.grade import GraderName
from megaladder.rewards.grade import OWN, grade
from megaladder.rewards.published import GRADERS, minerva, prime
from megaladder.rewards.worker import GradePool, GradeTask
from megaladder.types import GradeReason

# (grader, response, gold, verdict)
VERDICTS = [
    # Qwen: relative 1e-4 and percentages; the last number without a box; tuples piece by piece
    ("qwen", r"\boxed{0.33333}", "0.333333", True),
    ("qwen", r"\boxed{0.3333}", "0.3337", False),
    ("qwen", r"\boxed{25}", "0.25", True),
    ("qwen", "first 3, then 7 apples", "7", True),
    ("qwen", "So the answer is 12.", "12", True),
    ("qwen", r"\boxed{(0.5, 2)}", r"(\frac{1}{2}, 2.0)", True),
    ("qwen", r"\boxed{(2, 0.5)}", r"(\frac{1}{2}, 2.0)", False),
    ("qwen", r"\boxed{x=5}", "5", True),
    ("qwen", r"\boxed{(B)}", "B", True),
    ("qwen", r"\boxed{2x-y=-3}", "y-2x=3", True),
    (
        "qwen",
        r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}",
        r"\begin{bmatrix}1\\2\end{bmatrix}",
        True,
    ),
    ("qwen", r"\boxed{\frac{1}{4}}", "0.25", True),
    # LIMO: a box or nothing; an absolute 1e-4, so that small numbers are all equal; sorted lists
    ("limo", r"\boxed{\frac{1}{4}}", "0.25", True),
    ("limo", "the answer is 7", "7", False),
    ("limo", r"\boxed{2,1}", "1,2", True),
    ("limo", r"\boxed{0.00002}", "0.00007", True),
    # Minerva: its phrase or nothing; units of its list; sympy
    ("minerva", "Final Answer: The final answer is $17$. I hope it is correct.", "17", True),
    ("minerva", r"\boxed{17}", "17", False),
    ("minerva", "Final Answer: The final answer is 5 dollars. I hope it is correct.", "5", True),
    ("minerva", r"Final Answer: The final answer is $1+x$. I hope it is correct.", "x+1", True),
    (
        "minerva",
        r"Final Answer: The final answer is $\frac12$. I hope it is correct.",
        "0.6",
        False,
    ),
    # PRIME: integers and fractions as written; scale words spelled out
    ("prime", r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}", True),
    ("prime", r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", False),
    ("prime", r"\boxed{5 \text{ cm}}", "5", True),
    ("prime", r"\boxed{(1,2)}", "[1,2]", False),
    ("prime", r"\boxed{1+x}", "x+1", True),
    ("prime", "5", "5", False),
    # Rethinking SFT and math-verify: box, tag, last line; trailing letters dropped as units
    ("rethinking", "<answer>$5$</answer>", "5", True),
    ("rethinking", "so\n$\\frac{1}{2}$", "0.5", True),
    ("rethinking", r"\boxed{x+y+2}", "x+y+2g", True),
    ("math_verify", r"It is $\boxed{\frac{1}{2}}$.", "0.5", True),
    ("math_verify", r"It is $\boxed{3}$.", "4", False),
    # reasoning_ladder and s1 without their language model: equal strings
    ("box_match", r"\boxed{023}", "23", True),
    ("box_match", "<|im_start|>think\n\\boxed{1}\n<|im_start|>answer\nAnswer: 2", "2", True),
    ("box_match", r"\boxed{0.5}", r"\frac{1}{2}", False),
]


@pytest.mark.parametrize(("grader", "response", "gold", "expected"), VERDICTS)
def test_verdicts_are_those_of_the_study(grader, response, gold, expected):
    found = grade(response, gold, "math", grader)
    assert found.correct is expected, found
    assert not expected or found.reason is GradeReason.PUBLISHED


def test_every_name_of_the_configuration_is_a_grader():
    assert set(get_args(GraderName)) == {OWN, *GRADERS}
    assert {name for name, *_ in VERDICTS} == set(GRADERS)


def test_normalisations_of_the_papers():
    """Examples of Minerva's appendix and of PRIME's rules."""
    assert minerva.normalize("x = 5") == "5"
    assert minerva.normalize(r"\frac12") == r"\frac{1}{2}"
    assert minerva.normalize("10,000") == "10000"
    assert minerva.normalize(r"\text{even}") == "even"
    assert prime.normalize("1,234") == "1234" and prime.normalize("5.0") == "5"


def test_a_pool_grades_with_the_grader_it_was_given():
    task = GradeTask("x", r"\boxed{x+y+2}", "x+y+2g")
    with GradePool(num_workers=1) as ours, GradePool(num_workers=1, grader="rethinking") as theirs:
        assert ours.grade_many([task])[0].correct is False
        assert theirs.grade_many([task])[0].correct is True
