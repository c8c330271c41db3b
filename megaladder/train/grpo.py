"""The GRPO loop: problems, groups, rewards, updates, new weights to the engine.

One step: a round of `prompts_per_step` problems with n samples each → rewards → advantages within
each group → `mini_batches` updates → the weights become the next version. With lag 0 a round is
sampled by the newest weights; with lag 1 the next round is sampled, by the weights of now, while
this one is trained on. The objective is `policy_loss`, its inputs `advantages`; both pure.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from megaladder import parallel, platform
from megaladder.config.grpo import GrpoConfig
from megaladder.config.rules.layout import check_platform, validate_layout
from megaladder.run_dir import RunDir
from megaladder.train.evaluation.benchmarks import prepare_benchmarks
from megaladder.train.evaluation.evaluate import BenchmarkEvaluation, Respondent
from megaladder.train.health import Watchdog
from megaladder.train.life.engines import EngineStart, open_weight_sync
from megaladder.train.life.run_life import RunLife
from megaladder.train.rl.feed import RoundFeed
from megaladder.train.rl.policy import Policy
from megaladder.train.rl.problems import ProblemData, prepare_problems
from megaladder.train.rl.report import GrpoReport
from megaladder.train.rl.rounds import engine_setup, open_source
from megaladder.train.schedule import build_schedule
from megaladder.train.trainer import ModelSource, Trainer, layout_of, open_model


def run_grpo(config: GrpoConfig) -> int:
    """Runs, or resumes, the GRPO run that `config` describes.

    Called on every rank. Returns 0 when all steps are done.

    Raises:
        RunStopped: a signal, too many non-finite steps, a lost engine, or trainer and engine too
        far apart; the run can be resumed. RewardError: the user's reward function is broken; names
        the sample.
    """
    check_platform(config, platform.machine())
    platform.record_collectives(config.run_dir, config.gpu.nccl_trace_entries)
    watchdog = Watchdog(config.train.timeout_s, config.run_dir)
    with (
        parallel.session(layout_of(config), timeout_s=config.collective_timeout_s),
        RunDir(config.run_dir, parallel.is_main()) as run,
    ):
        model = open_model(config)
        validate_layout(config, model.shape)
        watchdog.beat("reading the problems", patience_s=3600.0)
        data = prepare_problems(config, model.shape, model.folder)
        with ExitStack() as closing:
            parts = _Parts(run, model, data, watchdog, closing)
            if config.grpo.mode == "rollout_only":
                _roll_out(config, parts)
            else:
                _train(config, parts)
        watchdog.stop()
    return 0


@dataclass(frozen=True, slots=True)
class _Parts:
    """What both modes start from. What has to be closed at the end goes to `closing`."""

    run: RunDir
    model: ModelSource
    data: ProblemData
    watchdog: Watchdog
    closing: ExitStack


def _train(config: GrpoConfig, parts: _Parts) -> None:
    """The loop, with an engine and a trainer that take turns (lag 0) or overlap (lag 1)."""
    watchdog, facts = parts.watchdog, parts.data.facts
    benchmarks, _ = prepare_benchmarks(
        config, config.reward.extract, parts.model.folder, config.data.seq_length
    )
    setup = engine_setup(config, parts.data, parts.model.shape, benchmarks)
    starting = EngineStart(setup, parts.model, parts.run)  # loads while the trainer is built
    watchdog.beat("building the model")
    schedule = build_schedule(config.optim, facts.total_steps)
    trainer = Trainer(config, parts.run, parts.model, schedule, facts.files)
    policy = Policy(config, trainer, facts.pad_token_id)
    report = GrpoReport(config, parts.run, facts, trainer)
    life = RunLife(config, parts.run, report, trainer, facts.total_steps)
    step = life.resume()

    watchdog.beat("starting the engine", patience_s=3600.0)
    engine = starting.result(trainer)
    source = open_source(config, parts.model.shape, parts.data, engine, report.cursor)
    signals = life.listen()
    rollouts = RoundFeed(config, parts.run.path / "rollouts", source, watchdog, signals)
    weights = open_weight_sync(setup, trainer, parts.run, engine, version=0 if step == 0 else None)
    for part in (weights, rollouts):
        parts.closing.callback(part.close)
    report.note_engine(engine)
    report.rollouts = rollouts
    rollouts.resume_after(step)
    if config.evaluate.benchmarks:
        # the engine that makes the rollouts and their grader, between two rounds
        by = Respondent(
            engine, rollouts.grader, weights, trainer.shape, report.ledger, rollouts.settle
        )
        evaluation = BenchmarkEvaluation(config, parts.run, benchmarks, by, watchdog, signals)
        life.watch(evaluation, step)

    while step < life.last_step:
        step += 1
        report.start_step()
        if not rollouts.begun(step):  # always with lag 0; with lag 1 the first round of a start
            watchdog.beat(f"weights version {step - 1} to the engine", patience_s=3600.0)
            with report.phase("sync"):
                report.note_sync(weights.send(step - 1))
            rollouts.begin(step, version=step - 1)
        with report.phase("rollouts"):
            # whole groups, graded, with advantages; stored before anything trains on them
            samples = rollouts.take(step)
        if samples is None:
            life.stop(step - 1)
        if config.grpo.lag and step < life.last_step:
            with report.phase("sync"):
                report.note_sync(weights.send(step - 1))
            rollouts.begin(step + 1, version=step - 1)
        weights.rest()

        watchdog.beat(f"training step {step}")
        updates = []
        # packed for this rank; old and reference log-probs where the objective needs them
        minis = policy.mini_batches(samples)
        for mini in minis:
            updates.append(policy.update(step, mini))
            life.note_update(step, updates[-1].updated, partial(list, mini.names))
        report.record(step, samples, minis, updates, policy)

        watchdog.beat(f"finishing step {step}", patience_s=rollouts.patience_s)
        life.end_of_step(step)
    life.finish(step)


def _roll_out(config: GrpoConfig, parts: _Parts) -> None:
    """Samples, grades and stores rounds by the model as it is; nothing is trained.

    A round that is stored already is not made again.
    """
    setup = engine_setup(config, parts.data, parts.model.shape)
    engine = EngineStart(setup, parts.model, parts.run).result()
    total_steps = parts.data.facts.total_steps
    report = GrpoReport(config, parts.run, parts.data.facts, None)
    life = RunLife(config, parts.run, report, None, total_steps)
    source = open_source(config, parts.model.shape, parts.data, engine, 0)
    signals = life.listen()
    rollouts = RoundFeed(config, parts.run.path / "rollouts", source, parts.watchdog, signals)
    parts.closing.callback(rollouts.close)
    life.resume()
    report.note_engine(engine)
    for step in range(1, total_steps + 1):
        report.start_step()
        rollouts.begin(step, version=0)
        with report.phase("rollouts"):
            samples = rollouts.take(step)
        if samples is None:
            life.stop(step - 1)
        report.record(step, samples, [], [], None)
    life.finish(total_steps)
