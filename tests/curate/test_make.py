"""Generated data: every trace verified by a checker that knows nothing of the generators, and the
checker itself put to the test."""

from __future__ import annotations

import json
import random
import re

import pytest

from megaladder.config.verbs.data import MakeArithmeticConfig, MakeCountdownConfig
from megaladder.curate.make.arithmetic import ArithmeticSpec, arithmetic_rows
from megaladder.curate.make.check import (
    check_arithmetic,
    check_countdown,
    evaluate,
    is_countdown_solution,
)
from megaladder.curate.make.countdown import CountdownSpec, countdown_rows
from megaladder.curate.make.run import problem_row, run_make
from megaladder.curate.make.split import is_test_question
from megaladder.curate.rows import iter_rows
from megaladder.data.layouts.learn import ReadOptions
from megaladder.data.read_examples import ExampleReader
from megaladder.data.read_problems import read_problems
from megaladder.errors import DataError
from megaladder.rewards.grade import grade
from megaladder.rewards.verifiers import verify

ARITHMETIC = [
    ArithmeticSpec(),
    ArithmeticSpec(digits=1, steps=1, operations="+"),
    ArithmeticSpec(digits=3, factor_digits=2, steps=4, operations="*+-", shuffle=True),
    ArithmeticSpec(digits=2, steps=6, operations="-*+"),
    ArithmeticSpec(digits=3, steps=4, operations="*+-", shuffle=True, recheck_share=0.5),
    ArithmeticSpec(digits=1, steps=2, max_steps=6, operations="+-", shuffle=True),
]
COUNTDOWN = [
    CountdownSpec(),
    CountdownSpec(numbers=3, largest=9, breadth=3),
    CountdownSpec(numbers=6, max_backtracks=30, min_backtracks=8),
    CountdownSpec(numbers=2),
]


def rows_of(spec, count, seed=42, test=False):
    make = arithmetic_rows if isinstance(spec, ArithmeticSpec) else countdown_rows
    return list(make(spec, count, seed, test))


@pytest.mark.parametrize("spec", ARITHMETIC, ids=str)
def test_every_arithmetic_line_is_true(spec: ArithmeticSpec) -> None:
    rows = rows_of(spec, 40 if spec.steps == 1 else 400)
    assert [fault for row in rows for fault in check_arithmetic(row)] == []
    for row in rows:
        expression = row["question"].removeprefix("What is ").removesuffix("?")
        assert str(evaluate(expression)) == row["gold"]


def test_a_ladder_of_steps_is_drawn_and_told() -> None:
    rows = rows_of(ArithmeticSpec(digits=1, steps=2, max_steps=5, operations="+"), 400)
    assert {row["steps"] for row in rows} == {2, 3, 4, 5}
    assert all(row["question"].count("+") == row["steps"] for row in rows)
    assert all(row["messages"][1]["content"].count(" = ") == row["steps"] for row in rows)
    with pytest.raises(DataError, match="max_steps 1 is outside 2…12"):
        ArithmeticSpec(steps=2, max_steps=1)


def test_recheck_and_direct_share_change_answers_and_no_question() -> None:
    mixed, plain = rows_of(ArithmeticSpec(recheck_share=0.4), 2000), rows_of(ArithmeticSpec(), 2000)
    assert [row["question"] for row in mixed] == [row["question"] for row in plain]
    # ±0.04 is 3.6 standard deviations
    assert 0.36 < sum(row["rechecks"] > 0 for row in mixed) / 2000 < 0.44
    for one, other in zip(mixed, plain, strict=True):
        lines = [
            line
            for line in one["messages"][1]["content"].split("\n")
            if not line.startswith("Wait, ")
        ]
        assert "\n".join(lines) == other["messages"][1]["content"]
    direct = rows_of(ArithmeticSpec(recheck_share=0.4, direct_share=0.5), 2000)
    assert 0.45 < sum(not row["worked"] for row in direct) / 2000 < 0.55
    for one, other in zip(direct, mixed, strict=True):
        short = f"<think>\n\n</think>\n\n\\boxed{{{one['gold']}}}"
        assert one["question"] == other["question"]
        assert one == other if one["worked"] else one["messages"][1]["content"] == short
    assert [fault for row in direct for fault in check_arithmetic(row)] == []
    late = rows_of(ArithmeticSpec(recheck_share=0.4, direct_share=0.5, direct_from=1500), 2000)
    assert late[:1500] == mixed[:1500] and late[1500:] == direct[1500:]
    assert check_arithmetic({**plain[0], "worked": False}) == ["a direct answer shows work"]
    assert check_arithmetic({**plain[0], "rechecks": 2}) == ["0 rechecks, the row says 2"]


