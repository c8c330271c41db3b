"""Benchmarks by file: rows of any published layout, YAML files beside the data, registries of one's
own, the names that studies use."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from data.layouts_published import PUBLISHED
from tiny_models import build_tokenizer

from megaladder.cli import main
from megaladder.errors import ConfigError, DataError
from megaladder.evaluation.benchmarks.problems import build_problems
from megaladder.evaluation.benchmarks.source import load_rows
from megaladder.evaluation.benchmarks.spec import (
    find_benchmark,
    find_benchmarks,
    local_files,
    own_name,
    registry,
)

BOXED = "\n Please reason step by step, and put your final answer within \\boxed{}."
ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": "4"}]


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def problems_of(name, own_registry: str | None = None, prompt: str | None = None):
    spec = find_benchmark(str(name), own_registry)
    return build_problems(spec, load_rows(spec, None), 42, prompt)


@pytest.mark.parametrize(
    "published",
    [p for p in PUBLISHED if p.asked and isinstance(p.row, dict)],
    ids=lambda p: p.source,
)
def test_rows_of_every_published_layout_are_a_benchmark(published, tmp_path) -> None:
    """Gold answer and verifier are GRPO's; the row of a question alone has the kind's prompt."""
    (problem,) = problems_of(write(tmp_path / "exam.jsonl", [published.row]))
    assert (problem.gold, problem.kind) == published.asked
    assert problem.id and problem.source == "exam" and problem.metadata["where"]


def test_a_file_of_rows(tmp_path) -> None:
    path = write(tmp_path / "exam.jsonl", ROWS)
    first, second = problems_of(path)
    assert first.prompt[0].content == "1+1?" + BOXED and (first.gold, second.gold) == ("2", "4")
    assert problems_of(path, prompt="Q: {question}")[0].prompt[0].content == "Q: 1+1?"
    packed = tmp_path / "exam.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [p.id for p in problems_of(packed)] == [first.id, second.id]
    worked = write(tmp_path / "gsm8k.jsonl", [{"question": "1+1?", "answer": "So.\n#### 2"}])
    assert (problems_of(worked)[0].kind, problems_of(worked)[0].source) == ("gsm8k", "gsm8k-own")


def test_columns_of_other_names_lead_to_a_file_that_is_taken(tmp_path) -> None:
    path = tmp_path / "exam.csv"
    path.write_text("frage;loesung\n1+1?;2\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"fix: .* --benchmark my_exam.yaml, a file") as told:
        problems_of(path)
    data, fields = re.findall("`([^`]+)`", str(told.value))
    assert fields == "fields: {question: frage, gold: loesung}"
    (tmp_path / "my_exam.yaml").write_text(f"{data}\n{fields}\n", encoding="utf-8")
    (problem,) = problems_of(tmp_path / "my_exam.yaml")
    assert problem.prompt[0].content.startswith("1+1?") and problem.gold == "2"


def test_repeats_are_left_out_and_one_id_over_two_contents_is_an_error(tmp_path, capsys) -> None:
    path = write(tmp_path / "exam.jsonl", [*ROWS, ROWS[0]])
    assert len(problems_of(path)) == 2 and "1 rows repeat" in capsys.readouterr().out
    write(path, [{"id": 1, **ROWS[0]}, {"id": 1, **ROWS[1]}])
    with pytest.raises(DataError, match=r"exam.jsonl:2: id '1' again, first at .*exam.jsonl:1"):
        problems_of(path)


def test_a_template_over_whole_prompts_is_refused(tmp_path) -> None:
    row = {"prompt": [{"role": "user", "content": "1+1?"}], "answer": "2"}
    path = write(tmp_path / "exam.jsonl", [row])
    assert problems_of(path)[0].prompt[0].content == "1+1?"
    with pytest.raises(DataError, match=r"hold whole prompts.*fix: leave prompt.template"):
        problems_of(path, prompt="Q: {question}")


YAML = """
data: rows.jsonl
title: My exam
fields: {question: Aufgabe, gold: Loesung}
kind: exact
prompt: "{question} Kurz!"
decoding: {n: 3, temperature: 0.0, max_tokens: 12}
"""


def test_a_yaml_file_beside_the_data(tmp_path) -> None:
    write(tmp_path / "sub" / "rows.jsonl", [{"Aufgabe": "Ja?", "Loesung": "ja"}])
    path = tmp_path / "sub" / "exam.yaml"
    path.write_text(YAML)
    spec = find_benchmark(str(path))
    assert (spec.name, spec.title, spec.kind) == ("exam", "My exam", "exact")
    assert spec.decoding == {
        "n": 3,
        "temperature": 0.0,
        "top_p": 0.95,
        "top_k": 0,
        "max_tokens": 12,
    }
    (problem,) = problems_of(path)
    assert (problem.prompt[0].content, problem.gold, problem.kind) == ("Ja? Kurz!", "ja", "exact")
    path.write_text("data: rows.jsonl\nname: other\nkind: exact\n")
    write(tmp_path / "sub" / "rows.jsonl", ROWS)
    assert find_benchmark(str(path)).name == "other"
    assert [(p.gold, p.kind) for p in problems_of(path)] == [("2", "exact"), ("4", "exact")]


def test_a_registry_of_ones_own(tmp_path, capsys) -> None:
    write(tmp_path / "rows.jsonl", ROWS)
    own = tmp_path / "mine.yaml"
    own.write_text(
        "benchmarks:\n  exam: {data: rows.jsonl}\n  hard: {data: rows.jsonl, kind: exact}\n"
    )
    assert [p.kind for p in problems_of("hard", str(own))] == ["exact", "exact"]
    assert find_benchmark("gsm8k", str(own)) is registry()["gsm8k"]
    assert main(["eval", "--benchmark", "list", "--registry", str(own)]) == 0
    assert "hard" in (shown := capsys.readouterr().out) and "--benchmark my_exam.yaml" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x\n", r"exam.yaml: exam has no rows; fix: data: rows.jsonl"),
        ("data: r.jsonl\nfilds: {}\n", r"exam.yaml:2: unknown key 'filds'; fix: .*'fields'"),
        ("data: r.jsonl\nkind: maths\n", r"exam.yaml:2: kind: should be 'math'"),
        ("data: r.jsonl\ndecoding: {temprature: 1}\n", r"exam.yaml:2: .*'decoding.temperature'"),
        ("data: r.jsonl\nfields: {question: Q, answer: A}\n", r"exam.yaml:2: .*gold: Answer"),
        ("benchmarks: {a: {data: r.jsonl}}\n", r"fix: --registry .*exam.yaml --benchmark NAME"),
    ],
)
def test_faults_of_a_yaml_file_are_named_with_their_line(text, message, tmp_path) -> None:
    path = tmp_path / "exam.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        find_benchmark(str(path))


def test_faults_of_a_registry(tmp_path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("benchmarks:\n  gsm8k: {data: rows.jsonl}\n")
    with pytest.raises(
        ConfigError, match=r"mine.yaml:2: gsm8k is the name of a shipped.*gsm8k_own"
    ):
        find_benchmark("gsm8k", str(own))
    own.write_text("benchmarks:\n  exam: 3\n")
    with pytest.raises(ConfigError, match=r"mine.yaml:2: exam is a section, found 3"):
        find_benchmark("exam", str(own))
    own.write_text("exam: {data: rows.jsonl}\n")
    with pytest.raises(ConfigError, match="expected the one key `benchmarks`"):
        find_benchmark("exam", str(own))


def test_names_of_studies() -> None:
    names = {
        "LIMO": "aime amc math minerva olympiadbench gpqa cn_math_2024 gaokao kaoyan grade_school_math",
        "Quagmires": "math500 aime_1983_2024 aime25 gsm8k amc olympiad minerva",
        "s1": "aime24 openai_math gpqa_diamond",
        "Transferability": "math500 aime24 aime25 olympiadbench livecodebench gpqa_diamond acpbench"
        " headqa coqa ifeval halueval mc_taco",
        "Rethinking SFT": "mmlu_pro ifeval alpacaeval halueval truthfulqa hexphi livecodebench",
    }
    found = {
        study: [find_benchmark(name).name for name in text.split()] for study, text in names.items()
    }
    assert found["LIMO"][:3] == ["aime24", "amc23", "math500"]
    assert all(name in registry() for listed in found.values() for name in listed)
    taken = [alias for spec in registry().values() for alias in spec.aliases]
    assert len(taken) == len(set(taken)) and not set(taken) & registry().keys()


def test_two_files_of_one_name_are_told_apart(tmp_path) -> None:
    a, b = (write(tmp_path / place / "exam.jsonl", ROWS) for place in "ab")
    with pytest.raises(ConfigError, match=r"has the name exam, .*fix: a YAML file with `name"):
        find_benchmarks([str(a), str(b)])
    assert own_name("set/test.jsonl") == "set-test"


def test_eval_of_a_file_end_to_end(tmp_path, capsys) -> None:
    """The score and its files; a second start answers at once, as long as the file is the same."""
    build_tokenizer(tmp_path / "tokenizer")
    path = write(tmp_path / "exam.jsonl", ROWS)
    command = ["eval", "--engine", "fake", "--tokenizer", str(tmp_path / "tokenizer"), "--n", "2"]
    command += ["--benchmark", str(path), "--max-tokens", "8", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    summary = json.loads((tmp_path / "out/fake/exam/summary.json").read_text())
    assert summary["num_problems"] == 2 and summary["protocol"]["data"]["source"] == str(path)
    assert summary["protocol"]["data"]["revision"].startswith("sha256:")
    capsys.readouterr()
    assert main(command) == 0 and "exam" in capsys.readouterr().out
    assert path in local_files([str(path)], None, None)  # of the answer that all is done
