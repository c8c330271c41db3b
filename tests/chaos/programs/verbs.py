"""The command line's own verbs, in a process that has imported what they need: what they write, what
they say, how they end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.programs.base import Mark, Workload
from chaos.programs.forked import forked_programs, in_fork

from megaladder.cli import main

# values that no two starts share
_OF_A_START = {
    *("seconds", "time", "wall_s", "cpu_s", "date", "pid", "host", "started", "attempt", "argv"),
    *("sha256", "own_sha256"),  # of a row or an object that holds them
    *(
        "tokens_per_s",
        "tokens_per_second",
        "generation_seconds",
        "total_evaluation_time_seconds",
        "grade_cpu_s",
        "timing",
    ),
}
_UNSEEN = ("last_word.json", ".lock", "log.txt")
Words = Callable[[Path, Path], list[str]]


@dataclass
class Verb(Workload):
    """`megaladder WORDS`, where words are made of the folder of inputs and the run's own.

    compared: suffixes of the files whose content is the result; the names of all are.
    """

    name: str
    words: Words
    resumes: bool = False
    wired: bool = False
    compared: tuple[str, ...] = (".jsonl", ".json")

    def prepare(self, scratch: Path) -> None:
        self._inputs = scratch / "inputs"
        in_fork(lambda: make_inputs(self._inputs))  # which imports torch
        import megaladder.rewards.verifiers  # noqa: F401  (and sympy, once)

        self._import_all(scratch / "first")

    def _import_all(self, folder: Path) -> None:
        """Once in this process: forks find imported what the verb imports on its way."""
        folder.mkdir()
        with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
            with forked_programs():
                assert main(self.words(self._inputs, folder)) == 0

    def run(self, folder: Path, mark: Mark) -> int:
        with forked_programs():
            status: int = main(self.words(self._inputs, folder), own_process=True)
        return status

    def result(self, folder: Path) -> Any:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        kept = [path for path in files if path.name not in _UNSEEN]
        found = [
            path for path in kept if path.suffix in self.compared and ".finished" not in path.parts
        ]
        names = [str(path.relative_to(folder)) for path in kept]
        return names, {str(path.relative_to(folder)): _content(path) for path in found}


def _content(path: Path) -> Any:
    if path.suffix == ".jsonl":
        rows = [_scrubbed(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
        # several processes append in the order in which they are done
        return sorted(json.dumps(row, sort_keys=True) for row in rows)
    if path.suffix == ".json":
        return _scrubbed(json.loads(path.read_text("utf-8")))
    return path.read_bytes()


def _scrubbed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _scrubbed(item) for key, item in value.items() if key not in _OF_A_START}
    return [_scrubbed(item) for item in value] if isinstance(value, list) else value


def make_inputs(folder: Path) -> None:
    """A tiny model with its tokenizer, problems, answers to grade."""
    from tiny_models import build_tiny_model

    build_tiny_model(folder / "model")
    problems = [
        {"id": f"p{i}", "question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(4)
    ]
    answers = [
        {"id": f"a{i}", "gold": str(i), "response": f"so \\boxed{{{i % 3}}}"} for i in range(6)
    ]
    for name, rows in (("problems", problems), ("answers", answers)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _fake(inputs: Path) -> list[str]:
    model = ["--rollout.engine", "fake", "--model.tokenizer", str(inputs / "model")]
    return [*model, "--rollout.n", "2", "--rollout.max-tokens", "16", "--grade-workers", "1"]


def _sample(inputs: Path, folder: Path) -> list[str]:
    words = ["data", "sample", str(inputs / "problems.jsonl"), "--out", str(folder / "rows.jsonl")]
    return [*words, "--keep", "all", *_fake(inputs)]


def _evaluate(inputs: Path, folder: Path) -> list[str]:
    words = ["eval", "--benchmark", str(inputs / "problems.jsonl"), "--out", str(folder / "eval")]
    return [*words, *_fake(inputs)]


def _grade(inputs: Path, folder: Path) -> list[str]:
    words = ["grade", "--input", str(inputs / "answers.jsonl"), "--workers", "2"]
    return [*words, "--output", str(folder / "graded.jsonl")]


def _make(inputs: Path, folder: Path) -> list[str]:
    words = ["data", "make", "arithmetic", "--rows", "20", "--out", str(folder / "rows.jsonl")]
    return [*words, "--test-out", str(folder / "test.jsonl"), "--test-rows", "5"]


def _push(inputs: Path, folder: Path) -> list[str]:
    return ["push", str(inputs / "model"), "--to", str(folder / "out"), "--force"]


def _convert(inputs: Path, folder: Path) -> list[str]:
    words = ["convert", "hf-to-megatron", "--hf", str(inputs / "model"), "--force"]
    return [*words, "--out", str(folder / "megatron")]


def _score(inputs: Path, folder: Path) -> list[str]:
    words = ["data", "score", str(inputs / "answers.jsonl"), "--column", "response"]
    return [*words, "--workers", "2", "--out", str(folder / "scored.jsonl")]


VERBS = (
    Verb("data-make", _make),
    Verb("push", _push, compared=(".json", ".safetensors", ".md")),
    Verb("grade", _grade, wired=True),
    Verb("data-sample", _sample, resumes=True, wired=True),
    Verb("eval", _evaluate, resumes=True, wired=True),
    Verb("convert", _convert, compared=(".json", ".distcp")),
    Verb("data-score", _score),
)
WORKLOADS: dict[str, Workload] = {one.name: one for one in VERBS}
