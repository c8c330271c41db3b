"""The grader against its corpus, against real gold answers, and the promises that its docstrings
make."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise

import pytest
from rewards.grader_corpus import DATA, read_corpus, real_golds

from megaladder.errors import DataError
from megaladder.rewards.compare.normalize import clean, number
from megaladder.rewards.extract import MAX_ANSWER_CHARS, extract, last_box
from megaladder.rewards.grade import KINDS, check_gold, grade
from megaladder.rewards.letters import letter
from megaladder.rewards.worker import GradePool, GradeTask
from megaladder.types import UNDECIDED_REASONS, GradeReason

FRIENDLY = [row for row in read_corpus() if row["source"] != "hostile"]
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")

WRAPPINGS = {
    "boxed": "so it is $\\boxed{%s}$.",
    "boxed after thinking": "<think>perhaps \\boxed{1}</think>\n\n\\[\\boxed{%s}\\]<|im_end|>",
    "answer tag": "<answer>%s</answer>",
    "final answer": "Final Answer: $%s$",
    "bold, bare": "**Final Answer:** %s",
    "minerva": "Final Answer: The final answer is $%s$. I hope it is correct.",
    "sentence": "Therefore, the answer is $%s$.\n\nLet me know if you have questions!",
    "last line": "We compute.\n$%s$",
    "last line, bare": "We compute.\n%s",
    "hash": "We compute.\n#### %s",
    "in a font": "\\boxed{\\text{%s}}",
    "named": "\\boxed{x = %s}",
}


def test_corpus_has_what_it_promises():
    rows = read_corpus()
    assert len(rows) >= 300
    assert sum(row["source"] == "hostile" for row in rows) >= 60
    assert {row["kind"] for row in rows} == set(KINDS)
    # both verdicts are well represented
    assert 0.3 < sum(row["expected"] for row in FRIENDLY) / len(FRIENDLY) < 0.8


def test_corpus_agreement_is_complete():
    with GradePool(num_workers=2, timeout_s=20) as pool:
        graded = pool.grade_many(
            [
                GradeTask(str(i), row["output"], row["gold"], row["kind"])
                for i, row in enumerate(FRIENDLY)
            ]
        )
        assert pool.failures == []
    wrong = [
        (row["output"], row["gold"], row["kind"], row["expected"])
        for row, found in zip(FRIENDLY, graded, strict=True)
        if found.correct != row["expected"]
    ]
    assert wrong == []
    reasons = Counter(found.reason for found in graded)
    assert all(
        reasons[reason] >= 10
        for reason in GradeReason
        if reason not in (*UNDECIDED_REASONS, GradeReason.PUBLISHED)
    ), reasons


@needs_data
def test_real_gold_answers_are_equal_to_themselves_in_every_wrapping():
    """100 % on gsm8k, math500, aime24, amc23. Left out: naming an equation (`x = y = 2x + 3`)."""
    tasks = []
    for name, (kind, answers) in real_golds().items():
        for wrapping, form in WRAPPINGS.items():
            for i, gold in enumerate(answers):
                plain = gold.rsplit("####", 1)[-1].strip()
                if wrapping == "named" and "=" in plain:
                    continue
                tasks.append(
                    GradeTask(f"{name} {wrapping} {i}", form.replace("%s", plain), gold, kind)
                )
    assert len(tasks) > 22_000
    with GradePool(num_workers=2, timeout_s=20) as pool:
        graded = pool.grade_many(tasks)
    assert [task.id for task, found in zip(tasks, graded, strict=True) if not found.correct] == []


@needs_data
def test_neighbouring_gold_answers_are_told_apart():
    """The opposite check: the answer of another problem is right only where the two answers are
    equal as strings or numbers."""
    kind, answers = real_golds()["math500"]
    tasks = [
        GradeTask(str(i), f"\\boxed{{{other}}}", gold, kind)
        for i, (gold, other) in enumerate(pairwise(answers))
    ]
    with GradePool(num_workers=2, timeout_s=20) as pool:
        graded = pool.grade_many(tasks)
    equal = [
        (gold, found.answer) for gold, found in zip(answers, graded, strict=False) if found.correct
    ]
    for gold, answer in equal:
        left, right = (number(clean(text.removeprefix("x="))) for text in (gold, answer))
        assert gold == answer or (left and right and left.value == right.value), (gold, answer)


@pytest.mark.parametrize(
    ("gold", "kind"),
    [("", "math"), (" \n", "exact"), ("AB", "choice"), ("eighteen", "gsm8k"), ("\\boxed{", "math")],
)
def test_a_gold_answer_that_cannot_be_one_is_an_error(gold, kind):
    with pytest.raises(DataError, match="fix:"):
        grade("\\boxed{5}", gold, kind)


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match="math, gsm8k, choice, exact"):
        grade("5", "5", "maths")


def test_reasons_say_how_the_verdict_came_about():
    assert grade("\\boxed{x^2}", "x^{2}").reason is GradeReason.EXACT
    assert grade("\\boxed{0.5}", "\\frac12").reason is GradeReason.NUMERIC
    assert grade("\\boxed{1+x}", "x+1").reason is GradeReason.SYMBOLIC
    assert grade("\\boxed{B}", "(B)", "choice").reason is GradeReason.CHOICE
    assert grade("\\boxed{6}", "5").reason is GradeReason.DIFFERENT
    empty = grade("", "5")
    assert (empty.correct, empty.answer, empty.reason, empty.detail) == (
        False,
        None,
        GradeReason.NO_ANSWER,
        "empty response",
    )
    assert grade("<think>5", "5").detail == "the reasoning never ended"
    assert grade("\\boxed{5", "5").detail == "\\boxed{ never closed"


def test_a_candidate_over_the_cap_is_no_answer():
    assert extract("\\boxed{" + "1" * MAX_ANSWER_CHARS + "}", "math").text is not None
    over = grade("\\boxed{" + "1" * (MAX_ANSWER_CHARS + 1) + "}", "1")
    assert over.reason is GradeReason.NO_ANSWER and str(MAX_ANSWER_CHARS + 1) in over.detail


def test_extraction_is_linear_in_the_response():
    """Ten times the text takes at most some twenty times as long, for the texts that make careless
    regexes quadratic or worse."""

    def seconds(text: str) -> float:
        start = time.thread_time()  # CPU seconds: the load of the machine does not count
        for kind in KINDS:
            extract(text, kind)
        return time.thread_time() - start

    for unit in (
        "\\boxed{",
        "\\boxed{6} ",
        "$",
        "answer: ",
        "####",
        "<answer>",
        "<think>",
        " \n",
        "option ",
        "**",
        "\\(",
    ):
        small, large = (
            min(seconds(unit * 5_000) for _ in range(3)),
            min(seconds(unit * 50_000) for _ in range(3)),
        )
        assert large < 20 * small + 0.25, (unit, small, large)


def test_grading_is_idempotent_on_its_own_answer():
    """What is extracted, put into a box, gets the same verdict: extraction loses nothing that
    counts."""
    for row in FRIENDLY:
        if row["kind"] != "math" or not row["expected"]:
            continue
        answer = extract(row["output"], "math").text
        assert extract(f"\\boxed{{{answer}}}", "math").text in (
            answer,
            answer.removeprefix("\\boxed{").removesuffix("}"),
        ), row


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        (r"\sqrt{x^2}", "x", False),
        (r"\sqrt{x^2}", "|x|", True),
        (r"\sqrt{x}\sqrt{y}", r"\sqrt{xy}", True),
        (r"\sqrt{2+\sqrt3}", r"\frac{\sqrt6+\sqrt2}{2}", True),
        (r"\sqrt[3]{-8}", "-2", True),
        ("(-1)^n", r"\cos(n\pi)", True),
        (r"\frac{1}{20!}", r"\frac{1}{19!}", False),
        ("2^{10^{15}}", "2^{10^{15}}+1", False),
        (r"5\text{ m}", r"500\text{ cm}", True),
        (r"5\text{ m}", r"5\text{ cm}", False),
        (r"2\text{ hours}", r"120\text{ minutes}", True),
        (r"\$10", r"10\text{ cents}", False),
        ("12345.678", "12345.679", False),
        (r"x \ne 2", r"(-\infty,2)\cup(2,\infty)", True),
        (r"\log 100", "2", True),
        ("6", "x = 5 = 6", False),
        ("36", "A = 6^2 = 36", True),
        (r"4\pi", r"A = 4\pi \approx 12.57", True),
        ("12.57", r"4\pi \approx 12.57", True),
        (r"4\pi", r"4\pi \approx 11", False),
        ("6", r"5 \approx 6", False),
        (r"500\text{ cm}", r"5\text{ m} = 500\text{ cm}", True),
        (r"500\text{ cm}", r"4\text{ m} = 500\text{ cm}", False),
        (r"\frac12", r"\sin 30^\circ = \frac12", True),
        (r"\frac12", r"\sin 30^\circ", True),
        ("9", r"\lfloor 9.5 \rfloor", True),
        ("0", r"\binom{2}{5}", True),
        ("(1,2)", "y = 1, x = 2", False),
        ("(1,2)", "y = 2, x = 1", True),
        ("42", r"\text{not} = 42", False),
        (r"\ln 100", "2", False),
    ],
)
def test_values_are_compared_exactly(gold, answer, expected):
    assert grade(f"\\boxed{{{answer}}}", gold).correct is expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("\\boxed{x = 2 \\cdot 9 = 18}", True),
        ("\\boxed{x = 17 = 18}", False),
        ("\\boxed{x = 9^{9^{9^{9}}} = 18}", None),
        ("So it is not 17 but 18.", True),
        ("The answer is 18 because 2 * 9 = 18.", True),
        ("The answer is 18 or more.", False),
        ("18\n\n1. Add.\n2. Check.", True),
    ],
)
def test_a_number_is_said_once(response, expected):
    assert grade(response, "18", "gsm8k").correct is expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("The answer is B, not C.", "B"),
        ("Answer: B\n\nC is wrong since 3.", "B"),
        ("The answer is (D) A and B.", "D"),
        ("\\boxed{D. Both A and B}", "D"),
        ("\\boxed{B: P(A) = 3, 4}", "B"),
        ("The answer is A because it is.", "A"),
        ("The answer is A matter of taste.", None),
        ("The answer is B or C.", None),
        ("(A) 1 (B) 2 (C) 3", None),
    ],
)
def test_one_option_is_named(response, expected):
    verdicts = {name for name in "ABCD" if grade(response, name, "choice").correct}
    assert verdicts == ({expected} if expected else set())


def test_helpers():
    assert last_box("no box") is None
    assert last_box("\\boxed{a\\}b}").text == "a\\}b"
    assert [letter(text) for text in ("\\text{(C)}", "c) cat", "Option D", "AB", "12", "")] == [
        "C",
        "C",
        "D",
        None,
        None,
        None,
    ]
    check_gold("text #### 1,000", "gsm8k")


def test_no_torch_and_no_sympy_before_they_are_needed():
    code = (
        "import sys; from megaladder.rewards.grade import grade; assert grade('\\\\boxed{5}',"
        " '5').correct; print([name for name in ('torch', 'sympy') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True
        ).stdout.strip()
        == "[]"
    )