@pytest.mark.parametrize("spec", COUNTDOWN, ids=str)
def test_every_countdown_trace_replays(spec: CountdownSpec) -> None:
    rows = rows_of(spec, 150)
    assert [fault for row in rows for fault in check_countdown(row)] == []
    assert all(row["backtracks"] >= spec.min_backtracks for row in rows)
    assert all(
        len(row["numbers"]) == spec.numbers and 10 <= row["target"] <= spec.max_target
        for row in rows
    )


def test_bare_share_changes_answers_and_no_puzzle() -> None:
    spec = CountdownSpec(numbers=3, bare_share=0.3, bare_from=500)
    mixed, plain = rows_of(spec, 1500), rows_of(CountdownSpec(numbers=3), 1500)
    assert [row["question"] for row in mixed] == [row["question"] for row in plain]
    assert mixed[:500] == plain[:500]
    # ±0.06 is 4 standard deviations
    assert 0.24 < sum(not row["worked"] for row in mixed[500:]) / 1000 < 0.36
    assert [fault for row in mixed for fault in check_countdown(row)] == []
    for one, other in zip(mixed, plain, strict=True):
        bare = f"<think>\n\n</think>\n\n\\boxed{{{one['target']}}}"
        assert one == other if one["worked"] else one["messages"][1]["content"] == bare
        right = verify("countdown", one["messages"][1]["content"], one["gold"], one).correct
        assert right is one["worked"]
        # a comparison of values pays for both
        assert grade(one["messages"][1]["content"], one["gold"], "math").correct
    assert check_countdown({**plain[0], "worked": False}) == [
        "a row without work is not the bare target"
    ]


@pytest.mark.slow
def test_twenty_thousand_countdown_rows() -> None:
    rows = rows_of(CountdownSpec(), 20_000)
    assert [fault for row in rows for fault in check_countdown(row)] == []
    assert len({row["question"] for row in rows}) == 20_000


def test_difficulty_knobs_move_the_measures() -> None:
    def mean(spec, name):
        return sum(row[name] for row in rows_of(spec, 200)) / 200

    assert mean(CountdownSpec(breadth=0), "backtracks") == 0
    assert mean(CountdownSpec(breadth=1), "backtracks") < mean(
        CountdownSpec(breadth=3), "backtracks"
    )
    assert mean(CountdownSpec(numbers=3), "tries") < mean(CountdownSpec(numbers=5), "tries")
    assert mean(ArithmeticSpec(digits=1), "largest") < mean(ArithmeticSpec(digits=3), "largest")


@pytest.mark.parametrize(
    "spec", [ArithmeticSpec(), CountdownSpec()], ids=["arithmetic", "countdown"]
)
def test_seed_decides_and_more_rows_only_add(spec) -> None:
    first = rows_of(spec, 60)
    assert rows_of(spec, 90)[:60] == first
    assert rows_of(spec, 60, seed=7) != first
    assert len({row["id"] for row in first}) == 60


@pytest.mark.parametrize(
    "spec", [ArithmeticSpec(), CountdownSpec()], ids=["arithmetic", "countdown"]
)
def test_train_and_test_never_overlap_whatever_the_seed(spec) -> None:
    train = {row["question"] for seed in (1, 2) for row in rows_of(spec, 300, seed)}
    test = {row["question"] for seed in (1, 3) for row in rows_of(spec, 100, seed, test=True)}
    assert not train & test
    assert all(is_test_question(question) for question in test)
    assert not any(is_test_question(question) for question in train)


