"""What one training step costs on whatever device this process has.

Seconds, tokens/s, model FLOP/s, MFU, peak memory and phases.

The step is the trainer's: megatron-core's schedule over packed micro-batches, the loss head,
clipping, the distributed optimizer. Weights are random normals (time does not depend on them),
tokens random, sequences of a fixed length. Warm-up steps are left out; the median of the timed ones
counts; phases are taken on steps of their own with the device drained in between, so they add up to
a little more. FLOPs are the model's (6 per matrix parameter and token, causal attention; no
recomputation), as papers and vendors count them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from megaladder import platform
from megaladder.capabilities import FP8_BLOCK
from megaladder.config.sections.shared import OptimSection, TrainSection
from megaladder.data.pack import PackSpec, build_micro_batches, plan_global_batch
from megaladder.model.build import BuildOptions, build_chunks
from megaladder.model.hf_config import ModelShape, model_shape
from megaladder.parallel import Layout
from megaladder.train.objectives.losses import sft_head, sft_loss
from megaladder.train.optimizer import build_optimizer, guarded_update, wrap_chunks, zero_grad
from megaladder.train.profile import StepProfiler
from megaladder.train.step import run_micro_batches
from megaladder.types import PackedBatch, TokenSample, TokenWeighting

OPTIMIZER = OptimSection(lr=1e-5)
SHAPES: dict[
    str, dict[str, Any]
] = {  # config.json of the published models; layers are cut by `slice_of`
    "qwen3-14b": {
        "num_hidden_layers": 40,
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
    },
    "qwen3-8b": {
        "num_hidden_layers": 36,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "num_hidden_layers": 4,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 512,
        "max_position_embeddings": 4096,
    },
}


@dataclass(frozen=True, slots=True)
class Work:
    """One measurement.

    Lengths in tokens; a step is `micro_batches` micro-batches of `micro_batch_tokens`, cut into
    whole sequences."""

    shape: str = "qwen3-14b"
    layers: int | None = None  # null = all of the model's
    sequence: int = 8192
    micro_batch_tokens: int = 8192
    micro_batches: int = 4
    precision: str = "bf16"
    fp8: str | None = None
    recompute: str = "none"
    warmup: int = 3
    steps: int = 8
    profile_steps: int = 2  # further steps for the phases


def slice_of(name: str, layers: int | None = None) -> ModelShape:
    """The model's shape with its first `layers` layers."""
    raw = {
        "model_type": "qwen3",
        "head_dim": 128,
        "vocab_size": 151_936,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": False,
        **SHAPES[name],
    }
    return model_shape(raw | ({"num_hidden_layers": layers} if layers else {}))


def random_batches(work: Work, shape: ModelShape, seed: int = 0) -> list[PackedBatch]:
    """A step's micro-batches, all tokens but each sequence's first with loss."""
    random = np.random.default_rng(seed)
    per_row = work.micro_batch_tokens // work.sequence
    count = work.micro_batches * per_row
    samples = [
        TokenSample(
            id=str(i),
            input_ids=random.integers(0, shape.vocab_size, work.sequence).astype(np.int32),
            loss_mask=np.arange(work.sequence) > 0,
        )
        for i in range(count)
    ]
    spec = PackSpec(
        seq_length=work.micro_batch_tokens, align=FP8_BLOCK[work.fp8] if work.fp8 else 1
    )
    return build_micro_batches(
        plan_global_batch([work.sequence] * count, range(count), spec, 1), 0, lambda i: samples[i]
    )


class Step:
    """A model with its optimizer, and the three parts of a step."""

    def __init__(self, work: Work, options: BuildOptions | None = None) -> None:
        self.shape = slice_of(work.shape, work.layers)
        options = options or BuildOptions(
            precision=work.precision, recompute=work.recompute, fp8=work.fp8
        )
        chunks = build_chunks(self.shape, Layout(), options)
        generator = torch.Generator(device=platform.device()).manual_seed(0)
        with torch.no_grad():
            for name, parameter in chunks[0].named_parameters():
                (
                    parameter.fill_(1.0)
                    if "norm" in name
                    else parameter.normal_(0.0, 0.02, generator=generator)
                )
        self.wrapped = wrap_chunks(chunks, options)
        self.optimizer = build_optimizer(self.wrapped, OPTIMIZER, options)
        self.batches = random_batches(work, self.shape)
        self._loss = sft_loss(TokenWeighting.VANILLA)
        self._head = sft_head(TokenWeighting.VANILLA, self._loss)
        self.losses: list[float] = []

    def zero(self) -> None:
        zero_grad(self.wrapped, self.optimizer)

    def forward_backward(self) -> None:
        self.losses.append(
            run_micro_batches(self.wrapped, self.batches, self._loss, head=self._head).mean_loss
        )

    def update(self) -> None:
        guarded_update(self.optimizer, self.losses[-1], OPTIMIZER.lr)

    def phases(self) -> dict[str, Callable[[], None]]:
        return {
            "zero gradients": self.zero,
            "forward and backward": self.forward_backward,
            "optimizer": self.update,
        }


