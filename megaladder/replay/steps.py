"""The steps of a run once more, from its checkpoint and what it stored; rows go to a folder apart.

The parts are those of the loops (`train.sft`, `train.grpo`), without engine, evaluation and saving.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megaladder import parallel, platform
from megaladder.config.grpo import GrpoConfig
from megaladder.config.rules.layout import check_platform, validate_layout
from megaladder.config.sections.run import RunConfig
from megaladder.config.sft import SftConfig
from megaladder.errors import CheckpointError
from megaladder.log import RunLog
from megaladder.replay.record import RecordedStep
from megaladder.run_dir import RunDir
from megaladder.train.life.run_life import RunContents
from megaladder.train.objectives.losses import sft_head, sft_loss
from megaladder.train.rl.policy import Policy
from megaladder.train.rl.problems import prepare_problems
from megaladder.train.rl.records import read_round
from megaladder.train.rl.report import GrpoReport
from megaladder.train.rl.rounds import ReplayRounds
from megaladder.train.rl.samples import SampleTable, table_of
from megaladder.train.schedule import build_schedule
from megaladder.train.supervised.data import prepare_data
from megaladder.train.supervised.report import SftReport
from megaladder.train.trainer import ModelSource, Trainer, layout_of, open_model
from megaladder.types import required


def compute_again(recorded: RecordedStep, run: RunDir) -> dict[str, Any]:
    """Computes the steps after the checkpoint up to `recorded.step`. Collective.

    run: an empty folder that the rows go to. Returns hashes of data and tokenizer as they are now.

    Raises:
        CheckpointError: the checkpoint is damaged, or data or seed are others.
    """
    config = quiet(recorded)
    check_platform(config, platform.machine())
    model = open_model(config)
    validate_layout(config, model.shape)
    log = RunLog(run if parallel.is_main() else None)
    log.info(
        f"{recorded.folder}: step {recorded.step} from"
        f" {recorded.checkpoint or config.model.path}, after step {recorded.after}"
    )
    place = run, model, log
    if isinstance(config, GrpoConfig):
        identity = _grpo_again(config, recorded, place)
    else:
        assert isinstance(config, SftConfig), "a run is of either kind"
        identity = _sft_again(config, recorded, place)
    log.close()
    return identity


def quiet(recorded: RecordedStep) -> RunConfig:
    """The run's settings without what a replay does not do.

    Profiles, stops at a mismatch, a cache anywhere but in the run's folder."""
    config, cache = recorded.config, str(recorded.folder / "data")
    changes: dict[str, Any] = {"train": config.train.model_copy(update={"profile_steps": ()})}
    if isinstance(config, SftConfig) and config.data.cache_dir is None:
        changes["data"] = config.data.model_copy(update={"cache_dir": cache})
    if isinstance(config, GrpoConfig):
        changes["grpo"] = config.grpo.model_copy(update={"mismatch_limit": float("inf")})
    return config.model_copy(update=changes)


_Place = tuple[RunDir, ModelSource, RunLog]


def _sft_again(config: SftConfig, recorded: RecordedStep, place: _Place) -> dict[str, Any]:
    run, model, log = place
    data = prepare_data(config, layout_of(config), model.shape, model.folder)
    schedule = build_schedule(config.optim, data.total_steps)
    trainer = Trainer(config, run, model, schedule, data.files)
    report = SftReport(config, trainer, data)
    report.log = log
    train = config.train
    loss = sft_loss(train.loss, clip_low=train.clip_ratio_low, clip_high=train.clip_ratio_high)
    head = sft_head(train.loss, loss, train.logits)
    _go_back(recorded, trainer, report)
    for step in range(recorded.after + 1, recorded.step + 1):
        batches, stats = next(data.loader)
        report.record(step, trainer.update(step, batches, loss, head=head), stats)
    return report.identity()


def _grpo_again(config: GrpoConfig, recorded: RecordedStep, place: _Place) -> dict[str, Any]:
    run, model, log = place
    data = prepare_problems(config, model.shape, model.folder)
    schedule = build_schedule(config.optim, data.facts.total_steps)
    trainer = Trainer(config, run, model, schedule, data.facts.files)
    policy = Policy(config, trainer, data.facts.pad_token_id)
    report = GrpoReport(config, run, data.facts, trainer)
    report.log = log
    _go_back(recorded, trainer, report)
    for step in range(recorded.after + 1, recorded.step + 1):
        report.start_step()
        samples = _stored_samples(config, recorded.folder / "rollouts", step)
        minis = policy.mini_batches(samples)
        updates = [policy.update(step, mini) for mini in minis]
        report.record(step, samples, minis, updates, policy)
    return report.identity()


def _stored_samples(config: GrpoConfig, folder: Path, step: int) -> SampleTable:
    """The trainable samples of a stored round, on every rank. Collective."""

    def read() -> SampleTable:
        if config.rollout.engine == "replay":
            found = ReplayRounds(config).collect(step, version=step - 1)
        else:
            found = required(read_round(folder, step), f"rollouts of step {step}")
        return table_of(found, config.grpo.filter_truncated)

    return parallel.on_main(read)


def _go_back(recorded: RecordedStep, trainer: Trainer, report: RunContents) -> None:
    """Model, optimizer, RNG and positions as they were after `recorded.after` steps."""
    if recorded.checkpoint is None:
        return
    problem = trainer.checkpoints.damage(recorded.checkpoint)
    if problem is not None:
        raise CheckpointError(problem)
    report.restore(trainer.restore(recorded.checkpoint))
