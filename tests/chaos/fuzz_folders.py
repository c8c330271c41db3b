"""Readers of what lies in a folder of ours: runs, checkpoints, evaluations, caches, studies. Each
folder may have come from somebody else, or from a bad disk."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from chaos.fuzz_readers import BYTES, JSON, LINES, YAML, Case, sha256


def _journal() -> tuple[bytes, ...]:
    from megaladder.evaluation.store import Journal, Record

    with tempfile.TemporaryDirectory() as folder, Journal(folder, {"a": 1}) as journal:
        for sample in range(2):
            journal.append(Record("q", sample, "5", [1, 2], "stop", True, "5", "correct"))
        return (journal.path.read_bytes(),)


def _read_journal(path: Path) -> object:
    from megaladder.evaluation.store import Journal

    raw = path.read_bytes()
    path.unlink()
    Journal(path.parent, {"a": 1}).close()  # its folder says what it was made with
    path.write_bytes(raw)
    with Journal(path.parent, {"a": 1}) as journal:
        return list(journal.stored.values())


def _read_journal_settings(path: Path) -> object:
    from megaladder.evaluation.store import Journal

    with Journal(path.parent, {"a": 1}) as journal:
        return list(journal.stored.values())


def _read_metrics(path: Path) -> object:
    from megaladder.run_dir import drop_rows_after, read_jsonl

    drop_rows_after(path, 1)
    return list(read_jsonl(path))


def _read_ledger(path: Path) -> object:
    from megaladder.ledger.folder import run_ledger
    from megaladder.run_dir import read_jsonl

    return run_ledger(path.parent, read_jsonl(path))


def _read_manifest(path: Path) -> object:
    from megaladder.checkpoint import store

    (path.parent / store.MARKER).touch()
    (path.parent / "trainer.json").write_text("{}")
    return store.verify(path.parent)


def _read_trainer(path: Path) -> object:
    from megaladder.checkpoint import store

    return store.read_trainer(path.parent)["step"]


def _read_lineage(path: Path) -> object:
    from megaladder.checkpoint import lineage

    return lineage.read_lineage(path.parent).current.settled


def _read_metadata(path: Path) -> object:
    from megaladder.checkpoint import plain_data

    return plain_data.read_metadata(path.parent)


def _read_format(path: Path) -> object:
    from megaladder.checkpoint import plain_data

    return plain_data.check_format(path.parent)


@cache
def _metadata() -> tuple[bytes, ...]:
    import pickle

    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    size = torch.Size((2, 2))
    chunk = ChunkStorageMetadata(torch.Size((0, 0)), size)
    stored = TensorStorageMetadata(TensorProperties(dtype=torch.float32), size, [chunk])
    place = {MetadataIndex("w", torch.Size((0, 0)), 0): _StorageInfo("__0_0.distcp", 0, 16)}
    return (pickle.dumps(Metadata({"w": stored}, storage_data=place)),)


def _read_last_word(path: Path) -> object:
    from megaladder.process import last_word

    word = last_word.truth(path.parent)
    return None if word is None else last_word.how_it_ended(word)


def _read_beats(path: Path) -> object:
    from megaladder.process.heartbeat import read_beats, suspect

    beats = read_beats(path.parent)
    return suspect(beats[0], beats) if beats else None


def _read_finished(path: Path) -> object:
    from megaladder.config.sft import SftConfig
    from megaladder.finished import answer_training

    return answer_training(
        SftConfig.model_validate(
            {"run_dir": str(path.parent), "model": {"path": "a"}, "data": {"path": "b"}}
        )
    )


def _read_run_config(path: Path) -> object:
    from megaladder.config.resume import compare_for_resume
    from megaladder.run_dir import RunDir

    old = RunDir(path.parent, writer=False).read_config()
    return None if old is None else compare_for_resume(old, {"optim": {"lr": 1e-5}})


def _read_replay(path: Path) -> object:
    from megaladder.replay.record import changed_surroundings, recorded_threads

    return recorded_threads(path.parent), changed_surroundings(path.parent, {"data_sha256": "a"})


def _read_history(path: Path) -> object:
    from megaladder.replay.record import read_step

    (path.parent / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (path.parent / "config.yaml").write_text("model: {path: a}\ndata: {path: b}\nrun_dir: c\n")
    return read_step(path.parent, 1)


def _read_round(path: Path) -> object:
    from megaladder.train.rl.records import read_round

    return read_round(path.parent, 1)


def _read_summary(path: Path) -> object:
    from megaladder.train.rl.records import read_round

    (path.parent / "step_1.jsonl").write_bytes(_ROUND)
    return read_round(path.parent, 1), read_round(path.parent, 1, "k")


def _read_samples(path: Path) -> object:
    from megaladder.analysis.samples.sets import read_samples
    from megaladder.analysis.tables import Warnings

    return read_samples(path, "m", "exam", Warnings())


def _read_results(path: Path) -> object:
    from megaladder.analysis.runs.read import read_runs
    from megaladder.analysis.tables import Warnings

    return [record.benchmarks for record in read_runs([str(path.parent)], Warnings()).records]


def _read_sums(path: Path) -> object:
    """A list whose file is another one now is told in words."""
    from megaladder.files.sums import refuse_damaged

    (path.parent / "config.json").write_bytes(b"{}")
    return refuse_damaged(path.parent)


def _read_analysis(path: Path) -> object:
    """As a report takes it."""
    from megaladder.analysis.report.collect import collect

    return collect((str(path),)).analyses


def _read_shift(path: Path) -> object:
    from megaladder.analysis.shift.published import published_shift

    return published_shift(path)


def _read_rows_of_run(path: Path) -> object:
    """A run as reports and comparisons see it."""
    from megaladder.analysis.runs.read import read_runs
    from megaladder.analysis.tables import Warnings

    (path.parent / "metrics.jsonl").touch()
    return [record.steps for record in read_runs([str(path.parent)], Warnings()).records]


def _read_record(path: Path) -> object:
    from megaladder.study.plan import Job, Plan
    from megaladder.study.record import Cost, Records

    out = path.parent.parent.parent.parent
    job = Job("stage", "label", out / "stage" / "label", (("data",),), (), ())
    records = Records(Plan(path.parent, out, (("stage", (job,)),)))
    return records.is_finished(job), records.cost(job), records.add_cost(job, Cost(1.0, 1.0))


def _read_identity(path: Path) -> object:
    from megaladder.trackers.tracker import run_identity

    return run_identity(path.parent, anew=False)


@cache
def _store() -> Path:
    import numpy as np

    from megaladder.data.store import DataReport, StoreWriter, commit
    from megaladder.types import TokenSample

    folder = Path(tempfile.mkdtemp(prefix="fuzz-store-"))
    (folder / "new").mkdir()
    writer = StoreWriter(folder / "new")
    for index in range(3):
        ids = np.arange(4, dtype=np.int32)
        writer.add(TokenSample(f"s{index}", ids, np.ones(4, bool), None, None))
    commit(writer, folder / "new", folder / "data-1", "f", DataReport(path="a"))
    return folder / "data-1"


def _read_store(path: Path) -> object:
    from megaladder.data.store import SampleStore

    for file in _store().glob("*.bin"):
        shutil.copyfile(file, path.parent / file.name)
    store = SampleStore.open(path.parent)
    return [store[index].id for index in range(len(store))]


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


_ROUND = _line(
    {
        "id": "q",
        "group": 0,
        "prompt": "What?",
        "gold": "2",
        "kind": "math",
        "prompt_ids": [1],
        "response_ids": [2, 3],
        "completion": "2",
        "finish_reason": "stop",
        "logprobs": [-0.5, -0.5],
        "version": 0,
        "correct": True,
        "answer": "2",
        "grade_reason": "exact",
        "reward": 1.0,
        "reward_terms": {"correct": 1.0},
        "advantage": 0.5,
    }
)
_SAMPLES = _line(
    {
        "doc_id": 0,
        "doc": {"id": "q", "samples": {"exact_matches": [1, 0], "num_tokens": [3, 4]}},
        "target": "2",
        "resps": [["a", "b"]],
        "filter": "none",
        "exact_match": 1,
    }
)
_RESULTS = {
    "results": {"exam": {"name": "exam", "alias": "exam", "exact_match,none": 0.5}},
    "config": {"model": "vllm", "model_args": "pretrained=a,dtype=auto"},
    "protocol": {"n": 2, "model": {"sha256": "a"}},
    "model_name": "m",
}
_WORD = {"reason": "running", "status": None, "message": "", "saved": True, "step": 1}
_WORD |= {"saved_step": 1, "best_step": None, "rank": 0, "host": "h", "pid": 1, "started": 1}
_WORD |= {"attempt": "a", "time": "2024-07-26T00:00:00Z"}
_BEAT = {"rank": 0, "host": "h", "pid": 1, "doing": "a step", "turns": 1, "doing_s": 1.0}
_BEAT |= {"timeout_s": 9.0, "step": 1, "saved_step": None, "number": 3, "parent": 1}
_SHIFT = {"kl_divergence": 0.1, "tested_model": "a", "num_data_points": 1, "total_tokens": 2}
_SHIFT |= {"generation_model": "b", "task": "c"}
_LINES = {"lines": [{"name": "line_1", "fork": -1, "origin": None, "began": "", "settled": True}]}
_METRICS = _line({"step": 1}) + _line({"step": 2, "loss": 0.5, "work": {"update": {"tokens": 3}}})


def _run_cases() -> dict[str, Case]:
    finished = {"lines": ["a"], "settings": {"optim": {"lr": 1e-5}}, "inputs": {}, "outputs": []}
    config = b"model: {path: a}\ndata: {path: b}\noptim: {lr: 1.0e-05}\nrun_dir: c\n"
    history = _line(
        {
            "after_step": 0,
            "time": "",
            "changes": [],
            "config": {"run_dir": "c", "model": {"path": "a"}, "data": {"path": "b"}},
        }
    )
    environment = {"packages": {"torch": "2"}, "python": "3", "omp_num_threads": "1"}
    prints = {"data_sha256": "a", "environment": environment}
    summary = {"step": 1, "version": 0, "cursor": 3, "key": "k", "counts": {"a": 1}, "seconds": {}}
    summary |= {"sha256": sha256(_ROUND), "work": {}}
    return {
        "metrics": Case("metrics.jsonl", (_METRICS,), _read_metrics, LINES),
        "ledger": Case("metrics.jsonl", (_METRICS,), _read_ledger, LINES),
        "run config": Case("config.yaml", (config,), _read_run_config, YAML),
        "run of a report": Case("config.yaml", (config,), _read_rows_of_run, YAML),
        "config history": Case("run/config_history.jsonl", (history,), _read_history, LINES),
        "fingerprint": Case("fingerprint.json", (json.dumps(prints).encode(),), _read_replay, JSON),
        "finished": Case(
            "finished.json",
            (json.dumps({**finished, "exports": {}}).encode(),),
            _read_finished,
            JSON,
        ),
        "lineage": Case("lineage.json", (json.dumps(_LINES).encode(),), _read_lineage, JSON),
        "last word": Case("last_word.json", (json.dumps(_WORD).encode(),), _read_last_word, JSON),
        "heartbeat": Case("rank_0.json", (json.dumps(_BEAT).encode(),), _read_beats, JSON),
        "rollouts": Case("step_1.jsonl", (_ROUND,), _read_round, LINES),
        "rollouts' summary": Case(
            "rounds/step_1.summary.json", (json.dumps(summary).encode(),), _read_summary, JSON
        ),
        "tracker identity": Case("tracker.json", (b'{"id": "a"}',), _read_identity, JSON),
    }


def _checkpoint_cases() -> dict[str, Case]:
    manifest = {"trainer.json": {"sha256": sha256(b"{}"), "bytes": 2}}
    kind = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    kind |= {"common_backend": "torch", "common_backend_version": 1}
    return {
        "manifest": Case(
            "step_2/integrity.json", (json.dumps(manifest).encode(),), _read_manifest, JSON
        ),
        "trainer": Case("step_2/trainer.json", (b'{"step": 2, "x": [1]}',), _read_trainer, JSON),
        "metadata": Case("step_2/.metadata", _metadata, _read_metadata, BYTES),
        "metadata.json": Case(
            "step_3/metadata.json", (json.dumps(kind).encode(),), _read_format, JSON
        ),
    }


def _evaluation_cases() -> dict[str, Case]:
    settings = {"fingerprint": _fingerprint(), "parts": {"a": 1}}
    published = (json.dumps(_SHIFT).encode(),)
    record = {"inputs": "a", "outputs": {}, "digest": "d", "wall_s": 1.0, "cpu_s": 1.0}
    meta = ((_store() / "meta.json").read_bytes(),)
    return {
        "journal": Case("journal.jsonl", _journal, _read_journal, LINES),
        "journal's settings": Case(
            "eval/fingerprint.json", (json.dumps(settings).encode(),), _read_journal_settings, JSON
        ),
        "samples": Case("samples_exam.jsonl", (_SAMPLES,), _read_samples, LINES),
        "results": Case(
            "results/results_exam.json", (json.dumps(_RESULTS).encode(),), _read_results, JSON
        ),
        "published shift": Case("shift.json", published, _read_shift, JSON),
        "analysis": Case("found.json", _ANALYSES, _read_analysis, JSON),
        "export's digests": Case("hf/SHA256SUMS", (_SUMS,), _read_sums),
        "token cache": Case("data-1/meta.json", meta, _read_store, JSON),
        "study record": Case(
            "out/.study/stage/label/record.json", (json.dumps(record).encode(),), _read_record, JSON
        ),
        "study cost": Case(
            "out2/.study/stage/label/cost.json",
            (b'{"wall_s": 1.0, "cpu_s": 2.0}',),
            _read_record,
            JSON,
        ),
    }


_ANALYSES = (
    b'{"runs": {"a": {"curves": [1], "points": []}, "b": {"methods": {}, "points": [1]}}}',
    b'{"study": "limo", "findings": [{"name": "x"}], "verdict": null}',
)
_SUMS = f"{sha256(b'{}')}  config.json\n".encode()


def _fingerprint() -> str:
    from megaladder.evaluation.store import fingerprint_of

    return fingerprint_of({"a": 1})


def folder_cases() -> dict[str, Case]:
    """Every reader of our own folders, by name."""
    return {**_run_cases(), **_checkpoint_cases(), **_evaluation_cases()}
