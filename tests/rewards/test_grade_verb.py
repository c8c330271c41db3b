"""`megaladder grade` and `megaladder analyze pass-at-k` as a user runs them."""

from __future__ import annotations

import json
import random

import pytest
from data.layouts_published import PUBLISHED

from megaladder.cli import main
from megaladder.data.layouts.stored import lifted, stored_layout
from megaladder.rewards.grade import grade

ROWS = [
    {
        "id": 1,
        "gold": "0.25",
        "responses": ["so \\boxed{\\frac14}", "it is 3", "", "\\boxed{0.25}"],
        "extra": {"a": [1, None]},
    },
    {"id": "é", "gold": 27.0, "response": "\\boxed{27}", "level": 3, "note": "a\u2028b"},
    {"id": "c", "gold": "x", "responses": ["\\boxed{x}"]},
    {"gold": "-1", "response": "<think>-1", "correct": "an old column"},
]


def write(path, rows) -> str:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").split("\n")[:-1]]


def test_rows_come_back_in_order_with_all_their_fields(tmp_path, capsys):
    out = tmp_path / "new" / "out.jsonl"
    assert main(["grade", "--input", write(tmp_path / "in.jsonl", ROWS), "--output", str(out)]) == 0
    graded = read(out)
    assert [
        {key: row[key] for key in before if key != "correct"}
        for before, row in zip(ROWS, graded, strict=True)
    ] == [{key: value for key, value in before.items() if key != "correct"} for before in ROWS]
    assert graded[0]["answer"] == ["\\frac14", "3", None, "0.25"]
    assert graded[0]["correct"] == [True, False, False, True]
    assert graded[0]["reason"] == ["numeric", "different", "no_answer", "exact"]
    assert (graded[1]["answer"], graded[1]["correct"], graded[1]["reason"]) == (
        "27",
        True,
        "numeric",
    )
    assert graded[2]["correct"] == [True]
    assert (graded[3]["answer"], graded[3]["correct"], graded[3]["reason"]) == (
        None,
        False,
        "no_answer",
    )
    printed = capsys.readouterr().out
    assert (
        "graded 7 responses of 4 rows" in printed
        and "4 correct, 3 wrong, 0 undecided; 57.14 %" in printed
        and "analyze pass-at-k" in printed
    )


def test_a_field_named_answer_stays_as_it_is(tmp_path):
    rows = [{"id": 1, "gold": "5", "answer": "5", "response": "\\boxed{6}"}]
    out = tmp_path / "out.jsonl"
    assert main(["grade", "--input", write(tmp_path / "in.jsonl", rows), "--output", str(out)]) == 0
    (row,) = read(out)
    assert (row["answer"], row["extracted_answer"], row["correct"]) == ("5", "6", False)


@pytest.mark.parametrize(
    "published", [one for one in PUBLISHED if one.graded], ids=lambda one: one.source
)
def test_stored_samples_of_every_layout_are_graded_and_analysed(tmp_path, published):
    """Whatever wrote the samples: `grade` takes them, keeps their columns, and pass@k follows."""
    source, out = tmp_path / "in.json", tmp_path / "out.jsonl"
    source.write_text(json.dumps([published.row]))
    assert main(["grade", "--input", str(source), "--output", str(out), "--workers", "1"]) == 0
    (row,) = read(out)
    assert (
        row.items()
        >= {key: value for key, value in published.row.items() if key != "correct"}.items()
    )
    listed = row["correct"] if isinstance(row["correct"], list) else [row["correct"]]
    assert listed == [True, False][: published.graded]
    found = json.loads(pass_at_k_of(tmp_path, out).read_text())
    assert found["avg@n"] == sum(listed) / len(listed) and found["n"] == published.graded
    assert found["maj@n"] is not None


@pytest.mark.parametrize(
    "published", [one for one in PUBLISHED if one.graded], ids=lambda one: one.source
)
def test_what_grade_wrote_counts_before_what_a_row_came_with(published):
    layout = stored_layout(published.row, "a row")
    found = lifted({**published.row, "correct": False, "extracted_answer": "7"}, layout.stored)
    assert (found["correct"], found["extracted_answers"]) == (False, "7")


@pytest.mark.parametrize("name", ["`eval` samples_*.jsonl", "LIMO's evaluation output"])
def test_samples_with_verdicts_need_no_grading(tmp_path, name):
    (published,) = [one for one in PUBLISHED if one.source == name]
    write(tmp_path / "in.jsonl", [published.row])
    found = json.loads(pass_at_k_of(tmp_path, tmp_path / "in.jsonl").read_text())
    assert (found["avg@n"], found["n"], found["cov@n"]) == (0.5, 2, 1.0)


def pass_at_k_of(tmp_path, source):
    out = tmp_path / "pass_at_k.json"
    assert main(["analyze", "pass-at-k", str(source), "--json", str(out)]) == 0
    return out


