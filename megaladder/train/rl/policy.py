"""The policy's half of a step: packed mini-batches, log-probs, updates.

Old and reference log-probs are computed where the objective needs them.

Old and reference log-probs are computed with the very packing of the update, so that an on-policy
ratio is 1 exactly. They stay on the last pipeline stage, the only one that uses them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megaladder import parallel
from megaladder.checkpoints_conv.families import random_tensors
from megaladder.checkpoints_conv.live_model import load_hf_into_chunks, load_tensors_into_chunks
from megaladder.config.grpo import GrpoConfig
from megaladder.config.sections.gpu import GpuSection
from megaladder.data.pack import build_micro_batches, plan_global_batch
from megaladder.errors import ConfigError
from megaladder.ledger.book import Phase
from megaladder.ledger.work import Work, forward_work
from megaladder.model.batch import DeviceBatch
from megaladder.model.build import build_chunks
from megaladder.model.head import HeadOptions, HeadOutput, LossFunction, LossSums
from megaladder.model.hf_config import ModelShape, model_shape, read_config_json
from megaladder.model.lora.adapter import adapters_off
from megaladder.model.moe.balance import routers
from megaladder.model.source import model_folder
from megaladder.parallel import Layout
from megaladder.train.objectives.policy_loss import (
    METRIC_MAX_NAMES,
    METRIC_NAMES,
    PolicyLossInputs,
    PolicyLossOptions,
    options_from,
    policy_loss,
)
from megaladder.train.objectives.rollout_correction import mismatch_stats
from megaladder.train.packing import pack_spec
from megaladder.train.rl.samples import MiniBatchSamples, SampleTable, split_round
from megaladder.train.step import run_micro_batches
from megaladder.train.trainer import UpdateResult, build_options
from megaladder.types import PackedBatch, required


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """The samples of one update, packed for this rank.

    batches: this rank's micro-batches; names: all samples over all ranks; tokens over all ranks,
    without padding. forward: what a forward pass over it costs, on all ranks together, with logits
    of head_tokens.
    """

    batches: list[PackedBatch]
    names: tuple[str, ...]
    num_tokens: int
    total_tokens: int  # padding included
    forward: Work
    head_tokens: int = 0


def grpo_loss(options: PolicyLossOptions, *, old_is_rollout: bool = False) -> LossFunction:
    """`policy_loss` in the form that the training step takes.

    `old_is_rollout`: the old log-probs are the engine's, so the watch over trainer and engine
    compares the current ones.
    """

    def loss(output: HeadOutput, batch: DeviceBatch) -> LossSums:
        mask = required(batch.loss_mask, "loss_mask")
        inputs = PolicyLossInputs(
            logprobs=output.logprobs,
            old_logprobs=batch.old_logprobs,
            rollout_logprobs=batch.rollout_logprobs,
            ref_logprobs=batch.ref_logprobs,
            advantages=required(batch.advantages, "advantages"),
            weights=required(batch.loss_weights, "loss_weights"),
            mask=mask,
            sequence_of_token=required(batch.sequence_of_token, "sequence_of_token"),
            entropy=output.entropy,
            num_sequences=batch.num_sequences,
        )
        total, sums, maxima = policy_loss(inputs, options)
        if old_is_rollout:
            mismatch, largest = mismatch_stats(
                output.logprobs.detach(), required(batch.rollout_logprobs, "rollout_logprobs"), mask
            )
            sums, maxima = {**sums, **mismatch}, {**maxima, **largest}
        return LossSums(total, sums, maxima)

    return loss


def grpo_head(config: GrpoConfig, options: PolicyLossOptions, loss: LossFunction) -> HeadOptions:
    """How the head computes the update's loss.

    A loss that is a sum over tokens is formed in it; one that couples the tokens of a sequence
    takes its log-probs, whose logits are kept where memory allows.
    """
    return HeadOptions(
        temperature=config.rollout.temperature,
        entropy="grad" if options.needs_entropy else "value",
        loss=None if options.couples_tokens else loss,
        skip_zero_advantage=config.grpo.skip_zero_advantage and options.only_advantages,
        bf16_logits=config.train.logits == "bf16",
    )


class PolicyTrainer(Protocol):
    """What a policy asks of a trainer. `folder`: the model's, read for the reference."""

    @property
    def shape(self) -> ModelShape: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def folder(self) -> Path: ...

    @property
    def chunks(self) -> list[Any]: ...

    def update(
        self,
        step: int,
        batches: Sequence[PackedBatch],
        loss: LossFunction,
        *,
        metrics: Sequence[str] = ...,
        maxima: Sequence[str] = ...,
        head: HeadOptions = ...,
    ) -> UpdateResult: ...


