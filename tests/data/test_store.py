"""Tokenised data on disk: equal to memory, keyed by everything that matters, whole or absent, one
builder; truncation counted."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clean_fork import start_fork
from real_data import REAL_DATA
from stores import names_of, store_of_samples
from waiting import wait_until

from megaladder.config.sections.sft import SftDataSection
from megaladder.data.chat.templates import TemplateOptions
from megaladder.data.chat.tokenizer import tokenizer_fingerprint
from megaladder.data.layouts.learn import ReadOptions
from megaladder.data.sources.find import SourceSpec
from megaladder.data.store import DamagedStoreError, DataReport, SampleStore, split_holdout
from megaladder.data.store_build import (
    DataSpec,
    data_fingerprint,
    open_store,
    open_train_and_holdout,
)
from megaladder.errors import ConfigError, DataError
from megaladder.types import TokenSample

ROOT = Path(__file__).parents[2]
GSM8K = REAL_DATA / "gsm8k/train.jsonl"


def write_rows(path: Path, answers: list[str], **extra) -> str:
    rows = [
        {"question": f"What is {i}+1?", "answer": answer, **extra}
        for i, answer in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def contents(store: SampleStore) -> list:
    samples = [store[i] for i in range(len(store))]
    return [
        (
            s.id,
            s.input_ids.tolist(),
            s.loss_mask.tolist(),
            s.advantage,
            None if s.old_logprobs_n is None else s.old_logprobs_n.tolist(),
        )
        for s in samples
    ]


def test_cache_equals_memory_and_is_used(tmp_path, base, base_dir):
    path, key = (
        write_rows(tmp_path / "d.jsonl", [f"{i + 1} " * (i % 5 + 1) for i in range(150)]),
        tokenizer_fingerprint(base_dir),
    )
    spec = DataSpec(SourceSpec(path), 64, cache_dir=str(tmp_path / "cache"))
    memory, built = (
        open_store(replace(spec, cache_dir=None), base, key),
        open_store(spec, base, key),
    )
    opened = open_store(spec, base, key)
    assert contents(memory) == contents(built) == contents(opened) and len(built) == 150
    assert (
        memory.fingerprint == built.fingerprint and memory.report == built.report == opened.report
    )
    assert (
        opened.lengths.tolist() == [len(ids) for _, ids, *_ in contents(opened)]
        and opened.lengths.dtype == np.int32
    )
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.is_dir()] == [
        f"data-{built.fingerprint[:24]}"
    ]
    (folder,) = [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    stamp = (folder / "ids.bin").stat().st_mtime_ns
    open_store(spec, base, key)
    assert (folder / "ids.bin").stat().st_mtime_ns == stamp, "not built again"


def test_fingerprint_changes_with_everything_that_changes_tokens(tmp_path, base, base_dir):
    path, key = write_rows(tmp_path / "d.jsonl", ["2", "3"]), tokenizer_fingerprint(base_dir)
    spec = DataSpec(SourceSpec(path), 64)
    variants = [
        spec,
        replace(spec, seq_length=65),
        replace(spec, truncation="drop"),
        replace(spec, read=ReadOptions(format="question-answer")),
        replace(spec, read=ReadOptions(system_prompt="s")),
        replace(spec, template=TemplateOptions(reasoning="strip")),
        replace(spec, source=SourceSpec(write_rows(tmp_path / "e.jsonl", ["2", "4"]))),
    ]
    prints = [data_fingerprint(variant, base, key) for variant in variants] + [
        data_fingerprint(spec, base, "other tokenizer")
    ]
    assert len(set(prints)) == len(prints)
    os.rename(path, tmp_path / "moved.jsonl")
    os.mkdir(tmp_path / "sub")
    os.rename(tmp_path / "moved.jsonl", tmp_path / "sub" / "d.jsonl")
    assert (
        data_fingerprint(
            replace(spec, source=SourceSpec(str(tmp_path / "sub" / "d.jsonl"))), base, key
        )
        == prints[0]
    ), "the folder does not matter"


def test_truncation_is_counted_by_reason(tmp_path, base):
    long_question = {"question": "Why? " * 100, "answer": "no"}
    path = Path(write_rows(tmp_path / "d.jsonl", ["2", "1 2 3 4 5 6 7 8 9 " * 20, "3"]))
    path.write_text(path.read_text() + json.dumps(long_question) + "\n")
    spec = DataSpec(SourceSpec(str(path)), 80)
    right = open_store(spec, base, "k")
    assert (len(right), right.report.truncated, right.report.dropped) == (
        3,
        1,
        {"no loss token left after truncation": 1},
    )
    assert right.lengths.max() == 80 and right[1].loss_mask[-1]
    dropped = open_store(replace(spec, truncation="drop"), base, "k")
    assert (len(dropped), dropped.report.truncated, dropped.report.dropped) == (
        2,
        0,
        {"longer than seq_length": 2},
    )
    with pytest.raises(
        DataError,
        match=(
            r"d.jsonl:2: expected at most data.seq_length 80 tokens, found \d+; fix: seq_length \d+"
            r" or more"
        ),
    ):
        open_store(replace(spec, truncation="error"), base, "k")
    with pytest.raises(
        DataError,
        match=(
            r"expected at least one usable sample, found 0 of 4 rows \(4 longer than seq_length\)"
        ),
    ):
        open_store(replace(spec, seq_length=4, truncation="drop"), base, "k")


def test_report_adds_up(tmp_path, base):
    path = Path(write_rows(tmp_path / "d.jsonl", ["2"] * 150 + ["1 " * 300]))
    path.write_text(path.read_text() + '{"question": "a", "answer": ""}\n')
    store = open_store(
        DataSpec(SourceSpec(str(path)), 64, "drop", ReadOptions(on_bad_row="skip")), base, "k"
    )
    report = store.report
    assert (
        report.rows
        == report.samples + sum(report.bad_rows.values()) + sum(report.dropped.values())
        == 152
    )
    assert report.bad_rows == {"no text in answer": 1} and report.no_end_of_turn == 0
    assert store.largest_token_id == max(int(store[i].input_ids.max()) for i in range(len(store)))
    assert report.num_tokens == int(store.lengths.sum()) and report.num_loss_tokens == int(
        store.loss_lengths.sum()
    )
    assert (
        report.token_quantiles["p0"] == store.lengths.min()
        and report.token_quantiles["p100"] == store.lengths.max()
    )
    assert DataReport.from_dict(json.loads(json.dumps(report.as_dict()))) == report


def test_template_errors_count_as_bad_rows(tmp_path, qwen3):
    """A multi-turn row under a Qwen3-style template: an error, or counted, or split into
    samples."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "b"}]}
        for i in range(120)
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": turns}]))
    with pytest.raises(
        DataError, match=r"d.jsonl:121: expected a chat template that renders each turn the same"
    ):
        open_store(DataSpec(SourceSpec(str(path)), 64), qwen3, "k")
    skipped = open_store(
        DataSpec(SourceSpec(str(path)), 64, read=ReadOptions(on_bad_row="skip")), qwen3, "k"
    )
    assert (len(skipped), skipped.report.bad_rows) == (120, {"template not prefix-stable": 1})
    assert (
        len(
            open_store(
                DataSpec(SourceSpec(str(path)), 64, template=TemplateOptions(reasoning="split")),
                qwen3,
                "k",
            )
        )
        == 122
    )