def test_undecided_samples_are_left_out_of_pass_at_k(tmp_path):
    rows = [{"id": 1, "correct": [True, None], "answer": ["5", None]}, {"id": 2, "correct": [None]}]
    found = pass_at_k(tmp_path, rows)
    assert (found["avg@n"], found["problems"], found["n"]) == (1.0, 1, 1)
    assert any("2 undecided samples left out" in text for text in found["warnings"])


def test_the_file_says_what_grade_says(tmp_path):
    draw = random.Random(1)
    rows = [
        {
            "id": i,
            "gold": str(i % 9),
            "responses": [f"\\boxed{{{draw.randrange(9)}}}" for _ in range(3)],
        }
        for i in range(300)
    ]
    out = tmp_path / "out.jsonl"
    assert (
        main(
            [
                "grade",
                "--input",
                write(tmp_path / "in.jsonl", rows),
                "--output",
                str(out),
                "--workers",
                "2",
            ]
        )
        == 0
    )
    for row in read(out):
        expected = [grade(text, row["gold"], "math") for text in row["responses"]]
        assert row["correct"] == [found.correct for found in expected] and row["answer"] == [
            found.answer for found in expected
        ]


def test_what_is_too_costly_is_counted_and_named(tmp_path, capsys):
    rows = [{"id": "bomb", "gold": "5", "responses": ["\\boxed{5}", "\\boxed{9^{9^{9^{9^9}}}}"]}]
    out = tmp_path / "out.jsonl"
    assert (
        main(
            [
                "grade",
                "--input",
                write(tmp_path / "in.jsonl", rows),
                "--output",
                str(out),
                "--timeout_s",
                "1",
            ]
        )
        == 0
    )
    assert read(out)[0]["reason"] == ["exact", "limit"] and read(out)[0]["correct"] == [True, None]
    out_text = capsys.readouterr().out
    assert "1 correct, 0 wrong, 1 undecided" in out_text
    assert "undecided: bomb, response 2: limit" in out_text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "at least one row"),
        (b"\n \n", "no row"),
        (b"nonsense\n", "bad.jsonl:1: expected one JSON object"),
        (b"[1]\n", "found a list"),
        (
            b'\n{"id": 1, "response": "5"}\n',
            "bad.jsonl:2: no field 'gold'; it has 'id', 'response'",
        ),
        (b'{"id": 1, "gold": "", "response": "5"}\n', "is empty"),
        (b'{"id": 1, "gold": null, "response": "5"}\n', "is empty"),
        (b'{"id": 1, "gold": true, "response": "5"}\n', "is empty"),
        (b'{"id": 1, "gold": "5"}\n', "neither 'response' nor 'responses'"),
        (b'{"id": 1, "gold": "5", "response": "5", "responses": []}\n', "exactly one"),
        (b'{"id": 1, "gold": "5", "responses": []}\n', "one or more texts"),
        (b'{"id": 1, "gold": "5", "responses": "5"}\n', "list"),
        (b'{"id": 1, "gold": "5", "responses": ["5", 5]}\n', "must hold text, found 5"),
        (b'{"id": 1, "gold": "5", "response": null}\n', "must hold text, found null"),
        (b'{"id": 1, "gold": NaN, "response": "5"}\n', "non-JSON number NaN"),
        (b'{"id": "\\ud800", "gold": "5", "response": "5"}\n', "lone surrogate"),
        (b'{"id": 1, "gold": "5", "response": "\xff"}\n', "expected UTF-8"),
        (b"[" * 100_000 + b"\n", "maximum recursion depth"),
    ],
)
def test_bad_input_is_one_message_and_the_old_output_stays(tmp_path, capsys, text, said):
    (tmp_path / "bad.jsonl").write_bytes(text)
    (tmp_path / "out.jsonl").write_text("kept")
    assert (
        main(
            [
                "grade",
                "--input",
                str(tmp_path / "bad.jsonl"),
                "--output",
                str(tmp_path / "out.jsonl"),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert said in error and "fix:" in error and error.count("\n") == 1
    assert (tmp_path / "out.jsonl").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "out.jsonl"]


def test_a_bad_row_after_good_ones_leaves_no_partial_output(tmp_path, capsys):
    rows = [{"id": i, "gold": "5", "response": "5"} for i in range(5000)] + [
        {"id": "bad", "response": "5"}
    ]
    source = write(tmp_path / "in.jsonl", rows)
    assert main(["grade", "--input", source, "--output", str(tmp_path / "out.jsonl")]) == 2
    assert "in.jsonl:5001: no field 'gold'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_paths_that_cannot_be_used(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", ROWS)
    assert (
        main(["grade", "--input", str(tmp_path / "nope"), "--output", str(tmp_path / "out")]) == 2
    )
    assert main(["grade", "--input", source, "--output", str(tmp_path)]) == 2
    assert main(["grade", "--input", source, "--output", f"{source}/x/out"]) == 2
    assert capsys.readouterr().err.count("fix:") == 3


def test_grading_a_file_onto_itself_replaces_it_at_the_end(tmp_path):
    source = write(tmp_path / "in.jsonl", ROWS)
    assert main(["grade", "--input", source, "--output", source]) == 0
    assert [row["gold"] for row in read(tmp_path / "in.jsonl")] == [row["gold"] for row in ROWS]


def pass_at_k(tmp_path, rows, *flags: str) -> dict:
    result = tmp_path / "result.json"
    assert (
        main(
            [
                "analyze",
                "pass-at-k",
                write(tmp_path / "graded.jsonl", rows),
                "--json",
                str(result),
                *flags,
            ]
        )
        == 0
    )
    text = result.read_text()
    found = json.loads(text)
    assert text == json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return found


def test_pass_at_k_of_known_counts(tmp_path, capsys):
    rows = [
        {"id": "a", "correct": [True] * 3 + [False] * 5},
        {"id": "b", "correct": [False] * 8},
        {"id": "c", "correct": [True] * 8},
    ]
    found = pass_at_k(tmp_path, rows, "--k", "1,2,8,64")
    assert found["avg@n"] == found["pass@k"]["1"] == pytest.approx((3 / 8 + 0 + 1) / 3, abs=1e-15)
    # the published (8, 3, 2)
    assert found["pass@k"]["2"] == pytest.approx((0.642857142857 + 0 + 1) / 3, abs=1e-12)
    assert found["pass@k"]["8"] == found["cov@n"] == pytest.approx(2 / 3)
    assert found["pass@k"]["64"] is None and found["maj@n"] is None
    assert (found["n"], found["problems"]) == (8, 3)
    low, high = found["ci95"]["pass@k"]["1"]
    assert (
        0 <= low < found["avg@n"] < high <= 1
        and found["ci95"]["pass@k"]["64"] is None
        and found["ci95"]["maj@n"] is None
    )
    assert (
        len(found["warnings"]) == 2
        and "pass@64" in found["warnings"][1]
        and "maj@n" in found["warnings"][0]
    )
    assert "pass@2" in capsys.readouterr().out


def test_pass_at_k_of_graded_rows_is_seeded(tmp_path):
    rows = [
        {
            "id": i,
            "gold": "5",
            "responses": ["\\boxed{6}", "\\boxed{5}", "\\boxed{10/2}", "\\boxed{6}"],
        }
        for i in range(6)
    ]
    rows += [
        {"id": "x", "gold": "5", "responses": ["", "\\boxed{5}", "", ""]},
        {"id": "y", "gold": "5", "responses": ["\\boxed{1}"] * 4},
    ]
    out = tmp_path / "out.jsonl"
    assert main(["grade", "--input", write(tmp_path / "in.jsonl", rows), "--output", str(out)]) == 0
    graded = read(out)
    first, second = pass_at_k(tmp_path, graded, "--k", "2"), pass_at_k(tmp_path, graded, "--k", "2")
    assert (
        first == second != pass_at_k(tmp_path, graded, "--k", "2", "--seed", "1")
        or first["ci95"] == second["ci95"]
    )
    # 2:2 ties go to the first seen, the wrong 6; no answer is no vote
    assert first["maj@n"] == 1 / 8
    assert first["cov@n"] == 7 / 8


def test_samples_of_different_number(tmp_path):
    found = pass_at_k(
        tmp_path,
        [{"id": 1, "correct": [True, False]}, {"id": 2, "correct": [False, False, False, True]}],
        "--k",
        "2,3",
    )
    assert (found["n"], found["avg@n"], found["cov@n"]) == (2, pytest.approx(0.375), 0.5)
    assert found["pass@k"] == {"2": pytest.approx((1 + 0.5) / 2), "3": None}
    assert any("2 to 4 samples" in text for text in found["warnings"])


def test_one_problem_has_no_interval(tmp_path):
    found = pass_at_k(tmp_path, [{"id": 1, "correct": True, "answer": "5"}])
    assert (found["avg@n"], found["maj@n"], found["n"]) == (1.0, 1.0, 1)
    assert found["ci95"] == {"avg@n": None, "cov@n": None, "maj@n": None, "pass@k": {"1": None}}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": 1, "gold": "5"}], "no field 'correct'"),
        ([{"id": 1, "correct": []}], "one or more"),
        ([{"id": 1, "correct": ["yes"]}], "true or false"),
        ([{"id": 1, "correct": [True], "answer": []}], "one item for each"),
        ([{"id": 1, "correct": [True]}, {"id": "1", "correct": [True]}], "is also in"),
    ],
)
def test_pass_at_k_bad_rows(tmp_path, capsys, rows, said):
    assert main(["analyze", "pass-at-k", write(tmp_path / "in.jsonl", rows)]) == 2
    error = capsys.readouterr().err
    assert said in error and "in.jsonl:" in error


def test_pass_at_k_bad_files_and_k(tmp_path, capsys):
    (tmp_path / "empty").write_text("")
    assert main(["analyze", "pass-at-k", str(tmp_path / "empty")]) == 2
    assert main(["analyze", "pass-at-k", str(tmp_path / "empty"), "--k", "0"]) == 2
    assert "is empty" in capsys.readouterr().err
