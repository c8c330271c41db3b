"""Readers of other programs' files: trainers' settings and scripts, published rows in their
layouts, packed and columnar files, adapters, checkpoints' tensors, tables of studies."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from chaos import fuzz_inputs as wrong
from chaos.fuzz_readers import (
    _ADAPTER,
    _CONFIG,
    _ROWS,
    BYTES,
    JSON,
    LINES,
    YAML,
    Case,
    _read_examples,
    _read_foreign,
    _read_problems,
)

# --- other trainers

_TRL = (
    b"model_name_or_path: a/b\ndataset_name: rows.jsonl\nlearning_rate: 2.0e-05\n"
    b"dataset_mixture: {datasets: [{id: a/b, split: train}]}\nlr_scheduler_type: cosine\n"
    b"per_device_train_batch_size: 2\ngradient_accumulation_steps: 4\nnum_train_epochs: 1\n"
    b"output_dir: out\nuse_peft: true\nlora_target_modules: [q_proj]\nbf16: true\npacking: true\n"
)
_TRL_GRPO = (
    b"model_name_or_path: a/b\ndataset_name: a/c\nnum_generations: 8\nreward_funcs: [accuracy]\n"
    b"reward_weights: [1.0]\nmax_completion_length: 512\nuse_vllm: true\nbeta: 0.0\n"
    b"loss_type: dr_grpo\ntemperature: 0.7\nper_device_train_batch_size: 8\n"
)
_FACTORY = (
    b"stage: sft\nmodel_name_or_path: a/b\ndataset: one,two\ndataset_dir: data\ntemplate: qwen\n"
    b"cutoff_len: 512\nfinetuning_type: lora\nlora_target: all\nlearning_rate: 1.0e-4\n"
    b"deepspeed: examples/deepspeed/ds_z3_config.json\noutput_dir: saves/x\n"
)
_AXOLOTL = (
    b"base_model: a/b\nsequence_len: 512\ndatasets:\n  - {path: rows.jsonl, type: chat_template}\n"
    b"micro_batch_size: 2\nsample_packing: true\nadapter: lora\nlora_r: 8\nlora_target_linear: true\noptimizer: adamw_8bit\n"
    b"fsdp: [full_shard]\nfsdp_config: {fsdp_offload_params: false}\nlr_scheduler: cosine\n"
)
_SETS = {
    "one": {"file_name": "a.json", "columns": {"prompt": "q", "response": "a"}},
    "two": {
        "hf_hub_url": "a/b",
        "formatting": "sharegpt",
        "split": "train",
        "columns": {"messages": "conversations"},
        "tags": {"role_tag": "from", "user_tag": "human"},
    },
}
_SCRIPTS = (
    b"trl sft --model_name_or_path a --dataset_name rows.jsonl --learning_rate 2.0e-5"
    b" --output_dir out --packing --lora_target_modules 'q', 'v' 2>&1 | tee log\n",
    b"N=4\naccelerate launch --num_processes $((N * 2)) \\\n scripts/sft.py --model_name_or_path a"
    b' --bf16=True --per_device_train_batch_size 2 --dataset_name rows.jsonl "$@"\n',
    b"llamafactory-cli train --stage sft --model_name_or_path a --dataset a,b --cutoff_len 512\n",
    b"axolotl train --base_model a --sequence_len 128 --micro-batch-size 4 --learning_rate 1e-5\n",
)


def _read_sets(path: Path) -> object:
    """LLaMA-Factory's list of data sets, as a file that names some is converted."""
    run = path.parent.parent / "factory.yaml"
    run.write_bytes(_FACTORY.replace(b"dataset_dir: data", b"dataset_dir: " + bytes(path.parent)))
    return _read_foreign(run)


def _read_base(path: Path) -> object:
    """A file that another one is put over."""
    from megaladder.config.grpo import GrpoConfig
    from megaladder.config.resolve import resolve

    top = path.parent / "top.yaml"
    top.write_text(f"base: {path.name}\nmodel: {{path: a}}\ndata: {{path: b.jsonl}}\n")
    return resolve(GrpoConfig, [str(top)], "megaladder grpo", True)


# --- rows


@cache
def _published() -> tuple[bytes, ...]:
    from data.layouts_published import PUBLISHED

    return tuple(
        json.dumps(one.row).encode() + b"\n" for one in PUBLISHED if one.learned or one.asked
    )


