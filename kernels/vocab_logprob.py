"""Log-prob and entropy of given tokens from materialised, possibly vocabulary-parallel logits.

One read, one collective, gradient in place.

T = tokens, V_local = stored columns of this rank. Collectives: one all-gather of four float32 per
token in the forward, none in the backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from megaladder.kernels import ops
from megaladder.kernels.reference import RowGrad, RowSpec
from megaladder.kernels.shard import TensorParallel, gather_stats, vocab_start

ENTROPY_MODES = ("none", "value", "grad")


class LogpOut(NamedTuple):
    """Per token, [T] float32 (float64 for float64 logits), nats; 0 on ignored tokens.

    entropy: None where not asked for."""

    logp: torch.Tensor
    entropy: torch.Tensor | None
    lse: torch.Tensor


@dataclass(frozen=True, slots=True)
class LogpOptions:
    """Keyword options of `vocab_logprob`.

    entropy: "none", "value" (no gradient flows into it) or "grad".
    overwrite_logits: the backward writes the gradient over the logits, which saves their size in
    memory. Any other use of the logits by autograd after that raises; reading their values after
    the backward gives gradients. Leaf tensors are never overwritten.
    """

    ignore_index: int = -100
    entropy: str = "none"
    overwrite_logits: bool = True

    def __post_init__(self) -> None:
        if self.entropy not in ENTROPY_MODES:
            raise ValueError(
                f"entropy={self.entropy!r}: expected one of {', '.join(ENTROPY_MODES)}"
            )


def temperature_tensor(
    inv_temperature: torch.Tensor | float, num_tokens: int, like: torch.Tensor
) -> torch.Tensor:
    """[1] or [T] on the device of `like`, detached."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if not isinstance(inv_temperature, torch.Tensor):
        if not inv_temperature > 0:
            raise ValueError(
                f"inv_temperature={inv_temperature}: expected a number > 0 (greedy decoding has no"
                " log-probs to match)"
            )
        return torch.full((1,), inv_temperature, dtype=dtype, device=like.device)
    values = inv_temperature.detach().to(device=like.device, dtype=dtype).reshape(-1)
    if values.numel() not in (1, num_tokens):
        raise ValueError(
            f"inv_temperature has {values.numel()} values for {num_tokens} tokens; expected 1"
            f" or {num_tokens}"
        )
    return values


def check_shapes(rows: torch.Tensor, targets: torch.Tensor, columns: int, n_valid: int) -> None:
    if rows.dim() != 2 or targets.dim() != 1 or rows.shape[0] != targets.shape[0]:
        raise ValueError(
            f"expected [T, …] and targets [T], found {tuple(rows.shape)} and"
            f" {tuple(targets.shape)}; fix: flatten to tokens"
        )
    if not 0 <= n_valid <= columns:
        raise ValueError(f"n_valid={n_valid} is outside 0 … {columns}, the local columns")


class _VocabLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, spec: RowSpec, tp: TensorParallel | None, options: LogpOptions):
        stats = ops.ce_stats(logits, spec, entropy=options.entropy != "none")
        gathered = gather_stats(stats, tp)
        logp, entropy, lse, peak, total = ops.merge_stats(
            gathered, spec.targets, spec.ignore_index
        ).unbind(0)
        ctx.spec, ctx.overwrite = spec, options.overwrite_logits
        ctx.save_for_backward(logits, peak, total, entropy)
        ctx.set_materialize_grads(False)
        given = entropy if options.entropy != "none" else None
        ctx.mark_non_differentiable(lse, *([given] if options.entropy == "value" else []))
        return logp, given, lse

    @staticmethod
    def backward(ctx, d_logp, d_entropy, _):
        try:
            logits, peak, total, entropy = ctx.saved_tensors
        except RuntimeError as caught:
            raise RuntimeError(
                "vocab_logprob: the logits were overwritten between forward and backward, by"
                " another operation or by the backward of an earlier vocab_logprob; fix:"
                " overwrite_logits=False, or one call for all that is needed of these logits"
            ) from caught
        if d_logp is None and d_entropy is None:
            return None, None, None, None
        if d_logp is None:
            d_logp = torch.zeros_like(total)
        out = logits if ctx.overwrite else torch.empty_like(logits)
        return (
            ops.ce_backward(
                logits, ctx.spec, RowGrad(peak, total, entropy, d_logp.contiguous(), d_entropy), out
            ),
            None,
            None,
            None,
        )


def vocab_logprob(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    tp: TensorParallel | None = None,
    n_valid: int | None = None,
    inv_temperature: torch.Tensor | float = 1.0,
    **options: Any,
) -> LogpOut:
    """Log-probs of `targets` under softmax(inv_temperature · logits).

    Over the whole, possibly split vocabulary; differentiable in logits.

    Args:
        logits: [T, V_local] float32, bfloat16, float16 or float64. A row stride that is a multiple
            of 16 is four times faster on a GPU.
        targets: int64 [T], global columns; `ignore_index` marks tokens without loss. Others outside
            the vocabulary give −inf.
        n_valid: columns of this rank that belong to the true vocabulary (`shard.valid_columns`);
            default all of them.
        inv_temperature: 1/temperature, one number or [T]; no gradient flows into it.
        options: fields of `LogpOptions`.
    """
    settings = LogpOptions(**options)
    valid = logits.shape[-1] if n_valid is None else n_valid
    check_shapes(logits, targets, logits.shape[-1], valid)
    spec = RowSpec(
        targets=targets.to(torch.int64),
        inv_temperature=temperature_tensor(inv_temperature, targets.shape[0], logits),
        vocab_start=vocab_start(tp),
        n_valid=valid,
        ignore_index=settings.ignore_index,
    )
    if settings.overwrite_logits and logits.is_leaf:
        settings = LogpOptions(settings.ignore_index, settings.entropy, overwrite_logits=False)
    return LogpOut(*_VocabLogprob.apply(logits, spec, tp, settings))