def test_advantages_and_logprobs_are_stored_and_cut(tmp_path, base):
    ids = [*base.encode("4 5 6"), base.eos_token_id]
    rows = [
        {
            "message": f"{i}?",
            "response": "4 5 6",
            "advantage": i / 2,
            "logprob": [-1.0 - j for j in range(len(ids))],
        }
        for i in range(4)
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = DataSpec(SourceSpec(str(path)), 200, cache_dir=str(tmp_path / "c"))
    store = open_store(spec, base, "k")
    assert (
        store.has_advantages
        and store.has_old_logprobs
        and [store[i].advantage for i in range(4)] == [0, 0.5, 1, 1.5]
    )
    full = store[2]
    assert (
        full.old_logprobs_n[full.loss_mask].tolist() == rows[2]["logprob"]
        and not full.old_logprobs_n[~full.loss_mask].any()
    )
    cut = open_store(replace(spec, seq_length=full.num_tokens - 2), base, "k")[2]
    assert cut.old_logprobs_n.tolist() == full.old_logprobs_n[:-2].tolist()
    path.write_text(
        "".join(
            json.dumps({k: v for k, v in row.items() if k != "logprob" or i}) + "\n"
            for i, row in enumerate(rows)
        )
    )
    with pytest.raises(
        DataError,
        match=(
            r"expected \['advantages'\] as in sample .*, found \['advantages', 'old_logprobs'\];"
            r" fix: give them to all"
        ),
    ):
        open_store(spec, base, "k")


@pytest.mark.parametrize("damage", ["cut", "flip"])
@pytest.mark.parametrize(
    "name", ["ids.bin", "mask.bin", "offsets.bin", "loss_lengths.bin", "names.bin", "meta.json"]
)
def test_damaged_cache_is_named_and_made_again(tmp_path, base, capsys, name, damage):
    spec = DataSpec(
        SourceSpec(write_rows(tmp_path / "d.jsonl", ["2", "3"])), 64, cache_dir=str(tmp_path / "c")
    )
    right = [sample.input_ids.tolist() for sample in open_store(spec, base, "k")]
    (folder,) = [p for p in (tmp_path / "c").iterdir() if p.is_dir()]
    file = folder / name
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    file.write_bytes(whole[:middle] if damage == "cut" else flipped)
    with pytest.raises(DamagedStoreError, match=rf"{folder}.*fix: delete the folder {folder}"):
        SampleStore.open(folder)
    again = open_store(spec, base, "k")
    assert f"{folder}" in capsys.readouterr().err and file.read_bytes() == whole
    assert [sample.input_ids.tolist() for sample in again] == right


def build_and_tell(spec: DataSpec, tokenizer, told: Path) -> None:
    store = open_store(spec, tokenizer, "k")
    told.write_text(json.dumps([store.fingerprint, len(store), int(store.lengths.sum())]))


def test_killed_builder_leaves_nothing_and_concurrent_builders_agree(tmp_path, base):
    """Real processes: SIGKILL in the middle of building, then three at once."""
    cache = tmp_path / "c"
    answers = [f"{i} is the answer. " * 100 for i in range(1500)]
    spec = DataSpec(
        SourceSpec(write_rows(tmp_path / "d.jsonl", answers)), 4096, cache_dir=str(cache)
    )
    victim = start_fork(build_and_tell, spec, base, tmp_path / "victim")
    wait_until(lambda: list(cache.glob(".tmp-*/ids.bin")), "the first file of the builder")
    victim.kill()
    victim.join()
    assert list(cache.glob(".tmp-*")) and not list(cache.glob("data-*/meta.json")), (
        "killed in the middle of building"
    )
    builders = [start_fork(build_and_tell, spec, base, tmp_path / f"told{i}") for i in range(3)]
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    (told,) = {(tmp_path / f"told{i}").read_text() for i in range(3)}
    assert json.loads(told)[1] == 1500
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 1, (
        "one cache folder, no temporary one left"
    )


def test_waiting_has_an_end(tmp_path, base):
    from filelock import FileLock

    spec = DataSpec(
        SourceSpec(write_rows(tmp_path / "d.jsonl", ["2"])),
        64,
        cache_dir=str(tmp_path / "c"),
        lock_timeout_s=0.2,
    )
    (tmp_path / "c").mkdir()
    lock = tmp_path / "c" / f"data-{data_fingerprint(spec, base, 'k')[:24]}.lock"
    with (
        FileLock(lock),
        pytest.raises(
            DataError,
            match=r"within 0.2 s, found .*\.lock still held; fix: look whether that process hangs",
        ),
    ):
        open_store(spec, base, "k")
    assert len(open_store(spec, base, "k")) == 1


def make_store(rows: int) -> SampleStore:
    return store_of_samples(
        TokenSample(f"r{i}", np.array([1, i + 2], np.int32), np.array([False, True]))
        for i in range(rows)
    )


def test_holdout_is_a_partition_by_seed(tmp_path, base):
    store = make_store(50)
    train, held = split_holdout(store, 0.1, 3)
    again = split_holdout(store, 5, 3)
    assert (len(train), len(held)) == (45, 5) and names_of(held) == names_of(again[1])
    assert (
        sorted(names_of(train) + names_of(held)) == sorted(names_of(store))
        and train[0].input_ids.tolist()[1] >= 2
    )
    assert names_of(split_holdout(store, 5, 4)[1]) != names_of(held)
    assert (
        len(
            {
                store.fingerprint,
                train.fingerprint,
                held.fingerprint,
                split_holdout(store, 5, 4)[0].fingerprint,
            }
        )
        == 4
    )
    for bad in (0, 50, 60):
        with pytest.raises(
            ConfigError,
            match=rf"data.holdout {bad} would hold out {bad} of 50 samples; fix: at least one",
        ):
            split_holdout(store, bad, 0)
    section = SftDataSection(
        path=write_rows(tmp_path / "d.jsonl", ["2"] * 9), seq_length=64, duplicates="keep"
    )
    with_file = section.model_copy(
        update={"holdout": write_rows(tmp_path / "held.jsonl", ["7", "8"])}
    )
    parts = open_train_and_holdout(with_file, None, 0, base, "k")
    assert (len(parts[0]), len(parts[1])) == (9, 2)
    assert open_train_and_holdout(section, None, 0, base, "k")[1] is None


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"{GSM8K} is not there")
def test_gsm8k_from_file_to_batches(tmp_path, tokenizer_of):
    """Real data through every stage: all rows kept, answers end in `#### N` and the end-of-turn
    token, at least 97 % real tokens."""
    from megaladder.data.loader import SftLoader
    from megaladder.data.pack import PackSpec

    base = tokenizer_of(tmp_path, (line for line in GSM8K.open(encoding="utf-8")), 4096)
    store = open_store(DataSpec(SourceSpec(str(GSM8K)), 1024, "error"), base, "k")
    assert (
        len(store),
        store.report.schema,
        store.report.truncated,
        store.report.no_end_of_turn,
    ) == (7473, "question-answer", 0, 0)
    first = store[0]
    assert base.decode(first.input_ids[first.loss_mask].tolist()).endswith("\n#### 72<|im_end|>")
    for dp in (1, 2):
        loader = SftLoader(store, 64, 42, PackSpec(1024, align=8), 0, dp)
        stats = [next(loader)[1] for _ in range(loader.steps_per_epoch)]
        assert sum(s.num_tokens for s in stats) / sum(s.total_tokens for s in stats) >= 0.97
