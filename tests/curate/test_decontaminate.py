"""Planted overlaps in real data: all are found, nothing else is new, the clean copy is
byte-exact."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from real_data import REAL_DATA

from megaladder.config.verbs.data import DecontaminateConfig
from megaladder.curate.decontaminate import run_decontaminate
from megaladder.curate.ngrams import words
from megaladder.errors import ConfigError, DataError

DATA = REAL_DATA
needs_data = pytest.mark.skipif(
    not (DATA / "gsm8k" / "train.jsonl").exists(), reason=f"{DATA}: the real data sets are not here"
)


def run(path, out, *against, **options):
    run_decontaminate(
        DecontaminateConfig(
            path=str(path), against=tuple(map(str, against)), out=str(out), **options
        )
    )
    hits = [json.loads(line) for line in Path(f"{out}.hits.jsonl").read_text().splitlines()]
    return hits, json.loads(Path(f"{out}.summary.json").read_text())


def write(path: Path, rows: list) -> Path:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def load(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@needs_data
def test_all_planted_overlaps_are_found_and_nothing_else(tmp_path) -> None:
    """60 benchmark questions hidden inside real GSM8K rows: in the question, in the answer, in
    other Unicode forms, cut to n words."""
    rows = load(DATA / "gsm8k" / "train.jsonl")[:3000]
    problems = [
        (name, row)
        for name in ("math500", "aime24")
        for row in load(DATA / name / "test.jsonl")
        if len(words(row["problem"])) >= 13
    ]
    rng = random.Random(0)
    planted = {}
    for position, (name, problem) in zip(
        rng.sample(range(len(rows)), 60), rng.sample(problems, 60), strict=True
    ):
        text = problem["problem"]
        if position % 3 == 0:
            start = rng.randrange(len(words(text)) - 12)
            text = " ".join(words(text)[start : start + 13]).upper()
        column = "question" if position % 2 else "answer"
        half = len(rows[position][column]) // 2
        rows[position][column] = (
            f"{rows[position][column][:half]} … {text} … {rows[position][column][half:]}"
        )
        planted[position] = f"{name}/test"
    path = write(tmp_path / "train.jsonl", rows)
    hits, summary = run(path, tmp_path / "clean.jsonl", DATA / "math500", DATA / "aime24", n=13)
    found = {(int(hit["where"].rsplit(":", 1)[1]) - 1, hit["benchmark"]) for hit in hits}
    assert {position for position, _ in found} == set(planted), "every planted row, no other row"
    assert found >= set(planted.items()), "with the benchmark it came from"
    assert (summary["kept"], sum(summary["dropped"].values())) == (2940, 60)
    kept = [
        line
        for position, line in enumerate(path.read_bytes().splitlines(keepends=True))
        if position not in planted
    ]
    assert (tmp_path / "clean.jsonl").read_bytes() == b"".join(kept)


@needs_data
def test_real_files_as_they_are(tmp_path) -> None:
    """False positives listed: at n = 13 GSM8K shares nothing with MATH-500 and AIME24, and three of
    its train rows a test question."""
    hits, summary = run(
        DATA / "gsm8k" / "train.jsonl",
        tmp_path / "a.jsonl",
        DATA / "math500",
        DATA / "aime24",
        DATA / "gsm8k" / "test.jsonl",
    )
    assert {hit["benchmark"] for hit in hits} == {"gsm8k/test"}
    assert summary["benchmarks"]["gsm8k/test"]["rows_hit"] == 4
    assert summary["kept"] == 7473 - 4
    assert len(summary["benchmarks"]["math500/test"]["too_short"]) == 13
    hits8, _ = run(
        DATA / "gsm8k" / "train.jsonl", tmp_path / "b.jsonl", DATA / "math500", DATA / "aime24", n=8
    )
    assert all(len(hit["text"].split()) >= 8 for hit in hits8)


@needs_data
def test_the_file_against_itself_finds_its_own_repetitions(tmp_path) -> None:
    rows = load(DATA / "gsm8k" / "train.jsonl")[:1500]
    copies = {1500 + i: source for i, source in enumerate((3, 77, 400, 401, 1200))}
    rows += [
        {**rows[source], "question": rows[source]["question"].upper() + " Explain."}
        for source in copies.values()
    ]
    path = write(tmp_path / "train.jsonl", rows)
    before = write(tmp_path / "before.jsonl", rows[:1500])
    known, _ = run(before, tmp_path / "known.jsonl", before)
    hits, summary = run(path, tmp_path / "clean.jsonl", path)
    found = {
        (int(hit["where"].rsplit(":", 1)[1]) - 1, int(hit["problem"]) - 1)
        for hit in hits
        if hit["column"] == "question"
    }
    earlier = {
        (int(hit["where"].rsplit(":", 1)[1]) - 1, int(hit["problem"]) - 1)
        for hit in known
        if hit["column"] == "question"
    }
    assert found >= set(copies.items()) | earlier
    assert {row for row, _ in found - earlier} <= set(copies), "only the planted copies are new"
    assert summary["rows"] - summary["kept"] == len(
        {row for row, _ in found} | {int(h["where"].rsplit(":", 1)[1]) - 1 for h in hits}
    )


def test_duplicates_inside_the_training_set(tmp_path) -> None:
    base = (
        "A farmer has twelve red hens and nine brown hens and sells four of them at the market on"
        " Monday so how many are left"
    )
    rows = [
        {"id": "a", "question": base},
        {"id": "b", "question": base.upper() + "?"},
        {"id": "c", "question": base.replace("Monday", "Friday")},
        {
            "id": "d",
            "question": (
                "How tall is the tower if its shadow is nine metres long and a one metre stick has"
                " a shadow of thirty cm"
            ),
        },
    ]
    bench = write(
        tmp_path / "bench.jsonl",
        [
            {
                "problem": (
                    "no overlap here at all, neither in these words nor in any others of the set"
                )
            }
        ],
    )
    path = write(tmp_path / "train.jsonl", rows)
    hits, summary = run(path, tmp_path / "exact.jsonl", bench, dedup="exact")
    assert [(hit["id"], hit["duplicate_of"], hit["similarity"]) for hit in hits] == [
        ("b", "a", 1.0)
    ]
    hits, summary = run(path, tmp_path / "near.jsonl", bench, dedup="near", near_threshold=0.6)
    assert [(hit["id"], hit["duplicate_of"], hit["reason"]) for hit in hits] == [
        ("b", "a", "exact duplicate"),
        ("c", "a", "near duplicate"),
    ]
    # 25 words, 21 shingles; the changed word is in five of them
    assert hits[1]["similarity"] == pytest.approx(16 / 26)
    assert [row["id"] for row in load(tmp_path / "near.jsonl")] == ["a", "d"]
    assert summary["dropped"] == {"exact duplicate": 1, "near duplicate": 1}


def test_a_common_phrase_is_no_contamination_when_told_so(tmp_path) -> None:
    phrase = (
        "express your answer as a common fraction in lowest terms and give the sum of numerator and"
        " denominator"
    )
    bench = write(tmp_path / "bench.jsonl", [{"id": 7, "problem": f"What is one half? {phrase}"}])
    path = write(
        tmp_path / "train.jsonl",
        [{"id": i, "question": f"Question number {i} {phrase}"} for i in range(5)],
    )
    hits, summary = run(path, tmp_path / "a.jsonl", bench)
    assert (len(hits), summary["kept"]) == (5, 0)
    hits, summary = run(path, tmp_path / "b.jsonl", bench, max_matches=4)
    assert (len(hits), summary["kept"]) == (0, 5)
    assert summary["ignored_common"] == {phrase: 5}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b'{"id": 2, "question": "caf\xe9"}',
            r"train.jsonl:2: expected UTF-8 text, found byte 0xe9",
        ),
        (
            b'{"id": 1, "question": "again"}',
            r"train.jsonl:2: expected a unique id, found id '1' again, first at .*train.jsonl:1",
        ),
        (
            b'{"id": "1", "question": "again"}',
            r"train.jsonl:2: expected a unique id, found id '1' again, first at .*train.jsonl:1",
        ),
        (b'{"id": 2, "question": "\\ud800"}', r"train.jsonl:2: .*lone surrogate"),
        (b'{"id": 2, "score": NaN}', r"train.jsonl:2: .*NaN"),
        (b"[1, 2]", r"train.jsonl:2: expected a JSON object"),
    ],
)
def test_bad_rows_stop_it_with_their_place(tmp_path, line: bytes, message: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"id": 1, "question": "first"}\n' + line + b"\n")
    bench = write(tmp_path / "bench.jsonl", [{"problem": "x"}])
    with pytest.raises(DataError, match=message):
        run(path, tmp_path / "out.jsonl", bench)
    assert not (tmp_path / "out.jsonl").exists()


def test_bad_arguments(tmp_path) -> None:
    path = write(tmp_path / "train.jsonl", [{"question": "a"}])
    bench = write(tmp_path / "bench.jsonl", [{"problem": "x"}])
    with pytest.raises(ConfigError, match="no such file or folder"):
        run(path, tmp_path / "out.jsonl", tmp_path / "nowhere")
    with pytest.raises(DataError, match="no column 'trace'"):
        run(path, tmp_path / "out.jsonl", bench, columns=("trace",))
    with pytest.raises(DataError, match=r"written as \.jsonl or \.parquet"):
        run(path, tmp_path / "out.csv", bench)
    with pytest.raises(DataError, match="no question found"):
        run(path, tmp_path / "out.jsonl", write(tmp_path / "odd.jsonl", [{"answer": "x"}]))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="empty"):
        run(empty, tmp_path / "out.jsonl", bench)
