"""Seconds of what a layer with experts does beside attention, by part.

A token is routed, its hidden state is sent to its K experts, which lie on ep ranks, multiplied
there, and sent back. Products are grouped: one launch for all experts of a rank, each with its own
few tokens. Bytes of the all-to-all are counted over the link that each token takes; it takes as
long as the slower one. Fitted: the `ExpertCalibration` (calibration.yaml), by published mixtures of
experts, with what dense runs say of everything else held fixed.

Legend: t tokens that the rank routes (T / tp), H hidden size, E experts, K experts of a token, F
feed-forward size of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from megaladder.config.strict_yaml import load_yaml
from megaladder.model.hf_config import ModelShape
from megaladder.plan.hardware import HERE
from megaladder.plan.layout import PlannedLayout, Work
from megaladder.plan.memory import micro_batch_tokens, routed_tokens

if TYPE_CHECKING:
    from megaladder.plan.throughput import Cluster

# of K·H values a token, forward: gathered into the order of experts, sorted by local expert after
# the all-to-all, both back, each read and written; a fused dispatch gathers while it sends
_PERMUTATION, _FUSED_PERMUTATION = 8, 4
# fp32 values a token and expert, forward: logits, scores, the K largest, the map, counts, backward's
_ROUTER = 8


@dataclass(frozen=True, slots=True)
class ExpertCalibration:
    """The fitted numbers of experts, each with a meaning; shares are between 0 and 1."""

    # share of the rate of an ordinary product that grouped ones of the same sizes reach
    grouped: float
    all_to_all: float  # share of a link's bandwidth that an all-to-all reaches
    # the least that a layer takes, forward and backward, however few its tokens: the host starts some
    # hundred kernels and waits for the counts of tokens
    host_s: float
    overlap_host: float  # the same where traffic is overlapped, as a multiple
    decode_layer_s: float  # of an engine's decoding step, per layer: routing and grouped products


@cache
def expert_calibration() -> ExpertCalibration:
    """The numbers in calibration.yaml."""
    return ExpertCalibration(**load_yaml(HERE / "calibration.yaml").values["experts"])


@dataclass(frozen=True, slots=True)
class Passes:
    """How often each kind of work is done for a micro-batch, in units of a forward."""

    products: float
    attention: float
    elementwise: float
    sent: float  # dispatch and combination together, as their gradients are
    backward: bool


def expert_parts(
    shape: ModelShape, layout: PlannedLayout, work: Work, machine: Cluster, passes: Passes
) -> dict[str, float]:
    """One sparse layer, one micro-batch: seconds of products, element-wise work and traffic."""
    hidden = machine.numbers.overlap if machine.software.ep_overlap else 0.0
    return {
        "gemm": passes.products * _products(shape, layout, work, machine),
        "elementwise": passes.elementwise
        * machine.bytes_s(_elementwise_bytes(shape, layout, work, machine)),
        "ep_comm": passes.sent * (1 - hidden) * _sent(shape, layout, work, machine),
    }


def waited_for_host(busy: float, machine: Cluster, backward: bool) -> float:
    """Seconds that the GPU idles in a sparse layer whose own work takes `busy`."""
    numbers = machine.expert_numbers
    least = numbers.host_s * (numbers.overlap_host if machine.software.ep_overlap else 1)
    return max(0.0, least * (1 if backward else 1 / 3) - busy)


def cast_widths(shape: ModelShape, layout: PlannedLayout, work: Work, backward: bool) -> float:
    """Values a token of the rank that FP8 casts for routed experts."""
    assert shape.moe is not None
    width = shape.moe.ffn_hidden_size / layout.etp
    inputs, gradients = shape.hidden_size + width, 2 * width + shape.hidden_size
    return routed_tokens(shape, layout, work) * (inputs + (gradients if backward else 0.0))


def _products(shape: ModelShape, layout: PlannedLayout, work: Work, machine: Cluster) -> float:
    """The router's product, and the two grouped ones of all experts of the rank."""
    moe = shape.moe
    assert moe is not None
    tokens, width = micro_batch_tokens(layout, work), moe.ffn_hidden_size / layout.etp
    local = moe.num_experts / layout.ep
    each = tokens * routed_tokens(shape, layout, work) / local
    grouped = local * (
        machine.product_s(each, shape.hidden_size, 2 * width, work.precision)
        + machine.product_s(each, width, shape.hidden_size, work.precision)
    )
    routed = tokens / layout.sequence_split
    router = machine.product_s(routed, shape.hidden_size, moe.num_experts, "fp32")
    return grouped / machine.expert_numbers.grouped + router


def _elementwise_bytes(
    shape: ModelShape, layout: PlannedLayout, work: Work, machine: Cluster
) -> float:
    """Forward traffic of routing, permutation and gating."""
    moe = shape.moe
    assert moe is not None
    routed, width = routed_tokens(shape, layout, work), moe.ffn_hidden_size / layout.etp
    router = 4 * _ROUTER * moe.num_experts / layout.sequence_split
    moves = _FUSED_PERMUTATION if machine.software.fused_dispatch else _PERMUTATION
    a_token = 2 * routed * (moves * shape.hidden_size + 3 * width) + router
    return micro_batch_tokens(layout, work) * a_token


def sent_bytes(shape: ModelShape, layout: PlannedLayout, work: Work) -> float:
    """Bytes of one all-to-all that a rank gives out, its own share included: t · K · H in bf16."""
    assert shape.moe is not None
    tokens = micro_batch_tokens(layout, work) / layout.sequence_split
    return 2 * tokens * shape.moe.top_k * shape.hidden_size * work.imbalance


def _sent(shape: ModelShape, layout: PlannedLayout, work: Work, machine: Cluster) -> float:
    """Tokens to their experts and back, once: two all-to-alls, and gathered over etp."""
    moe, gpu = shape.moe, machine.gpu
    assert moe is not None
    whole = sent_bytes(shape, layout, work)
    near = max(1, min(layout.ep, gpu.gpus_per_node // layout.etp))  # ranks of the group in a node
    inside, outside = (near - 1) / layout.ep, (layout.ep - near) / layout.ep
    if machine.software.fused_dispatch:
        # copies: one for each rank that a token has experts on, over the network one for each node
        inside = (near - 1) * _reached(1 / layout.ep, moe.top_k) / moe.top_k
        nodes = layout.ep / near
        outside = (nodes - 1) * _reached(1 / nodes, moe.top_k) / moe.top_k
    share = 1e9 * machine.expert_numbers.all_to_all
    seconds = max(
        whole * inside / (gpu.nvlink_gb_s * share), whole * outside / (gpu.network_gb_s * share)
    )
    return 2 * (seconds + machine.collective_s(whole * layout.etp, layout.etp, 1))


def _reached(share: float, draws: int) -> float:
    """How likely a part of the experts, `share` of them, has one of the token's."""
    return 1 - (1 - share) ** draws
