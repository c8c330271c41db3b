"""The registry: real files read right, ids stable, options lettered the same everywhere, every
fault named with its place."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from megaladder.cli import main
from megaladder.errors import ConfigError, DataError
from megaladder.evaluation.benchmarks.problems import build_problems, fill, shuffled
from megaladder.evaluation.benchmarks.source import load_rows
from megaladder.evaluation.benchmarks.spec import find_benchmark, registry
from megaladder.rewards.verifiers import VERIFIERS

REAL = {
    "aime24": (30, "204"),
    "amc23": (40, "27"),
    "gsm8k": (1319, "18"),
    "math500": (500, r"\left( 3, \frac{\pi}{2} \right)"),
}


def problems_of(name: str, folder, seed: int = 42, **more):
    spec = find_benchmark(name)
    return build_problems(spec, load_rows(spec, str(folder)), seed, **more)


def write(folder, name: str, rows: list[dict]):
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "test.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return folder


def test_every_entry_is_complete():
    for name, spec in registry().items():
        assert spec.kind in VERIFIERS and "question" in spec.fields, name
        assert "{question}" in spec.prompt or spec.runner == "lm_eval", name
        assert spec.hub is None or spec.hub.revision is None or len(spec.hub.revision) == 40, name
        assert spec.hub is None or spec.hub.config is None or spec.hub.files is None, name
        assert (spec.task is not None) == (spec.runner == "lm_eval") and (
            spec.judge is not None
        ) == (spec.runner == "judge"), name
    tiers = registry()["aime24"].groups
    assert sorted(int(key) for ids in tiers.values() for key in ids) == list(range(60, 90))
    assert [len(ids) for ids in tiers.values()] == [4, 10, 12, 4]


@pytest.mark.parametrize("name", REAL)
def test_real_files(shared_data, name):
    found = problems_of(name, shared_data)
    assert (len(found), found[0].gold) == REAL[name]
    assert (
        found[0]
        .prompt[0]
        .content.endswith(
            "\n Please reason step by step, and put your final answer within \\boxed{}."
        )
    )
    again = problems_of(name, shared_data, seed=7, prompt="Q: {question}")
    # ids depend on nothing but the data
    assert [problem.id for problem in again] == [problem.id for problem in found]
    assert again[0].prompt[0].content == f"Q: {found[0].metadata['question']}"


def test_content_ids_are_pinned(shared_data):
    """Stored runs are keyed by them."""
    assert problems_of("gsm8k", shared_data)[0].id == "ecdf90987215658c"
    assert problems_of("aime24", shared_data)[0].id == "60"


GPQA = {
    "Question": "Which?",
    "Correct Answer": "right",
    "Incorrect Answer 1": "a",
    "Incorrect Answer 2": "b",
    "Incorrect Answer 3": "c",
}


def test_gpqa_letters_are_the_same_in_every_process(tmp_path):
    folder = write(
        tmp_path, "gpqa_diamond", [{**GPQA, "Question": f"Which {i}?"} for i in range(40)]
    )
    here = [problem.gold for problem in problems_of("gpqa_diamond", folder)]
    code = (
        "import sys; from megaladder.evaluation.benchmarks import problems, source, spec\n"
        "s = spec.find_benchmark('gpqa_diamond'); r = source.load_rows(s, sys.argv[1])\n"
        "print(''.join(p.gold for p in problems.build_problems(s, r, 42)))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert there == "".join(here)
    assert {here.count(letter) > 3 for letter in "ABCD"} == {True}
    assert here != [problem.gold for problem in problems_of("gpqa_diamond", folder, seed=1)]
    problem = problems_of("gpqa_diamond", folder)[0]
    assert f"{problem.gold}) right" in problem.prompt[0].content
    assert shuffled(["x", "y", "z"], "k") == shuffled(["z", "y", "x"], "k")


def test_options_numbers_and_letters(tmp_path):
    write(
        tmp_path,
        "mmlu_pro",
        [{"question": "Q?", "options": ["u", "v", "w"], "answer": "C", "question_id": 3}],
    )
    mmlu = problems_of("mmlu_pro", tmp_path)[0]
    assert (mmlu.id, mmlu.gold) == (
        "3",
        "C",
    ) and "Options:\nA. u\nB. v\nC. w\nPlease" in mmlu.prompt[0].content
    answers = [{"aid": 1, "atext": "one"}, {"aid": 2, "atext": "two"}]
    write(tmp_path, "headqa", [{"qid": "h", "qtext": "Q?", "answers": answers, "ra": 2}])
    head = problems_of("headqa", tmp_path)[0]
    assert head.gold == "B" and "A. one\nB. two" in head.prompt[0].content
    candidates = [
        {"sentence": "S.", "question": "Q?", "answer": answer, "label": label}
        for answer, label in (("c", 1), ("d", 0))
    ]
    write(tmp_path, "mctaco", candidates)
    taco = problems_of("mctaco", tmp_path)
    assert [problem.gold for problem in taco] == ["yes", "no"] and taco[0].id != taco[1].id


def test_fill_leaves_other_braces_alone():
    assert (
        fill("{question} in \\boxed{} {", {"question": "{options} x"})
        == "{options} x in \\boxed{} {"
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"problem": "Q", "answer": "1"}, {"problem": "Q", "answer": "1"}],
            r"test.jsonl:2: id '\w{16}' again, first at .*test.jsonl:1",
        ),
        (
            [{"id": 1, "problem": "Q", "answer": "1"}, {"id": "1", "problem": "R", "answer": "2"}],
            "id '1' again",
        ),
        (
            [{"answer": "1"}],
            r"test.jsonl:1: expected a question under problem or question, found answer",
        ),
        ([{"problem": "Q"}], r"test.jsonl:1: expected a gold answer under answer"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        problems_of("aime25", write(tmp_path, "aime25", rows))


def test_a_commit_of_the_hub_does_not_go_with_a_local_file(tmp_path):
    folder = write(tmp_path, "aime25", [{"problem": "1 + 1?", "answer": "2", "id": "a"}])
    assert len(load_rows(find_benchmark("aime25"), str(folder)).rows) == 1
    with pytest.raises(ConfigError, match=r"revision a{40} is one of a hub repository.*aime25"):
        load_rows(find_benchmark("aime25"), str(folder), "a" * 40)


def test_missing_data_says_where_it_looked_and_what_to_do(tmp_path):
    """Tests run with the hub off."""
    spec = find_benchmark("math500")
    for folder, looked in ((None, "no --data-dir given"), (str(tmp_path), "not in .*math500")):
        with pytest.raises(DataError, match=rf"{looked}.*HuggingFaceH4/MATH-500.*--data-dir"):
            load_rows(spec, folder)
    with pytest.raises(
        DataError, match=r"HuggingFaceH4/MATH-500 at a{40} cannot be loaded.*hf download"
    ):
        load_rows(spec, str(tmp_path), "a" * 40)
    with pytest.raises(ConfigError, match="no such folder"):
        load_rows(spec, str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="did you mean 'math500'"):
        find_benchmark("MATH-500")


class Hub:
    """The two calls that a hub answers, with rows of ours."""

    def __init__(self, monkeypatch):
        import datasets
        import huggingface_hub

        self.asked: list[tuple] = []
        monkeypatch.setattr(datasets, "load_dataset", self.load)
        monkeypatch.setattr(
            huggingface_hub.HfApi,
            "dataset_info",
            lambda _, repo, revision=None: SimpleNamespace(sha="c" * 40),
        )

    def load(self, repo, config=None, *, split, revision=None, data_files=None):
        if repo == "dvilares/head_qa" and data_files is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found head_qa.py")
        self.asked.append((repo, config or data_files, split, revision))
        return [{"question": "1+1?", "answer": "#### 2"}]


def test_a_benchmark_from_the_hub_records_the_commit_it_took(monkeypatch, capsys):
    """The registry's commit where it names one, else the newest, resolved once."""
    hub = Hub(monkeypatch)
    rows = load_rows(find_benchmark("gsm8k"), None)
    pin = find_benchmark("gsm8k").hub.revision
    assert hub.asked == [("openai/gsm8k", "main", "test", pin)] and rows.revision == pin
    assert f"openai/gsm8k at {pin}\n" in capsys.readouterr().out
    rows = load_rows(find_benchmark("aime24"), None)
    assert hub.asked[1:] == [("simplescaling/aime24_nofigures", None, "train", "c" * 40)]
    assert rows.revision == "c" * 40 and f"--revision {'c' * 40}" in capsys.readouterr().out
    assert load_rows(find_benchmark("gsm8k"), None, "d" * 40).revision == "d" * 40


