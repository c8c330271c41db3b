"""A token-separable policy loss straight from hidden states, with the gradient formed in the
forward: 6·T·H·V operations.

Each chunk of logits is made once: statistics, loss, d logits in place, d hidden, d weight. The
backward only scales by the upstream factor. Rows whose gradient is zero (ignored, zero advantage,
clipped, zero weight) take no part in the two gradient products; exact. The loss is a plain sum over
tokens: normalisation belongs into `PolicyInputs.weight`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from megaladder.kernels import ops
from megaladder.kernels.linear_common import Chunks, Head, LinearOptions, WeightGrad, token_grad
from megaladder.kernels.linear_logprob import make_head, make_spec, merged_stats
from megaladder.kernels.policy_terms import (
    PolicyInputs,
    PolicyLoss,
    PolicyMetrics,
    PolicyTerms,
    TokenResults,
    policy_metrics,
    policy_terms,
)
from megaladder.kernels.reference import PolicyRow, accumulator
from megaladder.kernels.shard import PendingGrad, TensorParallel, gather_stats, is_split


@dataclass(frozen=True, slots=True)
class PolicyOut:
    """`loss` 0-d, differentiable once; the rest carries no gradient: `logp`, `entropy` [T] nats, 0
    on ignored tokens."""

    loss: torch.Tensor
    metrics: PolicyMetrics
    logp: torch.Tensor
    entropy: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Call:
    head: Head
    policy: PolicyRow
    needed: tuple[bool, bool]  # gradient for hidden, weight
    upstream: float | None  # promised factor of the backward; None: unknown


def _chunk_policy(
    call: _Call, chunks: Chunks, tokens: torch.Tensor | slice, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """[5, C] per-token results and d logits [C, n_valid] of one chunk."""
    head, spec = call.head, call.head.spec.rows(tokens)
    logits = chunks.logits(x)
    gathered = None
    if is_split(head.tp):
        gathered = gather_stats(
            ops.ce_stats(logits, spec, entropy=call.policy.loss.needs_entropy), head.tp
        )
    row = PolicyRow(call.policy.loss, call.policy.inputs.rows(tokens))
    out = chunks.gradient_out(logits)
    return ops.ce_policy(logits, spec, row, gathered, out), out


def _forward_with_gradient(
    call: _Call, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None, WeightGrad | None]:
    """[5, T] per-token results, d hidden, d weight for an upstream factor of 1 (d weight: times the
    promised factor)."""
    head = call.head
    full, rows = head.all_tokens(hidden), head.kept_rows()
    chunks, columns = Chunks(head, full, rows), head.weight[: head.spec.n_valid]
    result = torch.zeros(5, full.shape[0], dtype=accumulator(full.dtype), device=full.device)
    d_full = token_grad(full, head.options.compact_rows) if call.needed[0] else None
    d_weight = (
        WeightGrad(head.weight, head.spec.n_valid, direct=call.upstream is not None)
        if call.needed[1]
        else None
    )
    last: tuple[torch.Tensor, torch.Tensor] | None = None
    for _, tokens in chunks:
        if last is not None and d_weight is not None:
            d_weight.add(*last)
        x = chunks.hidden(tokens)
        part, d_logits = _chunk_policy(call, chunks, tokens, x)
        result[:, tokens] = part
        active = head.active_rows(part[1], part[2])
        if active is not None:
            d_logits, x = d_logits[active], x[active]
            tokens = active + tokens.start if isinstance(tokens, slice) else tokens[active]
        if d_full is not None:
            d_full[tokens] = d_logits @ columns
        last = (_scaled_for(call, d_logits), x)
    pending = (
        None
        if d_full is None
        else PendingGrad(d_full, head.tp, sequence_parallel=head.sequence_parallel)
    )
    if last is not None and d_weight is not None:
        d_weight.add(*last)
    return result, None if pending is None else pending.wait(), d_weight


def _scaled_for(call: _Call, d_logits: torch.Tensor) -> torch.Tensor:
    """d logits for the weight product: times the promised factor when sums go straight into
    main_grad."""
    direct = call.upstream is not None and WeightGrad.main_grad_of(call.head.weight) is not None
    return d_logits.mul_(call.upstream) if direct and call.upstream != 1.0 else d_logits


class _LinearPolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, call: _Call):
        result, d_hidden, d_weight = _forward_with_gradient(call, hidden)
        ctx.call, ctx.d_hidden, ctx.d_weight, ctx.dtype = call, d_hidden, d_weight, hidden.dtype
        ctx.mark_non_differentiable(result)
        return result[0].sum(dtype=torch.float64 if result.device.type == "cpu" else None).to(
            result.dtype
        ), result

    @staticmethod
    def backward(ctx, factor, _):
        if ctx.call is None:
            raise RuntimeError(
                "linear_policy_loss: second backward through one loss; its gradient was handed out and freed; fix: call it again"
            )
        call, d_hidden, d_weight = ctx.call, ctx.d_hidden, ctx.d_weight
        ctx.call = ctx.d_hidden = ctx.d_weight = None
        if call.upstream is not None:
            _check_promise(factor, call.upstream)
        grad = None if d_hidden is None else (d_hidden * factor.to(d_hidden.dtype)).to(ctx.dtype)
        if d_weight is None:
            return grad, None, None
        direct = call.upstream is not None and WeightGrad.main_grad_of(call.head.weight) is not None
        return grad, d_weight.result(None if direct else factor), None


def _check_promise(factor: torch.Tensor, promised: float) -> None:
    same = (factor - promised).abs() <= 1e-6 * abs(promised)
    if factor.device.type == "cuda":
        torch._assert_async(
            same, "linear_policy_loss: the backward's factor is not the promised `upstream`"
        )
    elif not bool(same):
        raise RuntimeError(
            f"linear_policy_loss: upstream={promised} was promised, the backward brought {factor.item()}, and d weight is already in "
            "main_grad; fix: pass the true factor (loss scale, 1/micro-batches), or upstream=None"
        )


def _value_only(head: Head, hidden: torch.Tensor, policy: PolicyRow) -> torch.Tensor:
    """[5, T] without forming any gradient."""
    merged = merged_stats(head, head.all_tokens(hidden), head.kept_rows())
    entropy = merged[1] if head.options.entropy != "none" else None
    terms = policy_terms(merged[0], entropy, policy.loss, policy.inputs)
    zero = torch.zeros_like(merged[0])
    rows = [terms.loss, terms.d_logp, terms.d_entropy, merged[0], entropy]
    stacked = torch.stack([zero if r is None else r for r in rows])
    return stacked.masked_fill_(head.spec.targets == head.spec.ignore_index, 0.0)


def linear_policy_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    loss: PolicyLoss,
    inputs: PolicyInputs,
    *,
    tp: TensorParallel | None = None,
    **options: Any,
) -> PolicyOut:
    """Sum over tokens of `loss`; differentiable in hidden and weight, once.

    Args:
        hidden, weight, targets, tp: as for `linear_logprob`.
        inputs: per-token constants [T] on every rank; the loss is Σ weight·(…), so
        1/number-of-tokens belongs into `weight`. options: `n_valid`, `inv_temperature` as for
        `linear_logprob`; fields of `LinearOptions`; and `upstream`: the factor that the
            backward will bring, if known (micro-batch share, loss scale). With it, and a float32
            `main_grad`, d weight is added there during the forward and needs no memory of its own;
            a different factor then raises. Without it d weight waits in float32.
    """
    n_valid, inv_temperature = options.pop("n_valid", None), options.pop("inv_temperature", 1.0)
    upstream = options.pop("upstream", None)
    settings = LinearOptions(**options)
    if loss.needs_entropy and settings.entropy != "grad":
        settings = replace(settings, entropy="grad")
    spec = make_spec(targets, weight, tp, n_valid, inv_temperature, settings.ignore_index)
    head = make_head(hidden, weight, spec, tp, settings)
    policy = PolicyRow(loss, inputs)
    needed = (hidden.requires_grad, weight.requires_grad)
    if torch.is_grad_enabled() and any(needed):
        value, result = _LinearPolicyLoss.apply(
            hidden, weight, _Call(head, policy, needed, upstream)
        )
    else:
        result = _value_only(head, hidden.detach(), policy)
        value = result[0].sum()
    found = TokenResults(
        result[3],
        result[4],
        PolicyTerms(result[0], result[1], result[2]),
        spec.targets != settings.ignore_index,
    )
    metrics = policy_metrics(found, loss, inputs)
    return PolicyOut(value, metrics, result[3], result[4] if settings.entropy != "none" else None)
