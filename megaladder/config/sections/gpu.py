"""Configuration of what only a CUDA machine has.

FP8 details, overlap of communication, optimizer precision, offload, collectives.

Every key reaches megatron-core 0.16.1 (or Transformer Engine) under the name that it has there;
`model/te.py` and `train/optimizer.py` pass them on. Rules: `rules/gpu.py`. The defaults are what an
H200 run wants when nothing is said; on a CPU all others but the two nccl keys are refused. Advice:
docs/fp8.md.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megaladder.config.base import StrictModel

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
MomentType = Literal["fp32", "bf16", "fp16", "fp8"]


class GpuSection(StrictModel):
    """Choices for CUDA devices. Not read on a CPU, where all but the defaults are refused."""

    fp8_format: Literal["auto", "hybrid", "e4m3"] = "auto"
    """With train.fp8: hybrid = E4M3 forward, E5M2 gradients; e4m3 = both E4M3. auto = e4m3 for
    blockwise and mxfp8 (fine scales need no wider range, DeepSeek-V3), hybrid else."""
    first_last_layers_bf16: bool = False
    """Keep the first and last layers in bf16 under FP8 (the quantisation errors that hurt most).
    Not with delayed."""
    num_layers_at_start_in_bf16: Count = 1
    """With first_last_layers_bf16: how many at the start; at most those of a pipeline stage."""
    num_layers_at_end_in_bf16: Count = 1
    """With first_last_layers_bf16: how many at the end."""
    fp8_param_gather: bool = False
    """Keep the linears' weights in FP8 and gather them so (half the memory and traffic). Exports
    and weight sync then hold what the forward computes with, dequantised; the fp32 master weights
    stay in the optimizer. Off is the safe choice for RL (docs/fp8.md)."""
    fp8_amax_history_len: Annotated[int, Field(ge=1)] = 1024
    """Only delayed: steps of maxima that a scale is taken from."""
    fp8_amax_compute_algo: Literal["max", "most_recent"] = "max"
    """Only delayed: the largest of them, or the newest."""

    overlap_grad_reduce: bool = True
    """Reduce gradients while the backward pass computes."""
    overlap_param_gather: bool = True
    """Gather updated weights while the next forward pass computes. Needs
    overlap_grad_reduce."""
    tp_comm_overlap: bool = False
    """Run tensor-parallel gathers and scatters under the matrix products (Transformer Engine's user
    buffers). Needs tp > 1 with sequence_parallel; every micro-batch is then padded to
    micro_batch_size · seq_length tokens."""
    cp_comm_type: Literal["p2p", "a2a"] = "p2p"
    """With parallel.cp > 1: p2p = ring of keys and values under the attention (any cp); a2a =
    all-to-all over heads (less traffic in a node; tp·cp must divide the key/value groups)."""

    precision_aware_optimizer: bool = False
    """Let Transformer Engine's fused Adam hold master weights and moments in the types below
    instead of fp32."""
    main_params_dtype: Literal["fp32", "fp16"] = "fp32"
    """Master weights. fp32 is stored as the 16 bits that bf16 lacks: exact, half the memory."""
    exp_avg_dtype: MomentType = "fp32"
    """First moment. bf16 saves 2 bytes a parameter; fp8 is scaled per tensor."""
    exp_avg_sq_dtype: MomentType = "fp32"
    """Second moment."""

    optimizer_cpu_offload: bool = False
    """Keep optimizer state in host memory and update there: 12 bytes a parameter less on the GPU, a
    step longer by the transfer. Needs precision_aware_optimizer (megatron-core shares its code)."""
    optimizer_offload_fraction: Share = 1.0
    """With optimizer_cpu_offload: share of the state that goes to the host."""
    activation_offload_layers: Count = 0
    """Activations of this many layers wait for the backward pass in host memory. 0 = off. Not with
    pipeline stages or recompute."""

    nccl_timeout_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds a collective may take before its process is ended. null = twice train.timeout_s, so
    the watchdog speaks first."""
    nccl_trace_entries: Count = 2000
    """Collectives that torch remembers per rank and writes to run_dir/nccl_trace_<rank> when one
    times out. 0 = off."""
