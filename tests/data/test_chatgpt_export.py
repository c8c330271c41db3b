"""ChatGPT's `conversations.json`: the branch that was read last, as a person gives the file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megaladder.cli import main
from megaladder.data.layouts.learn import ReadOptions
from megaladder.data.read_examples import ExampleReader
from megaladder.errors import DataError
from megaladder.types import Message


def said(role: str, *parts: Any, **more: Any) -> dict[str, Any]:
    """A message as the export writes it."""
    kind = "text" if all(isinstance(part, str) for part in parts) else "multimodal_text"
    return {
        "author": {"role": role, "name": None, "metadata": {}},
        "content": {"content_type": kind, "parts": list(parts)},
        "weight": 1.0,
        "recipient": "all",
        "metadata": {},
        **more,
    }


def of_kind(role: str, kind: str, **content: Any) -> dict[str, Any]:
    return said(role, content={"content_type": kind, **content})


def tree(*branch: dict[str, Any], aside: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """A conversation whose current branch is `branch`; `aside`: other answers to its first turn."""
    names = ["root", *(f"n{i}" for i in range(len(branch)))]
    mapping = {
        name: {"id": name, "message": message, "parent": parent, "children": []}
        for name, message, parent in zip(names, (None, *branch), (None, *names), strict=False)
    }
    for i, message in enumerate(aside):
        mapping[f"a{i}"] = {"id": f"a{i}", "message": message, "parent": "n0", "children": []}
    return {
        "title": "Sums",
        "create_time": 1700000000.5,
        "moderation_results": [],
        "plugin_ids": None,
        "mapping": dict(reversed(mapping.items())),
        "current_node": names[-1],
    }


ASKED, ANSWER = said("user", "1+1?"), said("assistant", "2")
TURNS = (Message("user", "1+1?"), Message("assistant", "2"))


def export(tmp_path: Path, *conversations: dict[str, Any]) -> Path:
    """One long line, as it comes."""
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(conversations))
    return path


@pytest.mark.parametrize(
    ("conversation", "turns"),
    [
        (tree(ASKED, ANSWER, aside=(said("assistant", "three"),)), TURNS),
        (
            tree(
                said("system", "", weight=0.0),
                of_kind("user", "user_editable_context", user_profile="I teach.",
                        user_instructions="Be short."),
                ASKED,
                of_kind("assistant", "thoughts", thoughts=[{"summary": "s", "content": "c"}]),
                of_kind("assistant", "reasoning_recap", content="Thought for 5s"),
                ANSWER,
            ),
            (Message("system", "I teach.\n\nBe short."), *TURNS),
        ),
        (
            tree(ASKED, said("assistant", "It is", end_turn=None), said("assistant", " two.")),
            (TURNS[0], Message("assistant", "It is two.")),
        ),
        (
            tree(said("user", {"content_type": "audio_transcription", "text": "1+1?"}), ANSWER),
            TURNS,
        ),
    ],
    ids=["regenerated", "instructions and thinking", "continued", "spoken"],
)  # fmt: skip
def test_the_branch_that_was_read_last_is_learned(tmp_path, conversation, turns) -> None:
    reader = ExampleReader(export(tmp_path, conversation), ReadOptions())
    assert [example.messages for example in reader] == [turns]
    assert reader.layout is not None and reader.layout.name == "chatgpt-export"


BROKEN = tree(ASKED, ANSWER) | {"current_node": "gone"}
NAMELESS = tree(ASKED, ANSWER) | {"current_node": []}
LOOP = tree(ASKED, ANSWER)
LOOP["mapping"]["root"]["parent"] = "n1"


UNUSABLE = {
    "a part image_asset_pointer": tree(
        said("user", {"content_type": "image_asset_pointer"}, "What?"), ANSWER
    ),
    "a message of assistant to python (text)": tree(
        ASKED, said("assistant", "x=1", recipient="python"), ANSWER
    ),
    "a message of tool to all (execution_output)": tree(
        ASKED, of_kind("tool", "execution_output", text="2"), ANSWER
    ),
    "no node str 'gone'": BROKEN,
    "no node a list of 0": NAMELESS,
    "node 'n1' twice": LOOP,
}


@pytest.mark.parametrize("words", UNUSABLE)
def test_what_is_no_text_is_refused_by_its_name(tmp_path, words) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        list(ExampleReader(export(tmp_path, UNUSABLE[words]), ReadOptions()))


def test_data_stats_counts_both_kinds(tmp_path, capsys) -> None:
    path = export(tmp_path, *[tree(ASKED, ANSWER)] * 2, *UNUSABLE.values())
    assert main(["data", "stats", str(path)]) == 0
    output = capsys.readouterr().out
    assert "sft: chatgpt-export" in output
    assert "1 × part image_asset_pointer" in output and "3 × broken tree" in output
