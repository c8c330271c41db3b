"""Supervised fine-tuning, top to bottom: data, model, steps, checkpoints, export."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from megaladder import parallel, platform
from megaladder.config.rules.layout import check_platform, validate_layout
from megaladder.config.sft import SftConfig
from megaladder.run_dir import RunDir
from megaladder.train.evaluation.benchmarks import prepare_benchmarks
from megaladder.train.health import Watchdog
from megaladder.train.life.run_life import RunLife
from megaladder.train.objectives.losses import sft_head, sft_loss
from megaladder.train.schedule import build_schedule
from megaladder.train.supervised.answers import AnsweringEngine
from megaladder.train.supervised.data import prepare_data
from megaladder.train.supervised.report import SftReport
from megaladder.train.trainer import Trainer, layout_of, open_model


def run_sft(config: SftConfig) -> int:
    """Runs, or resumes, the SFT run that `config` describes.

    Called on every rank. Returns 0 when all steps are done.

    Raises:
        RunStopped: a stop signal came, or too many steps were not finite; the run is saved and
        can be resumed.
    """
    check_platform(config, platform.machine())
    platform.record_collectives(config.run_dir, config.gpu.nccl_trace_entries)
    watchdog = Watchdog(config.train.timeout_s, config.run_dir)
    layout = layout_of(config)
    with (
        parallel.session(layout, timeout_s=config.collective_timeout_s),
        RunDir(config.run_dir, parallel.is_main()) as run,
        ExitStack() as closing,
    ):
        model = open_model(config)
        validate_layout(config, model.shape)
        data = prepare_data(config, layout, model.shape, model.folder, watchdog)
        loader, total_steps = data.loader, data.total_steps
        answering = None
        if config.evaluate.benchmarks:
            benchmarks = prepare_benchmarks(config, config.evaluate.extract, model.folder)
            answering = AnsweringEngine(config, run, model, *benchmarks, closing)
        watchdog.beat("building the model")
        trainer = Trainer(config, run, model, build_schedule(config.optim, total_steps), data.files)
        report = SftReport(config, trainer, data)
        life = RunLife(config, run, report, trainer, total_steps, evaluation=report)
        loss = sft_loss(
            config.train.loss,
            clip_low=config.train.clip_ratio_low,
            clip_high=config.train.clip_ratio_high,
        )
        head = sft_head(config.train.loss, loss, config.train.logits)

        step = life.resume()
        signals = life.listen()
        if answering is not None:
            evaluation = answering.evaluation(trainer, step, watchdog, signals, report.ledger)
            life.watch(evaluation, step)
        while step < life.last_step:
            step += 1
            watchdog.beat(f"training step {step}")
            batches, stats = next(loader)
            result = trainer.update(step, batches, loss, head=head)
            report.record(step, result, stats)
            life.note_update(step, result.updated, partial(data.names, stats.sample_ids))
            watchdog.beat(f"finishing step {step}")
            life.end_of_step(step)
        life.finish(step)
        watchdog.stop()
    return 0
