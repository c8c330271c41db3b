"""Bytes per GPU of a training layout, by part: closed formulas.

`check`, the search and docs/plan.md all read these.

Counted: states of megatron-core's distributed optimizer, what autograd keeps (1F1B and
interleaved), the loss head, a reserve for the framework and the allocator, the sleeping engine of a
colocated GRPO run. Not counted: checkpoint staging, other processes on the GPU. Activations are
those of fused layers (Transformer Engine). The portable layers of a CPU keep about twice as much:
unfused norms and gating save fp32 copies of their inputs (tests/plan/test_measured.py).

Legend: P parameters of the rank, T tokens of a micro-batch on the rank, H hidden size, A heads ·
head_dim, K groups · head_dim, F feed-forward size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

from megaladder.errors import ConfigError
from megaladder.model.hf_config import ModelShape, padded_vocab_size
from megaladder.model.lora.spec import projections
from megaladder.plan.layout import OURS, PlannedLayout, Software, Work

GIB = 1024**3
FP32_BYTES = 4
# The block of logits that a fit is judged by: what the head starts with (LEAST_SCRATCH of
# kernels/linear_common.py). While memory is free it takes longer blocks, up to half of what is
# left; that room nobody else needs, so it is no reason for a layout not to fit.
HEAD_SCRATCH = 1200 << 20
# CUDA context, cuBLAS and Transformer Engine workspaces, NCCL buffers of a handful of groups
FRAMEWORK = 3 * GIB
FRAGMENTATION = 0.05  # of the rest: what the caching allocator holds and cannot use
SLEEPING_ENGINE = int(2.5 * GIB)  # vLLM at sleep level 1: its CUDA context and graphs stay


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on the fullest rank."""

    weights: int  # P × 2 (bf16, fp8) or × 4 (fp32)
    gradients: int  # P × 4: accumulated and reduced in fp32
    # P × 12 / (dp·cp) in bf16 (fp32 master copy and two moments, sharded), P × 8 / (dp·cp) in fp32
    optimizer: int
    # of the layers' weights and their transposes, 1 byte each, kept over the micro-batches of a
    # step; 0 unless fp8
    fp8_copies: int
    activations: int
    head: int  # the least block of logits, hidden states and their gradient; not T × V
    engine: int  # a colocated engine while it sleeps
    reserve: int  # framework and fragmentation; 0 where only our own tensors are asked for

    @property
    def states(self) -> int:
        """What stays on the GPU while a colocated engine generates."""
        return self.weights + self.gradients + self.optimizer + self.fp8_copies

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def by_part(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


def estimate_memory(
    shape: ModelShape,
    layout: PlannedLayout,
    work: Work,
    colocated_engine: bool = False,
    software: Software = OURS,
) -> MemoryEstimate:
    """The bytes of the fullest stage of a layout.

    That is the first pipeline stage (most micro-batches in flight) or the last (loss head)."""
    stages = [
        stage_memory(shape, layout, work, stage, software) for stage in sorted({0, layout.pp - 1})
    ]
    fullest = max(stages, key=lambda estimate: estimate.total)
    with_engine = replace(fullest, engine=SLEEPING_ENGINE if colocated_engine else 0)
    return replace(
        with_engine,
        reserve=FRAMEWORK
        + int(FRAGMENTATION * (fullest.states + fullest.activations + fullest.head)),
    )


@dataclass(frozen=True, slots=True)
class States:
    """Bytes that a rank of one pipeline stage keeps from step to step."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def expert_states(
    shape: ModelShape, layout: PlannedLayout, work: Work, expert_split: int, software: Software
) -> States:
    """Of a mixture of experts, on the fullest stage; activations are not in it.

    `expert_split`: the ep · etp ranks that a layer's experts are spread over; the others of a stage
    hold copies, over which the experts' optimizer is sharded."""
    ranks = layout.tp * layout.cp * layout.dp
    value_bytes = FP32_BYTES if work.precision == "fp32" else 2
    state_bytes = 8 if work.precision == "fp32" else software.optimizer_bytes
    found = []
    for stage in range(layout.pp):
        others, experts = stage_parameters(shape, layout, stage), 0
        if shape.moe is not None:
            sparse = [shape.is_sparse(layer) for layer in _layers_of(shape, layout, stage)]
            dense_mlp = 3 * shape.hidden_size * shape.ffn_hidden_size // layout.tp
            beside, routed = shape.moe.layer_parts(shape.hidden_size, layout.tp)
            others += sum(sparse) * (beside - dense_mlp)
            experts = sum(sparse) * routed // expert_split
        sharded = others / (layout.dp * layout.cp) + experts * expert_split / ranks
        held = others + experts
        found.append(States(held * value_bytes, held * FP32_BYTES, int(sharded * state_bytes)))
    return max(found, key=lambda states: states.total)


def _layers_of(shape: ModelShape, layout: PlannedLayout, stage: int) -> list[int]:
    """Layers of a stage; interleaved, a chunk of each round."""
    size = shape.num_layers // layout.chunks
    return [layer for layer in range(shape.num_layers) if layer // size % layout.pp == stage]


def require_dense(shape: ModelShape, asker: str) -> None:
    """Raises ConfigError for a mixture of experts: nothing here prices one yet."""
    if shape.moe is not None:
        raise ConfigError(
            f"{shape.family.title} is a mixture of experts, whose memory and traffic `{asker}` does"
            " not price yet; fix: a dense model, or `megaladder check`, which looks at the rest"
        )


def stage_layers(num_layers: int, pp: int, stage: int) -> int:
    """Layers of a stage.

    Where pp does not divide them, the last stage has fewer (megatron-core counts embedding and loss
    as layers)."""
    per_stage = -(-num_layers // pp)
    return per_stage if stage < pp - 1 else num_layers - (pp - 1) * per_stage


def layer_parameters(shape: ModelShape, tp: int) -> int:
    """Parameters of one layer on a rank.

    Matrices and query/key/value biases are split over tp, norms are not."""
    heads, groups, size = shape.num_attention_heads, shape.num_query_groups, shape.head_dim
    matrices = (
        shape.hidden_size * size * 2 * (heads + groups)
        + 3 * shape.hidden_size * shape.ffn_hidden_size
    )
    bias = size * (heads + 2 * groups) if shape.qkv_bias else 0
    norms = shape.norms_per_layer * shape.hidden_size
    if shape.qk_norm == "projection":
        return (matrices + bias + shape.qk_norm_size) // tp + norms
    return (matrices + bias) // tp + norms + shape.qk_norm_size


def stage_parameters(shape: ModelShape, layout: PlannedLayout, stage: int) -> int:
    """Parameters of a rank in this stage.

    Tied embeddings: the last stage holds a copy of its own when there is more than one."""
    table = padded_vocab_size(shape.vocab_size, layout.tp) // layout.tp * shape.hidden_size
    first, last = stage == 0, stage == layout.pp - 1
    tables = int(first) + int(last and not (shape.tied and first))
    return (
        stage_layers(shape.num_layers, layout.pp, stage) * layer_parameters(shape, layout.tp)
        + tables * table
        + last * shape.hidden_size
    )


def adapter_parameters(shape: ModelShape, layout: PlannedLayout, work: Work, stage: int) -> int:
    """Adapters' parameters of a rank in this stage.

    The matrix on the side that tensor parallelism does not split is whole on every rank."""
    if work.adapters is None:
        return 0
    per_layer, tp = 0, layout.tp
    for linear, projection in projections(shape, work.adapters):
        rows, columns = projection.rows, projection.columns
        split = (rows // tp, columns) if linear.split == "column" else (rows, columns // tp)
        per_layer += work.adapters.rank * sum(split)
    return stage_layers(shape.num_layers, layout.pp, stage) * per_layer


def micro_batch_tokens(layout: PlannedLayout, work: Work) -> int:
    """T."""
    return layout.micro_batch_size * work.seq_length // layout.cp


def stage_memory(
    shape: ModelShape, layout: PlannedLayout, work: Work, stage: int, software: Software = OURS
) -> MemoryEstimate:
    """A rank of one pipeline stage, without engine and reserve."""
    parameters = stage_parameters(shape, layout, stage)
    value_bytes = FP32_BYTES if work.precision == "fp32" else 2
    state_bytes = 8 if work.precision == "fp32" else software.optimizer_bytes
    adapters = adapter_parameters(shape, layout, work, stage)
    trained = adapters if work.lora else parameters
    quantized = (
        stage_layers(shape.num_layers, layout.pp, stage) * layer_parameters(shape, layout.tp)
        if work.precision == "fp8"
        else 0
    )
    return MemoryEstimate(
        weights=(parameters + adapters) * value_bytes
        - (2 * quantized if software.fp8_params else 0),
        gradients=trained * FP32_BYTES,
        optimizer=int(trained * state_bytes // (layout.dp * layout.cp)),
        fp8_copies=2 * quantized,
        activations=_activation_bytes(shape, layout, work, stage),
        head=_head_bytes(shape, layout, work, value_bytes) if stage == layout.pp - 1 else 0,
        engine=0,
        reserve=0,
    )


def layer_activation_bytes(shape: ModelShape, layout: PlannedLayout, work: Work) -> float:
    """What one layer keeps for backward per token.

    Inputs of its norms and of its linears, q, k, v (before their norms too, where they have them),
    the attention's output, the gated MLP's two halves and their product. No score matrix: attention
    is fused, so `selective` saves nothing more here. In FP8 the inputs of the linear layers are
    kept in one byte.
    """
    hidden, split = shape.hidden_size, layout.sequence_split
    attention, keys = (
        shape.num_attention_heads * shape.head_dim,
        shape.num_query_groups * shape.head_dim,
    )
    linear_inputs = 2 * hidden / split + (attention + shape.ffn_hidden_size) / layout.tp
    normed = attention + keys if shape.qk_norm else 0
    others = (
        shape.norms_per_layer * hidden / split
        + (attention + 2 * keys + normed + 2 * shape.ffn_hidden_size) / layout.tp
    )
    value_bytes = FP32_BYTES if work.precision == "fp32" else 2
    return linear_inputs * (1 if work.precision == "fp8" else value_bytes) + others * value_bytes


def micro_batches_in_flight(layout: PlannedLayout, work: Work, stage: int) -> float:
    """Forward passes whose activations a stage holds, never more than a step has.

    1F1B keeps pp − stage of them. Interleaved, megatron-core warms up with 2·(pp − stage − 1) +
    (vpp − 1)·pp chunks and holds one more, each 1/vpp of a stage; on the first stage that is
    pp·(1 + (pp − 1)/(pp·vpp)) (arXiv 2205.05198 §4.2.3).
    """
    held: float = layout.pp - stage
    if layout.vpp:
        chunks = 2 * (layout.pp - stage - 1) + (layout.vpp - 1) * layout.pp + 1
        held = chunks / layout.vpp
    return min(held, work.micro_batches(layout))


def _activation_bytes(shape: ModelShape, layout: PlannedLayout, work: Work, stage: int) -> int:
    """Kept by all micro-batches in flight, and one layer at work.

    Gathered hidden states, the MLP's gradients."""
    tokens, value_bytes = (
        micro_batch_tokens(layout, work),
        FP32_BYTES if work.precision == "fp32" else 2,
    )
    per_layer = layer_activation_bytes(shape, layout, work)
    at_work = (2 * shape.hidden_size + 3 * shape.ffn_hidden_size / layout.tp) * value_bytes
    kept = per_layer
    if layout.recompute == "full":
        kept, at_work = shape.hidden_size / layout.sequence_split * value_bytes, at_work + per_layer
    layers = stage_layers(shape.num_layers, layout.pp, stage) * micro_batches_in_flight(
        layout, work, stage
    )
    return int(tokens * (layers * kept + at_work))


def _head_bytes(shape: ModelShape, layout: PlannedLayout, work: Work, value_bytes: int) -> int:
    """Bytes that the loss head needs at once.

    A chunk of logits within the scratch budget, the hidden states gathered over tp and their
    gradient, four fp32 numbers a token."""
    tokens = micro_batch_tokens(layout, work)
    logits = tokens * padded_vocab_size(shape.vocab_size, layout.tp) // layout.tp * FP32_BYTES
    return min(HEAD_SCRATCH, logits) + tokens * (
        2 * shape.hidden_size * value_bytes + 4 * FP32_BYTES
    )
