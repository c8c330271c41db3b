"""The local kernels as torch.library operators: no communication, with fake implementations, Triton
or twin inside.

Signatures are schema strings (an operator takes flat arguments); the bodies fold them into
`RowSpec`, `RowGrad` and `PolicyRow`. Shapes: logits [T, V], targets int64 [T], inv_temperature [1]
or [T]. Statistics and their unit: `reference.py`.
"""

from __future__ import annotations

import importlib

import torch

from megaladder.kernels import dispatch, reference
from megaladder.kernels.policy_terms import PolicyInputs, PolicyLoss
from megaladder.kernels.reference import PolicyRow, RowGrad, RowSpec, accumulator

_ROW = "Tensor targets, Tensor inv_temperature, int vocab_start, int n_valid, int ignore_index"
_POLICY = (
    "Tensor? weight, Tensor? advantages, Tensor? old_logp, Tensor? importance, Tensor? ref_logp, "
    "str kind, float clip_low, float clip_high, float dual_clip, float kl_coef, float entropy_coef"
)


def _twin_or_triton(tensor: torch.Tensor):
    if dispatch.backend(tensor.device) == "triton":
        return importlib.import_module("megaladder.kernels.triton_kernels")
    return reference


def _row_arguments(spec: RowSpec) -> tuple:
    return spec.targets, spec.inv_temperature, spec.vocab_start, spec.n_valid, spec.ignore_index


def _policy_arguments(policy: PolicyRow) -> tuple:
    values, loss = policy.inputs, policy.loss
    tensors = (
        values.weight,
        values.advantages,
        values.old_logp,
        values.importance,
        values.ref_logp,
    )
    return (
        *tensors,
        loss.kind,
        loss.clip_low,
        loss.clip_high,
        loss.dual_clip,
        loss.kl_coef,
        loss.entropy_coef,
    )


def _ce_stats(logits, *rest):
    *row, entropy, rank = rest
    return _twin_or_triton(logits).ce_stats(logits, RowSpec(*row), entropy=entropy, rank=rank)


def _count_at_least(logits, threshold, n_valid):
    return _twin_or_triton(logits).count_at_least(logits, threshold, n_valid)


def _merge_stats(gathered, targets, ignore_index):
    return _twin_or_triton(gathered).merge_stats(gathered, targets, ignore_index)


def _ce_backward_(logits, *rest):
    _twin_or_triton(logits).ce_backward(logits, RowSpec(*rest[:5]), RowGrad(*rest[5:]), logits)


def _ce_backward_out(logits, out, *rest):
    _twin_or_triton(logits).ce_backward(logits, RowSpec(*rest[:5]), RowGrad(*rest[5:]), out)


def _policy_call(logits, out, rest):
    row, gathered, values, loss = rest[:5], rest[5], rest[6:11], rest[11:]
    policy = PolicyRow(PolicyLoss(*loss), PolicyInputs(*values))
    return _twin_or_triton(logits).ce_policy(logits, RowSpec(*row), policy, gathered, out)


def _ce_policy_(logits, *rest):
    return _policy_call(logits, logits, rest)


def _ce_policy_out(logits, out, *rest):
    return _policy_call(logits, out, rest)


def _linear_stats(hidden, weight, *rest):
    *row, entropy = rest
    return _twin_or_triton(hidden).linear_stats(hidden, weight, RowSpec(*row), entropy=entropy)


def _wide_mm(left, right, out):
    reference.wide_mm(left, right, out)


def _operator(name: str, body, arguments: str, returns: str, mutated: tuple[str, ...] = ()):
    return torch.library.custom_op(
        f"megaladder::{name}", body, mutates_args=mutated, schema=f"({arguments}) -> {returns}"
    )


