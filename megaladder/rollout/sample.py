"""Problems → groups of samples, through any engine. Only whole groups leave this file.

The seeds of a group are a function of the run's seed and the group's place in the problem stream
alone: a resumed run asks for the same samples, whatever else is in the batch. Grading is `rewards`'
business, what to train on is `train`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from megaladder.console import doing
from megaladder.rollout.engine import Engine, SamplingParams, expand
from megaladder.types import Completion, FinishReason, Problem, RolloutGroup


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem as the model sees it.

    `position`: its place in the endless shuffled stream of problems, counted from 0.
    """

    problem: Problem
    ids: tuple[int, ...]
    position: int = 0


@dataclass(frozen=True, slots=True)
class SampledGroups:
    """Whole groups in the order of the prompts, with their stream positions.

    `num_aborted`: groups left out because the engine gave up on one of their samples.

    `num_aborted`: groups left out because the engine gave up on one of their samples.
    """

    groups: tuple[RolloutGroup, ...]
    positions: tuple[int, ...]
    num_aborted: int = 0


def group_seed(seed: int, position: int) -> int:
    """Seed of the group at `position`.

    Each of its samples gets one of its own from it (`engine.sample_seed`).

    Each of its samples gets one of its own from it (`engine.sample_seed`).
    """
    return (
        int.from_bytes(hashlib.sha256(f"group|{seed}|{position}".encode()).digest()[:8], "big") >> 1
    )


def sample_groups(
    engine: Engine,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    *,
    version: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SampledGroups:
    """`params.n` completions of every prompt, from weights `version`.

    `params.seed` is the run's seed. `on_progress(done, total)` is called after each completion.

    Raises:
        EngineError: the engine is lost, or holds other weights than `version`.
    """
    requests = [
        request
        for prompt in prompts
        for request in expand(
            prompt.ids, replace(params, seed=group_seed(params.seed or 0, prompt.position))
        )
    ]
    done: list[Completion | None] = [None] * len(requests)
    with doing("sampling a round", len(requests), "answers") as task:
        for count, (index, completion) in enumerate(engine.stream(requests, version), start=1):
            done[index] = completion
            task.add()
            on_progress(count, len(requests))
    whole = [completion for completion in done if completion is not None]
    assert len(whole) == len(requests), "the engine ended without finishing every request"
    groups, positions = [], []
    for number, prompt in enumerate(prompts):
        completions = tuple(whole[number * params.n : (number + 1) * params.n])
        if all(completion.finish_reason is not FinishReason.ABORT for completion in completions):
            groups.append(RolloutGroup(prompt.problem, prompt.ids, completions))
            positions.append(prompt.position)
    return SampledGroups(tuple(groups), tuple(positions), len(prompts) - len(groups))
