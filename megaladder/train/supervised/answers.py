"""The engine that answers the benchmarks of an SFT run.

Started once, given the weights of each step that is evaluated, asleep in between where it shares
the trainer's GPUs."""

from __future__ import annotations

from contextlib import ExitStack

from megaladder.config.sft import SftConfig
from megaladder.ledger.book import Ledger
from megaladder.model.lora.peft_config import engine_adapters
from megaladder.rewards.verifiers.pool import VerifierPool
from megaladder.run_dir import RunDir
from megaladder.train.evaluation.benchmarks import BenchmarkSet
from megaladder.train.evaluation.evaluate import BenchmarkEvaluation, Respondent
from megaladder.train.health import StopSignals, Watchdog
from megaladder.train.life.engines import EngineSetup, EngineStart, dtype_of, open_weight_sync
from megaladder.train.trainer import ModelSource, Trainer


class AnsweringEngine:
    """Starts in the background when it is made. Every method is collective."""

    def __init__(
        self,
        config: SftConfig,
        run: RunDir,
        model: ModelSource,
        benchmarks: BenchmarkSet | None,
        longest: int,
        closing: ExitStack,
    ) -> None:
        """benchmarks: on rank 0.

        longest: tokens of prompt and answer. What has to be closed at the end goes to `closing`."""
        self._closing = closing
        section = config.evaluate
        self._config, self._run, self._benchmarks = config, run, benchmarks
        self._setup = EngineSetup(
            section.engine,
            section,
            config.model,
            dtype_of(config),
            section.seed,
            longest,
            benchmarks.known if benchmarks is not None else None,
            lora=config.lora,
            adapters=engine_adapters(config.lora, model.shape, "evaluate.sync", section.sync),
        )
        self._start = EngineStart(self._setup, model, run)

    def evaluation(
        self, trainer: Trainer, step: int, watchdog: Watchdog, signals: StopSignals, ledger: Ledger
    ) -> BenchmarkEvaluation:
        """The evaluation by the ready engine. step: what the trainer holds; ledger: the run's.

        Raises:
            EngineError: it did not start; on every rank.
        """
        watchdog.beat("starting the engine", patience_s=3600.0)
        engine = self._start.result(trainer)
        weights = open_weight_sync(
            self._setup, trainer, self._run, engine, version=0 if step == 0 else None
        )
        section, pool = self._config.evaluate, None
        if engine is not None:
            pool = VerifierPool(
                section.grade_workers, section.grade_timeout_s, dialect=section.extract
            )
            self._closing.callback(engine.close)
            self._closing.callback(pool.close)
        self._closing.callback(weights.close)
        by = Respondent(engine, pool, weights, trainer.shape, ledger, rests=True)
        return BenchmarkEvaluation(self._config, self._run, self._benchmarks, by, watchdog, signals)