_GRAD = "Tensor peak, Tensor total, Tensor? entropy, Tensor d_logp, Tensor? d_entropy"
_stats_op = _operator(
    "ce_stats", _ce_stats, f"Tensor logits, {_ROW}, bool entropy, bool rank", "Tensor"
)
_count_op = _operator(
    "count_at_least", _count_at_least, "Tensor logits, Tensor threshold, int n_valid", "Tensor"
)
_merge_op = _operator(
    "merge_stats", _merge_stats, "Tensor gathered, Tensor targets, int ignore_index", "Tensor"
)
_backward_in_place = _operator(
    "ce_backward_", _ce_backward_, f"Tensor(a!) logits, {_ROW}, {_GRAD}", "()", ("logits",)
)
_backward_out = _operator(
    "ce_backward_out",
    _ce_backward_out,
    f"Tensor logits, Tensor(a!) out, {_ROW}, {_GRAD}",
    "()",
    ("out",),
)
_policy_in_place = _operator(
    "ce_policy_",
    _ce_policy_,
    f"Tensor(a!) logits, {_ROW}, Tensor? gathered, {_POLICY}",
    "Tensor",
    ("logits",),
)
_policy_out = _operator(
    "ce_policy_out",
    _ce_policy_out,
    f"Tensor logits, Tensor(a!) out, {_ROW}, Tensor? gathered, {_POLICY}",
    "Tensor",
    ("out",),
)
_mm_op = _operator("wide_mm", _wide_mm, "Tensor left, Tensor right, Tensor(a!) out", "()", ("out",))
_linear_op = _operator(
    "linear_stats", _linear_stats, f"Tensor hidden, Tensor weight, {_ROW}, bool entropy", "Tensor"
)


@_stats_op.register_fake
def _(logits, *rest):
    return logits.new_empty(
        (8 if rest[-1] else 4, logits.shape[0]), dtype=accumulator(logits.dtype)
    )


@_count_op.register_fake
def _(logits, threshold, n_valid):
    return torch.empty_like(threshold)


@_merge_op.register_fake
def _(gathered, targets, ignore_index):
    return gathered.new_empty((5, gathered.shape[2]))


@_backward_in_place.register_fake
def _(logits, *rest):
    return None


@_backward_out.register_fake
def _(logits, out, *rest):
    return None


@_policy_in_place.register_fake
def _(logits, *rest):
    return logits.new_empty((5, logits.shape[0]), dtype=accumulator(logits.dtype))


@_policy_out.register_fake
def _(logits, out, *rest):
    return logits.new_empty((5, logits.shape[0]), dtype=accumulator(logits.dtype))


@_mm_op.register_fake
def _(left, right, out):
    return None


@_linear_op.register_fake
def _(hidden, weight, *rest):
    return hidden.new_empty((4, hidden.shape[0]), dtype=accumulator(hidden.dtype))


def ce_stats(
    logits: torch.Tensor, spec: RowSpec, *, entropy: bool, rank: bool = False
) -> torch.Tensor:
    """See `reference.ce_stats`."""
    return _stats_op(logits, *_row_arguments(spec), entropy, rank)


def count_at_least(logits: torch.Tensor, threshold: torch.Tensor, n_valid: int) -> torch.Tensor:
    """See `reference.count_at_least`."""
    return _count_op(logits, threshold, n_valid)


def merge_stats(gathered: torch.Tensor, targets: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """See `reference.merge_stats`."""
    return _merge_op(gathered, targets, ignore_index)


def ce_backward(
    logits: torch.Tensor, spec: RowSpec, upstream: RowGrad, out: torch.Tensor
) -> torch.Tensor:
    """See `reference.ce_backward`; gives `out` back. `out is logits` overwrites them and raises
    their version counter."""
    grads = (upstream.peak, upstream.total, upstream.entropy, upstream.d_logp, upstream.d_entropy)
    if out is logits:
        _backward_in_place(logits, *_row_arguments(spec), *grads)
    else:
        _backward_out(logits, out, *_row_arguments(spec), *grads)
    return out


def ce_policy(
    logits: torch.Tensor,
    spec: RowSpec,
    policy: PolicyRow,
    gathered: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """See `reference.ce_policy`."""
    arguments = (*_row_arguments(spec), gathered, *_policy_arguments(policy))
    return (
        _policy_in_place(logits, *arguments)
        if out is logits
        else _policy_out(logits, out, *arguments)
    )


def linear_stats(
    hidden: torch.Tensor, weight: torch.Tensor, spec: RowSpec, *, entropy: bool
) -> torch.Tensor:
    """See `reference.linear_stats`."""
    return _linear_op(hidden, weight, *_row_arguments(spec), entropy)


def wide_mm(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """See `reference.wide_mm`; an operator because torch.compile refuses `out=` with a padded row
    stride."""
    _mm_op(left, right, out)
    return out
