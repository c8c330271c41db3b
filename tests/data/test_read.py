"""Reading: every format and schema, physical line numbers, and a message for each kind of bad
input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaladder.data.layouts.learn import ReadOptions
from megaladder.data.layouts.table import LAYOUTS
from megaladder.data.read import BadRow, RawRow
from megaladder.data.read_examples import LIMO_SYSTEM_PROMPT, ExampleReader
from megaladder.data.sources.find import SourceSpec
from megaladder.data.sources.source import open_source
from megaladder.errors import DataError
from megaladder.types import Message

ROOT = Path(__file__).parents[2]
TURNS = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
GOOD = {"messages": TURNS}
S1_ANSWER = "<|im_start|>think\nstep one\nstep two\n<|im_start|>answer\nAnswer: 4"
ROWS = {
    "messages": {"messages": TURNS},
    "prompt-completion": {"prompt": "1+1?", "completion": "2"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]
    },
    "question-solution": {"question": "1+1?", "solution": "2", "answer": "two"},
    "question-answer": {"question": "1+1?", "answer": "2"},
    "scored": {
        "message": TURNS[:1],
        "response": "2",
        "advantage": 1.0,
        "logprob": [-0.1, -0.2],
        "answer": "2",
    },
}


def write(path: Path, rows, raw: bytes | None = None) -> Path:
    path.write_bytes(
        raw
        if raw is not None
        else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
    )
    return path


def read(path, **options):
    reader = ExampleReader(path, ReadOptions(**options))
    return list(reader), reader


@pytest.mark.parametrize("name", ROWS)
def test_schema_is_recognised_and_gives_the_same_turns(tmp_path, name):
    (example,), reader = read(write(tmp_path / "d.jsonl", [ROWS[name]]))
    assert reader.layout.name == name
    assert example.messages == (Message("user", "1+1?"), Message("assistant", "2"))
    assert (example.where, len(example.id)) == (f"{tmp_path}/d.jsonl:1", 16)
    assert (example.advantage, example.response_logprobs, example.raw_response) == (
        (1.0, (-0.1, -0.2), True) if name == "scored" else (None, None, False)
    )


def test_text_and_scored_variants(tmp_path):
    (example,), reader = read(write(tmp_path / "t.jsonl", [{"text": "<|im_start|>user…"}]))
    assert (reader.layout.name, example.text, example.messages) == ("text", "<|im_start|>user…", ())
    (example,), reader = read(
        write(tmp_path / "m.jsonl", [{"messages": "1+1?", "response": "2", "advantage": -1}])
    )
    assert (reader.layout.name, example.messages[0], example.advantage) == (
        "scored",
        Message("user", "1+1?"),
        -1.0,
    )
    conversational = {
        "prompt": [{"role": "system", "content": "s"}, TURNS[0]],
        "completion": TURNS[1:],
    }
    (example,), reader = read(write(tmp_path / "p.jsonl", [conversational]))
    assert [m.role for m in example.messages] == ["system", "user", "assistant"]


def test_s1k_is_rendered_as_published(tmp_path):
    """As s1K is published: the extra question/solution/text columns of s1K do not make it
    ambiguous."""
    row = {
        "question": "2+2?",
        "solution": "4",
        "text": "templated",
        "cot": None,
        "thinking_trajectories": ["step one", "step two"],
        "attempt": "4",
    }
    (example,), reader = read(write(tmp_path / "s1.jsonl", [row]))
    assert reader.layout.name == "s1k" and example.messages == (
        Message("user", "2+2?"),
        Message("assistant", S1_ANSWER),
    )
    (example,), _ = read(write(tmp_path / "s1a.jsonl", [{**row, "attempt": " Final Answer: 4\n"}]))
    assert example.messages[1].content.endswith("<|im_start|>answer\nFinal Answer: 4")


def test_s1k_11_asks_whose_reasoning(tmp_path):
    traces = {
        f"{who}_{what}": f"{who} {what}"
        for who in ("gemini", "deepseek")
        for what in ("thinking_trajectory", "attempt")
    }
    path = write(tmp_path / "s11.jsonl", [{"question": "q", "solution": "s", **traces}])
    with pytest.raises(
        DataError,
        match=(
            r"s11.jsonl:1: expected the reasoning of one teacher, found \['deepseek', 'gemini'\];"
            r" fix: data.s1_teacher"
        ),
    ):
        read(path)
    (example,), _ = read(path, s1_teacher="deepseek")
    assert (
        example.messages[1].content
        == "<|im_start|>think\ndeepseek thinking_trajectory\n<|im_start|>answer\nAnswer: deepseek"
        " attempt"
    )


def test_system_prompt_only_where_asked_and_only_where_missing(tmp_path):
    rows = [ROWS["question-solution"]]
    assert read(write(tmp_path / "a.jsonl", rows))[0][0].messages[0].role == "user"
    assert read(tmp_path / "a.jsonl", system_prompt=LIMO_SYSTEM_PROMPT)[0][0].messages[
        0
    ] == Message("system", LIMO_SYSTEM_PROMPT)
    own = [{"messages": [{"role": "system", "content": "mine"}, *TURNS]}]
    assert (
        read(write(tmp_path / "b.jsonl", own), system_prompt="other")[0][0].messages[0].content
        == "mine"
    )


def test_two_schemas_name_both_and_format_decides(tmp_path):
    path = write(tmp_path / "two.jsonl", [{**GOOD, "text": "x"}] * 3)
    with pytest.raises(
        DataError,
        match=(
            r"two.jsonl: expected rows that fit one layout for sft, found that messages and"
            r" text fit.*fix: data.format: messages or text"
        ),
    ):
        read(path)
    assert read(path, format="text")[0][0].text == "x"
    mixed = write(tmp_path / "mixed.jsonl", [GOOD] * 3 + [{"text": "x"}] * 2)
    with pytest.raises(
        DataError,
        match=(
            r"expected rows of one layout, found 3 of messages, 2 of text; fix: split the file by"
            r" layout"
        ),
    ):
        read(mixed)
    with pytest.raises(
        DataError, match=r"expected auto or a layout for sft \(messages, .*found 'chatml'"
    ):
        read(path, format="chatml")
    with pytest.raises(DataError, match=r"found rows with the columns foo; fix: .*data.fields"):
        read(write(tmp_path / "none.jsonl", [{"foo": 1}]))


def test_verl_rows_are_refused_with_the_way_out(tmp_path):
    row = {
        "data_source": "x",
        "prompt": TURNS[:1],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {},
    }
    with pytest.raises(
        DataError,
        match=(
            r"expected rows for sft, found layout verl, which is for grpo and data sample .*; fix:"
            r" write answers with `megaladder data sample`"
        ),
    ):
        read(write(tmp_path / "rl.jsonl", [row]))


LINES = json.dumps(GOOD).encode() + b"\n"
GOLDEN = {
    "broken": (
        b'{"messages": [',
        r":3: expected one JSON object in this line, found Expecting value at column 15: '.*'; fix",
    ),
    "array": (
        b"[1, 2]",
        r":3: expected a JSON object, found a list of 2 \(int first\); fix: one object per row",
    ),
    "utf8": (
        b'{"text": "caf\xe9"}',
        (
            r":3: expected UTF-8 text, found byte 0xe9 at byte 14 of the line; fix: save the file"
            r" as UTF-8"
        ),
    ),
    "surrogate": (
        b'{"messages": [{"role": "user", "content": "ab\\ud83d"}]}',
        (
            r":3: expected valid Unicode, found a lone surrogate in messages\[0\].content at"
            r" character 3; fix"
        ),
    ),
    "nan": (
        b'{"messages": NaN}',
        r":3: expected plain JSON values, found the non-JSON number NaN; fix: repair the row",
    ),
    "deep": (
        b"[" * 100_000,
        r":3: expected plain JSON values, found .*recursion.*; fix: repair the row",
    ),
    "blank": (b"", r":3: expected a JSON object, found an empty line; fix: delete the line"),
    "no answer": (
        b'{"messages": [{"role": "user", "content": "a"}]}',
        (
            r":3: expected at least one assistant turn with text, found roles \['user'\]; fix: add"
            r" the answer"
        ),
    ),
    "blank answer": (
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}',
        r":3: expected at least one assistant turn with text, found roles",
    ),
    "ends with user": (
        json.dumps({"messages": [*TURNS, TURNS[0]]}).encode(),
        (
            r":3: expected a conversation that ends with the assistant, found a last turn of user;"
            r" fix: remove the last turn"
        ),
    ),
    "assistant first": (
        json.dumps({"messages": TURNS[1:]}).encode(),
        r":3: expected a user turn before the first answer, found the assistant first; fix",
    ),
    "role": (
        b'{"messages": [{"role": "bot", "content": "a"}]}',
        r":3: expected role of messages\[0\] in .*, found str 'bot'; fix: rename the role",
    ),
    "parts": (
        b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
        r":3: expected text in content of messages\[0\], found a part of type 'image'; fix",
    ),
    "parts of nothing": (
        b'{"messages": [{"role": "user", "content": [[]]}]}',
        r":3: expected one text \(text or value or content\) in each part of content of messages\[0\]",
    ),
    "tools": (
        b'{"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}',
        r":3: expected a list of calls as tool_calls of messages\[0\], found a list of 1",
    ),
    "other fields": (
        b'{"message": "hello"}',
        (
            r":3: expected the fields of layout messages \(messages\), found an object with"
            r" \['message'\]"
        ),
    ),
    "id": (
        json.dumps({**GOOD, "id": 1.5}).encode(),
        r":3: expected text or an integer as 'id', found float 1.5; fix",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_messages_and_skip(tmp_path, case):
    """`file:line: expected …, found …; fix: …` with the physical line; skipping counts it, and
    fails above 1 %."""
    bad, message = GOLDEN[case]
    path = write(tmp_path / "d.jsonl", (), raw=LINES * 2 + bad + b"\n" + LINES * 2)
    with pytest.raises(BadRow, match=message):
        read(path)
    path = write(tmp_path / "many.jsonl", (), raw=LINES * 2 + bad + b"\n" + LINES * 97)
    examples, reader = read(path, on_bad_row="skip", duplicates="keep")
    assert (len(examples), reader.rows, reader.bad_rows.counts.total()) == (99, 100, 1)
    reader.bad_rows.check(str(path), reader.rows)
    with pytest.raises(
        DataError,
        match=(
            r"expected at most 1% bad rows under on_bad_row skip, found 1 of 99:\n  1 × .*; first:"
            r" .*many.jsonl:3: "
        ),
    ):
        reader.bad_rows.check(str(path), 99)


def test_an_id_over_other_content_names_both_rows(tmp_path):
    path = write(
        tmp_path / "d.jsonl",
        [{**GOOD, "id": 1}, {**GOOD, "id": "2"}, {"messages": [*TURNS, *TURNS], "id": "1"}],
    )
    with pytest.raises(
        DataError,
        match=r"d.jsonl:3: expected a unique id, found id '1' again, first at .*d.jsonl:1, with other",
    ):
        read(path)


@pytest.mark.parametrize(
    ("policy", "ends", "count"), [("drop", [""], 2), ("keep", ["", "-2", "-3"], 2)]
)
def test_equal_rows_are_counted_under_each_policy(tmp_path, policy, ends, count):
    rows = [GOOD, GOOD, ROWS["messages"] | {"note": 1}]
    examples, reader = read(write(tmp_path / "e.jsonl", rows), duplicates=policy)
    assert reader.repeats.count == count and [e.id[16:] for e in examples] == ends
    with pytest.raises(DataError, match=r"e.jsonl:2: .* repeats .*e.jsonl:1; fix: .*duplicates"):
        read(tmp_path / "e.jsonl", duplicates="error")
    same_id = [{**GOOD, "id": 7}] * 2
    assert len(read(write(tmp_path / "i.jsonl", same_id), duplicates="drop")[0]) == 1
    other_ids = [{**GOOD, "id": 7}, {**GOOD, "id": 8}]
    assert len(read(write(tmp_path / "o.jsonl", other_ids), duplicates="error")[0]) == 2


def test_only_newline_splits_lines(tmp_path):
    """U+2028, U+0085, vertical tab and form feed are text; CRLF, a byte-order mark and trailing
    blank lines are harmless."""
    odd = "a\u2028b\u0085c\x0bd\x0ce"
    row = {"messages": [{"role": "user", "content": odd}, TURNS[1]]}
    raw = (
        b"\xef\xbb\xbf"
        + (json.dumps(row, ensure_ascii=False) + "\r\n" + json.dumps(GOOD) + "\n\n  \n").encode()
    )
    examples, _ = read(write(tmp_path / "d.jsonl", (), raw=raw))
    assert examples[0].messages[0].content == odd and [e.where[-2:] for e in examples] == [
        ":1",
        ":2",
    ]


def test_file_level_errors(tmp_path):
    write(tmp_path / "empty.jsonl", ())
    write(tmp_path / "blank.jsonl", (), raw=b"\n\n")
    write(tmp_path / "x.doc", (), raw=b"a,b\n")
    write(tmp_path / "blank.csv", (), raw=b"a,b\n1\n")
    (tmp_path / "folder").mkdir()
    for name, message in {
        "empty.jsonl": r"expected at least one row, found an empty file \(0 bytes\)",
        "blank.jsonl": r"expected at least one row, found none",
        "blank.csv": r"blank.csv:2: expected 2 cells as in the header, found 1",
        "x.doc": r"expected a file ending in .jsonl, .* \(each also with .gz, .zst.*found '.doc'",
        "folder": r"expected a folder with data files",
        "absent.jsonl": r"expected a data file, a folder, a glob or a hub id, found nothing there",
    }.items():
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)


def test_json_array_has_lines_and_broken_arrays_say_where(tmp_path):
    text = (
        "[\n "
        + json.dumps(GOOD)
        + ",\n\n "
        + json.dumps({"messages": TURNS * 2}, indent=1)
        + "\n]\n"
    )
    examples, _ = read(write(tmp_path / "a.json", (), raw=text.encode()))
    assert [e.where.rsplit(":", 1)[1] for e in examples] == ["2", "4"]
    assert len(read(write(tmp_path / "lines.json", [GOOD, {**GOOD, "id": 2}]))[0]) == 2, (
        "JSON lines under the name .json"
    )
    for broken in (
        b'[{"a": 1},\n {"b": }]',
        b'[{"a": 1}\n',
        b'[{"a": 1}, ,{"a": 2}]',
        b'[{"a": 1}] x',
        b'[{"a": 1},\n {"b": "\xff"}]',
    ):
        with pytest.raises(DataError, match=r"b.json:[12]: expected (a JSON array|UTF-8)"):
            list(open_source(write(tmp_path / "b.json", (), raw=broken)).rows())


def test_parquet_and_arrow_folder_equal_jsonl(tmp_path):
    import datasets
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"question": f"{i}+1?", "solution": str(i + 1), "answer": None if i % 2 else "x"}
        for i in range(600)
    ]
    reference, _ = read(write(tmp_path / "d.jsonl", rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "arrow"))
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(
        str(tmp_path / "dict")
    )
    for name in ("d.parquet", "arrow", "dict"):
        examples, reader = read(tmp_path / name)
        assert reader.layout.name == "question-solution"
        assert [(e.id, e.messages) for e in examples] == [(e.id, e.messages) for e in reference]
        assert examples[299].where == f"{tmp_path / name}:row 300"
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "d.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cut.parquet: expected a complete parquet file, found"):
        read(tmp_path / "cut.parquet")


def test_hub_id_needs_a_commit():
    with pytest.raises(
        DataError,
        match=r"some/data: expected a file or folder, or the hub id .* revision None; fix",
    ):
        read("some/data")
    with pytest.raises(DataError, match=r"revision main; fix"):
        read(SourceSpec("some/data", revision="main"))


def test_hub_unreachable_names_repository_revision_and_command(tmp_path):
    """The real `datasets` code path in a process without network access."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    code = (
        "import socket\ndef blocked(*a, **k): raise OSError('network is"
        " blocked')\nsocket.getaddrinfo = socket.socket.connect = blocked\nfrom"
        " megaladder.data.sources.source import SourceSpec, open_source\nfrom megaladder.errors import"
        f" DataError\ntry: list(open_source(SourceSpec('some/data', revision='{commit}')).rows())\nexcept"
        " DataError as error: print(error)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.startswith(
        f"some/data at {commit}: expected a data set that can be downloaded"
    )
    assert done.stdout.rstrip().endswith(
        f"`hf download --repo-type dataset some/data --revision {commit}`, then give its folder as"
        " data.path"
    )


