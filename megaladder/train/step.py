"""One pass of micro-batches through megatron-core's schedule: forward and backward (training) or
forward only (held-out loss, log-probs).

The loss of a micro-batch is a *sum* over its tokens. megatron-core divides the gradients by the
global number of loss tokens (`calculate_per_token_loss`), so loss and gradient do not depend on how
samples fall into micro-batches, rows, or ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from megaladder import parallel
from megaladder.model.batch import DeviceBatch, to_device
from megaladder.model.context_parallel import gather_tokens, sum_partial_losses
from megaladder.model.head import HeadOptions, HeadOutput
from megaladder.types import PackedBatch


@dataclass(frozen=True, slots=True)
class LossSums:
    """What a loss function returns for one micro-batch: `loss`, a scalar with gradient, summed over
    tokens; `metrics`, further sums (no gradient) that are added up over micro-batches and ranks;
    `maxima`, of which the largest counts. The same keys every time.
    """

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    maxima: dict[str, torch.Tensor] = field(default_factory=dict)


LossFunction = Callable[[HeadOutput, DeviceBatch], LossSums]


@dataclass(frozen=True, slots=True)
class StepSums:
    """Global sums of one step, equal on every rank: loss in nats, loss tokens, and the loss
    function's own metrics and maxima."""

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
    """Runs `batches` (this rank's, the same on all TP, PP and CP ranks of a DP rank) through the
    model.

    Under context parallelism `batches` are whole; the model takes its rank's tokens of them and the
    loss function sees all.

    chunks: this rank's model chunks (DDP-wrapped for training). metric_names, maximum_names: the
    keys of the loss function's metrics and maxima, needed on every rank because only the last
    pipeline stage sees them. After training passes, gradients are reduced and divided by the global
    count.
    """
    device_batches = [to_device(batch) for batch in batches]

    def forward_step(iterator: Any, model: Any, **_: Any) -> tuple[Any, Callable[[Any], tuple]]:
        batch = next(iterator)

        def loss_of(
            output: HeadOutput,
        ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
            sums = loss_function(whole_output(output, batch), batch)
            count = torch.tensor(batch.num_loss_tokens, dtype=torch.int, device=sums.loss.device)
            # each cp rank has the whole loss; tokens count once
            counted = count if parallel.cp_rank() == 0 else torch.zeros_like(count)
            return (
                sums.loss,
                counted,
                {"loss": sums.loss.detach(), "count": count, **sums.metrics, **sums.maxima},
            )

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
    return _global_sums(reports, metric_names, maximum_names)


def whole_output(output: HeadOutput, batch: DeviceBatch) -> HeadOutput:
    """What a loss function sees: the output for all tokens of the micro-batch, on every
    context-parallel rank. Differentiable."""
    if batch.part is None:
        return output
    group, part = parallel_state.get_context_parallel_group(), batch.part
    gathered = [
        None if values is None else gather_tokens(values, part.tokens, part.order, group)
        for values in (output.logprobs, output.entropy)
    ]
    return HeadOutput(
        *gathered, None if output.loss is None else sum_partial_losses(output.loss, group)
    )


def _global_sums(
    reports: list[dict[str, torch.Tensor]],
    metric_names: Sequence[str],
    maximum_names: Sequence[str],
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
    largest = parallel.max_over_ranks(maxima).tolist() if maximum_names else []
    return StepSums(
        loss=loss,
        num_loss_tokens=round(count),
        metrics=dict(zip(metric_names, metrics, strict=True)),
        maxima=dict(zip(maximum_names, largest, strict=True)),
    )
