"""Transformer Engine's layers against the portable ones.

Same weights, same packed batch, one forward and backward each.

The reference is the portable specification in fp32. Compared: log-prob of every token, loss, and
the gradient of every parameter (after reduction, in DDP's fp32 buffer), matched by name across the
two specifications.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megaladder import parallel, platform
from megaladder.capabilities import fp8_problem
from megaladder.checkpoints_conv.families import name_table
from megaladder.checkpoints_conv.live_model import _held, iter_hf_tensors, load_tensors_into_chunks
from megaladder.model.batch import DeviceBatch
from megaladder.model.build import BuildOptions, build_chunks
from megaladder.model.head import HeadOptions, HeadOutput, LossSums
from megaladder.model.hf_config import ModelShape
from megaladder.parallel import Layout
from megaladder.tools.acceptance.context import Context
from megaladder.tools.acceptance.step_bench import Work, random_batches, slice_of
from megaladder.train.optimizer import wrap_chunks
from megaladder.train.step import run_micro_batches
from megaladder.types import PackedBatch


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward: log-probs [T], mean loss, gradients by canonical parameter name."""

    logprobs: torch.Tensor
    loss: float
    gradients: dict[str, torch.Tensor]


class _Weights:
    """HF tensors in memory, as a source to load from."""

    folder = "weights in memory"

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def read(
        self, name: str, dim: int = 0, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        tensor = self._tensors[name]
        return tensor.narrow(dim, start, (tensor.shape[dim] if stop is None else stop) - start)


def run(context: Context) -> dict[str, Any]:
    """Each variant that this device can run, compared with the fp32 reference."""
    parallel.initialize(Layout())
    work = (
        Work(shape="tiny", sequence=64, micro_batch_tokens=256, micro_batches=1)
        if context.tiny
        else Work(
            layers=4, sequence=2048, micro_batch_tokens=4096, micro_batches=1, fp8="blockwise"
        )
    )
    shape = slice_of(work.shape, work.layers)
    batches = random_batches(work, shape)
    reference, weights = _reference(shape, batches)
    figures: dict[str, Any] = {
        "shape": work.shape,
        "layers": shape.num_layers,
        "tokens": work.micro_batch_tokens,
        "reference": {"loss": reference.loss},
    }
    platform.release_memory()
    for name, options in _variants(context).items():
        if isinstance(options, str):
            figures[name] = {"not_run": options}
            continue
        figures[name] = context.case(
            name,
            lambda options=options: _compare(_pass(shape, batches, options, weights), reference),
        )
        platform.release_memory()
    parallel.shutdown()
    return figures


def _variants(context: Context) -> dict[str, BuildOptions | str]:
    """Name → how it computes, or why it cannot."""
    if not context.on_cuda:
        return {"portable_bf16": BuildOptions("bf16", layers="portable")}
    machine = platform.machine()
    variants: dict[str, BuildOptions | str] = {
        "portable_bf16": BuildOptions("bf16", layers="portable")
    }
    variants["te_bf16"] = machine.te_problem or BuildOptions("bf16", layers="te")
    for recipe in ("tensorwise", "blockwise", "delayed", "mxfp8"):
        variants[f"te_{recipe}"] = fp8_problem(recipe, machine) or BuildOptions(
            "bf16", fp8=recipe, layers="te"
        )
    return variants


def _reference(shape: ModelShape, batches: Sequence[PackedBatch]) -> tuple[Pass, _Weights]:
    options = BuildOptions("fp32", layers="portable")
    chunks = build_chunks(shape, Layout(), options)
    generator = torch.Generator(device=platform.device()).manual_seed(0)
    with torch.no_grad():
        for name, parameter in chunks[0].named_parameters():
            drawn = (
                torch.ones_like(parameter)
                if "norm" in name
                else parameter.normal_(0.0, 0.02, generator=generator)
            )
            # so that every variant starts from exactly these values
            parameter.copy_(drawn.bfloat16())
    weights = _Weights({name: tensor.clone() for name, tensor in iter_hf_tensors(chunks, shape)})
    return _run_chunks(chunks, shape, batches, options), weights


def _pass(
    shape: ModelShape, batches: Sequence[PackedBatch], options: BuildOptions, weights: _Weights
) -> Pass:
    chunks = build_chunks(shape, Layout(), options)
    load_tensors_into_chunks(chunks, weights, shape)
    return _run_chunks(chunks, shape, batches, options)


def _run_chunks(
    chunks: list[Any], shape: ModelShape, batches: Sequence[PackedBatch], options: BuildOptions
) -> Pass:
    wrapped = wrap_chunks(chunks, options)
    for chunk in wrapped:
        chunk.zero_grad_buffer()
    kept: list[torch.Tensor] = []

    def loss(output: HeadOutput, batch: DeviceBatch) -> LossSums:
        kept.append(output.logprobs.detach().float())
        return LossSums(-output.logprobs.sum())

    sums = run_micro_batches(wrapped, batches, loss, head=HeadOptions())
    held = _held(name_table(shape), wrapped)
    return Pass(
        torch.cat(kept),
        sums.mean_loss,
        {name: parameter.main_grad.float().clone() for name, (_, parameter) in held.items()},
    )


def _compare(found: Pass, reference: Pass) -> dict[str, Any]:
    difference = (found.logprobs - reference.logprobs).abs()
    squares = {
        name: (float((found.gradients[name] - truth).square().sum()), float(truth.square().sum()))
        for name, truth in reference.gradients.items()
    }
    errors = {
        name: (error / norm) ** 0.5 if norm else 0.0 for name, (error, norm) in squares.items()
    }
    worst = max(errors, key=errors.__getitem__)
    return {
        "loss": found.loss,
        "loss_relative_error": abs(found.loss / reference.loss - 1),
        "logprob_mean_abs": float(difference.mean()),
        "logprob_max_abs": float(difference.max()),
        "grad_relative_error": (
            (sum(e for e, _ in squares.values()) / sum(n for _, n in squares.values())) ** 0.5
        ),
        "grad_worst_parameter": worst,
        "grad_worst_relative_error": errors[worst],
    }