def _read_published(path: Path) -> object:
    """As what to learn from, and as problems; one of the two may not be in it."""
    from megaladder.errors import MegaladderError

    found, said = [], []
    for read in (_read_examples, _read_problems):
        try:
            found.append(read(path))
        except MegaladderError as error:
            said.append(error)
    if not found:
        raise said[0]
    return found


def _chats() -> tuple[bytes, ...]:
    whole = [one for one in _published() if b'"mapping"' in one]
    return tuple(b"[" + one.strip() + b"]" for one in whole)


def _zstd(raw: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(raw)


@cache
def _stream() -> tuple[bytes, ...]:
    """Arrow as `datasets` writes it."""
    import pyarrow

    table = pyarrow.table({"question": ["What is 1?"] * 3, "answer": ["#### 1"] * 3})
    out = io.BytesIO()
    with pyarrow.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return (out.getvalue(),)


@cache
def _nested() -> tuple[bytes, ...]:
    """verl's parquet: structs and lists in columns."""
    import pyarrow
    from pyarrow import parquet

    row = {
        "data_source": "a",
        "prompt": [{"role": "user", "content": "What is 1?"}],
        "reward_model": {"style": "rule", "ground_truth": "1"},
        "extra_info": {"index": 1},
    }
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([row] * 2), out)
    return (out.getvalue(),)


@cache
def _saved() -> Path:
    import datasets

    folder = Path(tempfile.mkdtemp(prefix="fuzz-saved-"))
    rows = {"question": ["What is 1?"] * 3, "answer": ["#### 1"] * 3}
    datasets.Dataset.from_dict(rows).save_to_disk(folder / "one")
    return folder / "one"


def _of_saved(name: str) -> Callable[[], tuple[bytes, ...]]:
    return lambda: (((_saved() / name).read_bytes()),)


def _table() -> tuple[bytes, ...]:
    return _of_saved("data-00000-of-00001.arrow")()


def _read_saved(path: Path) -> object:
    """A folder of `datasets.save_to_disk` of which one file is another."""
    for file in _saved().iterdir():
        if file.name != path.name:
            shutil.copyfile(file, path.parent / file.name)
    return _read_problems(path.parent)


# --- models


@cache
def _peft() -> tuple[tuple[bytes, ...], Any]:
    """The weights of an adapter, and the shape of its model."""
    import torch
    from safetensors.torch import save

    from megaladder.checkpoints_conv.adapters.tensors import AdapterTable
    from megaladder.model.hf_config import model_shape
    from megaladder.model.lora.peft_config import read_spec

    folder = Path(tempfile.mkdtemp(prefix="fuzz-peft-"))
    (folder / "adapter_config.json").write_bytes(_ADAPTER)
    shape = model_shape(_CONFIG)
    shapes = AdapterTable(shape, read_spec(folder)).shapes
    return (save({name: torch.zeros(size) for name, size in shapes.items()}),), shape


def _read_peft(path: Path) -> object:
    from megaladder.checkpoints_conv.adapters.peft_folder import open_peft

    (path.parent / "adapter_config.json").write_bytes(_ADAPTER)
    _, reader = open_peft(path.parent, _peft()[1])
    return [reader.read(name) for name in reader.shapes]


@cache
def _checkpoint() -> Path:
    """A converted checkpoint of two tensors, with `common.pt`."""
    import torch

    from megaladder.checkpoint import store
    from megaladder.checkpoints_conv.dist_checkpoint import DistCheckpointWriter

    folder = Path(tempfile.mkdtemp(prefix="fuzz-checkpoint-")) / "step_1"
    store.prepare_folder(folder, 100)
    writer = DistCheckpointWriter(folder)
    writer.add_tensor("w", torch.arange(6.0).reshape(2, 3))
    writer.add_tensor("b", torch.zeros(3, dtype=torch.bfloat16))
    writer.commit({"a": 1})
    return folder


def _tensors() -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted(_checkpoint().glob("*.distcp")))


def _read_tensors(path: Path) -> object:
    from megaladder.checkpoints_conv.dist_checkpoint import DistCheckpointReader

    for file in _checkpoint().iterdir():
        if file.suffix != ".distcp":
            shutil.copyfile(file, path.parent / file.name)
    reader = DistCheckpointReader(path.parent)
    return [reader.read(key, tuple(stored.size)) for key, stored in reader.tensors.items()]


def _read_parameters(path: Path) -> object:
    """How many parameters a model has, by its headers alone."""
    from megaladder.analysis.studies.compute import count_parameters

    return float(count_parameters(path.parent))


