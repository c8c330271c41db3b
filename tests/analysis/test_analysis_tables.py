"""Malformed input of every verb: status 2, one readable message with file:line and a fix, no
traceback, nothing written."""

from __future__ import annotations

import subprocess
import sys

import pytest

from megaladder.analysis.samples.sets import read_samples
from megaladder.analysis.tables import Warnings, read_csv
from megaladder.errors import DataError

HEAD = "method,setting,tokens,accuracy\n"
CSV_FAULTS = [
    ("", "is empty"),
    (HEAD, "no rows"),
    ("\n\n", "is empty"),
    ("method,setting,tokens\nm,a,1\n", ":1: no column 'accuracy'"),
    ("method;setting;tokens;accuracy\nm;a;1;2\n", "commas instead of semicolons"),
    ("method,method,setting,tokens,accuracy\n", "stands there twice"),
    (
        HEAD + "m,a,100,10\nm,b,1,200,20\n",
        ":3: 5 cells, the header has 4 (a number with a thousands separator",
    ),
    (
        HEAD + 'm,a,"1,200",20\n',
        ":2: column 'tokens' is '1,200', which looks like a thousands separator; fix: write 1200",
    ),
    (HEAD + "m,a,1 200,20\n", "thousands separator; fix: write 1200"),
    (HEAD + 'm,a,100,"12,5"\n', "decimal comma; fix: write 12.5"),
    (HEAD + "m,a,100,12%\n", "fix: write 12"),
    (HEAD + "m,a,100,nan\n", ":2: column 'accuracy' is 'nan'"),
    (HEAD + "m,a,100,inf\n", "expected a number"),
    (HEAD + "m,a,100,1e999\n", "expected 0 to 100"),
    (HEAD + "m,a,100,101\n", "expected 0 to 100 (percent)"),
    (HEAD + "m,a,-5,10\n", "at least 0"),
    (HEAD + "m,a,0,10\n", "no logarithm"),
    (HEAD + "m,a,,10\n", "column 'tokens' is blank"),
    (HEAD + "m,a,100,10\nm,a,200,20\n", ":3: m/a stands there already"),
    (HEAD + 'm,"a,100,10\n', "not CSV"),
    (HEAD + "m,a\x00,100,10\n", "NUL"),
    ((HEAD + "m,é,100,10\n").encode("latin-1"), ":2: is not UTF-8"),
    (
        "method,setting,tokens,accuracy,instructed_min,instructed_max\nm,a,1,1,5,2\n",
        "above instructed_max",
    ),
]


@pytest.mark.parametrize(
    ("content", "message"), CSV_FAULTS, ids=[message[:30] for _, message in CSV_FAULTS]
)
def test_csv_faults(verb, write, content, message):
    done = verb("analyze scaling", "--table", write("r.csv", content))
    assert (
        done.status == 2
        and message in done.err
        and done.json is None
        and done.err.startswith("megaladder: ")
        and "r.csv" in done.err
    )
    assert done.err.count("\n") == 1


def test_what_spreadsheets_write_is_read(verb, write):
    content = (
        b"\xef\xbb\xbf"
        + (HEAD + 'm,"a ""x"", y",100,10\n\nm,b,1e3,2.5e1\n').replace("\n", "\r\n").encode()
    )
    done = verb("analyze scaling", "--table", write("r.csv", content))
    assert done.status == 0 and done.json["methods"]["m"]["performance"] == 25.0


OTHER_FAULTS = [
    (
        "analyze transfer",
        ("--base", "b"),
        "model,group,benchmark,score\nb,maths,x,1\n",
        "group 'maths'",
    ),
    (
        "analyze transfer",
        ("--base", "z"),
        "model,group,benchmark,score\nb,math,x,1\n",
        "no model named 'z'",
    ),
    (
        "analyze transfer",
        ("--base", "b"),
        "model,group,benchmark,score\nb,other,x,1\nc,other,x,1\n",
        "no scores in group math",
    ),
    (
        "analyze transfer",
        ("--base", "b"),
        "model,group,benchmark,score\nb,math,x,1\n",
        "holds the base b only",
    ),
    (
        "analyze transfer",
        ("--base", "b"),
        "model,group,benchmark,score\nb,math,x,1\nb,math,y,1\nc,math,x,1\n",
        "c has no score in y",
    ),
    (
        "analyze transfer",
        ("--base", "b"),
        "model,group,benchmark,score\nb,math,x,1\nc,other,x,1\n",
        "in group other, before in math",
    ),
    (
        "analyze transfer",
        ("--base", "b"),
        "model,group,benchmark,score\nb,math,x,1\nb,math,x,2\n",
        "already has a score",
    ),
    (
        "analyze transfer",
        ("--base", "b", "--sigma", "1,2"),
        "model,group,benchmark,score\nb,math,x,1\n",
        "three positive numbers",
    ),
    ("analyze trajectory", (), "model,benchmark,step,score\nm,b,10,1\n", "no step 0"),
    ("analyze trajectory", (), "model,benchmark,step,score\nm,b,0,1\n", "step 0 only"),
    ("analyze trajectory", (), "model,benchmark,step,score\nm,b,0,1\nm,b,1.5,1\n", "whole number"),
    (
        "analyze trajectory",
        (),
        "model,benchmark,step,score\nm,b,0,1\nm,b,0,1\n",
        "already has step 0",
    ),
    (
        "analyze predict",
        ("--target", "y", "--metrics", "x"),
        "run,x,y\na,1,\nb,2,\n",
        "blank in every row",
    ),
    (
        "analyze predict",
        ("--target", "y", "--metrics", "x"),
        "run,x,y\na,1,2\na,2,3\n",
        "two runs are named 'a'",
    ),
    (
        "analyze predict",
        ("--target", "y", "--metrics", "x"),
        "run,x,y\na,,2\n",
        "column 'x' is blank",
    ),
]
FLAG = dict.fromkeys(("transfer", "trajectory", "predict"), "--table")