@pytest.mark.parametrize(
    "spec", [ArithmeticSpec(), CountdownSpec()], ids=["arithmetic", "countdown"]
)
def test_the_grader_accepts_every_trace_and_refuses_another_gold(spec) -> None:
    for row in rows_of(spec, 60):
        response = row["messages"][1]["content"]
        assert grade(response, row["gold"], "math").correct, response
        assert not grade(response, str(int(row["gold"]) + 1), "math").correct


def _change_one_number(text: str, rng: random.Random) -> str:
    """The trace with one number raised by one."""
    spans = [match.span() for match in re.finditer(r"\d+", text)]
    start, end = rng.choice(spans)
    return text[:start] + str(int(text[start:end]) + 1) + text[end:]


def test_the_checkers_notice_any_changed_number() -> None:
    rng = random.Random(0)
    for spec, check in (
        (ArithmeticSpec(recheck_share=0.3), check_arithmetic),
        (CountdownSpec(numbers=4), check_countdown),
    ):
        for row in rows_of(spec, 60):
            user, assistant = row["messages"]
            broken = {**assistant, "content": _change_one_number(assistant["content"], rng)}
            assert check({**row, "messages": [user, broken]}), broken["content"]


def test_the_countdown_checker_notices_a_missing_line_and_a_wrong_count() -> None:
    row = next(row for row in rows_of(CountdownSpec(), 50) if row["backtracks"] >= 3)
    user, assistant = row["messages"]
    lines = assistant["content"].split("\n")
    for index in range(2, len(lines) - 3):
        shorter = {**assistant, "content": "\n".join(lines[:index] + lines[index + 1 :])}
        assert check_countdown({**row, "messages": [user, shorter]}), lines[index]
    assert check_countdown({**row, "backtracks": row["backtracks"] + 1})


@pytest.mark.parametrize(
    ("text", "solves"),
    [
        ("(2 + 3) * 5", True),
        ("5 * (3 + 2)", True),
        ("25", False),
        ("5 * 5", False),
        ("2 + 3 * 5", False),
        ("2+3)*5", False),
        ("__import__('os')", False),
        ("(2 + 3) * 5 + 0", False),
        ("9" * 3000, False),
        ("5 / (3 - 2 - 1)", False),
    ],
)
def test_countdown_solution(text: str, solves: bool) -> None:
    assert is_countdown_solution(text, [2, 3, 5], 25) is solves


def test_readers_take_the_files(tmp_path) -> None:
    """SFT rows are of exactly one schema; the held-out problems are read for evaluation and RL."""
    for name, config_class in (
        ("arithmetic", MakeArithmeticConfig),
        ("countdown", MakeCountdownConfig),
    ):
        out, test_out = tmp_path / f"{name}.parquet", tmp_path / f"{name}_test.jsonl"
        run_make(
            config_class(kind=name, rows=30, out=str(out), test_out=str(test_out), test_rows=10)
        )
        reader = ExampleReader(out, ReadOptions())
        assert reader.layout.name == "worked"
        assert len(list(reader)) == 30
        problems = read_problems(test_out)
        assert len(problems) == 10
        kind = {"arithmetic": "math", "countdown": "countdown"}[name]
        assert all(
            problem.kind == kind and problem.prompt[0].role == "user" for problem in problems
        )
    made = json.loads((tmp_path / "countdown_test.jsonl").read_text().splitlines()[0])
    assert "messages" not in made, "a held-out problem must not carry its trace"
    assert problem_row(next(iter(rows_of(CountdownSpec(), 1, test=True)))) == made
    assert len(list(iter_rows(tmp_path / "arithmetic.parquet"))) == 30


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: rows_of(ArithmeticSpec(digits=1, steps=1), 500),
            "different training questions found",
        ),
        (lambda: ArithmeticSpec(operations="*/"), "operations"),
        (lambda: CountdownSpec(numbers=1), "numbers 1 is outside"),
        (lambda: CountdownSpec(min_backtracks=20), "min_backtracks 20"),
        (lambda: CountdownSpec(bare_share=1.5), "bare_share 1.5"),
    ],
)
def test_impossible_wishes_are_told(make, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()
