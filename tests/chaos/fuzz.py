"""Foreign bytes for every reader of ours: mutations of good inputs, counted by how they end.

    PYTHONPATH=.:tests python -m chaos.fuzz [--inputs 1000] [--reader yaml] [--seed 0]

An input is fine when its reader accepts it or says a MegaladderError. Anything else that is raised,
and any input that takes longer than a second of CPU time, is shown with the bytes that did it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megaladder.errors import MegaladderError

SLOW_S = 1.0
Reader = Callable[[Path], object]
# what breaks parsers: ends of ranges, deep nesting, other encodings, other types in their place
TOKENS = [b"[" * 3000, b"{" * 3000, b'{"a":' * 2000, b"\xff\xfe", b"\x00", b"\xed\xa0\x80", b"\r"]
TOKENS += [b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 5000, b"null", b"true", b'""', b"[]", b"{}"]
TOKENS += [
    b"\\ud800",
    b"&a [*a]",
    b"*a",
    b"!!python/object:os.system",
    b"<<: ",
    b"\xe2\x80\xa8",
    b":",
]
TOKENS += [
    b"{% for i in range(10**9) %}",
    b"{{ x.__class__ }}",
    b"\xef\xbb\xbf",
    b"\n",
    b'"',
    b"0x1",
]


@dataclass(frozen=True, slots=True)
class Case:
    """One reader: the name of its file, good contents to start from, and what reads it."""

    file: str
    seeds: tuple[bytes, ...] | Callable[[], tuple[bytes, ...]]
    read: Reader

    def good(self) -> tuple[bytes, ...]:
        return self.seeds() if callable(self.seeds) else self.seeds


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """One to four changes: a flipped bit, bytes cut, doubled, moved or put in."""
    raw = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(raw) + 1)
        end = min(len(raw), place + rng.choice((1, 1, 2, 8, 64)))
        kind = rng.randrange(6)
        if kind == 0 and place < len(raw):
            raw[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del raw[place:end]
        elif kind == 2:
            raw[place:place] = raw[place:end] * rng.choice((1, 2, 50))
        elif kind == 3:
            raw[place:end] = rng.choice(TOKENS)
        elif kind == 4:
            raw[place:place] = rng.choice(TOKENS)
        else:
            raw = raw[:place]
    return bytes(raw)


@dataclass
class Outcome:
    """What happened to the inputs of one reader."""

    counts: Counter[str]
    wrong: list[tuple[str, bytes]]
    slowest_s: float = 0.0


def fuzz(case: Case, inputs: int, rng: random.Random, folder: Path) -> Outcome:
    """Reads `inputs` mutations; how each ended."""
    outcome = Outcome(Counter(), [])
    path = folder / case.file
    path.parent.mkdir(parents=True, exist_ok=True)
    seeds = case.good()
    for seed in seeds:  # what nobody touched is accepted
        path.write_bytes(seed)
        case.read(path)
    for _ in range(inputs):
        raw = mutated(rng.choice(seeds), rng)
        path.write_bytes(raw)
        began = time.process_time()
        try:
            case.read(path)
            outcome.counts["accepted"] += 1
        except MegaladderError:
            outcome.counts["refused"] += 1
        except BaseException as error:
            outcome.counts["uncaught"] += 1
            outcome.wrong.append((f"{type(error).__name__}: {str(error)[:120]}", raw))
        seconds = time.process_time() - began
        outcome.slowest_s = max(outcome.slowest_s, seconds)
        if seconds > SLOW_S:
            outcome.counts["slow"] += 1
            outcome.wrong.append((f"{seconds:.1f} s", raw))
    return outcome


def _read_yaml(path: Path) -> object:
    from megaladder.config.strict_yaml import load_yaml

    return load_yaml(path)


def _read_metrics(path: Path) -> object:
    from megaladder.run_dir import drop_rows_after, read_jsonl

    drop_rows_after(path, 1)
    return list(read_jsonl(path))


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


def _read_manifest(path: Path) -> object:
    from megaladder.checkpoint import store

    (path.parent / store.MARKER).touch()
    (path.parent / "trainer.json").write_text("{}")
    return store.verify(path.parent)


def _read_trainer(path: Path) -> object:
    from megaladder.checkpoint import store

    return store.read_trainer(path.parent)


def _read_lineage(path: Path) -> object:
    from megaladder.checkpoint import lineage

    return lineage.read_lineage(path.parent)


def _read_rows(path: Path) -> object:
    from megaladder.data.read_problems import ProblemOptions, read_problems

    return read_problems(str(path), ProblemOptions())


def _read_model_config(path: Path) -> object:
    from megaladder.model.hf_config import model_shape, read_config_json

    return model_shape(read_config_json(path.parent))


def _read_safetensors(path: Path) -> object:
    from megaladder.checkpoints_conv.reader import HFReader

    with HFReader(path.parent) as reader:
        return {name: reader.read(name) for name in reader.shapes}


def _read_metadata(path: Path) -> object:
    from megaladder.checkpoint import plain_data

    return plain_data.read_metadata(path.parent)


def _safetensors() -> bytes:
    head = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(16)


def _index_and_shard(path: Path) -> object:
    (path.parent / "a.safetensors").write_bytes(_safetensors())
    return _read_safetensors(path)


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


_CONFIG = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


def cases() -> dict[str, Case]:
    """Every reader, by name."""
    rows = b'{"question": "What is 1 + 1?", "answer": "2\\n#### 2"}\n' * 2
    index = {"metadata": {"total_size": 16}, "weight_map": {"w": "a.safetensors"}}
    manifest = {"trainer.json": {"sha256": hashlib.sha256(b"{}").hexdigest(), "bytes": 2}}
    lines = {
        "lines": [{"name": "line_1", "fork": -1, "origin": None, "began": "", "settled": True}]
    }
    anchors = b"x: &x [1, 2]\ny: [*x, *x]\nt: |\n  a\nlist: [1, {b: 'c'}]\nf: 1e-5\n"
    return {
        "yaml": Case("run.yaml", (b"optim:\n  lr: 1e-5\nmodel: {path: a}\n", anchors), _read_yaml),
        "metrics": Case(
            "metrics.jsonl", (b'{"step": 1}\n{"step": 2, "loss": 0.5}\n',), _read_metrics
        ),
        "journal": Case("journal.jsonl", _journal, _read_journal),
        "manifest": Case("step_2/integrity.json", (json.dumps(manifest).encode(),), _read_manifest),
        "trainer": Case("step_2/trainer.json", (b'{"step": 2, "x": [1]}',), _read_trainer),
        "lineage": Case("lineage.json", (json.dumps(lines).encode(),), _read_lineage),
        "rows": Case("rows.jsonl", (rows,), _read_rows),
        "rows.json": Case(
            "rows.json", (b"[" + rows.strip().replace(b"\n", b",") + b"]",), _read_rows
        ),
        "rows.csv": Case("rows.csv", (b"question,answer\nWhat is 1?,#### 1\n",), _read_rows),
        "rows.parquet": Case("rows.parquet", _parquet, _read_rows),
        "config.json": Case("config.json", (json.dumps(_CONFIG).encode(),), _read_model_config),
        "safetensors": Case("model.safetensors", (_safetensors(),), _read_safetensors),
        "index": Case(
            "sharded/model.safetensors.index.json", (json.dumps(index).encode(),), _index_and_shard
        ),
        "metadata": Case("step_2/.metadata", _metadata, _read_metadata),
    }


def _parquet() -> tuple[bytes, ...]:
    import io

    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"question": ["What is 1?"] * 3, "answer": ["#### 1"] * 3})
    out = io.BytesIO()
    parquet.write_table(table, out)
    return (out.getvalue(),)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--reader", action="append")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    failed = 0
    for name, case in cases().items():
        if given.reader and name not in given.reader:
            continue
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            rng = random.Random(f"{given.seed}/{name}")
            found = fuzz(case, given.inputs, rng, Path(folder))
        counts = ", ".join(f"{count:,} {how}" for how, count in sorted(found.counts.items()))
        print(
            f"{name}: {given.inputs:,} inputs: {counts}; slowest {found.slowest_s:.3f} s",
            flush=True,
        )
        kinds = {what.split(":")[0]: (what, raw) for what, raw in found.wrong}
        for what, raw in kinds.values():
            print(f"  {what}\n    {raw[:300]!r}", flush=True)
        failed += len(found.wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
