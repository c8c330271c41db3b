"""Seconds of one training step, by part, on the pipeline stage that takes longest.

Closed formulas with a few fitted numbers.

A matrix product takes its FLOPs at a fraction of the peak plus its bytes at the memory's speed (so
small ones are slow by themselves); element-wise work is bytes; attention is FLOPs; a collective is
bytes over its link, and a share of it hides under computation. Fitted: the `Calibration`
(calibration.yaml, written by tools/study/calibrate_plan.py). Not modelled: stragglers, data
loading, checkpoint pauses.

Legend: T tokens of a micro-batch on the rank, H hidden size, A heads · head_dim, K groups ·
head_dim, F feed-forward size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cache

from megaladder.config.strict_yaml import load_yaml
from megaladder.model.hf_config import ModelShape
from megaladder.plan.experts import (
    ExpertCalibration,
    Passes,
    cast_widths,
    expert_calibration,
    expert_parts,
    waited_for_host,
)
from megaladder.plan.hardware import HERE, Gpu
from megaladder.plan.layout import OURS, PlannedLayout, Software, Work
from megaladder.plan.memory import micro_batch_tokens, sparse_layers, stage_layers, stage_parameters

# What is done again in backward, as a share of the forward: (products, attention, element-wise).
_AGAIN = {
    "none": (0.0, 0.0, 0.0),
    "selective": (0.0, 1.0, 0.0),
    "full": (1.0, 1.0, 1.0),
    "elementwise": (0.0, 0.0, 1.0),
    "selective_op": (0.5, 0.0, 1.0),
}
# FlashAttention forms the scores again: five products against two (arXiv 2205.14135)
_ATTENTION_BACKWARD = 2.5
_ELEMENTWISE_BACKWARD = 1.5
# per value of a linear layer's input, and of its output's gradient: read for the maximum, read,
# write, write transposed (Hopper's FP8 products take one layout only)
_FP8_CAST_BYTES = 6
# per logit with ours: fp32 chunk out, read for statistics, read and overwritten by its bf16
# gradient
_FUSED_LOGIT_BYTES = 14
# per logit without a fused head: bf16 out, fp32 copy, maximum, sum, gradient
_UNFUSED_LOGIT_BYTES = 20
# of a ring's latency per node that it passes: adapter, switch, NCCL's protocol (an assumption, not
# fitted)
_HOP_S = 1e-5
# megatron-core's DDP: a bucket holds max(40 M, 1 M · dp) parameters, to hide that latency
_BUCKET_PARAMETERS, _BUCKET_PER_RANK = (40e6, 1e6)
# per parameter of the shard and step, as profiled on an H200: AdamW on fp32 gradient, master copy
# and two moments (28), norm (4), clipping (8), master copy to bf16 weight (6)
_OPTIMIZER_BYTES = 46
# per parameter of the rank: its gradient buffer is set to zero
_ZERO_BYTES = 4


@dataclass(frozen=True, slots=True)
class Calibration:
    """The fitted numbers, each with a meaning; shares are between 0 and 1."""

    # share of the best bf16 matrix product that those of a training step reach (its bytes come on
    # top)
    gemm_bf16: float
    gemm_fp8: float  # the same in FP8; casts not included
    attention: float  # share of the best fused attention's forward that forward and backward reach
    memory: float  # share of the memory's bandwidth that element-wise kernels reach
    link: float  # share of a link's bandwidth that a collective reaches
    # share of data-, context- and pipeline-parallel traffic that hides under computation
    overlap: float
    # share of tensor-parallel traffic that hides under the matrix products, where the software
    # overlaps it
    tp_overlap: float
    layer_overhead_s: float  # per layer and micro-batch, forward and backward: launches, waits
    # element-wise traffic without a compiler or fused kernels, as a multiple of that with them
    eager: float


@cache
def calibration() -> Calibration:
    """The numbers in calibration.yaml."""
    return Calibration(**load_yaml(HERE / "calibration.yaml").values["training"])


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step by part; they add up to the step."""

    gemm: float
    attention: float
    elementwise: float
    head: float
    tp_comm: float
    cp_comm: float
    ep_comm: float
    pp_comm: float
    dp_comm: float
    bubble: float
    optimizer: float
    overhead: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    def by_part(self) -> dict[str, float]:
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a time depends on besides model, layout and work."""

    gpu: Gpu
    software: Software = OURS
    fitted: Calibration | None = None  # None: calibration.yaml
    fitted_experts: ExpertCalibration | None = None

    @property
    def numbers(self) -> Calibration:
        return self.fitted or calibration()

    @property
    def expert_numbers(self) -> ExpertCalibration:
        return self.fitted_experts or expert_calibration()

    def product_s(self, tokens: float, width_in: float, width_out: float, precision: str) -> float:
        """One matrix product [tokens, width_in] × [width_in, width_out]."""
        share = self.numbers.gemm_fp8 if precision == "fp8" else self.numbers.gemm_bf16
        value_bytes = 1 if precision == "fp8" else 2
        moved = value_bytes * (tokens * width_in + width_in * width_out) + 2 * tokens * width_out
        return 2 * tokens * width_in * width_out / (
            self.gpu.matmul(precision) * share
        ) + self.bytes_s(moved)

    def bytes_s(self, num_bytes: float) -> float:
        """Bytes through the GPU's memory."""
        return num_bytes / (self.gpu.memory_gb_s * 1e9 * self.numbers.memory)

    def collective_s(self, num_bytes: float, group: int, stride: int) -> float:
        """All-gather or reduce-scatter of `num_bytes` (the whole) over a group.

        0 for a group of one."""
        if group == 1:
            return 0.0
        return (
            num_bytes
            * (group - 1)
            / group
            / (self.gpu.link_bytes_per_s(group, stride) * self.numbers.link)
        )


