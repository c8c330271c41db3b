"""The model of a run with what updates, saves and exports it.

Shared by SFT and GRPO, whose loops are elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder import parallel, platform
from megaladder.checkpoint import store
from megaladder.checkpoint.checkpointer import Checkpointer
from megaladder.checkpoints_conv.adapters.run import RunAdapters, adapter_folder
from megaladder.checkpoints_conv.families import random_tensors
from megaladder.checkpoints_conv.live_model import (
    export_hf,
    load_hf_into_chunks,
    load_tensors_into_chunks,
)
from megaladder.checkpoints_conv.reader import auxiliary_files
from megaladder.checkpoints_conv.writer import WriteOptions
from megaladder.config.sections.run import RunConfig
from megaladder.files.sums import refuse_damaged
from megaladder.model.build import BuildOptions, build_chunks
from megaladder.model.head import HeadOptions, LossFunction
from megaladder.model.hf_config import ModelShape, model_shape, read_config_json
from megaladder.model.lora.peft_config import lora_spec
from megaladder.model.lora.spec import adapts_experts
from megaladder.model.moe.balance import Balance, move_biases, step_balance
from megaladder.model.source import model_folder
from megaladder.model.te import start_user_buffers
from megaladder.model.weights import gathered
from megaladder.parallel import Layout
from megaladder.process.faults import fault_point
from megaladder.run_dir import RunDir
from megaladder.train.model_files import ModelFiles
from megaladder.train.optimizer import (
    build_optimizer,
    guarded_update,
    separate_steps,
    wrap_chunks,
    zero_grad,
)
from megaladder.train.profile import StepProfiler
from megaladder.train.schedule import LrSchedule
from megaladder.train.step import StepSums, run_micro_batches
from megaladder.types import PackedBatch


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What one optimizer step did, over all ranks.

    The sums, the learning rate used, the gradient norm before clipping, and whether weights
    changed. balance: of a mixture of experts.
    """

    sums: StepSums
    lr: float
    grad_norm: float
    updated: bool
    step_s: float
    balance: Balance | None = None


def layout_of(config: RunConfig) -> Layout:
    """The layout that a run's `parallel` section asks for."""
    section = config.parallel
    return Layout(
        tp=section.tp,
        pp=section.pp,
        vpp=section.vpp,
        cp=section.cp,
        sequence_parallel=section.sequence_parallel,
        ep=section.ep,
        etp=section.etp,
    )


def precision_of(config: RunConfig) -> str:
    chosen = config.train.precision
    return platform.default_precision() if chosen == "auto" else chosen


