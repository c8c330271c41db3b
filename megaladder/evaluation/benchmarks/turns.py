"""Several evaluations by one engine: the steps of a run, or the `cases` of `megaladder eval`.

Starting an engine takes longer than a small evaluation; giving it other weights takes moments. What
an earlier start drew is not drawn again, and weights that nothing is missing of are not loaded.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megaladder.config.verbs.evaluation import EvalConfig
from megaladder.data.chat.tokenizer import tokenizer_fingerprint, tokenizer_folder
from megaladder.evaluation.run import missing_requests
from megaladder.evaluation.store import Journal
from megaladder.evaluation.verb import ModelPlan, make_engine, plan_model, warm_pool
from megaladder.files.sums import refuse_damaged
from megaladder.files.typed import typed
from megaladder.finished import write_evaluated
from megaladder.rewards.verifiers.pool import VerifierPool
from megaladder.rollout.engine import Engine
from megaladder.run_dir import atomic_write, to_json

# of a model's config.json: what is no matter of its shape
NO_SHAPE = {"_name_or_path", "transformers_version"}


@dataclass(frozen=True)
class Turn:
    """One evaluation of the weights `of`; `folder` has them, good until the next is asked for."""

    name: str
    plan: ModelPlan
    of: str
    folder: Callable[[], Path]


def take_turns(turns: Sequence[Turn], engine: Engine, pool: VerifierPool) -> None:
    """Draws and grades what is missing, turn by turn. The engine holds the weights of the first."""
    held = turns[0].of
    for number, turn in enumerate(turns):
        if turn.of != held and _is_missing(turn.plan, engine):
            engine.update_weights(str(turn.folder()), number)
            held = turn.of
        print(turn.name, flush=True)
        turn.plan.generate(engine, pool)


def _is_missing(plan: ModelPlan, engine: Engine) -> bool:
    """Whether some sample is still to be drawn."""
    if plan.harness:
        return True
    for job in plan.jobs:
        with Journal(job.folder, plan.parts(job, engine)) as journal:
            if missing_requests(job.task, journal)[0]:
                return True
    return False


def run_cases(config: EvalConfig) -> int:
    """Every one of `config.cases`; models of one shape by one engine."""
    configs = [config.case(name) for name in config.cases]
    plans = [plan_model(one, config.results / str(one.name)) for one in configs]
    for _, group in itertools.groupby(plans, key=_shared):
        _by_one_engine(list(group))
    for plan in plans:
        plan.judge()
    following = f"next: megaladder report {typed(config.results)}"
    print(following)
    written = [path for plan in plans for path in plan.written()]
    if config.json_path:
        found = {str(plan.config.name): plan.summaries for plan in plans}
        atomic_write(Path(config.json_path), to_json(found, sort_keys=True, indent=2) + "\n")
        written.append(Path(config.json_path))
    lines = [f"{plan.config.name}  {line}" for plan in plans for line in plan.score_lines()]
    write_evaluated(config, [*lines, following], written)
    return 0


def _by_one_engine(plans: Sequence[ModelPlan]) -> None:
    first = plans[0]
    config = first.config
    turns = []
    for plan in plans:
        path = plan.config.model.path
        if path:
            refuse_damaged(Path(path))
        turns.append(Turn(str(plan.config.name), plan, path, partial(Path, path)))
    with (
        warm_pool(config) as pool,
        make_engine(
            config.model, config.rollout, config.seed, first.tokenizer, config.results
        ) as engine,
    ):
        take_turns(turns, engine, pool)


def _shared(plan: ModelPlan) -> str:
    """What evaluations by one engine and one grader have in common, as text."""
    config = plan.config
    decoding = {"n", "temperature", "top_p", "top_k", "max_tokens"}
    tokenizer = tokenizer_folder(config.model)
    return to_json(
        {
            "model": config.model.model_dump(mode="json", exclude={"path"}),
            "shape": _shape(Path(config.model.path)),
            "tokenizer": tokenizer_fingerprint(tokenizer, plan.tokenizer.chat_template),
            "engine": config.rollout.model_dump(mode="json", exclude=decoding),
            "grader": [config.grader, config.extract, config.grade_workers, config.grade_timeout_s],
            "seed": config.seed,
        },
        sort_keys=True,
    )


def _shape(folder: Path) -> Any:
    """Its config.json; the name, where it is no folder of ours."""
    path = folder / "config.json"
    if not path.is_file():
        return str(folder)
    found = json.loads(path.read_text("utf-8"))
    return {key: value for key, value in found.items() if key not in NO_SHAPE}
