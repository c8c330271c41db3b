"""The product's own step on a simulated rank.

Model, buffers, optimizer, packing, schedule, loss, update. What a GPU computes without talking to
others has a stand-in: the attention core."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from megaladder import parallel
from megaladder.config.grpo import GrpoConfig
from megaladder.config.sft import SftConfig
from megaladder.data.pack import build_micro_batches, plan_global_batch
from megaladder.dryrun import memory
from megaladder.dryrun.record import Event, Recorder
from megaladder.dryrun.world import Place, simulated_rank
from megaladder.ledger.work import Work
from megaladder.model import portable
from megaladder.model.build import LadderGPT, build_chunks
from megaladder.model.head import HeadOptions, HeadOutput, LossFunction, LossSums
from megaladder.model.hf_config import ModelShape
from megaladder.model.lora.adapter import attach
from megaladder.model.lora.peft_config import lora_spec
from megaladder.model.moe.balance import move_biases, step_balance
from megaladder.model.portable import PackedCoreAttention
from megaladder.train.objectives.losses import sft_head, sft_loss
from megaladder.train.optimizer import build_optimizer, guarded_update, wrap_chunks, zero_grad
from megaladder.train.packing import pack_spec
from megaladder.train.rl import policy as rl_policy
from megaladder.train.step import run_micro_batches
from megaladder.train.trainer import UpdateResult, build_options, layout_of
from megaladder.types import PackedBatch, TokenSample

# any finite number: what it becomes has no value here
LEARNING_RATE = 1e-5


@dataclass(frozen=True, slots=True)
class Job:
    """What is simulated: a run on `dp` copies of its layout.

    `micro_batches`: of one update, as many as are run; the run itself has `asked_micro_batches`."""

    config: SftConfig | GrpoConfig
    shape: ModelShape
    dp: int
    micro_batches: int
    asked_micro_batches: int

    @property
    def world_size(self) -> int:
        return layout_of(self.config).model_parallel_size * self.dp

    def rank(self, place: Place) -> int:
        return place.rank(layout_of(self.config), self.dp)


@dataclass(frozen=True, slots=True)
class RankProgram:
    """What one rank did and holds."""

    place: Place
    rank: int
    events: tuple[Event, ...]
    held: memory.HeldBytes


class _AttentionShape(torch.autograd.Function):
    """Shapes and saved tensors of a fused attention; no arithmetic."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        out = torch.empty_like(query).flatten(1)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *_gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class StandInAttention(PackedCoreAttention):
    """Attention core of a dry run."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _layout: Any
    ) -> torch.Tensor:
        return _AttentionShape.apply(query, key, value)


@dataclass(slots=True)
class _Trainer:
    """What the objectives ask of a trainer, without run folder, weights or checkpoints."""

    config: SftConfig | GrpoConfig
    shape: ModelShape
    recorder: Recorder
    chunks: list[Any]
    optimizer: Any
    layout: parallel.Layout

    @property
    def folder(self) -> Path:
        raise AssertionError("a dry run reads no weights")

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
        """The body of `Trainer.update`."""
        zero_grad(self.chunks, self.optimizer)
        sums = run_micro_batches(
            self.chunks, batches, loss, metric_names=metrics, maximum_names=maxima, head=head
        )
        self.recorder.where = "update"
        norm, updated = guarded_update(self.optimizer, sums.loss, LEARNING_RATE)
        balance = step_balance(self.chunks, self.shape)
        if balance is not None and updated and self.config.moe.bias_update_rate:
            move_biases(self.chunks, balance, self.config.moe.bias_update_rate)
        return UpdateResult(sums, LEARNING_RATE, norm, updated, 0.0, balance)


def simulate(job: Job, place: Place) -> RankProgram:
    """One update (and, for GRPO, the log-prob passes before it) on the rank at `place`."""
    layout = layout_of(job.config)
    with ExitStack() as stack:
        recorder = stack.enter_context(simulated_rank(layout, job.world_size, job.rank(place)))
        stack.enter_context(patch.object(portable, "PackedCoreAttention", StandInAttention))
        for name in ("load_hf_into_chunks", "load_tensors_into_chunks"):
            stack.enter_context(patch.object(rl_policy, name, _no_weights))
        options = build_options(job.config, job.shape)
        chunks = build_chunks(job.shape, layout, replace(options, fp8=None, layers="portable"))
        if job.config.lora.enabled:
            attach(chunks, job.shape, lora_spec(job.config.lora, job.shape))
        prepare(chunks, recorder)
        meter = memory.meter_activations(chunks, options.recompute, options.fp8 is not None)
        wrapped = wrap_chunks(chunks, options)
        optimizer = build_optimizer(wrapped, job.config.optim, options)
        recorder.clear()
        trainer = _Trainer(job.config, job.shape, recorder, wrapped, optimizer, layout)
        run_objective(job, trainer, micro_batches(job))
        tokens = job.config.train.micro_batch_size * job.config.data.seq_length // layout.cp
        held = memory.HeldBytes(
            weights=memory.weight_bytes(chunks),
            gradients=memory.gradient_bytes(wrapped),
            optimizer=memory.state_bytes(optimizer),
            fp8_copies=memory.quantized_bytes(chunks) if options.fp8 else 0,
            activations=meter.peak + memory.layer_at_work_bytes(chunks[0], tokens),
        )
        return RankProgram(place, job.rank(place), tuple(recorder.events), held)


def prepare(chunks: Sequence[LadderGPT], recorder: Recorder) -> None:
    """A label for every part of the schedule."""
    for number, chunk in enumerate(chunks):
        _label(chunk, f" of chunk {number}" if len(chunks) > 1 else "", recorder)


def _label(chunk: LadderGPT, name: str, recorder: Recorder) -> None:
    """Labels the chunk's N-th forward and its backward.

    `forward N` from the start of the forward on, `backward N` from that of its backward."""
    counted = {"forward": -1}

    def before(_module: Any, _args: Any) -> None:
        counted["forward"] += 1
        recorder.where = f"forward {counted['forward']}{name}"

    def after(_module: Any, _args: Any, output: Any) -> None:
        result = output.logprobs if isinstance(output, HeadOutput) else output
        result = result.loss if isinstance(result, LossSums) else result
        if result.requires_grad:
            label = f"backward {counted['forward']}{name}"
            result.register_hook(lambda _gradient: setattr(recorder, "where", label))

    chunk.register_forward_pre_hook(before)
    chunk.register_forward_hook(after)


def micro_batches(job: Job) -> list[PackedBatch]:
    """This rank's, by the product's own packing of samples that fill their rows."""
    config = job.config
    spec = pack_spec(
        config.data, config.train, config.parallel, config.gpu, hidden_size=job.shape.hidden_size
    )
    rows = job.micro_batches * config.train.micro_batch_size * job.dp
    length = config.data.seq_length
    plan = plan_global_batch([length] * rows, range(rows), spec, job.dp)
    return build_micro_batches(plan, parallel.dp_rank(), partial(_sample, length))


def _sample(length: int, number: int) -> TokenSample:
    """With all that any objective reads."""
    nothing = np.zeros(length, np.float32)
    return TokenSample(
        str(number),
        np.zeros(length, np.int32),
        np.arange(length) > 0,
        advantage=1.0,
        loss_weight=1.0,
        old_logprobs_n=nothing,
        rollout_logprobs_n=nothing,
        ref_logprobs_n=nothing,
        group=0,
    )


def run_objective(job: Job, trainer: _Trainer, batches: list[PackedBatch]) -> None:
    """The update that the configuration asks for."""
    config = job.config
    if isinstance(config, SftConfig):
        train = config.train
        loss = sft_loss(train.loss, clip_low=train.clip_ratio_low, clip_high=train.clip_ratio_high)
        trainer.update(1, batches, loss, head=sft_head(train.loss, loss, train.logits))
        return
    random = config.model_copy(
        update={
            "model": config.model.model_copy(update={"init": "random"}),
            "grpo": config.grpo.model_copy(update={"reference": None}),
        }
    )
    policy = rl_policy.Policy(random, trainer, 0)
    mini = rl_policy.MiniBatch(batches, (), 0, 0, Work())
    trainer.recorder.where = "log-probs"
    policy.update(1, policy.with_logprobs(mini))


def _no_weights(*_: Any) -> None:
    """Weights of a dry run have shapes only."""