def test_several_configurations_files_and_scripts_on_the_hub(monkeypatch, capsys):
    hub = Hub(monkeypatch)
    rows = load_rows(find_benchmark("acpbench"), None)
    assert [asked[1] for asked in hub.asked] == list(find_benchmark("acpbench").hub.config)
    assert len(rows.rows) == 7 and rows.rows[1].where.endswith(":acp_areach_mcq:0")
    load_rows(find_benchmark("livecodebench"), None)
    pin = find_benchmark("livecodebench").hub.revision
    place = f"hf://datasets/livecodebench/code_generation_lite@{pin}"
    assert [asked[:2] for asked in hub.asked[7:]] == [
        ("json", f"{place}/test.jsonl"),
        ("json", f"{place}/test2.jsonl"),
    ]
    load_rows(find_benchmark("headqa"), None)
    assert hub.asked[-1] == ("dvilares/head_qa", "en/test/*.parquet", "train", "c" * 40)
    assert "loaded by a script" in capsys.readouterr().out


def test_data_get_writes_what_the_data_dir_reader_reads(monkeypatch, tmp_path, capsys):
    hub = Hub(monkeypatch)
    assert main(["data", "get", "gsm8k", "--out", str(tmp_path)]) == 0
    assert main(["data", "get", "gsm8k", "--out", str(tmp_path), "--split", "train"]) == 0
    assert main(["data", "get", "gsm8k", "--out", str(tmp_path)]) == 0  # there already
    assert [asked[2] for asked in hub.asked] == ["test", "train"]
    problems = build_problems(
        find_benchmark("gsm8k"), load_rows(find_benchmark("gsm8k"), str(tmp_path)), 42, None
    )
    assert [problem.gold for problem in problems] == ["2"]
    revision = json.loads((tmp_path / "gsm8k/source.json").read_text())["revision"]
    assert revision == find_benchmark("gsm8k").hub.revision