def bubble_share(pp: int, vpp: int | None, micro_batches: int) -> float:
    """Idle time over useful time of a pipeline.

    (pp − 1) / (vpp · micro-batches) (arXiv 2104.04473 §2.2)."""
    return (pp - 1) / ((vpp or 1) * micro_batches)


def step_time(shape: ModelShape, layout: PlannedLayout, work: Work, machine: Cluster) -> StepTime:
    """One optimizer step."""
    parts = max(
        (_micro_batch(shape, layout, work, machine, stage) for stage in sorted({0, layout.pp - 1})),
        key=lambda p: sum(p.values()),
    )
    count = work.micro_batches(layout)
    busy = {name: seconds * count for name, seconds in parts.items()}
    return StepTime(
        **busy,
        dp_comm=_data_parallel(shape, layout, work, machine),
        bubble=sum(busy.values()) * bubble_share(layout.pp, layout.vpp, count),
        optimizer=_optimizer(shape, layout, work, machine),
    )


def forward_time(shape: ModelShape, layout: PlannedLayout, work: Work, machine: Cluster) -> float:
    """Seconds of a pass over the step's tokens without backward (log-probs).

    A third of the products, no recomputation."""
    parts = _stage_layers(shape, layout, work, machine, 0, backward=False)
    head = _head(shape, layout, work, machine, backward=False)
    per_micro_batch = sum(parts.values()) + head
    count = work.micro_batches(layout)
    return per_micro_batch * count * (1 + (layout.pp - 1) / count)


def _micro_batch(
    shape: ModelShape, layout: PlannedLayout, work: Work, machine: Cluster, stage: int
) -> dict[str, float]:
    """Forward and backward of one micro-batch on a stage, by part."""
    parts = _stage_layers(shape, layout, work, machine, stage)
    parts["head"] = _head(shape, layout, work, machine) if stage == layout.pp - 1 else 0.0
    parts["pp_comm"] = _pipeline(shape, layout, work, machine)
    return parts


def _stage_layers(
    shape: ModelShape,
    layout: PlannedLayout,
    work: Work,
    machine: Cluster,
    stage: int,
    backward: bool = True,
) -> dict[str, float]:
    """All layers of a stage, one micro-batch."""
    sparse = sparse_layers(shape, layout, stage)
    dense = stage_layers(shape.num_layers, layout.pp, stage) - sparse
    passes = _passes(layout, work, backward)
    kinds = [
        (count, _layer(shape, layout, work, machine, passes, kind))
        for kind, count in ((False, dense), (True, sparse))
        if count
    ]
    names = kinds[0][1]
    return {name: sum(count * parts[name] for count, parts in kinds) for name in names}


def _passes(layout: PlannedLayout, work: Work, backward: bool) -> Passes:
    """By what is computed again, and by whether weights have gradients."""
    if not backward:
        return Passes(1, 1, 1, 1, backward=False)
    products, attention, elementwise = _AGAIN[layout.recompute]
    return Passes(
        products=1 + products + (1 if work.lora else 2),
        attention=1 + attention + _ATTENTION_BACKWARD,
        elementwise=1 + elementwise + _ELEMENTWISE_BACKWARD,
        sent=2 + (1 if layout.recompute == "full" else 0),
        backward=True,
    )