def build_options(config: RunConfig, shape: ModelShape) -> BuildOptions:
    """How the run's model computes."""
    section, lora = config.train, config.lora
    return BuildOptions(
        precision=precision_of(config),
        recompute=section.recompute,
        recompute_modules=section.recompute_modules,
        fp8=section.fp8,
        gpu=config.gpu,
        moe=config.moe,
        seed=section.seed,
        adapters=lora.enabled,
        adapts_experts=lora.enabled and adapts_experts(shape, lora_spec(lora, shape)),
    )


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The model of a run before any weight is read."""

    folder: Path
    shape: ModelShape


def open_model(config: RunConfig) -> ModelSource:
    """Finds (or downloads) the model and reads its config.json. Collective."""
    folder = model_folder(config.model.path, config.model.revision)
    parallel.on_main(lambda: refuse_damaged(folder))
    return ModelSource(folder, model_shape(read_config_json(folder)))


class Trainer:
    """Model chunks, optimizer and checkpoints of one run. Every method is collective."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDir,
        model: ModelSource,
        schedule: LrSchedule,
        files: ModelFiles,
    ) -> None:
        """files: what is saved and exported beside the weights."""
        self.config, self.schedule = config, schedule
        parallel.on_main(lambda: files.write(run.model_files))
        self.files_folder = run.model_files
        self.layout, self.folder, self.shape = layout_of(config), model.folder, model.shape
        options = build_options(config, self.shape)
        chunks = build_chunks(self.shape, self.layout, options)
        if config.model.init == "random":
            load_tensors_into_chunks(
                chunks, random_tensors(self.shape, config.train.seed), self.shape
            )
        else:
            load_hf_into_chunks(chunks, self.folder, self.shape)
        self.adapters = (
            RunAdapters(config, self.folder, self.shape, chunks) if config.lora.enabled else None
        )
        if config.gpu.tp_comm_overlap:
            start_user_buffers(
                chunks[0].config,
                config.train.micro_batch_size * config.data.seq_length // self.layout.cp,
            )
        self.chunks = wrap_chunks(chunks, options)
        self.optimizer = build_optimizer(self.chunks, config.optim, options)
        self._run = run
        self._profiler = StepProfiler(config.train, run.path / "profile", parallel.rank())
        section = config.checkpoint
        self.checkpoints = Checkpointer(
            run.checkpoints,
            self.chunks,
            self.optimizer,
            hf_files=list(auxiliary_files(self.files_folder)),
            async_save=section.async_save,
            retention=store.Retention(
                section.keep_last, tuple(section.keep_steps), config.num_best_kept
            ),
        )

    def update(
        self,
        step: int,
        batches: Sequence[PackedBatch],
        loss: LossFunction,
        *,
        metrics: Sequence[str] = (),
        maxima: Sequence[str] = (),
        head: HeadOptions = HeadOptions(),
    ) -> UpdateResult:
        """Forward, backward and one guarded update with the learning rate of `step` (1-based).

        metrics, maxima: as `run_micro_batches`."""
        began = time.perf_counter()
        fault_point("update")
        profiler = self._profiler
        with profiler.step(step):
            zero_grad(self.chunks, self.optimizer)
            with profiler.phase("forward and backward"):
                sums = run_micro_batches(
                    self.chunks,
                    batches,
                    loss,
                    metric_names=metrics,
                    maximum_names=maxima,
                    head=head,
                )
            lr = self.schedule.lr(step)
            with profiler.phase("optimizer"):
                grad_norm, updated = guarded_update(self.optimizer, sums.loss, lr)
            balance = step_balance(self.chunks, self.shape)
            if balance is not None and updated and self.config.moe.bias_update_rate:
                move_biases(self.chunks, balance, self.config.moe.bias_update_rate)
            platform.synchronize()
        step_s = time.perf_counter() - began
        return UpdateResult(sums, lr, grad_norm, updated, step_s, balance)

    def evaluate(
        self,
        batches: Sequence[PackedBatch],
        loss: LossFunction,
        *,
        metrics: Sequence[str] = (),
        head: HeadOptions = HeadOptions(),
    ) -> StepSums:
        """Forward only; weights and gradients stay as they are."""
        fault_point("evaluate")
        for chunk in self.chunks:
            chunk.eval()
        sums = run_micro_batches(
            self.chunks, batches, loss, metric_names=metrics, head=head, forward_only=True
        )
        for chunk in self.chunks:
            chunk.train()
        return sums

    def restore(self, path: Path) -> dict[str, Any]:
        """Model, optimizer and RNG of a committed checkpoint; returns its `trainer.json`."""
        if self.adapters is not None:
            self.adapters.check_base(path)
        saved = self.checkpoints.load(path)
        separate_steps(self.optimizer)
        return saved

    def export(self, step: int) -> Path:
        """Writes the model as a Hugging Face folder `hf/step_N` and returns its path.

        With adapters: these as a PEFT folder `adapters/step_N` first, and the model, merged with
        them, where lora.merged_export says so.
        """
        out = self._run.hf_folder(step)
        with gathered(self.chunks):
            if self.adapters is not None:
                adapters = adapter_folder(self._run, step)
                self.adapters.export(self.chunks, adapters)
                if not self.config.lora.merged_export:
                    return adapters
            export_hf(
                self.chunks,
                self.shape,
                out,
                source_dir=self.files_folder,
                options=WriteOptions(force=True),
            )
        return out