class Policy:
    """Turns a round into updates of the trainer's model. Every method is collective."""

    def __init__(self, config: GrpoConfig, trainer: PolicyTrainer, pad_token_id: int) -> None:
        self._config, self._trainer = config, trainer
        self._spec = pack_spec(
            config.data,
            config.train,
            config.parallel,
            config.gpu,
            pad_token_id=pad_token_id,
            hidden_size=trainer.shape.hidden_size,
        )
        self.options = options_from(config.grpo, config.rollout)
        if config.rollout.engine == "fake":
            self.options = replace(self.options, correction="none")
        self._reference = self._reference_model() if self.options.needs_reference else None
        wanted, many = config.grpo.recompute_old_logprobs, config.grpo.mini_batches > 1
        self._recompute_old = wanted == "always" or (wanted == "auto" and many)
        self.old_is_rollout = wanted == "never" and many
        self._experts = config.grpo.router_replay != "none" and trainer.shape.moe is not None
        for router in routers(trainer.chunks):
            router.replays = config.grpo.router_replay == "replay"
        self._loss = grpo_loss(self.options, old_is_rollout=self.old_is_rollout)
        self._head = grpo_head(config, self.options, self._loss)
        # seconds and work of the last `mini_batches` call's forward passes
        self.logprobs_s, self.work = 0.0, defaultdict[Phase, Work](Work)

    @property
    def shape(self) -> ModelShape:
        """The trained model's."""
        return self._trainer.shape

    @property
    def frozen(self) -> bool:
        """Whether adapters are trained and the weights stay as they are."""
        return self._config.lora.enabled

    def _reference_model(self) -> list[Any]:
        """With adapters the reference is the trained model without them: no second copy."""
        if self._config.lora.enabled and self._config.grpo.reference is None:
            return self._trainer.chunks
        return reference_chunks(self._config, self._trainer)

    def mini_batches(self, table: SampleTable) -> list[MiniBatch]:
        """The updates of a round, in order.

        With everything that has to be computed before the first of them.

        Raises:
            ConfigError: an option needs the engine's log-probs or experts, and these rollouts have
            none.
        """
        grpo = self._config.grpo
        if self._experts and len(table):
            require_experts(table, self.shape, self._config.rollout.engine)
        if (
            len(table)
            and table.rollout_logprobs is None
            and (self.options.needs_rollout_logprobs or self.old_is_rollout)
        ):
            raise ConfigError(
                f"grpo.correction {grpo.correction}, recompute_old_logprobs"
                f" {grpo.recompute_old_logprobs} need the engine's log-probs, these rollouts have"
                " none; fix: correction none, recompute_old_logprobs auto"
            )
        parts = split_round(
            table, grpo.mini_batches, grpo.aggregation, self._config.rollout.max_tokens
        )
        packed = [self._pack(table, part) for part in parts]
        began = time.perf_counter()
        self.work.clear()
        packed = [self.with_logprobs(mini) for mini in packed]
        self.logprobs_s = time.perf_counter() - began
        return packed

    def update(self, step: int, mini: MiniBatch) -> UpdateResult:
        """One optimizer step on a mini-batch, with the learning rate of `step`."""
        return self._trainer.update(
            step,
            mini.batches,
            self._loss,
            metrics=METRIC_NAMES,
            maxima=METRIC_MAX_NAMES,
            head=self._head,
        )

    def _pack(self, table: SampleTable, part: MiniBatchSamples) -> MiniBatch:
        weight_of = dict(zip(part.indices.tolist(), part.weights_b.tolist(), strict=True))
        plan = plan_global_batch(
            table.lengths[part.indices].tolist(),
            part.indices.tolist(),
            self._spec,
            parallel.dp_size(),
        )
        batches = build_micro_batches(
            plan,
            parallel.dp_rank(),
            lambda i: table.sample(
                i, weight_of[i], with_rollout_as_old=self.old_is_rollout, with_experts=self._experts
            ),
        )
        return MiniBatch(
            batches,
            tuple(table.names[i] for i in part.indices),
            plan.num_tokens,
            plan.total_tokens,
            *self._forward(table, part),
        )

    def _forward(self, table: SampleTable, part: MiniBatchSamples) -> tuple[Work, int]:
        """A forward pass over a mini-batch, and of how many tokens it forms logits.

        Response tokens that can carry a gradient."""
        active = part.weights_b != 0
        if self._head.skip_zero_advantage:
            active &= table.advantages_b[part.indices] != 0
        responses = table.response_lengths[part.indices]
        head_tokens = int(responses[active].sum())
        return forward_work(self.shape, table.lengths[part.indices], head_tokens), head_tokens

    def with_logprobs(self, mini: MiniBatch) -> MiniBatch:
        batches = mini.batches
        if self._recompute_old:
            self.work["old_logprobs"] += mini.forward
            found = token_logprobs(self._trainer.chunks, batches, self._head)
            batches = [
                replace(batch, old_logprobs_t=values)
                for batch, values in zip(batches, found, strict=True)
            ]
        if self._reference is not None:
            self.work["reference_logprobs"] += mini.forward
            # another model, whose log-probs are those of its own experts
            own = [replace(batch, routed_experts_t=None) for batch in batches]
            with adapters_off(self._reference):
                found = token_logprobs(self._reference, own, self._head)
            batches = [
                replace(batch, ref_logprobs_t=values)
                for batch, values in zip(batches, found, strict=True)
            ]
        return replace(mini, batches=batches)