def _layer(
    shape: ModelShape,
    layout: PlannedLayout,
    work: Work,
    machine: Cluster,
    passes: Passes,
    sparse: bool,
) -> dict[str, float]:
    """One layer, one micro-batch."""
    numbers, tokens = machine.numbers, micro_batch_tokens(layout, work)
    heads_size = shape.num_attention_heads * shape.head_dim
    # two products over half the context: 2 · 2 · T · context/2 · A
    scores = 2 * tokens * shape.layer_context(work.context) * heads_size / layout.tp
    ffn = _passed_by_all(shape, sparse)
    linears = _linears(shape, layout.tp, ffn)
    parts = {
        "gemm": passes.products
        * sum(machine.product_s(tokens, *sizes, work.precision) for sizes in linears),
        "attention": (
            passes.attention
            * scores
            / (machine.gpu.attention(machine.software.flash2) * numbers.attention)
        ),
        "elementwise": (
            passes.elementwise
            * machine.bytes_s(_elementwise_bytes(shape, layout, work, machine, ffn))
            + machine.bytes_s(_cast_bytes(shape, layout, work, passes.backward, sparse))
        ),
        "tp_comm": _tensor_parallel(shape, layout, work, machine, passes, len(linears) // 2),
        "cp_comm": _context_parallel(shape, layout, work, machine, passes.backward),
        "ep_comm": 0.0,
        "overhead": numbers.layer_overhead_s * (1 if passes.backward else 1 / 3),
    }
    if sparse:
        for name, seconds in expert_parts(shape, layout, work, machine, passes).items():
            parts[name] += seconds
        parts["overhead"] += waited_for_host(sum(parts.values()), machine, passes.backward)
    return parts


def _passed_by_all(shape: ModelShape, sparse: bool) -> int:
    """Width of the MLP that every token passes: a dense layer's, or the shared expert's."""
    if sparse and shape.moe is not None:
        return shape.moe.shared_ffn_size
    return shape.ffn_hidden_size


def _compute(work: Work) -> str:
    """Precision of attention and head: FP8 is for linear layers only."""
    return "fp32" if work.precision == "fp32" else "bf16"


def _linears(shape: ModelShape, tp: int, ffn: float) -> list[tuple[float, float]]:
    """(in, out) of a layer's linear layers on one rank: two of attention, two of an MLP."""
    hidden, size = shape.hidden_size, shape.head_dim
    attention, keys = shape.num_attention_heads * size, shape.num_query_groups * size
    linears = [(hidden, (attention + 2 * keys) / tp), (attention / tp, hidden)]
    return [*linears, (hidden, 2 * ffn / tp), (ffn / tp, hidden)] if ffn else linears


def _elementwise_bytes(
    shape: ModelShape, layout: PlannedLayout, work: Work, machine: Cluster, ffn: float
) -> float:
    """Forward traffic of norms, residuals, rotary embedding and gating.

    Reads and writes, 2 bytes a value."""
    tokens, hidden = micro_batch_tokens(layout, work), shape.hidden_size / layout.sequence_split
    attention = shape.num_attention_heads * shape.head_dim / layout.tp
    keys = shape.num_query_groups * shape.head_dim / layout.tp
    norms_and_residuals, rotary_and_norms, gating = (
        (shape.norms_per_layer * 2 + 2 * 3) * hidden,
        (4 if shape.qk_norm else 2) * (attention + keys),
        3 * ffn / layout.tp,
    )
    traffic = (
        2
        * (norms_and_residuals + rotary_and_norms + gating)
        * (1.0 if machine.software.compiled else machine.numbers.eager)
    )
    return tokens * traffic


def _cast_bytes(
    shape: ModelShape, layout: PlannedLayout, work: Work, backward: bool, sparse: bool
) -> float:
    """Bytes of the casts of FP8.

    Inputs of the linear layers are cast in forward, the gradients of their outputs in backward.
    The side that tensor parallelism does not split is cast whole."""
    if work.precision != "fp8":
        return 0.0
    sizes = _linears(shape, layout.tp, _passed_by_all(shape, sparse))
    widths = sum(width_in for width_in, _ in sizes)
    if backward:
        widths += sum(width_out for _, width_out in sizes)
    if sparse:
        widths += cast_widths(shape, layout, work, backward)
    return _FP8_CAST_BYTES * micro_batch_tokens(layout, work) * widths


def _head(
    shape: ModelShape, layout: PlannedLayout, work: Work, machine: Cluster, backward: bool = True
) -> float:
    """The loss head of the last stage.

    Three products with the vocabulary (two with frozen weights, one forward only), and its logits.
    """
    tokens, columns = micro_batch_tokens(layout, work), shape.vocab_size / layout.tp
    passes = 1 + ((1 if work.lora else 2) if backward else 0)
    logits = (_FUSED_LOGIT_BYTES if machine.software.fused_head else _UNFUSED_LOGIT_BYTES) * (
        1 if backward else 0.5
    )
    return passes * machine.product_s(
        tokens, shape.hidden_size, columns, _compute(work)
    ) + machine.bytes_s(tokens * columns * logits)


def _tensor_parallel(
    shape: ModelShape,
    layout: PlannedLayout,
    work: Work,
    machine: Cluster,
    passes: Passes,
    blocks: int,
) -> float:
    """A layer's collectives that do not hide: a gather and a scatter of [T, H] a block and pass.

    Attention is a block, an MLP that every token passes another; routed experts take a rank's own
    tokens. Weight gradients gather a block's input again."""
    # the weight gradient's pass has no scatter
    weights = passes.backward and not work.lora
    collectives = 2 * (passes.products - 1 if weights else passes.products) + weights
    whole = 2 * micro_batch_tokens(layout, work) * shape.hidden_size
    hidden_share = machine.numbers.tp_overlap if machine.software.tp_overlap else 0.0
    return blocks * collectives * machine.collective_s(whole, layout.tp, 1) * (1 - hidden_share)


def _context_parallel(
    shape: ModelShape, layout: PlannedLayout, work: Work, machine: Cluster, backward: bool
) -> float:
    """Keys and values travel round the ring once, in backward with their gradients."""
    whole = (
        2
        * layout.cp
        * micro_batch_tokens(layout, work)
        * 2
        * shape.num_query_groups
        * shape.head_dim
        / layout.tp
    )
    rounds = 3 if backward else 1
    return (
        rounds * machine.collective_s(whole, layout.cp, layout.tp) * (1 - machine.numbers.overlap)
    )


def _pipeline(shape: ModelShape, layout: PlannedLayout, work: Work, machine: Cluster) -> float:
    """Hidden states to the next stage and their gradient back, once per chunk.

    Each GPU over its own adapter once stages leave the node."""
    if layout.pp == 1:
        return 0.0
    inside = layout.gpus <= machine.gpu.gpus_per_node
    link = (
        (machine.gpu.nvlink_gb_s if inside else machine.gpu.network_gb_s)
        * 1e9
        * machine.numbers.link
    )
    sent = 2 * micro_batch_tokens(layout, work) * shape.hidden_size / layout.sequence_split
    return 2 * (layout.vpp or 1) * sent / link * (1 - machine.numbers.overlap)


def _data_parallel(shape: ModelShape, layout: PlannedLayout, work: Work, machine: Cluster) -> float:
    """Gradients scattered and parameters gathered over dp·cp, those of experts over their copies.

    Once a step; FSDP gathers twice and scatters once per micro-batch."""
    held = stage_parameters(shape, layout, 0)
    seconds = _reduced(
        held.layers + held.tables, layout.dp * layout.cp, layout.tp, work, layout, machine
    )
    if held.experts:
        stride = layout.ep * layout.etp
        seconds += _reduced(held.experts, layout.expert_copies, stride, work, layout, machine)
    return seconds


def _reduced(
    parameters: int, group: int, stride: int, work: Work, layout: PlannedLayout, machine: Cluster
) -> float:
    """Of so many parameters over a group whose ranks are `stride` apart, what does not hide."""
    gathers, scatters, rounds = (
        (2, 1, work.micro_batches(layout)) if machine.software.fsdp else (1, 1, 1)
    )
    if work.lora:
        gathers, scatters = (gathers, 0) if machine.software.fsdp else (0, 0)
    volume = parameters * (2 * gathers + machine.software.grad_bytes * scatters)
    nodes = -(-group * stride // machine.gpu.gpus_per_node)
    buckets = max(1.0, parameters / max(_BUCKET_PARAMETERS, _BUCKET_PER_RANK * group))
    latency = (gathers + scatters) * buckets * (nodes - 1) * _HOP_S
    return (
        rounds
        * (machine.collective_s(volume, group, stride) + latency)
        * (1 - machine.numbers.overlap)
    )


def _optimizer(shape: ModelShape, layout: PlannedLayout, work: Work, machine: Cluster) -> float:
    """AdamW, norm and clipping on this rank's shard, and its gradients set to zero."""
    if work.lora:
        return 0.0
    held = stage_parameters(shape, layout, 0)
    return machine.bytes_s(held.shard(layout) * _OPTIMIZER_BYTES + held.total * _ZERO_BYTES)