# --- tables of studies


def _read_trajectory(path: Path) -> object:
    from megaladder.analysis.studies.trajectory import read_curves

    return read_curves(str(path))


def _read_scaling(path: Path) -> object:
    from megaladder.analysis.studies.scaling import read_settings

    return read_settings(str(path))


def _read_transfer(path: Path) -> object:
    from megaladder.analysis.studies.transfer import read_scores

    return read_scores(str(path), "base")


def _read_factors(path: Path) -> object:
    from megaladder.analysis.studies.ladder import read_factors
    from megaladder.analysis.tables import Warnings

    return read_factors(str(path), {"a": 1}, Warnings(said=False))


_CURVES = b"model,benchmark,step,score,length\na,x,0,10.5,200\na,x,10,20,\na,x,20,1e1,300\n"
_SETTINGS = b"method,setting,tokens,accuracy,instructed_min\na,1,100,10.5,\na,2,200,20,50\n"
_SCORES = b"model,group,benchmark,score\nbase,math,x,10\nbase,non,y,20\na,math,x,30\na,non,y,40\n"
_FACTORS = b"model,size,category,length\na,1000,math,long\nb,2000,,short\n"


def _settings_cases() -> dict[str, Case]:
    sets = (json.dumps(_SETS).encode(),)
    others = (_TRL, _TRL_GRPO, _FACTORY, _AXOLOTL)
    return {
        "import yaml of others": Case("other.yaml", others, _read_foreign, YAML),
        "import script of others": Case("other.sh", _SCRIPTS, _read_foreign),
        "dataset_info.json": Case("data/dataset_info.json", sets, _read_sets, JSON),
        "base of a run.yaml": Case("base.yaml", (b"optim: {lr: 1e-5}\n",), _read_base, YAML),
    }


def _row_cases() -> dict[str, Case]:
    table = b"question\tanswer\nWhat is 1?\t#### 1\n"
    packed = {"zst": _zstd, "bz2": bz2.compress, "xz": lzma.compress}
    return {
        "published layouts": Case("published.jsonl", _published, _read_published, LINES),
        "ChatGPT's export": Case("conversations.json", _chats, _read_examples, JSON),
        "rows.tsv": Case("rows.tsv", (table,), _read_problems),
        "rows.txt": Case("rows.txt", (b"a\n\nb\n",), _read_examples),
        **{
            f"rows.jsonl.{end}": Case(f"rows.jsonl.{end}", (pack(_ROWS),), _read_problems)
            for end, pack in packed.items()
        },
        "rows.parquet, nested": Case(
            "verl.parquet", _nested, _read_problems, (wrong.raw, wrong.by_columns)
        ),
        "rows.parquet.gz": Case(
            "rows.parquet.gz", lambda: tuple(map(_gzip, _nested())), _read_problems
        ),
        "Arrow stream": Case("stream.arrow", _stream, _read_problems),
        **{
            f"saved data set's {name}": Case(
                f"saved-{name}/{name}", _of_saved(name), _read_saved, JSON
            )
            for name in ("state.json", "dataset_info.json")
        },
        "saved data set's table": Case("saved/data-00000-of-00001.arrow", _table, _read_saved),
    }


def _gzip(raw: bytes) -> bytes:
    return gzip.compress(raw, mtime=0)


def _model_cases() -> dict[str, Case]:
    header = (wrong.raw, wrong.by_header)
    return {
        "adapter's weights": Case(
            "peft/adapter_model.safetensors", lambda: _peft()[0], _read_peft, header
        ),
        "checkpoint's tensors": Case("step_1/__0_0.distcp", _tensors, _read_tensors, BYTES),
        "parameters by headers": Case(
            "counted/model.safetensors", lambda: _peft()[0], _read_parameters, header
        ),
    }


def _table_cases() -> dict[str, Case]:
    return {
        "table of curves": Case("curves.csv", (_CURVES,), _read_trajectory),
        "table of settings": Case("settings.csv", (_SETTINGS,), _read_scaling),
        "table of scores": Case("scores.csv", (_SCORES,), _read_transfer),
        "table of factors": Case("factors.csv", (_FACTORS,), _read_factors),
    }


def foreign_cases() -> dict[str, Case]:
    """Every reader of other programs' files, by name."""
    return {**_settings_cases(), **_row_cases(), **_model_cases(), **_table_cases()}
