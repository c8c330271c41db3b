"""A loss that is a sum over tokens, straight from hidden states.

The gradient is formed in the forward: 6·n·H·V operations and one block of logits, however many rows
there are.

Each block of logits is made once: statistics, loss, d logits over the logits, d hidden, d weight.
The backward hands out what is there. The loss itself is the caller's: it sees log-probs and
entropies of a block's rows and returns its derivatives (`TokenTerms`); a loss that couples rows of
different blocks needs `linear_logprob`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from megaladder.kernels import ops
from megaladder.kernels.linear_common import Blocks, Head, LinearOptions, WeightGrad, make_head
from megaladder.kernels.linear_logprob import make_spec
from megaladder.kernels.reference import RowGrad, accumulator
from megaladder.kernels.shard import TensorParallel, gather_stats


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """What a block's rows contribute.

    loss: 0-d, their sum; d_logp, d_entropy: [C], its derivatives by each row's log-prob and entropy
    (None: none)."""

    loss: torch.Tensor
    d_logp: torch.Tensor | None
    d_entropy: torch.Tensor | None = None


TokenLoss = Callable[[torch.Tensor, torch.Tensor | None, slice], TokenTerms]
"""(log-probs [C], entropies [C] or None, which of the active rows they are) → their terms."""


@dataclass(frozen=True, slots=True)
class _Call:
    head: Head
    token_loss: TokenLoss
    needed: tuple[bool, bool]  # gradient for hidden, weight
    factor: torch.Tensor | None  # 0-d: d loss that the gradient is formed for; None: 1


def _block_terms(
    call: _Call, logits: torch.Tensor, block: slice
) -> tuple[torch.Tensor, RowGrad | None]:
    """A block's loss, and what flows back into its rows."""
    head, with_entropy = call.head, call.head.options.entropy != "none"
    spec = head.spec.rows(block)
    stats = gather_stats(ops.ce_stats(logits, spec, entropy=with_entropy), head.tp)
    logp, entropy, _, peak, total = ops.merge_stats(stats, spec.targets, spec.ignore_index).unbind(
        0
    )
    terms = call.token_loss(logp, entropy if with_entropy else None, block)
    if not any(call.needed):
        return terms.loss, None
    slope = torch.zeros_like(logp) if terms.d_logp is None else terms.d_logp
    bend = terms.d_entropy
    if call.factor is not None:
        slope, bend = slope * call.factor, None if bend is None else bend * call.factor
    return terms.loss, RowGrad(peak, total, entropy, slope, bend)


def _forward_with_gradient(
    call: _Call, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None, WeightGrad | None]:
    """Loss, d hidden, d weight."""
    head = call.head
    x = head.active(hidden)
    blocks = Blocks(head, x)
    d_rows = torch.empty_like(x) if call.needed[0] else None
    d_weight = WeightGrad(head.weight, blocks.columns) if call.needed[1] else None
    losses, last = [], None
    for block in blocks:
        if last is not None and d_weight is not None:
            d_weight.add(*last)
        logits = blocks.logits(block)
        loss, upstream = _block_terms(call, logits, block)
        losses.append(loss)
        if upstream is None:
            continue
        d_logits = ops.ce_backward(
            logits, head.spec.rows(block), upstream, blocks.gradient_out(logits)
        )
        if d_rows is not None:
            blocks.columns.d_hidden(d_logits, d_rows[block])
        last = (d_logits, x[block])
    pending = None if d_rows is None else head.reduce(d_rows)
    if last is not None and d_weight is not None:
        d_weight.add(*last)
    loss = torch.stack(losses).sum() if losses else x.new_zeros((), dtype=accumulator(x.dtype))
    return loss, None if pending is None else pending.wait(), d_weight


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, call: _Call):
        loss, ctx.d_hidden, ctx.d_weight = _forward_with_gradient(call, hidden)
        ctx.call, ctx.dtype = call, hidden.dtype
        return loss

    @staticmethod
    def backward(ctx, factor):
        if ctx.call is None:
            raise RuntimeError(
                "linear_loss: second backward through one loss; its gradient was handed out and"
                " freed; fix: call it again"
            )
        d_hidden, d_weight = ctx.d_hidden, ctx.d_weight
        ctx.call = ctx.d_hidden = ctx.d_weight = None
        if d_weight is not None and d_weight.main is not None:
            _factors.note(factor)
        elif d_hidden is not None:
            # in the loss's type: bfloat16 would round the factor itself, by up to 0.2 %
            d_hidden = (d_hidden * factor.to(accumulator(d_hidden.dtype))).to(ctx.dtype)
        weight_grad = None if d_weight is None else d_weight.result(factor)
        return None if d_hidden is None else d_hidden.to(ctx.dtype), weight_grad, None


class _Factors:
    """Factors that backwards brought when the gradient was in main_grad already: each must be 1.

    On an accelerator they are looked at when their copy has arrived, one call later: the host waits
    for nothing, and the error names the value.
    """

    def __init__(self) -> None:
        self._under_way: list[tuple[torch.Tensor, torch.cuda.Event]] = []

    def note(self, factor: torch.Tensor) -> None:
        if factor.device.type != "cuda":
            self._check(float(factor))
        elif not torch.cuda.is_current_stream_capturing():
            arrived = torch.empty((), dtype=torch.float32, pin_memory=True)
            arrived.copy_(factor.detach(), non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._under_way.append((arrived, event))

    def look(self) -> None:
        """Checks what has arrived.

        Not while a CUDA graph is captured: an event may not be asked then, and the capture would end.
        """
        if not self._under_way or torch.cuda.is_current_stream_capturing():
            return
        while self._under_way and self._under_way[0][1].query():
            self._check(float(self._under_way.pop(0)[0]))

    @staticmethod
    def _check(factor: float) -> None:
        if abs(factor - 1.0) > 1e-6:
            raise RuntimeError(
                f"linear_loss: the backward brought the factor {factor}, and d weight, formed for"
                " 1, is in main_grad; fix: back-propagate the bare sum and pass what it is to be"
                " multiplied with as `factor`"
            )


_factors = _Factors()


def linear_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    token_loss: TokenLoss,
    *,
    factor: torch.Tensor | None = None,
    tp: TensorParallel | None = None,
    rows: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """Sum over active rows of a token loss, 0-d; differentiable in hidden and weight, once.

    Without gradient mode only the value is formed.

    Args:
        hidden, weight, targets, tp, rows: as for `linear_logprob`. With a float32 `main_grad`
            d weight is added there during the forward, and the backward's own factor must be 1.
        token_loss: called once for each block of rows, in order.
        factor: 0-d, multiplies the gradient (not the value) in float32, before anything is rounded:
            1/number-of-tokens, a loss scale.
        options: `n_valid`, `inv_temperature` as for `linear_logprob`; fields of `LinearOptions`.
    """
    _factors.look()
    n_valid, inv_temperature = options.pop("n_valid", None), options.pop("inv_temperature", 1.0)
    settings = LinearOptions(**options)
    spec = make_spec(targets, weight, tp, n_valid, inv_temperature, settings.ignore_index)
    head = make_head(hidden, weight, spec, rows, tp, settings)
    needed = (hidden.requires_grad, weight.requires_grad)
    if torch.is_grad_enabled() and any(needed):
        return _LinearLoss.apply(hidden, weight, _Call(head, token_loss, needed, factor))
    return _forward_with_gradient(_Call(head, token_loss, (False, False), factor), hidden.detach())[
        0
    ]
