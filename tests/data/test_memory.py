"""What a row costs in memory while millions of them are counted, read, stored and packed: a few
numbers each, never text."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megaladder.curate.stats import count_rows
from megaladder.data.layouts.learn import ReadOptions
from megaladder.data.loader import SftLoader
from megaladder.data.pack import PackSpec
from megaladder.data.read_examples import ExampleReader
from megaladder.data.repeats import HashTable
from megaladder.data.sources.find import SourceSpec
from megaladder.data.store import DataReport, SampleStore, StoreWriter, commit, length_quantiles
from megaladder.types import TokenSample

FEW, MANY = 1_000, 4_000
TEXT = "a question that is much longer than what may be kept of it, " * 4


def count(folder: Path, rows: int) -> None:
    assert count_rows(SourceSpec(str(folder / f"{rows}.jsonl"))).rows == rows


def read(folder: Path, rows: int) -> None:
    reader = ExampleReader(folder / f"{rows}.jsonl", ReadOptions())
    assert sum(1 for _ in reader) == rows


def store(folder: Path, rows: int) -> None:
    temporary = folder / "tmp"
    temporary.mkdir()
    writer = StoreWriter(temporary)
    mask = np.arange(20) > 5
    for number in range(rows):
        ids = np.arange(number, number + 20, dtype=np.int32)
        writer.add(TokenSample(f"a rather long id of sample {number}", ids, mask))
    commit(writer, temporary, folder / f"data-{rows}", "fingerprint", DataReport())


def pack(folder: Path, rows: int) -> None:
    loader = SftLoader(SampleStore.open(folder / f"data-{rows}"), 100, 0, PackSpec(seq_length=64))
    for _ in range(loader.steps_per_epoch):
        next(loader)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for rows in (FEW, MANY):
        lines = [
            json.dumps({"id": f"row {number}", "question": f"{TEXT}{number}", "answer": TEXT})
            for number in range(rows)
        ]
        (folder / f"{rows}.jsonl").write_text("\n".join(lines))
        store(folder, rows)
    return folder


def peak_bytes(work: Callable[[Path, int], None], folder: Path, rows: int) -> int:
    tracemalloc.start()
    try:
        work(folder, rows)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("work", [count, read, store, pack])
def test_a_row_costs_a_few_numbers(work: Callable[[Path, int], None], folder: Path) -> None:
    where = folder if work is not store else folder / "again"
    where.mkdir(exist_ok=True)
    # what is imported or cached on first use is not the rows'
    work(where, FEW)
    few, many = (peak_bytes(work, where, rows) for rows in (FEW, MANY))
    assert (many - few) / (MANY - FEW) <= 64


def test_the_table_of_hashes_is_a_dict_in_thirty_bytes_a_key() -> None:
    rng = random.Random(0)
    keys = [rng.getrandbits(64) for _ in range(20_000)]
    # keys that meet in one slot, and every key twice
    keys = [0, 1024, 2048, *keys, *keys, 1024, 0]
    table, expected = HashTable(), {}
    for note, key in enumerate(keys):
        place = expected.setdefault(key, (len(expected), note))[0]
        assert table.place_of(key, note) == place
    assert len(table) == len(expected)
    assert all(table.note(place) == note for place, note in expected.values())
    assert table.num_bytes <= 30 * len(table)


@pytest.mark.parametrize("lengths", [[], [3], [1, 2], [5, 1, 9, 9, 2, 40, 3], [*range(1, 202)]])
def test_quantiles_are_those_of_numpy_from_lengths_and_from_their_counts(lengths) -> None:
    found = length_quantiles(np.array(lengths, np.int32))
    assert found == length_quantiles(Counter(lengths))
    for name, value in found.items():
        assert value == np.quantile(lengths, float(name[1:]) / 100, method="nearest"), name
