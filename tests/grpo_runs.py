"""GRPO runs for tests: a tiny model, generated problems, the fake engine; each run is a clean fork,
so imports are paid once.

    result = GrpoRuns(tmp_path).run("a", "--grpo.lag", "1")       result.status, result.rows
    (metrics.jsonl), result.error

`respond(request, gold, tokenizer)` replaces the fake engine's answers, `faults` breaks it;
`engine_server`: where a real vLLM is forked (see `forked_engines.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clean_fork import run_in_fork
from tiny_models import build_tiny_model

STEPS = 4


@dataclass(frozen=True)
class Finished:
    """A run that has ended: status (minus the signal that killed it), folder, rows of
    metrics.jsonl, what it said on stderr."""

    status: int
    folder: Path
    rows: list[dict[str, Any]]
    error: str

    def record(self) -> list[tuple]:
        """What each step trained on and what came of it."""
        return [
            (row["step"], row["groups_sha256"], row["loss"], row["grad_norm"], row["reward"])
            for row in self.rows
        ]


class GrpoRuns:
    """Runs in sub-folders of `folder`, with a model and problems of their own."""

    def __init__(self, folder: Path, num_problems: int = 40, family: str = "qwen3") -> None:
        self.folder = folder
        self.model = build_tiny_model(folder / "model", family)
        self.problems = folder / "problems.jsonl"
        rows = [
            {"id": f"p{i}", "question": f"What is {i} + {i}?", "answer": str(2 * i)}
            for i in range(num_problems)
        ]
        self.problems.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(self, name: str, *flags: str) -> Any:
        """The resolved configuration of the run `name`."""
        from megaladder.config.grpo import GrpoConfig
        from megaladder.config.resolve import resolve

        return resolve(
            GrpoConfig,
            [
                "--run-dir",
                str(self.folder / name),
                "--model.path",
                str(self.model),
                "--data.path",
                str(self.problems),
                "--data.seq-length",
                "128",
                "--rollout.engine",
                "fake",
                "--rollout.n",
                "4",
                "--rollout.max-tokens",
                "40",
                "--grpo.preset",
                "dr_grpo",
                "--grpo.prompts-per-step",
                "3",
                "--train.max-steps",
                str(STEPS),
                "--optim.lr",
                "1e-3",
                "--checkpoint.every",
                "2",
                "--reward.workers",
                "1",
                *flags,
            ],
            prog="test",
        )

    def run(
        self,
        name: str,
        *flags: str,
        fault: str | None = None,
        kill_after_s: float | None = None,
        **how: Any,
    ) -> Finished:
        """Runs GRPO in a fork and waits for it."""
        self.folder.joinpath(name).mkdir(exist_ok=True)
        said = self.folder / f"{name}.stderr"
        status = run_in_fork(
            _run,
            self.config(name, *flags),
            fault,
            how,
            stdout=Path(os.devnull),
            stderr=said,
            kill_after_s=kill_after_s,
        )
        return Finished(status, self.folder / name, self.rows(name), said.read_text())

    def rows(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name / "metrics.jsonl"
        return (
            [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        )


def _run(config: Any, fault: str | None, how: dict[str, Any]) -> int:
    import forked_engines

    from megaladder.rollout.fake_engine import FakeEngine
    from megaladder.train.grpo import run_grpo
    from megaladder.train.life import engines

    if fault:
        os.environ["MEGALADDER_FAULT"] = fault
    if respond := how.get("respond"):

        def fake_answers(known: Any) -> Callable:
            return lambda request: respond(
                request, known.gold_of[request.prompt_ids], known.tokenizer
            )

        engines.fake_answers = fake_answers
    if door := how.get("engine_server"):
        forked_engines.use(door)
    if faults := how.get("faults"):
        engines.FakeEngine = lambda **given: FakeEngine(**given, faults=faults)
    return run_grpo(config)
