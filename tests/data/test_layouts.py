"""The table of published layouts × verbs: opened with the right content, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data.layouts_published import PUBLISHED
from data.published import Published

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


ASKED, ANSWERED = {"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}
SPOKEN = [{"from": "human", "value": "2+3?"}, {"from": "gpt", "value": "5"}]


def opened(tmp_path: Path, row: dict) -> list[tuple[str, str]]:
    """Role and text of every turn that SFT reads of a row."""
    path = tmp_path / "d.json"
    path.write_text(json.dumps([row]))
    (example,) = ExampleReader(path, ReadOptions())
    return [(turn.role, turn.content) for turn in example.messages]


@pytest.mark.parametrize(
    ("row", "before"),
    [
        # hiyouga/LLaMA-Factory data/README.md, modelscope/ms-swift's query-response form
        (
            {"instruction": "2+3?", "input": "", "output": "5", "history": [["1+1?", "2"]]},
            [("user", "1+1?"), ("assistant", "2")],
        ),
        (
            {"system": "S", "query": "2+3?", "response": "5", "history": [["1+1?", "2"]]},
            [("system", "S"), ("user", "1+1?"), ("assistant", "2")],
        ),
        ({"instruction": "2+3?", "output": "5", "history": []}, []),
        # a system text beside turns
        ({"system": "S", "messages": [ASKED, ANSWERED]}, [("system", "S")]),
        ({"system_prompt": "S", "messages": [ASKED, ANSWERED]}, [("system", "S")]),
        ({"system_prompt": "S", "conversations": SPOKEN}, [("system", "S")]),
        (
            {"system": "S", "messages": [{"role": "system", "content": "own"}, ASKED, ANSWERED]},
            [("system", "own")],
        ),
        # LLaMA-Factory data/v1_sft_demo.jsonl: text under `value`, a weight a turn
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "value": "2+3?"}],
                        "loss_weight": 0.0,
                    },
                    {**ANSWERED, "loss_weight": 1.0},
                ]
            },
            [],
        ),
        # LLaMA-Factory data/dpo_en_demo.json: one turn each, after those of the conversation
        ({"conversations": SPOKEN[:1], "chosen": SPOKEN[1], "rejected": SPOKEN[1]}, []),
        # thoughts that stand in the answer too, and a word about the row
        ({"messages": [ASKED, ANSWERED], "reasoning": "on"}, []),
    ],
)
def test_all_that_a_row_says_is_read(tmp_path: Path, row: dict, before: list) -> None:
    assert opened(tmp_path, row) == [*before, ("user", "2+3?"), ("assistant", "5")]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"instruction": "2+3?", "output": "5", "history": ["1+1?"]}, "history"),
        # LLaMA-Factory data/kto_en_demo.json, TRL's unpaired preferences
        ({"messages": [ASKED, ANSWERED], "label": False}, "label false"),
        ({"prompt": "2+3?", "completion": "6", "label": False}, "label false"),
        ({"messages": [ASKED, ANSWERED], "functions": [{"name": "f"}]}, "tools: functions"),
        ({"question": "2+3?", "thinking": "two and three", "answer": "5"}, "'thinking'"),
        ({"messages": [ASKED, ANSWERED], "reasoning": "two and three"}, "'reasoning'"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "body": "2+3?"}]},
                    ANSWERED,
                ]
            },
            "one text",
        ),
    ],
)
def test_what_would_be_lost_is_refused_by_name(tmp_path: Path, row: dict, named: str) -> None:
    with pytest.raises(DataError, match=named):
        opened(tmp_path, row)
