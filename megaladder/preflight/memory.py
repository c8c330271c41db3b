"""Bytes per rank of a training layout, by part: closed formulas, an estimate. Pure; no torch.

Counted: what the fullest pipeline stage keeps. Not counted: allocator fragmentation, communication buffers, the framework itself
(about 1 GiB with CUDA), the generation engine. Ranked layouts are `megaladder plan`'s business.

Legend: P parameters of the rank, T tokens of a micro-batch, H hidden size, V vocabulary.
"""
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megaladder.config.grpo import GrpoConfig
    from megaladder.config.train import SftConfig
    from megaladder.model.hf_config import ModelShape

FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on the fullest rank."""

    weights: int  # P × 2 (bf16) or × 4 (fp32)
    gradients: int  # P × 4: accumulated and reduced in fp32
    optimizer: int  # P × 12 / dp in bf16 (fp32 master copy and two moments, DistributedOptimizer), P × 8 / dp in fp32
    activations: int
    head: int  # logits and their gradient, T × V/tp, fp32

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def estimate_memory(config: SftConfig | GrpoConfig, shape: ModelShape, dp: int, precision: str) -> MemoryEstimate:
    """`precision`: bf16 or fp32, after `auto` was decided."""
    layout, bytes_per_value = config.parallel, 2 if precision == "bf16" else FP32_BYTES
    parameters = _stage_parameters(shape, layout.tp, layout.pp)
    tokens = config.train.micro_batch_size * config.data.seq_length
    state_bytes = 12 if precision == "bf16" else 8
    return MemoryEstimate(
        weights=parameters * bytes_per_value,
        gradients=parameters * FP32_BYTES,
        optimizer=parameters * state_bytes // dp,
        activations=_activation_values(config, shape, tokens) * bytes_per_value,
        head=2 * tokens * -(-shape.vocab_size // layout.tp) * FP32_BYTES,
    )


def _stage_parameters(shape: ModelShape, tp: int, pp: int) -> int:
    """Parameters of a rank in the fullest stage: its share of the layers and, at one end of the pipeline or both, an embedding matrix."""
    matrix = shape.vocab_size * shape.hidden_size
    embeddings = matrix * (1 if shape.tied else 2)
    layers = shape.num_parameters - embeddings
    ends = embeddings if pp == 1 else matrix  # tied: both ends hold a copy
    return -(-layers // (pp * tp)) + -(-ends // tp)


def _activation_values(config: SftConfig | GrpoConfig, shape: ModelShape, tokens: int) -> int:
    """Values kept for backward by the first stage, which has the most micro-batches in flight (1F1B: pp of them).

    A layer keeps, per token: inputs and outputs of two norms (4·H, divided by tp only under sequence parallelism), q, k, v and the
    attention's output, the gated MLP's two halves and their product (divided by tp). No score matrix: attention is fused, so
    `selective` saves nothing more here. `full` keeps a layer's input, and one layer at work.
    """
    layout, recompute = config.parallel, config.train.recompute
    split = layout.tp if layout.uses_sequence_parallel else 1
    attention = shape.head_dim * (2 * shape.num_attention_heads + 2 * shape.num_query_groups)
    per_layer = 4 * shape.hidden_size // split + (attention + 3 * shape.ffn_hidden_size) // layout.tp
    layers_in_flight = -(-shape.num_layers // layout.pp) * layout.pp
    if layout.vpp:
        layers_in_flight += -(-layers_in_flight * (layout.pp - 1) // (layout.pp * layout.vpp))  # arXiv 2205.05198 §4.2.3
    if recompute == "full":
        return tokens * (layers_in_flight * (shape.hidden_size // split) + per_layer)
    return tokens * layers_in_flight * per_layer
