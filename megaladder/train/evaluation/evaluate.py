"""Benchmarks of a step's weights, while the training waits.

The weights go to the engine as they do for rollouts; rank 0 samples, grades and writes, in a
thread, so that a stop signal is heard. Every sample has a seed of its own, prefix caches are emptied
afterwards: the training goes on as if nothing had been asked.

    run_dir/evaluations.jsonl               a row a step and benchmark: score, 95 % interval, seconds
    run_dir/evaluations/step_N/BENCHMARK/   as `megaladder eval` writes it
    run_dir/best.json                       the step with the highest score, and where its weights are
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder import parallel
from megaladder.checkpoint.store import MARKER, step_dir
from megaladder.config.sections.run import RunConfig
from megaladder.errors import DataError
from megaladder.evaluation import report
from megaladder.evaluation.benchmarks.job import Job, fingerprint_parts, score_row, write_results
from megaladder.evaluation.run import Drawn, Progress, Timing, run_task
from megaladder.evaluation.store import Journal, fingerprint_of
from megaladder.ledger.book import Ledger
from megaladder.ledger.work import Work
from megaladder.log import RunLog
from megaladder.model.hf_config import ModelShape
from megaladder.rewards.verifiers.pool import VerifierPool
from megaladder.rollout.engine import Engine, SampleRequest
from megaladder.rollout.weight_sync import NoSync, WeightSync
from megaladder.run_dir import RunDir, model_fingerprint, read_jsonl, read_object, write_object
from megaladder.train.evaluation.benchmarks import BenchmarkSet, at_step
from megaladder.train.evaluation.scores import ScoreHistory
from megaladder.train.health import StopSignals, Watchdog
from megaladder.train.life.background import in_background
from megaladder.types import required

# the engine's own limit says when it is lost; this only ends ranks whose rank 0 is gone
PATIENCE_S = 24 * 3600.0
PROGRESS_S = 30.0
POLL_S = 0.02
STOP_PATIENCE_S = 10.0  # for the completion that is under way when a stop comes


@dataclass(frozen=True, slots=True)
class Respondent:
    """Who answers and who grades.

    engine, pool: on rank 0, None elsewhere. shape, ledger: of the run, whose books hold what an
    evaluation costs.

    settle: waits for what the engine is doing for the training. rests: it sleeps between
    evaluations, since nothing else is asked of it.
    """

    engine: Engine | None
    pool: VerifierPool | None
    weights: WeightSync | NoSync
    shape: ModelShape
    ledger: Ledger
    settle: Callable[[], None] = lambda: None
    rests: bool = False


class _Interrupted(Exception):
    """A stop came while samples were drawn."""


class BenchmarkEvaluation:
    """The benchmarks of a run's life (`life.run_life.Benchmarks`). Built on every rank."""

    log: RunLog

    def __init__(
        self,
        config: RunConfig,
        run: RunDir,
        benchmarks: BenchmarkSet | None,
        respondent: Respondent,
        watchdog: Watchdog,
        signals: StopSignals,
    ) -> None:
        """benchmarks: None but on rank 0."""
        self._section, self._model, self._run = config.evaluate, config.model, run
        self._seed = config.train.seed
        self._set, self._by = benchmarks, respondent
        self._watchdog, self._signals = watchdog, signals
        self._stopping = threading.Event()
        self._line = ""
        self.history = ScoreHistory("")

    # ---- what a run's life asks

    def begin(self, log: RunLog, step: int, line: str) -> None:
        """Takes in what earlier starts found up to `step`.

        What belongs to steps that are trained again is removed. line: the name of the run's line.
        Collective."""
        self.log, self._line = log, line
        found = parallel.on_main(lambda: self._earlier(step))
        self.history = ScoreHistory(found[0])
        self.history.add(found[1])
        for text in parallel.on_main(lambda: self._required().lines(self._section)):
            log.info(text)
        if self._by.rests:
            self._by.weights.rest()

    def evaluation_due(self, step: int, saving: bool, last: bool) -> bool:
        """Before the first and after the last step and every so often, once each."""
        every = self._section.every
        due = step == 0 or last or bool(every and step % every == 0)
        return due and step not in self.history.rows

    def evaluate(self, step: int) -> None:
        """Scores the weights after `step`; without a result where a stop signal came first.

        Collective.

        Raises:
            EngineError: the engine is lost.
        """
        began = time.perf_counter()
        self._watchdog.beat(f"evaluating step {step}", patience_s=PATIENCE_S)
        self._by.settle()
        self._by.weights.send(step)
        asking = in_background(lambda: self._ask(step)) if parallel.is_main() else None
        while asking is not None and not asking.done() and not self._asked_to_stop():
            wait((asking,), POLL_S)
        parallel.wait_for_main(f"evaluation {step}", PATIENCE_S, lambda: self._signals.received)
        rows = parallel.on_main(lambda: self._answered(asking))
        if self._by.rests:
            self._by.weights.rest()
        if rows is None:
            return
        seconds = time.perf_counter() - began
        for row in rows:
            work = self._by.ledger.book({"evaluation": Work(**row.pop("work"))})
            row |= {"seconds": seconds / len(rows), **work}
        self.log.evaluated(rows)
        self.history.add(rows)
        self._tell(step, seconds)

    def wanted(self, step: int) -> frozenset[int]:
        """Steps whose checkpoints are kept for their scores; `step` may be the newest of them."""
        best = self.history.best(self._section.keep_best or 0)
        return frozenset(one for one in best if 0 < one <= step)

    def enough(self) -> bool:
        """Whether the score has not risen for as long as `evaluate.patience` allows."""
        patience = self._section.patience
        gained = self.history.without_gain(self._section.min_delta)
        return patience is not None and gained >= patience

    def best(self) -> int | None:
        """The step with the highest score; None before the first evaluation."""
        return next(iter(self.history.best()), None)

    def record_best(self) -> None:
        """Writes best.json. Main rank only."""
        step = self.best()
        if step is None:
            return
        checkpoint, export = step_dir(self._run.checkpoints, step), self._run.hf_folder(step)
        there = {
            "checkpoint": checkpoint if (checkpoint / MARKER).is_file() else None,
            "hf": export if (export / "config.json").is_file() else None,
        }
        record = {
            "step": step,
            "score": self.history.scores[step],
            "benchmarks": self.history.rows[step],
            **{
                name: path and str(path.relative_to(self._run.path)) for name, path in there.items()
            },
        }
        write_object(self._run.best, record)

    def rows(self) -> list[tuple[str, str]]:
        """First, last and best score, for the final table."""
        steps, best = sorted(self.history.rows), self.best()
        if best is None:
            return []
        names = {"first": steps[0], "last": steps[-1], "best": best}
        return [
            (f"{name} score", f"{self.history.shown(step)} (step {step})")
            for name, step in names.items()
        ]

    # ---- rank 0

    def _required(self) -> BenchmarkSet:
        return required(self._set, "rank 0's benchmarks")

    def _engine(self) -> Engine:
        return required(self._by.engine, "rank 0's engine")

    def _earlier(self, step: int) -> tuple[str, list[dict[str, Any]]]:
        """The protocol of this start and the rows that are there."""
        for folder in self._run.evaluations.glob("step_*"):
            number = folder.name.removeprefix("step_")
            if number.isdigit() and (int(number) > step or step == 0):
                shutil.rmtree(folder)
        rows = list(read_jsonl(self._run.evaluation_rows))
        return self._protocol(), [row for row in rows if row["step"] <= step]

    def _protocol(self) -> str:
        """Hash of everything that decides a score besides the weights."""
        found = self._required()
        settings = []
        for job in found.jobs:
            parts = self._parts(job, {})
            settings.append({**parts, "model": None, "n": job.task.params.n})
        return fingerprint_of({"benchmarks": settings})

    def _parts(self, job: Job, weights: dict[str, Any]) -> dict[str, Any]:
        found = self._required()
        return fingerprint_parts(job, found.config, found.prompter, self._engine(), weights)

    def _weights(self, step: int) -> dict[str, Any]:
        """What identifies the weights of a step.

        The same after a resume, and where the folder was moved."""
        start: dict[str, Any] = {"init": self._model.init}
        if self._model.init == "random":
            start["seed"] = self._seed
        else:
            model = self._required().config.model
            start |= model_fingerprint(model.path, model.revision)
        return {"trained_from": start, "line": self._line, "step": step}

    def _ask(self, step: int) -> list[dict[str, Any]]:
        """Samples, grades and writes all benchmarks; a row each."""
        folder = self._run.evaluations / f"step_{step}"
        rows, summaries = [], {}
        weights = self._weights(step)
        for job in self._required().jobs:
            job = at_step(job, folder, lambda engine, asked: self._draw(engine, asked, step))
            parts = self._parts(job, weights)
            _forget_others(job.folder, parts)
            summary = self._score(job, parts, f"{self._run.path}/step_{step}")
            summaries[job.spec.name] = summary
            rows.append(self._row(step, job, summary))
        self._engine().forget_prompts()
        told = {"model": str(self._run.path), "run_dir": str(self._run.path), "step": step}
        write_object(folder / "summary.json", {**told, "line": self._line, "benchmarks": summaries})
        return rows

    def _score(self, job: Job, parts: dict[str, Any], model: str) -> dict[str, Any]:
        task, progress = job.task, Progress(PROGRESS_S, self.log.info)
        with Journal(job.folder, parts) as journal:
            timing: Timing = run_task(task, self._engine(), self._by.pool, journal, progress)
            scores = report.score(
                task.problems, journal.records, task.params.n, self._section.seed, job.spec.groups
            )
            return write_results(job, journal, scores, timing, model, self._by.shape)

    def _draw(
        self, engine: Engine, requests: Sequence[SampleRequest], step: int
    ) -> Iterator[tuple[int, Drawn]]:
        """Completions by the weights of `step`, until a stop comes."""
        with closing(iter(engine.stream(requests, step))) as completions:  # type: ignore[type-var]
            for index, completion in completions:
                if self._stopping.is_set():
                    raise _Interrupted
                yield index, Drawn(completion)

    def _row(self, step: int, job: Job, summary: dict[str, Any]) -> dict[str, Any]:
        return {
            **score_row(step, job.spec.name, summary),
            "generation_s": summary["timing"]["generate_s"],
            "grading_s": summary["timing"]["grade_s"],
            "protocol": self.history.protocol,
            "work": summary["ledger"]["evaluation"],
        }

    def _answered(self, asking: Future[list[dict[str, Any]]] | None) -> list[dict[str, Any]] | None:
        """The rows, or None where a stop came first."""
        asking = required(asking, "rank 0's evaluation")
        if not asking.done():
            self._stopping.set()
            wait((asking,), STOP_PATIENCE_S)
            return None
        # a signal may have reached the engine as well: what was asked for is a stop
        if self._asked_to_stop() and asking.exception() is not None:
            return None
        return asking.result()

    def _asked_to_stop(self) -> bool:
        return self._signals.received or parallel.asked_by_others()

    def _tell(self, step: int, seconds: float) -> None:
        (best,) = self.history.best()
        said = "the best so far" if best == step else f"best: {self.history.scores[best]:.1%}"
        where = "" if best == step else f" (step {best})"
        self.log.info(
            f"after step {step}: {self.history.shown(step)}; {said}{where}; {seconds:.1f} s"
        )


def _forget_others(folder: Path, parts: dict[str, Any]) -> None:
    """Removes samples of an evaluation that was cut short and had other settings."""
    path = folder / "fingerprint.json"
    if not path.is_file():
        return
    try:
        made_with = read_object(path, "delete the folder").get("fingerprint")
    except DataError as error:
        print(f"warning: {error}; done now, its samples are made again", file=sys.stderr)
        made_with = None
    if made_with != fingerprint_of(parts):
        shutil.rmtree(folder)
