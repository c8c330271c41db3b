"""The table of published layouts × verbs: opened with the right content, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data.layouts_published import PUBLISHED, Published

from megaladder.cli import main
from megaladder.config.verbs.data import StatsConfig
from megaladder.curate.stats import run_stats
from megaladder.data.layouts.learn import ReadOptions
from megaladder.data.layouts.table import LAYOUTS
from megaladder.data.read_examples import ExampleReader
from megaladder.data.read_problems import read_problems
from megaladder.data.sources.find import SourceSpec
from megaladder.errors import DataError
from megaladder.tools.study.layout_table import table

NAMES = [one.source for one in PUBLISHED]


def file_of(tmp_path: Path, published: Published) -> Path:
    path = tmp_path / "d.json"
    path.write_text(json.dumps([published.row], ensure_ascii=False))
    return path


def test_the_table_is_as_long_as_it_says() -> None:
    assert len(PUBLISHED) >= 70 and len(set(NAMES)) == len(NAMES)
    assert sum(one.learned is not None for one in PUBLISHED) >= 40


@pytest.mark.parametrize("published", PUBLISHED, ids=NAMES)
def test_sft_opens_or_refuses_by_name(tmp_path: Path, published: Published) -> None:
    path = file_of(tmp_path, published)
    if published.learned is None:
        refused = r"expected (rows for sft, found layout|at least one assistant turn).*; fix: "
        with pytest.raises(DataError, match=refused):
            list(ExampleReader(path, ReadOptions()))
        return
    (example,) = ExampleReader(path, ReadOptions())
    assert (example.text or example.messages[-1].content) == published.learned
    if example.messages:
        asked = next(turn.content for turn in example.messages if turn.role == "user")
        assert asked in ("What is 2+3?", "Add.\n\n2, 3")


@pytest.mark.parametrize("published", PUBLISHED, ids=NAMES)
def test_grpo_opens_or_refuses_by_name(tmp_path: Path, published: Published) -> None:
    path = file_of(tmp_path, published)
    if published.asked is None:
        with pytest.raises(DataError, match=r"expected (rows for grpo|a final answer).*; fix: "):
            read_problems(path)
        return
    (problem,) = read_problems(path)
    assert (problem.gold, problem.kind) == published.asked
    assert "2+3" in problem.prompt[-1].content or problem.kind == "countdown"


@pytest.mark.parametrize("published", PUBLISHED, ids=NAMES)
def test_stats_names_the_layout_for_each_verb(
    tmp_path: Path, published: Published, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stats(StatsConfig(path=str(file_of(tmp_path, published)), json_file=f"{tmp_path}/s.json"))
    found = json.loads((tmp_path / "s.json").read_text())["layouts"]
    assert ("learn" in found) == (published.learned is not None)
    assert ("stored" in found) == (published.graded is not None)
    assert ("ask" in found) == (published.asked is not None)
    assert "layout" in capsys.readouterr().out


def test_unknown_columns_are_mapped_and_the_message_says_how(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"the_task": "What is 2+3?", "my_reply": "5"}) + "\n")
    with pytest.raises(
        DataError,
        match=r"columns my_reply, the_task; fix: .*\{question: the_task, answer: my_reply",
    ):
        ExampleReader(path, ReadOptions())
    fields = (("question", "the_task"), ("answer", "my_reply"))
    (example,) = ExampleReader(SourceSpec(str(path), fields=fields), ReadOptions())
    assert [turn.content for turn in example.messages] == ["What is 2+3?", "5"]
    (problem,) = read_problems(SourceSpec(str(path), fields=fields))
    assert problem.gold == "5"


def test_check_opens_the_data_of_a_grpo_run_without_any_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d.jsonl"
    args = ["check", "--grpo.preset", "grpo", "--model.path", "absent", "--data.path", str(path)]
    path.write_text(json.dumps({"problem": "p", "answer": "1"}) + "\n")
    assert main(args) == 0
    assert f"layout      {path}: problem-answer" in capsys.readouterr().out
    path.write_text(json.dumps({"messages": []}) + "\n")
    assert main(args) == 2
    assert (
        "expected rows for grpo and data sample, found layout messages" in capsys.readouterr().err
    )


def test_the_page_of_data_lists_every_layout() -> None:
    assert table() in (Path(__file__).parents[2] / "docs" / "data.md").read_text()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_good_for_something_and_only_beats_layouts_that_exist(name: str) -> None:
    layout = LAYOUTS[name]
    assert layout.learn or layout.ask or layout.stored
    assert set(layout.over) <= set(LAYOUTS)
    assert not any(
        layout.is_richer_than(other) and other.is_richer_than(layout)
        for other in LAYOUTS.values()
        if other is not layout
    )
