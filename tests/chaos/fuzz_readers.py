"""Every reader of bytes that somebody else may have written, with good contents to start from."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from chaos import fuzz_inputs as wrong
from chaos.fuzz_inputs import Mutate

Reader = Callable[[Path], object]
BYTES: tuple[Mutate, ...] = (wrong.raw,)
JSON, LINES, YAML = ((wrong.raw, one) for one in (wrong.by_json, wrong.by_lines, wrong.by_yaml))


@dataclass(frozen=True, slots=True)
class Case:
    """One reader: the name of its file, good contents to start from, what reads it, and how the
    contents are made wrong."""

    file: str
    seeds: tuple[bytes, ...] | Callable[[], tuple[bytes, ...]]
    read: Reader
    mutations: tuple[Mutate, ...] = BYTES

    def good(self) -> tuple[bytes, ...]:
        return self.seeds() if callable(self.seeds) else self.seeds


# --- settings


def _read_yaml(path: Path) -> object:
    from megaladder.config.strict_yaml import load_yaml

    return load_yaml(path)


def _read_run_yaml(path: Path) -> object:
    from megaladder.config.grpo import GrpoConfig
    from megaladder.config.resolve import resolve

    return resolve(GrpoConfig, [str(path)], "megaladder grpo", True)


def _read_study(path: Path) -> object:
    from megaladder.study.study import load_study

    return load_study(path.parent)


@cache
def _studies() -> tuple[bytes, ...]:
    from megaladder.study.study import shipped_studies

    return tuple((folder / "study.yaml").read_bytes() for folder in shipped_studies().values())[:2]


def _read_registry(path: Path) -> object:
    from megaladder.evaluation.benchmarks.spec import read_registry

    return read_registry(str(path))


def _read_recipe(path: Path) -> object:
    from megaladder.curate.select.recipe import load_recipes
    from megaladder.curate.select.run import STAGES

    return load_recipes(str(path), (), STAGES)


def _read_foreign(path: Path) -> object:
    from megaladder.config.foreign.convert import convert
    from megaladder.config.foreign.meanings import recognise, trainers
    from megaladder.config.foreign.read import read_foreign

    flat = read_foreign(str(path))
    name = recognise(flat)
    return None if name is None else convert(trainers()[name], flat, 8)


_RUN_YAML = b"model: {path: a}\ndata: {path: b.jsonl}\noptim:\n  lr: 1e-5\ngrpo: {preset: dapo}\n"
_ANCHORS = b"x: &x [1, 2]\ny: [*x, *x]\nt: |\n  a\nlist: [1, {b: 'c'}]\nf: 1e-5\n"
_REGISTRY = (
    b"benchmarks:\n  exam: {data: exam.jsonl, fields: {question: Problem, gold: Answer}}\n"
    b"  other: {hub: {repo: a/b, split: test}, decoding: {n: 4, temperature: 0.6}}\n"
)


@cache
def _recipes() -> tuple[bytes, ...]:
    from megaladder.preflight.examples import examples_folder

    files = (path.read_bytes() for path in sorted(examples_folder().glob("recipes/*/*.yaml")))
    return tuple(text for text in files if b"\nstages:" in text)


_VERL = (
    b"data:\n  train_files: a.parquet\n  train_batch_size: 512\n  max_prompt_length: 512\n"
    b"actor_rollout_ref:\n  model: {path: Qwen/Qwen2.5-7B}\n  actor: {optim: {lr: 1e-6},"
    b" ppo_mini_batch_size: 128}\n  rollout: {n: 8, temperature: 1.0}\n"
    b"algorithm: {adv_estimator: grpo}\ntrainer: {nnodes: 1, n_gpus_per_node: 8}\n"
)
_SCRIPT = (
    b"N=${NODES:-2}\nBATCH=$((N * 64))\npython3 -m verl.trainer.main_ppo \\\n"
    b"  algorithm.adv_estimator=grpo \\\n  data.train_batch_size=$BATCH \\\n"
    b"  actor_rollout_ref.model.path=a/b trainer.nnodes=$N\n"
)


# --- rows


def _read_problems(path: Path) -> object:
    from megaladder.data.read_problems import ProblemOptions, read_problems

    return read_problems(str(path), ProblemOptions())


def _read_examples(path: Path) -> object:
    from megaladder.data.layouts.learn import ReadOptions
    from megaladder.data.read_examples import ExampleReader

    return list(ExampleReader(path, ReadOptions()))


def _read_benchmark_rows(path: Path) -> object:
    from megaladder.evaluation.benchmarks.problems import build_problems
    from megaladder.evaluation.benchmarks.source import load_rows
    from megaladder.evaluation.benchmarks.spec import find_benchmark

    spec = find_benchmark(str(path))
    return build_problems(spec, load_rows(spec, None), 0, "{question}")


def _read_tests(path: Path) -> object:
    from megaladder.errors import DataError
    from megaladder.rewards.programs.judge import read_tests

    try:
        return read_tests(path.read_text("utf-8", "replace"))
    except ValueError as error:  # as it is said; a program without tests is undecided
        raise DataError(str(error)) from None


_ROWS = b'{"question": "What is 1 + 1?", "answer": "2\\n#### 2"}\n' * 2
_CHAT = (
    b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes",'
    b' "reasoning_content": "so", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}],'
    b' "tools": [{"name": "f"}]}\n'
    b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No"}]}\n'
)
_TESTS = b'{"inputs": ["1\\n"], "outputs": ["2\\n"], "fn_name": null}'


@cache
def _pickled_tests() -> tuple[bytes, ...]:
    import base64
    import pickle
    import zlib

    packed = zlib.compress(pickle.dumps(_TESTS.decode()))
    return (_TESTS, base64.b64encode(packed))


@cache
def _parquet() -> tuple[bytes, ...]:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"question": ["What is 1?"] * 3, "answer": ["#### 1"] * 3})
    out = io.BytesIO()
    parquet.write_table(table, out)
    return (out.getvalue(),)


@cache
def _arrow() -> tuple[bytes, ...]:
    import pyarrow

    table = pyarrow.table({"question": ["What is 1?"] * 3, "answer": ["#### 1"] * 3})
    out = io.BytesIO()
    with pyarrow.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return (out.getvalue(),)


# --- models


def _read_model_config(path: Path) -> object:
    from megaladder.model.hf_config import model_shape, read_config_json

    return model_shape(read_config_json(path.parent))


def _read_safetensors(path: Path) -> object:
    from megaladder.checkpoints_conv.reader import HFReader

    with HFReader(path.parent) as reader:
        return {name: reader.read(name) for name in reader.shapes}


def _safetensors() -> bytes:
    head = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(16)


def _index_and_shard(path: Path) -> object:
    (path.parent / "a.safetensors").write_bytes(_safetensors())
    return _read_safetensors(path)


def _read_adapter(path: Path) -> object:
    """What it says, as vLLM and the next folder are told it."""
    from megaladder.model.lora.peft_config import peft_config, read_spec

    return peft_config(read_spec(path.parent), "base")


def _read_generation(path: Path) -> object:
    from megaladder.data.chat.stops import _generation_stops

    return _generation_stops(path.parent, None)


@cache
def _tokenizer_folder() -> Path:
    from tiny_models import build_tokenizer

    folder = Path(tempfile.mkdtemp(prefix="fuzz-tokenizer-"))
    build_tokenizer(folder, num_merges=20)
    return folder


def _tokenizer_file(name: str) -> Callable[[], tuple[bytes, ...]]:
    return lambda: ((_tokenizer_folder() / name).read_bytes(),)


def _read_tokenizer(path: Path) -> object:
    from megaladder.data.chat.tokenizer import load_tokenizer

    for file in _tokenizer_folder().iterdir():
        if file.name != path.name:
            shutil.copyfile(file, path.parent / file.name)
    tokenizer = load_tokenizer(path.parent)
    return tokenizer.encode("What is 12 + 30?"), len(tokenizer), tokenizer.all_special_ids


class Templated:
    """A tokenizer of which only the chat template counts: `render` takes that with the call."""

    chat_template = ""

    def apply_chat_template(self, turns: Any, tokenize: bool = False, **options: Any) -> Any:
        from transformers.utils.chat_template_utils import render_jinja_template

        del tokenize
        return render_jinja_template([turns], **options)[0][0]


_TEMPLATED = Templated()


def _read_template(path: Path) -> object:
    from datetime import date

    from megaladder.data.chat import rendering
    from megaladder.data.chat.defaults import with_defaults

    rendering.CPU_S = 0.25
    text = path.read_text("utf-8", "replace")
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    given = with_defaults(text, {}, date(2024, 7, 26))
    return rendering.render(_TEMPLATED, turns, chat_template=given, tools=None)  # type: ignore[arg-type]


def _templates() -> tuple[bytes, ...]:
    from tiny_models import CHAT_TEMPLATE

    from megaladder.data.chat.tokenizer import DEFAULT_CHAT_TEMPLATE

    return CHAT_TEMPLATE.encode(), DEFAULT_CHAT_TEMPLATE.encode()


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
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


_ADAPTER = (
    b'{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}'
)


def _settings_cases() -> dict[str, Case]:
    return {
        "yaml": Case("run.yaml", (_RUN_YAML, _ANCHORS), _read_yaml, YAML),
        "run.yaml": Case("run.yaml", (_RUN_YAML,), _read_run_yaml, YAML),
        "study.yaml": Case("study/study.yaml", _studies, _read_study, YAML),
        "registry": Case("registry.yaml", (_REGISTRY,), _read_registry, YAML),
        "recipe": Case("recipe.yaml", _recipes, _read_recipe, YAML),
        "import yaml": Case("verl.yaml", (_VERL,), _read_foreign, YAML),
        "import script": Case("verl.sh", (_SCRIPT,), _read_foreign),
    }


def _row_cases() -> dict[str, Case]:
    columns = (wrong.raw, wrong.by_columns)
    packed = (gzip.compress(_ROWS, mtime=0),)
    listed = b"[" + _ROWS.strip().replace(b"\n", b",") + b"]"
    table = b"question,answer\nWhat is 1?,#### 1\n"
    return {
        "rows.jsonl": Case("rows.jsonl", (_ROWS,), _read_problems, LINES),
        "rows.json": Case("rows.json", (listed,), _read_problems, JSON),
        "rows.csv": Case("rows.csv", (table,), _read_problems),
        "rows.jsonl.gz": Case("rows.jsonl.gz", packed, _read_problems),
        "rows.parquet": Case("rows.parquet", _parquet, _read_problems, columns),
        "rows.arrow": Case("rows.arrow", _arrow, _read_problems),
        "conversations": Case("chat.jsonl", (_CHAT,), _read_examples, LINES),
        "benchmark rows": Case("exam.jsonl", (_ROWS,), _read_benchmark_rows, LINES),
        "program tests": Case("tests.txt", _pickled_tests, _read_tests),
    }


def _model_cases() -> dict[str, Case]:
    config = json.dumps(_CONFIG).encode()
    index = {"metadata": {"total_size": 16}, "weight_map": {"w": "a.safetensors"}}
    header = (wrong.raw, wrong.by_header)
    generation = b'{"eos_token_id": [1, 2], "pad_token_id": 0}'
    return {
        "config.json": Case("config.json", (config,), _read_model_config, JSON),
        "generation_config.json": Case(
            "generation_config.json", (generation,), _read_generation, JSON
        ),
        "safetensors": Case("model.safetensors", (_safetensors(),), _read_safetensors, header),
        "index": Case(
            "sharded/model.safetensors.index.json",
            (json.dumps(index).encode(),),
            _index_and_shard,
            JSON,
        ),
        "adapter_config.json": Case("adapter_config.json", (_ADAPTER,), _read_adapter, JSON),
        "chat template": Case(
            "chat.jinja", _templates, _read_template, (wrong.raw, wrong.by_pieces)
        ),
        "tokenizer.json": Case(
            "tokenizer.json", _tokenizer_file("tokenizer.json"), _read_tokenizer, JSON
        ),
        "tokenizer_config.json": Case(
            "tokenizer_config.json", _tokenizer_file("tokenizer_config.json"), _read_tokenizer, JSON
        ),
    }


def cases() -> dict[str, Case]:
    """Every reader, by name."""
    from chaos.fuzz_caches import cache_cases
    from chaos.fuzz_folders import folder_cases
    from chaos.fuzz_foreign import foreign_cases
    from chaos.fuzz_wire import wire_cases

    own = {**_settings_cases(), **_row_cases(), **_model_cases()}
    return {**own, **foreign_cases(), **folder_cases(), **cache_cases(), **wire_cases()}


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