TURN_FIELDS = ["role", "content", "from", "value", "x"]
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(TURN_FIELDS), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(list(LAYOUTS)),
    values=st.lists(JSON_VALUES, min_size=6, max_size=6),
    places=st.lists(st.integers(0, 2), min_size=6, max_size=6),
)
def test_any_json_value_gives_an_example_a_problem_or_a_bad_row(name, values, places):
    """No content of the columns that a layout needs makes a reading raise anything but BadRow."""
    layout = LAYOUTS[name]
    columns = [
        need.split("|")[place % len(need.split("|"))]
        for need, place in zip(layout.needs, places, strict=False)
    ]
    row = RawRow(
        "f:1",
        {
            column: value
            for column, value in zip(columns, values, strict=False)
            if value is not None
        },
    )
    if not layout.fits(frozenset(row.data)):
        return
    readings = [layout.learn and (lambda: layout.learn(row, ReadOptions()))]
    readings.append(layout.ask and (lambda: layout.ask(row)))
    for reading in filter(None, readings):
        try:
            reading()
        except BadRow as bad:
            assert str(bad).startswith("f:1: expected ") and "; fix: " in str(bad)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=12), min_size=1, max_size=6))
def test_jsonl_round_trip_of_any_text(tmp_path_factory, texts):
    """Every valid Unicode text survives; texts with lone surrogates (written as escapes) are
    refused, one for one, with the position."""
    path = tmp_path_factory.mktemp("rt") / "d.jsonl"
    path.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=True) + "\n" for text in texts),
        encoding="ascii",
    )
    for row, text in zip(open_source(path).rows(), texts, strict=True):
        text = json.loads(json.dumps(text))  # two escapes of a pair are one character
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            assert isinstance(
                row, BadRow
            ) and f"in text at character {error.start + 1}; fix" in str(row)
        else:
            assert isinstance(row, RawRow) and row.data["text"] == text