def _timed(action: Callable[[], None]) -> float:
    platform.synchronize()
    began = time.perf_counter()
    action()
    platform.synchronize()
    return time.perf_counter() - began


def measure(
    work: Work, options: BuildOptions | None = None, profile_folder: Path | None = None
) -> dict[str, Any]:
    """All figures of one measurement; `torch.OutOfMemoryError` where it does not fit.

    profile_folder: also a trace of one more step."""
    step = Step(work, options)
    parts = step.phases()

    def whole() -> None:
        for part in parts.values():
            part()

    for _ in range(work.warmup):
        whole()
    platform.reset_memory_peak()
    seconds = [_timed(whole) for _ in range(work.steps)]
    peak = platform.memory_peak_bytes()
    rounds = [
        {name: _timed(part) for name, part in parts.items()} for _ in range(work.profile_steps)
    ]
    if profile_folder is not None:
        profiler = StepProfiler(TrainSection(profile_steps=(1,)), profile_folder, 0)
        with profiler.step(1):
            for name, part in parts.items():
                with profiler.phase(name):
                    part()
    tokens = work.micro_batches * work.micro_batch_tokens
    flops = step.shape.flops_per_token(work.sequence) * tokens
    typical, peak_flops = median(seconds), platform.peak_flops_per_second()
    return {
        **asdict(work),
        "layers": step.shape.num_layers,
        "parameters": step.shape.num_parameters,
        "step_s": typical,
        "step_s_all": seconds,
        "tokens_per_s": tokens / typical,
        "tflops": flops / typical / 1e12,
        "mfu": flops / typical / peak_flops if peak_flops else None,
        "memory_peak_bytes": peak,
        "phases_s": {name: median(one[name] for one in rounds) for name in parts} if rounds else {},
        "first_loss": step.losses[0],
        "last_loss": step.losses[-1],
    }


def extrapolate(small: dict[str, Any], large: dict[str, Any], layers: int) -> dict[str, Any]:
    """A deeper model from two slices that differ in depth only.

    What a layer takes, times `layers`, plus what is left (embedding, head, loss, start of a step).
    One GPU, no communication: an extrapolation, not a measurement."""
    per_layer = (large["step_s"] - small["step_s"]) / (large["layers"] - small["layers"])
    rest = large["step_s"] - per_layer * large["layers"]
    shape = slice_of(large["shape"], layers)
    tokens, seconds = (
        large["micro_batches"] * large["micro_batch_tokens"],
        rest + per_layer * layers,
    )
    flops, peak = (
        shape.flops_per_token(large["sequence"]) * tokens,
        platform.peak_flops_per_second(),
    )
    return {
        "layers": layers,
        "from_layers": [small["layers"], large["layers"]],
        "per_layer_s": per_layer,
        "rest_s": rest,
        "step_s": seconds,
        "tokens_per_s": tokens / seconds,
        "tflops": flops / seconds / 1e12,
        "mfu": flops / seconds / peak if peak else None,
        "extrapolated": True,
    }


def deepest_that_fits(work: Work, candidates: list[int]) -> tuple[dict[str, Any], list[int]]:
    """The measurement with the most layers that fits the device's memory.

    And the depths that did not fit. Deepest first."""
    too_deep = []
    for layers in candidates:
        try:
            return measure(replace(work, layers=layers)), too_deep
        except torch.OutOfMemoryError:
            too_deep.append(layers)
        platform.release_memory()
    raise torch.OutOfMemoryError(f"not even {candidates[-1]} layers of {work.shape} fit")
