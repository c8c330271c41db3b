"""Problems for GRPO from verl rows, question/answer rows and benchmark files."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from real_data import REAL_DATA

from megaladder.cli import main
from megaladder.data.read_problems import ProblemOptions, ProblemReader, read_problems
from megaladder.errors import DataError
from megaladder.types import Message

DATA = REAL_DATA


def write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_verl_rows_from_parquet(tmp_path):
    """Transferability's to_parquet.py layout."""
    import pyarrow
    from pyarrow import parquet

    rows = [
        {
            "data_source": source,
            "prompt": [{"role": "user", "content": f"q{i}"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "1/2"},
            "extra_info": {"index": i},
        }
        for i, source in enumerate(("deepscaler", "openai/gsm8k"))
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rl.parquet")
    first, second = read_problems(tmp_path / "rl.parquet")
    assert (first.prompt, first.gold, first.kind, first.source) == (
        (Message("user", "q0"),),
        "1/2",
        "math",
        "deepscaler",
    )
    assert (
        first.metadata == {"ability": "math", "extra_info": {"index": 0}}
        and second.kind == "gsm8k"
        and first.id != second.id
    )


def test_question_answer_rows(tmp_path):
    options = ProblemOptions(prompt_suffix="\nThink.", system_prompt="S")
    row = {"question": "q", "golden_answer": 7.0, "data_source": "x"}
    (one,) = read_problems(write(tmp_path / "q.jsonl", row), options)
    assert (one.prompt, one.gold) == ((Message("system", "S"), Message("user", "q\nThink.")), "7")
    path = write(tmp_path / "p.jsonl", {"problem": "p", "answer": ["3"], "id": 60})
    (two,) = read_problems(path, options)
    assert (two.id, two.gold, two.metadata) == ("60", "3", {})
    assert read_problems(path)[0].id == read_problems(path)[0].id != one.id


GOOD = {"problem": "p", "answer": "3"}
VERL = {"prompt": "p", "reward_model": {"ground_truth": "1"}}


@pytest.mark.parametrize(
    ("good", "row", "message"),
    [
        (GOOD, {"problem": "p", "answer": " "}, "a final answer to compare with, found str ' '"),
        (GOOD, {"problem": "p", "answer": {"a": 1}}, "to compare with, found an object"),
        (GOOD, {"problem": "p"}, r"expected the fields of layout problem-answer"),
        (GOOD, {"problem": " ", "answer": "1"}, "expected text in 'problem', found str ' '"),
        (
            VERL,
            {**VERL, "prompt": [{"role": "assistant", "content": "x"}]},
            r"expected a list of \{role, content\} that ends with the user",
        ),
        (VERL, {**VERL, "reward_model": {}}, "a final answer to compare with, found nothing"),
        (
            {"problem": "p", "question": "p", "answer": "1"},
            {"problem": "p", "question": "q", "answer": "1"},
            "expected one question, found two texts that differ",
        ),
        (
            {"problem": "p", "solution": "so \\boxed{3}"},
            {"problem": "q", "solution": "no box"},
            r"expected a final answer in \\boxed\{\} in 'solution', found str 'no box'",
        ),
    ],
)
def test_refusals(tmp_path, good, row, message):
    rows = [{**good, "id": number} for number in range(100)]
    path = write(tmp_path / "p.jsonl", rows[0], {**row, "id": "bad"}, *rows[1:])
    with pytest.raises(DataError, match=rf"p.jsonl:2: .*{message}.*; fix: "):
        read_problems(path)
    assert len(read_problems(path, ProblemOptions(on_bad_row="skip"))) == 100


def test_rows_published_many_times_are_taken_once_and_counted(tmp_path):
    """Ten verl rows, each five times, as DAPO-Math-17k has each of its rows a hundred times."""
    rows = [
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": f"What is {i}+{i}?"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": str(2 * i), "style": "rule"},
            "extra_info": {"index": f"row-{i}"},
        }
        for i in range(10)
    ]
    path = write(tmp_path / "rl.jsonl", *rows * 5)
    reader = ProblemReader(path)
    assert [problem.gold for problem in reader] == [str(2 * i) for i in range(10)]
    assert reader.rows == 50 and reader.lines() == [
        "40 rows that repeat an earlier one: left out (data.duplicates drop)"
    ]
    kept = read_problems(path, ProblemOptions(duplicates="keep"))
    assert len({problem.id for problem in kept}) == 50
    with pytest.raises(
        DataError, match=r"rl.jsonl:11: .* repeats .*rl.jsonl:1; fix: remove it, or"
    ):
        read_problems(path, ProblemOptions(duplicates="error"))
    other_gold = write(
        tmp_path / "p.jsonl",
        {"problem": "p", "answer": "2", "id": 1},
        {"problem": "p", "answer": "3", "id": 1},
    )
    with pytest.raises(DataError, match=r"p.jsonl:2: .*id '1' again, first at .*p.jsonl:1, with"):
        read_problems(other_gold)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
@pytest.mark.parametrize(
    ("name", "rows", "kind", "gold"),
    [
        ("gsm8k/test", 1319, "gsm8k", "18"),
        ("math500/test", 500, "math", r"\left( 3, \frac{\pi}{2} \right)"),
        ("aime24/test", 30, "math", "204"),
        ("amc23/test", 40, "math", "27"),
    ],
)
def test_real_files(name, rows, kind, gold):
    problems = read_problems(DATA / f"{name}.jsonl")
    assert (len(problems), {p.kind for p in problems}) == (rows, {kind})
    assert len({p.id for p in problems}) == rows and all(
        p.gold.strip() and p.prompt[0].content.strip() for p in problems
    )
    assert problems[0].gold == gold


@pytest.mark.parametrize(
    ("gold", "named"),
    [
        # NuminaMath-1.5; PRIME-RL/Eurus-2-RL-Data's tests of programs; allenai/RLVR-IFeval's rules
        ("proof", "the word 'proof'"),
        ("notfound", "the word 'notfound'"),
        ('{"inputs": ["1"], "outputs": ["2"]}', "a JSON object"),
        ('{"func_name": "validate_lowercase"}', "a JSON object"),
    ],
)
def test_a_gold_that_no_mathematical_answer_meets_is_refused(tmp_path, gold, named):
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"problem": "Show it.", "answer": gold}]))
    with pytest.raises(DataError, match=named):
        read_problems(path)
    for value in ("{1, 2}", "{}", "proof by cases"):
        path.write_text(json.dumps([{"problem": "Which set?", "answer": value}]))
        assert read_problems(path)[0].gold == value


def test_rows_without_a_final_answer_are_left_out_by_what_their_message_says(tmp_path):
    """Columns of NuminaMath-1.5; more of them than `on_bad_row: skip` lets pass."""
    rows = [
        {"problem": f"What is {i} + 1?", "solution": "s", "answer": answer, "source": "olympiads"}
        for i, answer in enumerate(["1", "Proof", "notfound", "4"])
    ]
    path = write(tmp_path / "numina math.jsonl", *rows)
    with pytest.raises(DataError, match="the word 'Proof'") as told:
        read_problems(path)
    command, recipe = re.findall("`([^`]+)`", str(told.value))
    (tmp_path / "recipe.yaml").write_text(recipe)
    out = tmp_path / "rows.jsonl"
    files = {"recipe.yaml": tmp_path / "recipe.yaml", "rows.jsonl": out}
    assert main([str(files.get(word, word)) for word in shlex.split(command)[1:]]) == 0
    assert sorted(problem.gold for problem in read_problems(out)) == ["1", "4"]
