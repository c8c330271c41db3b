"""The command line's own verbs, in a process that has imported what they need: what they write, what
they say, how they end."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.programs.base import Mark, Workload
from chaos.programs.forked import forked_programs, in_fork

from megaladder.cli import main

# values that no two starts share
_OF_A_START = {
    *("seconds", "time", "wall_s", "cpu_s", "date", "pid", "host", "started", "attempt", "argv"),
    *("mtime_ns", "job_s"),
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

    compared: suffixes of the files whose content is the result; the names of all are. before: words
    of a verb that makes what it reads, once, in the folder of inputs. computes: with torch, whose
    threads a fork does not have: it would wait for them.
    """

    name: str
    words: Words
    resumes: bool = False
    wired: bool = False
    compared: tuple[str, ...] = (".jsonl", ".json")
    before: Words | None = None
    computes: bool = False

    def prepare(self, scratch: Path) -> None:
        self._inputs = shared_inputs(scratch)
        if self.before is not None:
            words = self.before(self._inputs, self._inputs)
            in_fork(lambda: _quietly(words))
        import megaladder.rewards.verifiers  # noqa: F401  (and sympy, once)

        self._import_all(scratch / "first")

    def _import_all(self, folder: Path) -> None:
        """Once in this process: forks find imported what the verb imports on its way."""
        if self.computes:
            return import_as_in_a_fork(self, folder)
        folder.mkdir()
        with self.programs():
            assert _quietly(self.words(self._inputs, folder)) == 0

    def programs(self) -> AbstractContextManager[object]:
        """How those that it starts are started."""
        return forked_programs()

    def run(self, folder: Path, mark: Mark) -> int:
        with self.programs():
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


def import_as_in_a_fork(program: Verb, folder: Path) -> None:
    """What a run of its own imports, which leaves nothing but a list: this process computes nothing,
    so that its forks may."""
    folder.mkdir()
    names = folder / "modules"

    def run() -> int:
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(null, stream)
        status = program.run(folder, lambda name: None)
        names.write_text("\n".join(sorted(sys.modules)))
        return status

    in_fork(run)
    for name in names.read_text().splitlines():
        with suppress(Exception):  # some are no modules by themselves
            importlib.import_module(name)


def _quietly(words: list[str]) -> int:
    with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
        status: int = main(words)
    return status


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


def shared_inputs(scratch: Path) -> Path:
    """Those of all programs whose folders lie beside this one: made by the first that comes."""
    folder = scratch.parent / "inputs"
    with (scratch.parent / "inputs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            in_fork(lambda: make_inputs(folder))  # which imports torch
    return folder


def make_inputs(folder: Path) -> None:
    """A tiny model with its tokenizer, an adapter of it, one of experts, problems, answers to grade,
    conversations, a recipe, a study, a benchmark."""
    from study.conftest import write_study
    from tiny_models import build_tiny_model

    build_tiny_model(folder / "model")
    build_tiny_model(folder / "experts", "qwen3_moe", num_layers=1, hidden=32)
    write_study(folder / "study")
    (folder / "bench" / "arithmetic").mkdir(parents=True)
    problems = [
        {"id": f"p{i}", "question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(4)
    ]
    answers = [
        {"id": f"a{i}", "gold": str(i), "response": f"so \\boxed{{{i % 3}}}"} for i in range(6)
    ]
    chat = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(24)]
    files = {"problems": problems, "answers": answers, "chat": chat}
    for name, rows in (files | {"bench/arithmetic/test": problems}).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = "name: some\nstages:\n  - sample: {n: 4}\n"
    (folder / "recipe.yaml").write_text(recipe)
    _make_adapter(folder / "model", folder / "adapter")


def _make_adapter(model: Path, folder: Path) -> None:
    """Of rank 2, for one projection of each layer."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        if name.endswith("q_proj.weight"):
            place, (rows, columns) = (
                f"base_model.model.{name.removesuffix('.weight')}",
                weight.shape,
            )
            tensors[f"{place}.lora_A.weight"] = torch.full((2, columns), 0.01)
            tensors[f"{place}.lora_B.weight"] = torch.full((rows, 2), 0.02)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"bias": "none"}))


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


def _convert_back(inputs: Path, folder: Path) -> list[str]:
    words = ["convert", "megatron-to-hf", "--megatron", str(inputs / "megatron"), "--force"]
    return [*words, "--max-shard-gb", "1e-4", "--out", str(folder / "hf")]


def _merge(inputs: Path, folder: Path) -> list[str]:
    words = ["convert", "merge", "--hf", str(inputs / "model"), "--force"]
    return [*words, "--adapter", str(inputs / "adapter"), "--out", str(folder / "merged")]


def _decontaminate(inputs: Path, folder: Path) -> list[str]:
    words = ["data", "decontaminate", str(inputs / "answers.jsonl"), "--out"]
    return [*words, str(folder / "clean.jsonl"), "--against", str(inputs / "problems.jsonl")]


def _select(inputs: Path, folder: Path) -> list[str]:
    words = ["data", "select", str(inputs / "answers.jsonl"), "--out", str(folder / "rows.jsonl")]
    return [*words, "--recipe", str(inputs / "recipe.yaml"), "--seed", "1"]


def _score(inputs: Path, folder: Path) -> list[str]:
    words = ["data", "score", str(inputs / "answers.jsonl"), "--column", "response"]
    return [*words, "--workers", "2", "--out", str(folder / "scored.jsonl")]


def _study(inputs: Path, folder: Path) -> list[str]:
    return ["study", str(inputs / "study"), "--out", str(folder / "out"), "--jobs", "2"]


_WEIGHTS = (".json", ".safetensors")
VERBS = (
    Verb("data-make", _make),
    Verb("data-select", _select),
    Verb("decontaminate", _decontaminate),
    Verb("push", _push, compared=(".json", ".safetensors", ".md")),
    Verb("grade", _grade, wired=True),
    Verb("data-sample", _sample, resumes=True, wired=True),
    Verb("eval", _evaluate, resumes=True, wired=True),
    Verb("convert", _convert, compared=(".json", ".distcp")),
    Verb("convert-back", _convert_back, compared=_WEIGHTS, before=_convert),
    Verb("merge", _merge, compared=_WEIGHTS, computes=True),
    Verb("data-score", _score),
    Verb("study", _study, resumes=True),
)
WORKLOADS: dict[str, Workload] = {one.name: one for one in VERBS}
