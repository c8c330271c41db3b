"""Stand-ins for what a walk cannot have in milliseconds: a model's answers, vLLM, the hub, ranks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request

import numpy as np
from transformers import AutoTokenizer

from megaladder.evaluation.benchmarks.source import BenchmarkRows, Row
from megaladder.evaluation.benchmarks.spec import BenchmarkSpec
from megaladder.model.moe.choices import to_text
from megaladder.rewards.verifiers import parameters_of, verify
from megaladder.rewards.worker import GradePool, GradeTask
from megaladder.rollout.engine import SampleRequest
from megaladder.rollout.fake_engine import FakeEngine, Responder, TextTokenizer
from megaladder.rollout.vllm_engine import VllmOptions
from megaladder.types import Completion

ANSWERS = (
    "Wait, let me think.</think> So the answer is \\boxed{2}. No: \\boxed{7}",
    "<think>Two and two.</think> The answer is 7.",
    "I do not know.",
    "#thereason: harmless\n#thescore: 2 Final Answer: \\boxed{7} and 7 again, for a longer answer",
)


def answer_to(request: SampleRequest) -> str:
    """One of the answers: a function of prompt and seed."""
    text = f"{request.params.seed}|{request.prompt_ids}"
    return ANSWERS[hashlib.sha256(text.encode()).digest()[0] % len(ANSWERS)]


class AnsweringEngine(FakeEngine):
    """The fake engine, with answers that a grader finds right, wrong or missing."""

    def __init__(self, tokenizer: Any, vocab_size: int = 256, max_restarts: int = 1) -> None:
        super().__init__(answer_to, tokenizer, vocab_size=vocab_size, max_restarts=max_restarts)


class GradesHere(GradePool):
    """The grading pool without its processes and their limits."""

    def _run(self, tasks: Sequence[GradeTask]) -> list[list[Any]]:
        how = {name: self._setup[name] for name in ("grader", "dialect")}
        graded = [
            verify(
                task.kind, task.response, task.gold, parameters_of(task.kind, task.metadata), **how
            )
            for task in tasks
        ]
        return [[one.correct, one.answer, one.reason.value, one.detail] for one in graded]


class FlakyService:
    """Takes the place of `answer_within`: a judge's service that fails when it is first asked.

    Each run, in a folder of its own, asks for the first time.
    """

    def __init__(self) -> None:
        self._asked: set[tuple[str, bytes | None]] = set()

    def __call__(self, request: Request, timeout_s: float) -> bytes:
        question = (os.getcwd(), request.data)
        if question not in self._asked:
            self._asked.add(question)
            raise urllib.error.URLError(f"no answer in {timeout_s} s")
        message = {"content": "#thereason: x\n#thescore: 5"}
        return json.dumps({"choices": [{"message": message}]}).encode()


NO_PAUSES = SimpleNamespace(sleep=lambda _seconds: None)
"""Takes the place of the module `time` where it is only slept with."""


class VllmInName(FakeEngine):
    """Takes the place of `VllmEngine`; what it is started with is probed."""

    start_up_s = 0.0

    def __init__(self, _options: object, _limits: object = None) -> None:
        super().__init__()

    def call(self, _method: str) -> list[dict[str, Any]]:
        return [{"in_process": True}]


class RisingEngine(FakeEngine):
    """The fake engine; of "Rising" questions it answers the more rightly the more weights came."""

    def __init__(self, responder: Responder, tokenizer: TextTokenizer) -> None:
        super().__init__(self._answer, tokenizer)
        self._others, self._decode = responder, tokenizer.decode
        self._asked = Counter[int]()

    def _answer(self, request: SampleRequest) -> Any:
        if "Rising" not in self._decode(list(request.prompt_ids)):
            return self._others(request)
        self._asked[self.policy_version] += 1
        return (
            "\\boxed{7}"
            if self._asked[self.policy_version] <= self.policy_version
            else "\\boxed{0}"
        )


class TrackerInName:
    """Takes the place of a tracker's package: shows whose runs it is given."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: object, **given: Any) -> Any:
            if name in ("init", "set_experiment", "start_run"):
                whose = {key: given.get(key) for key in ("project", "entity", "group")}
                tags = [tag for tag in given.get("tags") or () if tag != "megaladder_id"]
                print(name, *args, whose, tags)
            return [] if name == "search_runs" else self

        return call


def named_children(options: VllmOptions) -> list[VllmOptions]:
    """Takes the place of `vllm_children`: nothing is started."""
    return [options]


