"""The verb `eval RUN_DIR`.

The kept steps of a training, one after the other, by one engine that is given their weights.

A step is an exported folder `hf/step_N`, or a checkpoint, which is streamed into a Hugging Face
folder in shared memory for the engine to load. What an earlier start drew is not drawn again; a step
of which nothing is missing is not loaded.

    RUN_DIR/eval/step_N/BENCHMARK/    as `eval` of one model writes it
    RUN_DIR/eval/evaluations.jsonl    a row a step and benchmark, as training writes them
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megaladder.checkpoint.lineage import read_lineage
from megaladder.checkpoint.store import committed_steps, step_dir
from megaladder.checkpoints_conv.megatron_to_hf import convert_to_hf, model_bytes
from megaladder.checkpoints_conv.writer import WriteOptions
from megaladder.config.verbs.evaluation import EvalConfig
from megaladder.errors import ConfigError
from megaladder.evaluation.benchmarks.job import score_row
from megaladder.evaluation.benchmarks.turns import Turn, take_turns
from megaladder.evaluation.verb import ModelPlan, make_engine, plan_model, warm_pool
from megaladder.files.shared_memory import SharedFolder, weight_folder
from megaladder.files.steps import exported
from megaladder.files.sums import refuse_damaged
from megaladder.files.typed import typed
from megaladder.finished import write_evaluated
from megaladder.log import format_table
from megaladder.run_dir import atomic_lines, atomic_write, sealed_line, to_json


@dataclass(frozen=True, slots=True)
class KeptStep:
    """A step with what is there of it: an exported folder, else a checkpoint."""

    step: int
    export: Path | None
    checkpoint: Path

    @property
    def files(self) -> Path:
        """The folder with its configuration and tokenizer."""
        return self.export or self.checkpoint / "hf"


def kept_steps(run_dir: Path, wanted: Sequence[int]) -> list[KeptStep]:
    """The steps of a run folder's current line, ascending; only the wanted ones, if any are named.

    Raises:
        ConfigError: none is there, or a wanted one is not.
    """
    exports = exported(run_dir)
    checkpoints = run_dir / "checkpoints"
    there = sorted(exports.keys() | set(committed_steps(checkpoints)))
    missing = sorted(set(wanted) - set(there))
    if missing or not there:
        raise ConfigError(
            f"run_dir {run_dir}: step {', '.join(map(str, missing)) or 'none'} is not there; kept:"
            f" {', '.join(map(str, there)) or 'nothing (no checkpoints, no hf)'}; fix: another"
            " --steps, the run folder of `sft` or `grpo`, or --model DIR for a single model"
        )
    chosen = [step for step in there if not wanted or step in wanted]
    return [KeptStep(step, exports.get(step), step_dir(checkpoints, step)) for step in chosen]


def run_steps(config: EvalConfig) -> int:
    """Evaluates them all, and prints the scores by step."""
    run_dir, out = Path(str(config.run_dir)), config.results
    steps = kept_steps(run_dir, config.steps)
    plans = [_plan(config, run_dir, out, step) for step in steps]
    first = plans[0]
    with warm_pool(config) as pool, _Weights(out) as weights:
        model = config.model.model_copy(update={"path": str(weights.folder(steps[0]))})
        turns = [
            Turn(f"step {step.step}", plan, str(step.step), partial(weights.folder, step))
            for step, plan in zip(steps, plans, strict=True)
        ]
        with make_engine(model, config.rollout, config.seed, first.tokenizer, out) as engine:
            take_turns(turns, engine, pool)
    for plan in plans:
        plan.judge()
    rows = [row for step, plan in zip(steps, plans, strict=True) for row in _rows(step, plan)]
    atomic_lines(out / "evaluations.jsonl", map(sealed_line, rows))
    if config.json_path:
        atomic_write(Path(config.json_path), to_json({"rows": rows}, indent=2) + "\n")
    lines = [
        _table(rows),
        f"next: megaladder report {typed(run_dir)} --out {typed(run_dir / 'report.html')}",
    ]
    print("\n".join(lines))
    written = [*(Path(name) for name in [config.json_path] if name), out / "evaluations.jsonl"]
    written += [path for plan in plans for path in plan.written()]
    write_evaluated(config, lines, written)
    return 0


def _plan(config: EvalConfig, run_dir: Path, out: Path, step: KeptStep) -> ModelPlan:
    if step.export is not None:
        refuse_damaged(step.export)
    model = config.model.model_copy(update={"path": str(step.files)})
    own = config.model_copy(update={"model": model, "json_path": None})
    line = read_lineage(run_dir).current.name
    weights = {"run": _began_with(run_dir), "line": line, "step": step.step}
    plan = plan_model(own, out / f"step_{step.step}", weights)
    plan.about = {"run_dir": str(run_dir), "line": line, "step": step.step}
    return plan


def _began_with(run_dir: Path) -> str:
    """sha256 of the configuration that the run began with.

    Two runs have different ones, and what a later start changed leaves the steps before it as they
    are."""
    for name in ("config_history.jsonl", "config.yaml"):
        if (run_dir / name).is_file():
            with (run_dir / name).open("rb") as file:
                text = file.readline() if name.endswith("jsonl") else file.read()
            return hashlib.sha256(text).hexdigest()
    return "unknown"


class _Weights:
    """Steps as Hugging Face folders.

    Exports as they lie there, checkpoints in a folder that is filled anew for each."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._place: SharedFolder | Path | None = None

    def folder(self, step: KeptStep) -> Path:
        """Where the engine finds the weights of `step`; good until the next one is asked for."""
        if step.export is not None:
            return step.export
        size = model_bytes(step.checkpoint)
        if self._place is None:
            self._place = weight_folder(size, self._out)
        folder = self._place.path if isinstance(self._place, SharedFolder) else self._place
        convert_to_hf(step.checkpoint, folder, WriteOptions(force=True, digests=False))
        return folder

    def __enter__(self) -> _Weights:
        return self

    def __exit__(self, *exc: object) -> None:
        if isinstance(self._place, SharedFolder):
            self._place.close()
        elif self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)


def _rows(step: KeptStep, plan: ModelPlan) -> Iterator[dict[str, Any]]:
    for name, summary in plan.summaries.items():
        if summary.get("headline") in summary.get("metrics", {}):
            yield score_row(step.step, name, summary)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Score and interval of each step, a line each."""
    found = []
    for row in rows:
        around = f" [{row['low']:.3f}, {row['high']:.3f}]" if row["low"] is not None else ""
        name = f"step {row['step']}  {row['benchmark']} {row['metric']}"
        found.append((name, f"{row['score']:.3f}{around}"))
    best = max(rows, key=lambda row: row["score"], default=None)
    if best is not None and len({row["benchmark"] for row in rows}) == 1:
        found.append(("best", f"step {best['step']}"))
    return format_table("scores by step, 95 % intervals over problems", found)
