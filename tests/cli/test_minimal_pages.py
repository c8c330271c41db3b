"""The pages that people fork run on a tiny model: losses fall, weights reach the engine."""

from __future__ import annotations

import importlib.util
import json
from argparse import Namespace
from pathlib import Path

import pytest
from clean_fork import run_in_fork
from tiny_models import build_tiny_model

PAGES = Path(__file__).resolve().parents[2] / "examples" / "minimal"


def page(name: str):
    spec = importlib.util.spec_from_file_location(f"minimal_{name}", PAGES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minimal")
    rows = [
        {"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}
        for a in range(6)
        for b in range(6)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_tiny_model(folder / "model", hidden=32), folder / "data.jsonl"


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_a_page_is_a_page(name):
    lines = (PAGES / f"{name}.py").read_text().splitlines()
    assert len(lines) <= 200 and max(map(len, lines)) <= 100


def test_the_sft_page_learns_and_exports(inputs, tmp_path):
    model, data = inputs
    args = Namespace(model=str(model), data=str(data), out=str(tmp_path / "out"), steps=12)
    args.global_batch_size, args.seq_length, args.lr = 16, 128, 1e-2
    args.tp = args.pp = 1
    args.seed = 42

    def run() -> int:
        losses = page("sft").train(args)
        (tmp_path / "losses.json").write_text(json.dumps(losses))
        return 0

    assert run_in_fork(run, stdout=tmp_path / "o", stderr=tmp_path / "e") == 0, (
        tmp_path / "e"
    ).read_text()
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert losses[-1] < losses[0] - 1.0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "chat_template.jinja").is_file()


def test_the_grpo_page_goes_round(inputs, tmp_path):
    """With the stand-in engine: answers are graded, every round sends new weights."""
    model, data = inputs
    args = Namespace(model=str(model), problems=str(data), out=str(tmp_path / "out"))
    args.engine, args.rounds, args.prompts, args.n = "fake", 3, 4, 4
    args.max_tokens, args.seq_length, args.lr = 16, 256, 1e-3

    def run() -> int:
        rewards = page("grpo").train(args)
        return 0 if len(rewards) == 3 else 1

    assert run_in_fork(run, stdout=tmp_path / "o", stderr=tmp_path / "e") == 0, (
        tmp_path / "e"
    ).read_text()
    assert (tmp_path / "o").read_text().count("round") == 3
    assert (tmp_path / "out/hf/model.safetensors").is_file()