def require_experts(table: SampleTable, shape: ModelShape, engine: str) -> None:
    """Raises ConfigError where the rollouts' experts cannot be the model's.

    A fake engine, and rollouts of one that was not asked, have none."""
    moe, found = required(shape.moe, "a mixture of experts"), table.routed_experts
    off = "grpo.router_replay none"
    if found is None:
        if engine == "vllm":
            raise ConfigError(
                "grpo.router_replay: the engine did not tell which experts it chose; fix: vLLM's"
                f" servers with --enable-return-routed-experts, or {off}"
            )
        return
    if found.shape[1:] != (shape.num_layers, moe.top_k) or found.max() >= moe.num_experts:
        raise ConfigError(
            f"grpo.router_replay: the rollouts have {found.shape[2]} experts up to"
            f" {found.max()} in {found.shape[1]} layers, the model takes {moe.top_k} of"
            f" {moe.num_experts} in {shape.num_layers}; fix: rollouts of this model, or {off}"
        )


def token_logprobs(
    chunks: Sequence[Any], batches: Sequence[PackedBatch], head: HeadOptions
) -> list[np.ndarray | None]:
    """Log-probs float32 [T] of the labels of each micro-batch. Collective, no gradient.

    On the last pipeline stage; None elsewhere. 0 where `head` of the update computes none.
    """
    found: list[np.ndarray] = []

    def keep(output: HeadOutput, batch: DeviceBatch) -> LossSums:
        found.append(output.logprobs.detach().float().cpu().numpy())
        return LossSums(output.logprobs.detach().sum())

    for chunk in chunks:
        chunk.eval()
    run_micro_batches(
        chunks, batches, keep, head=replace(head, loss=None, entropy="none"), forward_only=True
    )
    for chunk in chunks:
        chunk.train()
    if not found:
        return [None] * len(batches)
    assert [len(values) for values in found] == [len(batch.labels_t) for batch in batches], (
        "micro-batches came back in another order"
    )
    return list(found)


def reference_chunks(config: GrpoConfig, trainer: PolicyTrainer) -> list[Any]:
    """The reference model in the trainer's layout and precision, without gradients or optimizer.

    Collective.

    Raises:
        ConfigError: `grpo.reference` is a model of another shape.
    """
    options = replace(
        build_options(config, trainer.shape),
        adapters=False,
        adapts_experts=False,
        recompute="none",
        gpu=GpuSection(
            **{**config.gpu.model_dump(), "activation_offload_layers": 0, "tp_comm_overlap": False}
        ),
    )
    chunks = build_chunks(trainer.shape, trainer.layout, options)
    if config.grpo.reference is None and config.model.init == "random":
        load_tensors_into_chunks(
            chunks, random_tensors(trainer.shape, config.train.seed), trainer.shape
        )
    else:
        folder = (
            Path(model_folder(config.grpo.reference, None))
            if config.grpo.reference
            else trainer.folder
        )
        other = model_shape(read_config_json(folder))
        if other.vocab_size != trainer.shape.vocab_size:
            raise ConfigError(
                f"grpo.reference {folder} has {other.vocab_size} tokens, the model"
                f" {trainer.shape.vocab_size}; fix: a reference with the same tokenizer"
            )
        load_hf_into_chunks(chunks, folder, trainer.shape)
    for chunk in chunks:
        chunk.requires_grad_(False)
    return chunks
