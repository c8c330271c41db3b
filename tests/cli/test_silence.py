"""A verb of each kind in a process of its own: which phases it tells, and that something is told at
every moment from its beginning to its end. Counted by events; no clock is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import build_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
# writes what was open after each change: [] is a moment at which nothing would be told
RECORDER = """
import json, sys
from megaladder.cli import main
from megaladder.console.voice import VOICE, Voice
moments = []

def recorded(method):
    def call(self, *args):
        method(self, *args)
        if self is VOICE:
            moments.append([task.what for task in self._tasks])
    return call

for name in ("open", "close", "turn", "end"):
    setattr(Voice, name, recorded(getattr(Voice, name)))
try:
    status = main(sys.argv[2:])
finally:
    open(sys.argv[1], "w").write(json.dumps(moments))
sys.exit(status)
"""


def phases(folder: Path, *words: str) -> list[str]:
    """What the verb told in its order, each once; nothing but its end is a moment without words."""
    out = folder / "moments.json"
    environ = {key: value for key, value in os.environ.items() if key != "MEGALADDER_QUIET"}
    done = subprocess.run(
        [sys.executable, "-c", RECORDER, str(out), *words],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    moments = json.loads(out.read_text())
    while moments and moments[-1] == []:
        moments.pop()
    assert [] not in moments, moments
    return list(dict.fromkeys(what for told in moments for what in told))


def ordered(told: list[str], *wanted: str) -> None:
    """Each of `wanted` begins something that was told, in this order."""
    rest = iter(told)
    missing = [start for start in wanted if not any(what.startswith(start) for what in rest)]
    assert missing == [], told


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    chat = [[("user", f"{i}+{i}?"), ("assistant", f"\\boxed{{{2 * i}}}")] for i in range(40)]
    rows = [{"messages": [{"role": r, "content": c} for r, c in turns]} for turns in chat]
    problems = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(8)]
    for name, lines in (("chat", rows), ("problems", problems)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    build_tiny_model(folder / "model")
    model = "model: {path: model}\n"
    (folder / "sft.yaml").write_text(
        f"run_dir: sft\n{model}data: {{path: chat.jsonl, seq_length: 256}}\n"
        "train: {global_batch_size: 8, max_steps: 2}\ncheckpoint: {export_hf: true}\n"
    )
    (folder / "grpo.yaml").write_text(
        f"run_dir: grpo\n{model}data: {{path: problems.jsonl, seq_length: 256}}\n"
        "train: {max_steps: 1}\nrollout: {n: 2, max_tokens: 8}\ngrpo: {prompts_per_step: 2}\n"
    )
    return folder


def test_data_and_training(work: Path) -> None:
    ordered(phases(work, "data", "stats", "chat.jsonl", "--tokenizer", "model"), "data stats")
    ordered(
        phases(work, "sft", "sft.yaml"),
        *("sft", "tokenising", "building the model", "training step 1", "finishing step 2"),
    )
    convert = ("convert", "megatron-to-hf", "--megatron", "sft/checkpoints/step_2", "--out", "hf")
    ordered(phases(work, *convert), "convert megatron-to-hf")
    ordered(phases(work, "report", "sft", "--out", "report.html"), "report")
    ordered(phases(work, "check", "sft.yaml"), "check")


def test_what_asks_an_engine(work: Path) -> None:
    ordered(
        phases(work, "grpo", "grpo.yaml"),
        *("grpo", "reading the problems", "building the model", "starting the engine"),
        *("training step 1", "finishing step 1"),
    )
    asked = ("--benchmark", "problems.jsonl", "--n", "2", "--out", "eval", "--max-tokens", "8")
    ordered(phases(work, "eval", "--model", "model", *asked), "eval", "vLLM loads", "problems")
