"""The local kernels as torch.library operators.

No communication, with fake implementations, Triton or twin inside.

Signatures are schema strings (an operator takes flat arguments); the bodies fold them into
`RowSpec` and `RowGrad`. Shapes: logits [T, V], targets int64 [T], inv_temperature [1]
or [T]. Statistics and their unit: `reference.py`.
"""

from __future__ import annotations

import importlib

import torch

from megaladder.kernels import dispatch, reference
from megaladder.kernels.reference import RowGrad, RowSpec, accumulator

_ROW = "Tensor targets, Tensor inv_temperature, int vocab_start, int n_valid, int ignore_index"


def _twin_or_triton(tensor: torch.Tensor):
    if dispatch.backend(tensor.device) == "triton":
        return importlib.import_module("megaladder.kernels.triton_kernels")
    return reference


def _row_arguments(spec: RowSpec) -> tuple:
    return spec.targets, spec.inv_temperature, spec.vocab_start, spec.n_valid, spec.ignore_index


def _ce_stats(logits, *rest):
    *row, entropy = rest
    return _twin_or_triton(logits).ce_stats(logits, RowSpec(*row), entropy=entropy)


def _merge_stats(gathered, targets, ignore_index):
    return _twin_or_triton(gathered).merge_stats(gathered, targets, ignore_index)


def _ce_backward_(logits, *rest):
    _twin_or_triton(logits).ce_backward(logits, RowSpec(*rest[:5]), RowGrad(*rest[5:]), logits)


def _ce_backward_out(logits, out, *rest):
    _twin_or_triton(logits).ce_backward(logits, RowSpec(*rest[:5]), RowGrad(*rest[5:]), out)


def _wide_mm(left, right, out):
    reference.wide_mm(left, right, out)


def _add_product(out, left, right):
    reference.add_product(out, left, right)


def _operator(name: str, body, arguments: str, returns: str, mutated: tuple[str, ...] = ()):
    return torch.library.custom_op(
        f"megaladder::{name}", body, mutates_args=mutated, schema=f"({arguments}) -> {returns}"
    )


_GRAD = "Tensor peak, Tensor total, Tensor? entropy, Tensor d_logp, Tensor? d_entropy"
_stats_op = _operator("ce_stats", _ce_stats, f"Tensor logits, {_ROW}, bool entropy", "Tensor")
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
_mm_op = _operator("wide_mm", _wide_mm, "Tensor left, Tensor right, Tensor(a!) out", "()", ("out",))
_add_op = _operator(
    "add_product", _add_product, "Tensor(a!) out, Tensor left, Tensor right", "()", ("out",)
)


@_stats_op.register_fake
def _(logits, *rest):
    return logits.new_empty((4, logits.shape[0]), dtype=accumulator(logits.dtype))


@_merge_op.register_fake
def _(gathered, targets, ignore_index):
    return gathered.new_empty((5, gathered.shape[2]))


@_backward_in_place.register_fake
def _(logits, *rest):
    return None


@_backward_out.register_fake
def _(logits, out, *rest):
    return None


@_mm_op.register_fake
def _(left, right, out):
    return None


@_add_op.register_fake
def _(out, left, right):
    return None


def ce_stats(logits: torch.Tensor, spec: RowSpec, *, entropy: bool) -> torch.Tensor:
    """See `reference.ce_stats`."""
    return _stats_op(logits, *_row_arguments(spec), entropy)


def merge_stats(gathered: torch.Tensor, targets: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """See `reference.merge_stats`."""
    return _merge_op(gathered, targets, ignore_index)


def ce_backward(
    logits: torch.Tensor, spec: RowSpec, upstream: RowGrad, out: torch.Tensor
) -> torch.Tensor:
    """See `reference.ce_backward`; gives `out` back.

    `out is logits` overwrites them and raises their version counter."""
    grads = (upstream.peak, upstream.total, upstream.entropy, upstream.d_logp, upstream.d_entropy)
    if out is logits:
        _backward_in_place(logits, *_row_arguments(spec), *grads)
    else:
        _backward_out(logits, out, *_row_arguments(spec), *grads)
    return out


def wide_mm(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """See `reference.wide_mm`.

    An operator because torch.compile refuses `out=` with a padded row stride."""
    _mm_op(left, right, out)
    return out


def add_product(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """See `reference.add_product`.

    An operator because torch.compile knows no `addmm` with `out_dtype`."""
    _add_op(out, left, right)
