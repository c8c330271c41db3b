"""Seconds of one GRPO round by phase: generation, log-probs, updates, weight sync.

Generation is memory traffic: every decoding step reads the weights once, every token its keys and
values. A round ends with its longest completion, so the number of steps follows `tail`. The rest
comes from throughput.py. Not modelled: grading (it runs beside generation), resampled groups,
tools.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from functools import cache

from megaladder.config.strict_yaml import load_yaml
from megaladder.errors import ConfigError
from megaladder.model.hf_config import ModelShape
from megaladder.model.lora.spec import LoraSpec
from megaladder.plan.hardware import HERE
from megaladder.plan.layout import PlannedLayout, Work
from megaladder.plan.memory import FRAMEWORK, MemoryEstimate
from megaladder.plan.throughput import Cluster, forward_time, step_time

# of a few tokens, two a layer and decoding step: inside a node, between nodes (assumptions, not
# fitted)
_ALL_REDUCE_S, _ALL_REDUCE_BETWEEN_NODES_S = 1e-5, 5e-5
ENGINE_SHARE = 0.9  # of a GPU that an engine with GPUs of its own takes (vLLM's default)


@dataclass(frozen=True, slots=True)
class GrpoCalibration:
    """Fitted to published rounds (published_runs.yaml, `grpo`)."""

    decode_memory: float  # share of the memory's bandwidth that decoding reaches
    decode_step_s: float  # per decoding step besides memory traffic: scheduling, sampling, launches
    tail: float  # longest completion over the mean, where max_response_length does not cut it
    # an update's time over the training step's of the same tokens: uneven rows, per-token
    # statistics
    update: float
    round_s: float  # per round: collecting, sleeping and waking, sync set-up


@cache
def grpo_calibration() -> GrpoCalibration:
    """The numbers in calibration.yaml."""
    return GrpoCalibration(**load_yaml(HERE / "calibration.yaml").values["grpo"])


@dataclass(frozen=True, slots=True)
class Round:
    """One round: `prompts` × `n` completions, `mini_batches` updates.

    Lengths in tokens, means but for `max_response_length`.

    engine_gpus: GPUs that generate; colocated: the trainer's own. overlapped: generation of the
    next round runs beside the updates (grpo.lag 1). logprob_passes: forward passes besides the
    updates' own (old policy, reference).
    """

    prompts: int
    n: int
    mini_batches: int
    prompt_length: float
    response_length: float
    max_response_length: int
    seq_length: int
    precision: str = "bf16"
    rollout_precision: str = "bf16"
    logprob_passes: int = 1
    engine_tp: int = 1
    engine_gpus: int = 8
    colocated: bool = True
    overlapped: bool = False
    adapters: LoraSpec | None = None
    imbalance: float = 1.0

    @property
    def samples(self) -> int:
        return self.prompts * self.n

    @property
    def sample_length(self) -> float:
        return self.prompt_length + self.response_length

    def update_work(self) -> Work:
        """One of the round's optimizer steps."""
        return replace(self.round_work(), global_batch_size=self.samples // self.mini_batches)

    def round_work(self) -> Work:
        """All the round's samples, as a log-prob pass sees them."""
        lora = self.adapters is not None
        return Work(
            self.seq_length,
            self.samples,
            self.precision,
            self.sample_length,
            lora,
            self.adapters,
            self.imbalance,
        )


@dataclass(frozen=True, slots=True)
class RoundTime:
    """Seconds by phase. `waiting`: what overlap saved, negative; with it the parts add up."""

    generation: float
    logprobs: float
    update: float
    sync: float
    other: float
    waiting: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    def by_part(self) -> dict[str, float]:
        return {**asdict(self), "total": self.total}


def round_time(
    shape: ModelShape,
    layout: PlannedLayout,
    work: Round,
    machine: Cluster,
    engine_bytes: float,
    fitted: GrpoCalibration,
) -> RoundTime:
    """One round. `engine_bytes`: of a GPU's memory that an engine may take while it generates."""
    updates = (
        work.mini_batches
        * step_time(shape, layout, work.update_work(), machine).total
        * fitted.update
    )
    logprobs = (
        work.logprob_passes
        * forward_time(shape, layout, work.round_work(), machine)
        * fitted.update
    )
    generation = generation_time(shape, work, machine, engine_bytes, fitted)
    saved = -min(generation, updates + logprobs) if work.overlapped else 0.0
    return RoundTime(
        generation,
        logprobs,
        updates,
        sync_time(shape, layout, work, machine),
        fitted.round_s,
        saved,
    )


def kv_bytes_per_token(shape: ModelShape) -> int:
    """Keys and values of all layers in 16 bits."""
    return 2 * 2 * shape.num_layers * shape.num_query_groups * shape.head_dim


def generation_time(
    shape: ModelShape, work: Round, machine: Cluster, engine_bytes: float, fitted: GrpoCalibration
) -> float:
    """All completions of a round on all engines.

    More than fit the key-value cache at once run in turns."""
    engines, tp = work.engine_gpus // work.engine_tp, work.engine_tp
    value_bytes = 1 if work.rollout_precision == "fp8" else 2
    weights = shape.num_parameters * value_bytes
    cache_bytes = engine_bytes * tp - weights - FRAMEWORK * tp
    if engines < 1 or cache_bytes < kv_bytes_per_token(shape) * work.sample_length:
        raise ConfigError(
            f"an engine of tp {tp} with {engine_bytes / 1e9:.0f} GB a GPU has no room for"
            f" {weights / 1e9:.0f} GB of weights and a completion; fix: a larger --engine-tp, or a"
            " larger tp or pp for the trainer"
        )
    sequences = work.samples / engines
    mean_context = work.prompt_length + work.response_length / 2
    # they start together, so they are long together
    at_once = cache_bytes / (kv_bytes_per_token(shape) * work.sample_length)
    steps = (
        min(work.max_response_length, fitted.tail * work.response_length)
        + max(0.0, sequences / at_once - 1) * work.response_length
    )
    bandwidth = machine.gpu.memory_gb_s * 1e9 * fitted.decode_memory
    read = value_bytes * _read_parameters(shape, min(sequences, at_once))
    all_reduce = _ALL_REDUCE_S if tp <= machine.gpu.gpus_per_node else _ALL_REDUCE_BETWEEN_NODES_S
    sparse = 0 if shape.moe is None else shape.moe.num_sparse
    per_step = (
        read / tp / bandwidth
        + fitted.decode_step_s
        + sparse * machine.expert_numbers.decode_layer_s
        + (2 * shape.num_layers * all_reduce if tp > 1 else 0.0)
    )
    flops = (
        2
        * shape.num_active_parameters
        / tp
        / (machine.gpu.matmul(work.rollout_precision) * machine.numbers.gemm_bf16)
    )
    keys_read = mean_context * kv_bytes_per_token(shape) / tp / bandwidth
    prefill = work.prompts / engines * work.prompt_length * flops
    return steps * per_step + sequences * work.response_length * (keys_read + flops) + prefill


def _read_parameters(shape: ModelShape, sequences: float) -> float:
    """Parameters that a decoding step reads: of experts those that one of its tokens is sent to."""
    if shape.moe is None:
        return shape.num_parameters
    _, routed = shape.moe.layer_parts(shape.hidden_size, 1)
    idle = (1 - shape.moe.top_k / shape.moe.num_experts) ** sequences
    return shape.num_parameters - idle * shape.moe.num_sparse * routed


def sync_time(shape: ModelShape, layout: PlannedLayout, work: Round, machine: Cluster) -> float:
    """Weights to the engines: gathered over tensor and pipeline ranks, then written.

    Over the network where they leave the node."""
    spans_nodes = (
        not work.colocated
        or layout.tp * layout.pp > machine.gpu.gpus_per_node
        or (layout.pp > 1 and layout.dp * layout.tp > 8)
    )
    link = (
        (machine.gpu.network_gb_s if spans_nodes else machine.gpu.nvlink_gb_s)
        * 1e9
        * machine.numbers.link
    )
    received = 2 * shape.num_parameters / work.engine_tp
    return received / link + machine.bytes_s(2 * received)


def engine_budget(memory: MemoryEstimate, gpu_bytes: int, colocated: bool) -> float:
    """Bytes of a GPU that an engine may take while it generates.

    Beside the trainer's states, or nearly all of a GPU of its own."""
    return gpu_bytes * ENGINE_SHARE - (memory.states + FRAMEWORK if colocated else 0)