@pytest.mark.parametrize(
    ("name", "arguments", "content", "message"),
    OTHER_FAULTS,
    ids=[fault[3][:30] for fault in OTHER_FAULTS],
)
def test_faults_of_the_other_tables(verb, write, name, arguments, content, message):
    done = verb(name, FLAG[name.split()[1]], write("t.csv", content), *arguments)
    assert done.status == 2 and message in done.err and done.json is None


SAMPLE_FAULTS = [
    (b"", "is empty"),
    (b'{"id": 1, "correct": [true]}\n{"id": 2, "correct"\n', ":2: not JSON"),
    (b'{"id": 1, "correct": [true]}\n{"id": 2, "corr', "is torn"),
    (b"[1, 2]\n", ":1: expected a JSON object, found list"),
    (b'{"id": 1}\n', "no verdict"),
    (b'{"id": 1, "correct": []}\n', "empty list"),
    (b'{"id": 1, "correct": [0.5]}\n', "0.5, expected true or false"),
    (b'{"correct": [true]}\n', "no 'id'"),
    (b'{"id": 1, "correct": [true]}\n{"id": "1", "correct": [true]}\n', "stands there already"),
    (b'{"id": 1, "correct": [true, false], "answer": ["1"]}\n', "1 entries for 2 verdicts"),
    (b"[" * 200_000, ":1: "),
    (b"\xff\xfe{}\n", ":1: not JSON"),
]


@pytest.mark.parametrize(
    ("content", "message"), SAMPLE_FAULTS, ids=[message[:24] for _, message in SAMPLE_FAULTS]
)
def test_sample_file_faults(write, content, message):
    with pytest.raises(DataError, match=r"s\.jsonl") as caught:
        read_samples(write("s.jsonl", content), "m", "b", Warnings())
    assert message in str(caught.value)


def test_rows_of_many_formats_read_the_same(write):
    rows = [
        {"id": "a", "correct": [True, False]},
        {"doc": {"id": "b"}, "exact_match": 1.0, "exact_matches": [1, 0], "resps": [["x", "y"]]},
        {"id": "c", "answers_correctness": [True, False], "is_correct": True},
        {"id": "d", "accuracy": [1, 0], "prediction": ["1", "2"], "tokens": [5, 6]},
        {"id": "e", "correct": True, "answer": "1"},
        {"id": "e", "correct": False, "answer": None},
    ]
    found = read_samples(write("s.jsonl", rows), "m", "b", Warnings())
    assert [problem.correct for problem in found.problems] == [[True, False]] * 5
    assert found.problems[3].num_tokens == [5, 6] and found.problems[4].answers == ["1", None]


def test_filters_of_lm_eval_are_not_mixed(write, capsys):
    rows = [
        {"doc_id": 0, "filter": "strict", "exact_match": 0.0},
        {"doc_id": 0, "filter": "flexible", "exact_match": 1.0},
    ]
    found = read_samples(write("s.jsonl", rows), "m", "b", Warnings())
    assert (
        found.accuracy_p.tolist() == [0.0]
        and "other lm-eval filters ignored" in capsys.readouterr().err
    )


def test_no_torch_and_no_plotting_library_behind_the_verbs(repository):
    modules = (
        "studies.transfer studies.scaling studies.ladder studies.predict studies.trajectory"
        " shift.verb studies.budget studies.compare report.verb"
    )
    code = f"""
import sys
for name in {modules.split()}: __import__("megaladder.analysis." + name)
from megaladder.cli import main
main(["analyze", "--help"])
heavy = ("torch", "transformers", "matplotlib", "pandas", "scipy.stats")
print([name for name in heavy if name in sys.modules])"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=240
    )
    assert run.stdout.splitlines()[-1] == "[]", run.stdout + run.stderr


def test_broken_input_exits_2_without_a_traceback(repository, write):
    path = write("r.csv", HEAD + "m,a,x,10\n")
    command = [sys.executable, "-m", "megaladder", "analyze", "scaling", "--table", str(path)]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=240)
    assert (
        run.returncode == 2
        and "Traceback" not in run.stderr
        and len(read_csv(write("ok.csv", HEAD + "m,a,1,10\n"), ("tokens",))) == 1
    )
