"""How generation engines are run.

The section `rollout` of `eval`, what `data sample` shares with it, and what the engines beside a
training share (GRPO's section: `grpo.py`, that of SFT: `evaluate.py`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import tyro
from pydantic import Field

from megaladder.config.base import StrictModel

Positive = Annotated[int, Field(ge=1)]
# a field named `json` would hide BaseModel.json
JsonPath = Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE|null")]


class EngineSection(StrictModel):
    """How the engine is run; nothing here changes what is sampled but dtype and the limits."""

    engine: Literal["vllm", "fake"] = "vllm"
    """vllm; fake = a deterministic stand-in without a model, for trying out the pipeline."""
    tp: Positive = 1
    """Tensor parallel GPUs (CPU: processes) of one engine."""
    replicas: Positive = 1
    """Independent engines side by side; problems are spread over them. GPUs needed: tp ·
    replicas."""
    dtype: str = "auto"
    """Type of weights and activations: auto (the checkpoint's, but bfloat16 for a float32 one),
    bfloat16, float32. Part of the protocol."""
    max_model_len: Positive | None = None
    """Longest prompt plus answer, tokens. null = the model's own limit."""
    max_num_seqs: Positive | None = None
    """Sequences decoded at once. null = vLLM's choice."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that the engine may take. Not read on CPU."""
    cpu_kv_cache_gib: Annotated[float, Field(gt=0)] = 1.0
    """Key/value cache on a CPU, GiB."""
    cpu_threads: Positive | None = None
    """Threads of an engine on a CPU. null = OMP_NUM_THREADS, else its share of the cores less
    one."""
    max_restarts: Annotated[int, Field(ge=0)] = 1
    """Restarts of a lost engine before the run stops itself (status 3) and can be resumed."""
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds without a sign of life until an engine counts as lost."""


class EvalRolloutSection(EngineSection):
    """Decoding. null = the benchmark's published default, which is printed with every score."""

    n: Positive | None = None
    """Samples per problem."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """Sampling temperature; 0 = greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Nucleus: keep the likeliest tokens up to this probability."""
    top_k: Annotated[int, Field(ge=0)] | None = None
    """Keep the k likeliest tokens; 0 = all."""
    max_tokens: Positive | None = None
    """Longest answer, tokens."""


class SyncedEngineSection(StrictModel):
    """An engine beside a training, which is given the weights of a step."""

    tp: Positive = 1
    """Tensor parallel ranks of the engine; independent of parallel.tp."""
    sync: Literal["auto", "file", "ipc", "nccl", "adapter"] = "auto"
    """How weights reach the engine: file (shared memory, any machine), ipc or nccl (CUDA); adapter
    (with lora) = the adapter alone, which the engine applies. auto = adapter with lora on
    a model without experts, else ipc on CUDA and file on CPU; nccl with servers. Other ways than
    adapter bring the merged model."""
    sync_bucket_mib: Positive = 512
    """Weights travel in pieces of this size, MiB."""
    check_sync: Literal["never", "first", "always"] = "first"
    """Compare a checksum of every tensor after a sync: never, after the first one of a start, after
    each."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of a GPU's memory that the engine may take while it generates (it sleeps during
    updates). Not read on CPU."""
    cpu_kv_cache_gib: Annotated[float, Field(gt=0)] = 1.0
    """Key/value cache of the engine on a CPU, GiB."""
    timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds without a sign of life until the engine counts as lost; in GRPO also what one round
    of generation may take."""