class ProcessesInName(FakeEngine):
    """Takes the place of a `ProcessEngine`: answers as a vLLM of its options would, or a server."""

    def __init__(self, children: Sequence[Any], _limits: object) -> None:
        folder = getattr(children[0], "model", None)
        tokenizer = AutoTokenizer.from_pretrained(folder) if folder else None
        super().__init__(answer_to if folder else None, tokenizer)

    def _complete(self, request: SampleRequest) -> Completion:
        """The experts of a tiny model's two layers are always the first two."""
        found = super()._complete(request)
        if not request.params.routed_experts:
            return found
        count = len(request.prompt_ids) + len(found.token_ids) - 1
        experts = np.tile(np.array([0, 1], np.uint8), (count, 2, 1))
        return replace(found, routed_experts=to_text(experts))

    def describe(self) -> dict[str, Any]:
        said = {"max_model_len": 1 << 20, "dtype": "float32", "tp": None}
        return {**super().describe(), **said}


class HeldInName:
    """Takes the place of a held port: it is the one that was asked for."""

    def __init__(self, host: str, port: int) -> None:
        self._name = host, port

    def __enter__(self) -> HeldInName:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def getsockname(self) -> tuple[str, int]:
        return self._name


class ServerInName:
    """Takes the place of `Popen`: shows what a server would be started with, and is told to stop."""

    pid = 0

    def __init__(self, command: Sequence[str], env: Mapping[str, str], **_streams: object) -> None:
        print(*command[1:], *(f"{key}={env[key]}" for key in sorted(env) if "CACHE" in key))

    def poll(self) -> int:
        return 0

    def wait(self) -> int:
        raise KeyboardInterrupt


class PageInName:
    """Takes the place of `WatchServer`: shows what it would serve, and is told to stop."""

    address = "http://somewhere/"

    def __init__(self, _live: object, folders: Sequence[str], port: int) -> None:
        print("would serve", *folders, "on", port)

    def __enter__(self) -> PageInName:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def serve_forever(self) -> None:
        raise KeyboardInterrupt


def asked_of_hub(_api: object, *args: object, **given: object) -> SimpleNamespace:
    """Takes the place of a method of `HfApi`: shows what it is asked for."""
    print(args, given)
    return SimpleNamespace(commit_url="done")


class BareInName:
    """Takes the place of `bench rollout`'s other contender."""

    start_s = 0.0

    def __init__(self, *_started_with: object) -> None:
        pass

    def round(self) -> float:
        return 1.0

    def close(self) -> None:
        pass


def hub_rows(spec: BenchmarkSpec, revision: str | None = None) -> BenchmarkRows:
    """Takes the place of a download: two rows, at the commit that was asked for."""
    assert spec.hub is not None
    rows = tuple(
        Row(f"hub:{index}", {"question": f"{spec.name} {spec.hub.split} {index}?", "answer": "7"})
        for index in range(2)
    )
    return BenchmarkRows(rows, spec.hub.repo, revision or "newest")


def no_ranks(num_ranks: int, _command: object, _run_dir: object, _timeout_s: float) -> int:
    """Takes the place of `launch_local`: says how many ranks it would start."""
    print(f"{num_ranks} ranks")
    return 0


def measured_kernels(shape: Any, _device: object, rounds: int, _skip: object) -> list[Any]:
    """Takes the place of `bench kernels`'s clock."""
    from megaladder.tools.bench_kernels import _FIGURES, Row

    figures = dict.fromkeys(_FIGURES, 1.0)
    return [Row(**asdict(shape), contender="ours", rounds=rounds, note="", **figures)]


def measured_step(work: Any, profile_folder: object) -> dict[str, Any]:
    """Takes the place of `bench train --shape`'s clock."""
    figures = ("parameters", "tokens_per_s", "step_s", "tflops", "mfu", "memory_peak_bytes")
    return {"layers": work.layers, "phases_s": {}, **dict.fromkeys(figures, 1.0)}


@contextlib.contextmanager
def named_folder(prefix: str = "tmp", dir: Path | None = None) -> Iterator[str]:
    """Takes the place of `TemporaryDirectory`: a folder whose name no chance decides."""
    folder = Path(dir or ".") / prefix
    folder.mkdir(parents=True)
    yield str(folder)
    shutil.rmtree(folder)


def converted_here(step: str, work: Path, _queue: object) -> tuple[float, float, int, int]:
    """Takes the place of `bench convert`'s processes: converts in this one, in no time."""
    from megaladder.tools.bench_convert import _steps

    _steps(work)[step](work / f"out-{step}")
    return (1.0, 1.0, 1, 1)
