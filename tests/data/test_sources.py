"""Sources: every kind of file plain and compressed, folders of shards, globs, lists, splits,
renamed columns; each gives the same rows in the same order."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import ipc, parquet

from megaladder.data.read import RawRow
from megaladder.data.sources.find import SourceSpec
from megaladder.data.sources.source import open_source
from megaladder.errors import DataError

ROWS = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(5)]


def as_bytes(kind: str, rows: list[dict[str, str]]) -> bytes:
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "json":
        return json.dumps(rows, indent=1).encode()
    if kind == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    table, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    if kind == "parquet":
        parquet.write_table(table, sink)
    else:
        with ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    return sink.getvalue().to_pybytes()


def values(spec: SourceSpec | Path | str) -> list[dict[str, object]]:
    rows = list(open_source(spec).rows())
    assert all(isinstance(row, RawRow) for row in rows), rows
    return [row.data for row in rows]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow"])
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_every_kind_plain_and_compressed(tmp_path: Path, kind: str, packed: str) -> None:
    content = as_bytes(kind, ROWS)
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[packed]
    path = tmp_path / f"d.{kind}{packed}"
    path.write_bytes(pack(content))
    assert values(path) == ROWS
    assert sum(open_source(path).key_sets().values()) == len(ROWS)
    first = next(iter(open_source(path).rows()))
    place = {"json": "2", "csv": "2", "parquet": "row 1", "arrow": "row 1"}.get(kind, "1")
    assert first.where == f"{path}:{place}"


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_text_file_is_a_row_a_line(tmp_path: Path, packed: str) -> None:
    raw = "one\n\ntwo\u2028still two\n".encode()
    path = tmp_path / f"d.txt{packed}"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    assert values(path) == [{"text": "one"}, {"text": "two\u2028still two"}]


def test_shards_of_a_folder_come_in_name_order_and_by_split(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\ncard")
    for name, rows in {
        "train-00001-of-00002": ROWS[2:4],
        "train-00000-of-00002": ROWS[:2],
        "test-00000-of-00001": ROWS[4:],
    }.items():
        (folder / "data" / f"{name}.parquet").write_bytes(as_bytes("parquet", rows))
    assert values(folder) == ROWS[:4]
    assert values(SourceSpec(str(folder), split="test")) == ROWS[4:]
    with pytest.raises(DataError, match=r"the split 'dev', found test, train; fix: data.split"):
        open_source(SourceSpec(str(folder), split="dev"))
    assert len(open_source(str(folder)).identity()) == 2


def test_configurations_of_a_folder_are_those_of_its_card(tmp_path: Path) -> None:
    for name, rows in {"main": ROWS[:1], "extra": ROWS[1:]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_bytes(as_bytes("jsonl", rows))
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/*.jsonl\n"
        for name in ("main", "extra")
    )
    (tmp_path / "README.md").write_text(card + "---\n")
    assert values(SourceSpec(str(tmp_path), config="extra")) == ROWS[1:]


def test_globs_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, row in enumerate(ROWS):
        (tmp_path / f"part-{index}.jsonl").write_bytes(as_bytes("jsonl", [row]))
    assert values(f"{tmp_path}/part-*.jsonl") == ROWS
    assert values(SourceSpec((f"{tmp_path}/part-3.jsonl", f"{tmp_path}/part-0.jsonl"))) == [
        ROWS[3],
        ROWS[0],
    ]
    monkeypatch.chdir(tmp_path)
    assert next(iter(open_source("part-[12].jsonl").rows())).where == "part-1.jsonl:1"
    with pytest.raises(DataError, match=r"expected files that fit this pattern .*found 0 files"):
        open_source("nothing-*.jsonl")


@pytest.mark.parametrize(("encoding", "name"), [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16 with")])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_another_encoding_is_said(tmp_path: Path, encoding: str, name: str, suffix: str) -> None:
    path = tmp_path / f"d.{suffix}"
    path.write_bytes(as_bytes(suffix, ROWS).decode().encode(encoding))
    with pytest.raises(DataError, match=rf"d.{suffix}:1: expected UTF-8 text, found {name}.*iconv"):
        list(open_source(path).rows())


def test_rows_inside_an_object_are_found(tmp_path: Path) -> None:
    """evalchemy's result files keep each benchmark's rows under its name."""
    for value in (
        {"data": ROWS, "version": 1},
        {"results": {"AIME24": {"accuracy_avg": 0.5, "examples": ROWS}}, "config": {}},
    ):
        (tmp_path / "d.json").write_text(json.dumps(value, indent=1))
        assert values(tmp_path / "d.json") == ROWS
    first = next(iter(open_source(tmp_path / "d.json").rows()))
    assert first.where.endswith("d.json:results.AIME24.examples[0]")


def test_fields_rename_columns_and_reach_inside(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    rows = [{"q": "1+1?", "extra": {"gold": 2}, "answer": "old", "n": 1}]
    path.write_text(json.dumps(rows[0]) + "\n")
    fields = (("question", "q"), ("answer", "extra.gold"))
    assert values(SourceSpec(str(path), fields=fields)) == [
        {"question": "1+1?", "answer": 2, "extra": {"gold": 2}, "n": 1}
    ]
    with pytest.raises(DataError, match=r"takes question from the column 'prob', which no row has"):
        list(open_source(SourceSpec(str(path), fields=(("question", "prob"),))).rows())


def test_a_file_of_bad_rows_says_why(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"a": "\xff"}\n[1]\n')
    with pytest.raises(DataError, match=r"d.jsonl:1: expected UTF-8 text, found byte 0xff"):
        open_source(path).key_sets()


@pytest.mark.parametrize("name", ["config", "split", "revision"])
def test_a_setting_that_no_path_reads_is_refused_by_name(tmp_path, name: str) -> None:
    """A file has no split: taking one in silence would train on other rows than asked for."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"problem": "1+1?", "answer": "2"}\n')
    with pytest.raises(DataError, match=f"where {name} is given.*fix: leave {name} out"):
        open_source(SourceSpec(str(file), **{name: "x"}))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.csv", 'ask,"to, say"\n"1, 2?",3\n'),
        ("excel.csv", '"ask";"to, say"\n"1, 2?";3\n'.replace(", say", " say")),
        ("tabs.csv", "ask\tto say\n1, 2?\t3\n"),
        ("tabs.tsv", "ask\tto say\n1, 2?\t3\n"),
        ("alone.csv", 'ask\n"1, 2?"\n'),
    ],
)
def test_the_header_says_what_separates_cells(name: str, text: str, tmp_path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    (row,) = open_source(str(tmp_path / name)).rows()
    assert row.data["ask"] == "1, 2?"
    assert list(row.data.values())[1:] == ([] if name == "alone.csv" else ["3"])
