"""Whole trainings with a tiny model: one rank, two by tensor or pipeline parallelism, GRPO with its
grading processes, adapters of experts that are evaluated at each step.

A start takes seconds of processor time, so their faults are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.programs.base import Workload
from chaos.programs.verbs import Verb, Words, shared_inputs

from megaladder.checkpoint import store
from megaladder.files.sums import refuse_damaged
from megaladder.process import last_word
from megaladder.run_dir import read_jsonl

STEPS = 2
_COMPARED = ("step", "loss", "grad_norm", "reward", "groups_sha256")


@dataclass
class Trained(Verb):
    """The result: every step's numbers, the names of all files, the exported weights."""

    resumes: bool = True
    dear: bool = True
    computes: bool = True

    def prepare(self, scratch: Path) -> None:
        import preloaded  # noqa: F401

        self._inputs = shared_inputs(scratch)
        self._import_all(scratch / "first")

    def result(self, folder: Path) -> Any:
        run = folder / "run"
        store.verify(run / "checkpoints" / f"step_{STEPS}")
        refuse_damaged(run / "hf" / f"step_{STEPS}")
        rows = [[row.get(key) for key in _COMPARED] for row in read_jsonl(run / "metrics.jsonl")]
        files = sorted(path for path in run.rglob("*") if path.is_file())
        names = [str(path.relative_to(run)) for path in files if path.name not in (".lock",)]
        export = sorted((run / "hf" / f"step_{STEPS}").glob("*.safetensors"))
        assert export, "no weights were exported"
        weights = [path.read_bytes() for path in export]
        word = last_word.truth(run)
        return rows, names, weights, None if word is None else word["reason"]


def trained(verb: str, inputs: Path, folder: Path, **flags: object) -> list[str]:
    given = {
        "run-dir": folder / "run",
        "model.path": inputs / "model",
        "data.seq-length": 64,
        "train.max-steps": STEPS,
        "checkpoint.every": 1,
        "checkpoint.keep-last": 1,
        "checkpoint.export-hf": "true",
        "optim.lr": "1e-3",
        **{key.replace("__", ".").replace("_", "-"): value for key, value in flags.items()},
    }
    return [verb, *(word for key, value in given.items() for word in (f"--{key}", str(value)))]


def _sft(**layout: int) -> Words:
    def words(inputs: Path, folder: Path) -> list[str]:
        data = {"data__path": inputs / "chat.jsonl", "train__global_batch_size": 4}
        return trained("sft", inputs, folder, **data, **layout)

    return words


def grpo(engine: str, **flags: object) -> Words:
    """GRPO whose answers come from that engine."""

    def words(inputs: Path, folder: Path) -> list[str]:
        return trained(
            *("grpo", inputs, folder),
            data__path=inputs / "problems.jsonl",
            data__seq_length=128,
            rollout__engine=engine,
            rollout__n=2,
            rollout__max_tokens=16,
            grpo__prompts_per_step=2,
            train__epochs=4,
            reward__workers=1,
            **flags,
        )

    return words


def _experts(inputs: Path, folder: Path) -> list[str]:
    """Adapters of every expert, evaluated on a benchmark after each step."""
    return trained(
        *("sft", inputs, folder),
        data__path=inputs / "chat.jsonl",
        train__global_batch_size=4,
        model__path=inputs / "experts",
        lora__rank=2,
        evaluate__engine="fake",
        evaluate__benchmarks="arithmetic",
        evaluate__data_dir=inputs / "bench",
        evaluate__every=1,
        evaluate__n=2,
        evaluate__max_tokens=16,
        evaluate__grade_workers=1,
    )


RUNS = (
    Trained("sft", _sft()),
    Trained("sft-tp2", _sft(parallel__tp=2, parallel__ranks=2)),
    Trained("sft-pp2", _sft(parallel__pp=2, parallel__ranks=2)),
    Trained("grpo", grpo("fake"), wired=True),
    Trained("sft-experts", _experts, wired=True),
)
WORKLOADS: dict[str, Workload] = {one.name: one for one in RUNS}
