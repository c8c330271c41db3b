"""One pass of micro-batches through megatron-core's schedule.

Forward and backward (training), or forward only (held-out loss, log-probs).

The loss of a micro-batch is a *sum* over its tokens, and the gradient is that of the sum over all
micro-batches and ranks divided by the global number of loss tokens, so neither depends on how
samples fall into micro-batches, rows, or ranks. The division is a factor on each token's gradient,
in the loss head and in float32: megatron-core's own would pass over all gradients once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from megaladder import parallel
from megaladder.model.batch import DeviceBatch, to_device
from megaladder.model.context_parallel import gather_tokens, largest, sum_partial_losses
from megaladder.model.head import SCRATCH, HeadOptions, HeadOutput, LossFunction, LossSums
from megaladder.model.moe.balance import begin_step
from megaladder.types import PackedBatch


@dataclass(frozen=True, slots=True)
class StepSums:
    """Global sums of one step, equal on every rank.

    Loss in nats, loss tokens, and the loss function's own metrics and maxima.
    """

    loss: float
    num_loss_tokens: int
    metrics: dict[str, float]
    maxima: dict[str, float] = field(default_factory=dict)

    @property
    def mean_loss(self) -> float:
        """Nats per loss token; 0 where there is none."""
        return self.loss / self.num_loss_tokens if self.num_loss_tokens else 0.0


def run_micro_batches(
    chunks: Sequence[Any],
    batches: Sequence[PackedBatch],
    loss_function: LossFunction,
    *,
    metric_names: Sequence[str] = (),
    maximum_names: Sequence[str] = (),
    head: HeadOptions = HeadOptions(),
    forward_only: bool = False,
) -> StepSums:
    """Runs this rank's micro-batches through the model.

    `batches` are the same on all TP, PP and CP ranks of a DP rank.

    Under context parallelism `batches` are whole; the model takes its rank's tokens of them and the
    loss function sees all.

    chunks: this rank's model chunks (DDP-wrapped for training). metric_names, maximum_names: the
    keys of the loss function's metrics and maxima, needed on every rank because only the last
    pipeline stage sees them. With `head.loss` the head forms the loss and `loss_function` is not
    asked. After training passes, gradients are reduced.
    """
    device_batches = [
        to_device(batch, skip_zero_advantage=head.skip_zero_advantage) for batch in batches
    ]
    if not forward_only:
        factor = _gradient_factor(device_batches)
        device_batches = [replace(batch, gradient_factor=factor) for batch in device_batches]
        begin_step(chunks, sum(batch.num_tokens for batch in device_batches))

    def forward_step(iterator: Any, model: Any, **_: Any) -> tuple[Any, Callable[[Any], tuple]]:
        batch = next(iterator)

        def loss_of(
            output: HeadOutput | LossSums,
        ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
            sums = whole_sums(output, batch, loss_function)
            count = torch.full((), batch.num_loss_tokens, dtype=torch.int, device=sums.loss.device)
            report = {"loss": sums.loss.detach(), "count": count, **sums.metrics, **sums.maxima}
            # a loss formed in the head has the factor in its gradient already
            formed = batch.gradient_factor is None or isinstance(output, LossSums)
            return sums.loss if formed else sums.loss * batch.gradient_factor, count, report

        return model(batch, head), loss_of

    with torch.set_grad_enabled(not forward_only):
        reports = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=(
                [iter(device_batches) for _ in chunks] if len(chunks) > 1 else iter(device_batches)
            ),
            model=list(chunks) if len(chunks) > 1 else chunks[0],
            num_microbatches=len(device_batches),
            seq_length=device_batches[0].input_ids.shape[1],
            micro_batch_size=1,
            forward_only=forward_only,
        )
    return _global_sums(reports, metric_names, maximum_names, training=not forward_only)


def _gradient_factor(batches: Sequence[DeviceBatch]) -> torch.Tensor:
    """0-d: 1 / loss tokens of the step over all data-parallel ranks.

    The host does not wait for it.
    """
    count = torch.full(
        (),
        sum(batch.num_loss_tokens for batch in batches),
        dtype=torch.float32,
        device=batches[0].labels.device,
    )
    return parallel.sum_over_data_parallel(count).clamp_(min=1.0).reciprocal_()


def whole_sums(
    output: HeadOutput | LossSums, batch: DeviceBatch, loss_function: LossFunction
) -> LossSums:
    """The loss of the whole micro-batch, on every context-parallel rank. Differentiable."""
    if batch.part is None:
        return output if isinstance(output, LossSums) else loss_function(output, batch)
    group, part = parallel.cp_group(), batch.part
    if isinstance(output, LossSums):
        return LossSums(
            sum_partial_losses(output.loss, group),
            {name: sum_partial_losses(value, group) for name, value in output.metrics.items()},
            {name: largest(value, group) for name, value in output.maxima.items()},
        )

    def whole(values: torch.Tensor) -> torch.Tensor:
        return gather_tokens(values, part.tokens, part.order, group)

    logprobs = whole(output.logprobs)
    entropy = None if output.entropy is None else whole(output.entropy)
    return loss_function(HeadOutput(logprobs, entropy), batch)


def _global_sums(
    reports: list[dict[str, torch.Tensor]],
    metric_names: Sequence[str],
    maximum_names: Sequence[str],
    *,
    training: bool,
) -> StepSums:
    names = ["loss", "count", *metric_names]
    sums = torch.zeros(len(names), dtype=torch.float64)
    maxima = torch.full((len(maximum_names),), -torch.inf, dtype=torch.float64)
    if reports:  # the last pipeline stage only
        sums = (
            torch.stack(
                [torch.stack([report[name].double() for name in names]) for report in reports]
            )
            .sum(0)
            .cpu()
        )
        if maximum_names:
            maxima = (
                torch.stack(
                    [
                        torch.stack([report[name].double() for name in maximum_names])
                        for report in reports
                    ]
                )
                .amax(0)
                .cpu()
            )
    loss, count, *metrics = parallel.sum_over_losses(sums).tolist()
    free = torch.tensor([-SCRATCH.take_least()], dtype=torch.float64)
    *greatest, most = parallel.max_over_ranks(torch.cat([maxima, free])).tolist()
    if training:
        SCRATCH.agree(-most)
    return StepSums(
        loss=loss,
        num_loss_tokens=round(count),
        metrics=dict(zip(metric_names, metrics, strict=True)),
        maxima=dict(zip(maximum_names, greatest, strict=True)),
    )
