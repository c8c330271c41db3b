"""Bytes per GPU of a training layout, by part: closed formulas.

`check`, the search and docs/plan.md all read these.

Counted: states of megatron-core's distributed optimizer, what autograd keeps (1F1B and
interleaved), the loss head, a reserve for the framework and the allocator, the sleeping engine of a
colocated GRPO run. Not counted: checkpoint staging, other processes on the GPU. Activations are
those of fused layers (Transformer Engine). The portable layers of a CPU keep about twice as much:
unfused norms and gating save fp32 copies of their inputs (tests/plan/test_measured.py).

Legend: P parameters of the rank, T tokens of a micro-batch on the rank, H hidden size, A heads ·
head_dim, K groups · head_dim (of experts: how many a token is sent to), F feed-forward size, V
vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

from megaladder.model.hf_config import ModelShape, padded_vocab_size
from megaladder.model.lora.spec import FusedLinear, LoraSpec, adapted_linears
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


def stage_layers(num_layers: int, pp: int, stage: int) -> int:
    """Layers of a stage.

    Where pp does not divide them, the last stage has fewer (megatron-core counts embedding and loss
    as layers)."""
    per_stage = -(-num_layers // pp)
    return per_stage if stage < pp - 1 else num_layers - (pp - 1) * per_stage


def layers_of(shape: ModelShape, layout: PlannedLayout, stage: int) -> list[int]:
    """Layers of a stage; interleaved, a chunk of each round."""
    if shape.num_layers % layout.chunks:
        first = -(-shape.num_layers // layout.pp) * stage
        return list(range(first, first + stage_layers(shape.num_layers, layout.pp, stage)))
    size = shape.num_layers // layout.chunks
    return [layer for layer in range(shape.num_layers) if layer // size % layout.pp == stage]


def sparse_layers(shape: ModelShape, layout: PlannedLayout, stage: int) -> int:
    """How many layers of a stage have experts."""
    return sum(shape.is_sparse(layer) for layer in layers_of(shape, layout, stage))


def layer_parameters(shape: ModelShape, tp: int, sparse: bool = False) -> int:
    """Parameters of one layer on a rank, those of routed experts left out.

    Matrices and query/key/value biases are split over tp, norms and the router are not."""
    heads, groups, size = shape.num_attention_heads, shape.num_query_groups, shape.head_dim
    matrices = shape.hidden_size * size * 2 * (heads + groups)
    beside = 0
    if sparse and shape.moe is not None:
        beside, _ = shape.moe.layer_parts(shape.hidden_size, tp)
    else:
        matrices += 3 * shape.hidden_size * shape.ffn_hidden_size
    bias = size * (heads + 2 * groups) if shape.qkv_bias else 0
    norms = shape.norms_per_layer * shape.hidden_size + beside
    if shape.qk_norm == "projection":
        return (matrices + bias + shape.qk_norm_size) // tp + norms
    return (matrices + bias) // tp + norms + shape.qk_norm_size


@dataclass(frozen=True, slots=True)
class Parameters:
    """Of a rank: `layers` and `tables` are sharded over dp · cp, `experts` over their copies."""

    layers: int
    tables: int  # embedding, head, last norm
    experts: int

    @property
    def total(self) -> int:
        return self.layers + self.tables + self.experts

    def shard(self, layout: PlannedLayout) -> float:
        """Parameters whose optimizer states the rank holds."""
        others = (self.layers + self.tables) / (layout.dp * layout.cp)
        return others + self.experts / layout.expert_copies


def stage_parameters(shape: ModelShape, layout: PlannedLayout, stage: int) -> Parameters:
    """Parameters of a rank in this stage.

    Tied embeddings: the last stage holds a copy of its own when there is more than one."""
    table = padded_vocab_size(shape.vocab_size, layout.tp) // layout.tp * shape.hidden_size
    first, last = stage == 0, stage == layout.pp - 1
    tables = int(first) + int(last and not (shape.tied and first))
    sparse = sparse_layers(shape, layout, stage)
    dense = stage_layers(shape.num_layers, layout.pp, stage) - sparse
    experts = 0
    if shape.moe is not None:
        _, routed = shape.moe.layer_parts(shape.hidden_size, layout.tp)
        experts = sparse * routed // (layout.ep * layout.etp)
    return Parameters(
        dense * layer_parameters(shape, layout.tp)
        + sparse * layer_parameters(shape, layout.tp, sparse=True),
        tables * table + last * shape.hidden_size,
        experts,
    )


def adapter_parameters(
    shape: ModelShape, layout: PlannedLayout, work: Work, stage: int
) -> Parameters:
    """Adapters' parameters of a rank in this stage.

    The matrix on the side that tensor parallelism does not split is whole on every rank."""
    spec, beside, experts = work.adapters, 0, 0
    if spec is None:
        return Parameters(0, 0, 0)
    for layer in layers_of(shape, layout, stage):
        for linear in adapted_linears(shape, spec, layer):
            if linear.of_experts and shape.moe is not None:
                held = shape.moe.num_experts // layout.ep
                experts += held * _linear_adapter(linear, spec, layout.etp)
            else:
                beside += _linear_adapter(linear, spec, layout.tp)
    return Parameters(beside, 0, experts)


def _linear_adapter(linear: FusedLinear, spec: LoraSpec, split: int) -> int:
    """Parameters on a rank of the adapters of one linear that is cut into `split`."""
    total = 0
    for projection in linear.projections:
        if projection.name in spec.targets:
            rows, columns = projection.rows, projection.columns
            column = linear.split == "column"
            total += rows // split + columns if column else rows + columns // split
    return spec.rank * total


def micro_batch_tokens(layout: PlannedLayout, work: Work) -> int:
    """T."""
    return layout.micro_batch_size * work.seq_length // layout.cp


def stage_memory(
    shape: ModelShape, layout: PlannedLayout, work: Work, stage: int, software: Software = OURS
) -> MemoryEstimate:
    """A rank of one pipeline stage, without engine and reserve."""
    held = stage_parameters(shape, layout, stage)
    value_bytes = FP32_BYTES if work.precision == "fp32" else 2
    state_bytes = 8 if work.precision == "fp32" else software.optimizer_bytes
    adapters = adapter_parameters(shape, layout, work, stage)
    trained = adapters if work.lora else held
    quantized = held.layers + held.experts if work.precision == "fp8" else 0
    return MemoryEstimate(
        weights=(held.total + adapters.total) * value_bytes
        - (2 * quantized if software.fp8_params else 0),
        gradients=trained.total * FP32_BYTES,
        optimizer=int(trained.shard(layout) * state_bytes),
        fp8_copies=2 * quantized,
        activations=_activation_bytes(shape, layout, work, stage),
        head=_head_bytes(shape, layout, work, value_bytes) if stage == layout.pp - 1 else 0,
        engine=0,
        reserve=0,
    )


def routed_tokens(shape: ModelShape, layout: PlannedLayout, work: Work) -> float:
    """Tokens that a rank's experts get from a micro-batch, over the tokens T of the rank.

    K experts of each of the T / tp that a rank routes, gathered over etp; on the busiest rank
    `imbalance` times as many."""
    if shape.moe is None:
        return 0.0
    return shape.moe.top_k * layout.etp * work.imbalance / layout.sequence_split


def layer_activation_bytes(
    shape: ModelShape, layout: PlannedLayout, work: Work, sparse: bool = False
) -> float:
    """What one layer keeps for backward per token.

    Inputs of its norms and of its linears, q, k, v (before their norms too, where they have them),
    the attention's output, the gated MLP's two halves and their product; of experts the same for
    every token that reaches them, the router's input and its logits and scores in fp32. No score
    matrix: attention is fused, so `selective` saves nothing more here. In FP8 the inputs of the
    linear layers are kept in one byte.
    """
    hidden, split = shape.hidden_size, layout.sequence_split
    attention, keys = (
        shape.num_attention_heads * shape.head_dim,
        shape.num_query_groups * shape.head_dim,
    )
    ffn, experts, router = shape.ffn_hidden_size / layout.tp, 0.0, 0.0
    if sparse and shape.moe is not None:
        routed, width = routed_tokens(shape, layout, work), shape.moe.ffn_hidden_size / layout.etp
        ffn, experts = shape.moe.shared_ffn_size / layout.tp + routed * width, routed * hidden
        router = 2 * FP32_BYTES * shape.moe.num_experts / split
    linear_inputs = 2 * hidden / split + attention / layout.tp + ffn + experts
    normed = attention + keys if shape.qk_norm else 0
    others = (
        shape.norms_per_layer * hidden / split
        + (attention + 2 * keys + normed) / layout.tp
        + 2 * ffn
    )
    value_bytes = FP32_BYTES if work.precision == "fp32" else 2
    input_bytes = 1 if work.precision == "fp8" else value_bytes
    return linear_inputs * input_bytes + others * value_bytes + router


def working_bytes(shape: ModelShape, layout: PlannedLayout, work: Work, sparse: bool) -> float:
    """What one layer at work holds beside that, per token.

    Hidden states gathered over tp and their gradient, three gradients of the MLP's width; of
    experts the tokens that are sent and come, and their gradients, twice each."""
    value_bytes = FP32_BYTES if work.precision == "fp32" else 2
    if not sparse or shape.moe is None:
        return (2 * shape.hidden_size + 3 * shape.ffn_hidden_size / layout.tp) * value_bytes
    routed = routed_tokens(shape, layout, work)
    width = 3 * shape.moe.ffn_hidden_size / layout.etp + 4 * shape.hidden_size
    shared = 3 * shape.moe.shared_ffn_size / layout.tp
    return (2 * shape.hidden_size + shared + routed * width) * value_bytes


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
    """Kept by all micro-batches in flight, and one layer at work, that which holds most."""
    value_bytes = FP32_BYTES if work.precision == "fp32" else 2
    sparse = sparse_layers(shape, layout, stage)
    layers = {True: sparse, False: stage_layers(shape.num_layers, layout.pp, stage) - sparse}
    kept, at_work = 0.0, 0.0
    for kind, count in layers.items():
        per_layer = layer_activation_bytes(shape, layout, work, kind)
        working = working_bytes(shape, layout, work, kind)
        if layout.recompute == "full":
            working += per_layer
            per_layer = shape.hidden_size / layout.sequence_split * value_bytes
        kept += count * per_layer
        at_work = max(at_work, working if count else 0.0)
    in_flight = micro_batches_in_flight(layout, work, stage)
    return int(micro_batch_tokens(layout, work) * (in_flight * kept + at_work))


def _head_bytes(shape: ModelShape, layout: PlannedLayout, work: Work, value_bytes: int) -> int:
    """Bytes that the loss head needs at once.

    A chunk of logits within the scratch budget, the hidden states gathered over tp and their
    gradient, four fp32 numbers a token."""
    tokens = micro_batch_tokens(layout, work)
    logits = tokens * padded_vocab_size(shape.vocab_size, layout.tp) // layout.tp * FP32_BYTES
    return min(HEAD_SCRATCH, logits) + tokens * (
        2 * shape.hidden_size * value_bytes + 4 * FP32_BYTES
    )
