"""A finished command given again: its last lines, and neither torch nor an engine is loaded for
them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from clean_fork import run_in_fork
from distributed import environment
from tiny_models import build_tiny_model

SAID = "finished by an earlier start; nothing to do"
# a start that tells which heavy packages it loaded
START = """
import sys
from megaladder.cli import main
status = main(sys.argv[1:])
print("loaded:", *(name for name in ("torch", "transformers", "vllm") if name in sys.modules))
sys.exit(status)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("finished")
    rows = [{"id": f"q{n}", "question": f"{n} + 1?", "answer": str(n + 1)} for n in range(12)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_tiny_model(folder / "model", hidden=32), folder / "problems.jsonl"


def start(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START, *map(str, words)]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )


def work(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """The same command where it has work to do: a fork, which need not import what it loads."""

    def run() -> int:
        from megaladder.cli import main

        return main([*map(str, words)])

    out, error = folder / "stdout.txt", folder / "stderr.txt"
    status = run_in_fork(run, stdout=out, stderr=error)
    return subprocess.CompletedProcess(words, status, out.read_text(), error.read_text())


def assert_answered(words: list[object], first: str) -> None:
    again = start(*words)
    assert again.returncode == 0, again.stderr
    said = again.stdout.splitlines()
    assert said[0] == SAID and said[-1] == "loaded:"
    assert said[1:-1] and all(line in first for line in said[1:-1])


def sample_words(inputs, out: Path) -> list[object]:
    model, problems = inputs
    words = ["data", "sample", problems, "--out", out, "--model.tokenizer", model, "--keep", "all"]
    return [*words, "--rollout.engine", "fake", "--rollout.n", "2", "--rollout.max-tokens", "8"]


def test_data_sample(inputs, tmp_path) -> None:
    out = tmp_path / "rows.jsonl"
    words = sample_words(inputs, out)
    first = work(tmp_path, *words)
    assert first.returncode == 0 and SAID not in first.stdout, first.stderr
    rows = out.read_bytes()
    assert_answered(words, first.stdout)
    out.write_bytes(rows + b"{}\n")  # not what was written: made again, without new samples
    again = work(tmp_path, *words)
    assert again.returncode == 0 and "0 new" in again.stdout and out.read_bytes() == rows
    journal = tmp_path / "rows.jsonl.samples" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"correct": false', b'"correct": true ', 1))
    again = work(tmp_path, *words)
    assert again.returncode == 0 and "journal.jsonl: 1 lines have changed since" in again.stderr
    assert "1 new" in again.stdout and out.read_bytes() == rows  # that sample was made again


def test_conversions(inputs, tmp_path) -> None:
    model, _ = inputs
    there = ["convert", "hf-to-megatron", "--hf", model, "--out", tmp_path / "megatron"]
    back = ["convert", "megatron-to-hf", "--megatron", tmp_path / "megatron"]
    back += ["--out", tmp_path / "hf"]
    for words in (there, back):
        first = work(tmp_path, *words)
        assert first.returncode == 0, first.stderr
        assert_answered(words, first.stdout)
    (tmp_path / "hf" / "config.json").write_text("{}")
    again = work(tmp_path, *back)
    assert again.returncode == 2 and "not empty" in again.stderr


def test_grpo(inputs, tmp_path) -> None:
    model, problems = inputs
    words = ["grpo", "--run-dir", tmp_path / "run", "--model.path", model]
    words += ["--data.path", problems, "--data.seq-length", "128", "--rollout.engine", "fake"]
    words += ["--rollout.n", "2", "--rollout.max-tokens", "8", "--grpo.preset", "dr_grpo"]
    words += ["--grpo.prompts-per-step", "2", "--train.max-steps", "1", "--reward.workers", "1"]
    first = work(tmp_path, *words)
    assert first.returncode == 0, first.stderr
    assert_answered(words, first.stdout)
