"""GRPO and an evaluation with the real vLLM, whose starts are forks of a process that has imported
it; one sequence at a time where that can be said, one thread: an answer is the same to the bit
whatever else is computed beside it, and whoever was killed before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos.programs.base import Workload
from chaos.programs.forked import forked_programs
from chaos.programs.nursery import Nursery
from chaos.programs.trainings import Trained, grpo
from chaos.programs.verbs import Verb

ENGINE = "megaladder.rollout.vllm_engine"


def _preload() -> None:
    # before torch comes; what vLLM compiles when it first counts ranks takes 11 s
    os.environ.update(OMP_NUM_THREADS="1", TORCH_COMPILE_DISABLE="1")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import vllm_server

    vllm_server.preload()


@contextmanager
def _forked_engines() -> Iterator[None]:
    with Nursery() as nursery, forked_programs(nursery.popen(ENGINE)):
        yield


@dataclass
class TrainedWithVllm(Trained):
    def prepare(self, scratch: Path) -> None:
        _preload()
        super().prepare(scratch)

    def programs(self) -> AbstractContextManager[object]:
        return _forked_engines()


@dataclass
class EvaluatedByVllm(Verb):
    dear: bool = True
    computes: bool = True

    def prepare(self, scratch: Path) -> None:
        _preload()
        super().prepare(scratch)

    def programs(self) -> AbstractContextManager[object]:
        return _forked_engines()


def _evaluate(inputs: Path, folder: Path) -> list[str]:
    words = ["eval", "--benchmark", str(inputs / "problems.jsonl"), "--out", str(folder / "eval")]
    words += ["--model.path", str(inputs / "model"), "--rollout.n", "2"]
    words += ["--rollout.max-tokens", "16", "--rollout.max-num-seqs", "1"]
    return [*words, "--rollout.cpu-kv-cache-gib", "0.1", "--grade-workers", "1"]


RUNS = (
    TrainedWithVllm("grpo-vllm", grpo("vllm", rollout__cpu_kv_cache_gib=0.1), wired=True),
    EvaluatedByVllm("eval-vllm", _evaluate, resumes=True, wired=True),
)
WORKLOADS: dict[str, Workload] = {one.name: one for one in RUNS}
