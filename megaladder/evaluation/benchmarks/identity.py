"""What identifies a sample, whoever draws it: an evaluation or a teacher."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from megaladder.rewards.verifiers import parameters_of
from megaladder.rollout.engine import Engine, SamplingParams
from megaladder.run_dir import to_json
from megaladder.types import Problem


def decoding_identity(params: SamplingParams) -> dict[str, Any]:
    """Everything that decides a sample's tokens; not n, which only adds samples."""
    names = (name for name in SamplingParams.__dataclass_fields__ if name not in ("n", "logprobs"))
    return json.loads(to_json({name: getattr(params, name) for name in names}))


def problems_digest(problems: Sequence[Problem], prompts: Sequence[str]) -> str:
    """sha256 of the problems as they are asked and graded, in their order."""
    rows = [
        [problem.id, prompt, problem.gold, problem.kind, *_parameters(problem)]
        for problem, prompt in zip(problems, prompts, strict=True)
    ]
    return hashlib.sha256(to_json(rows).encode()).hexdigest()


def engine_identity(engine: Engine) -> dict[str, Any]:
    """What generates, without what only changes speed."""
    return {key: value for key, value in engine.describe().items() if key not in ("replicas", "tp")}


def _parameters(problem: Problem) -> list[dict[str, Any]]:
    """What the verifier reads beside the gold answer, if anything."""
    found = parameters_of(problem.kind, problem.metadata)
    return [found] if found else []
