"""Configuration of `megaladder plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from tyro.conf import arg

from megaladder.config.base import StrictModel
from megaladder.config.rules.unread import ReadIf, raise_all, unread_problems

Positive = Annotated[int, Field(ge=1)]
GRPO_FLAGS = ("prompts_per_step", "n", "response_length", "max_tokens")


class PlanConfig(StrictModel):
    """Layouts for a model on so many GPUs, fastest first.

    With memory per GPU by part and predicted time. Needs no GPU and no weights.

    megaladder plan --model Qwen3-14B --gpus 8 --gpu h200 --seq-length 20480 --global-batch-size 256
    megaladder plan --model models/my-model --gpus 64 --gpu h100 --seq-length 8192
    --global-batch-size 512 --precision fp8 --json plan.json megaladder plan --model Qwen3-14B
    --gpus 8 --gpu h200 --seq-length 20480 --global-batch-size 256 --tp 4 --pp 2     (only these
    sizes) megaladder plan --model Qwen3-14B --gpus 8 --gpu h200 --seq-length 22528 --workload grpo
    --prompts-per-step 512 --n 16 --mini-batches 16
      --response-length 8000 --max-tokens 20480

    Predictions are calibrated on published runs; how far they can be trusted: docs/plan.md (median
    error about 6 %, largest 18 %, on sources that were left out).
    """

    model: str
    """Folder with a config.json (weights are not read), or a known name: Qwen3-0.6B … 32B,
    Qwen3-30B-A3B, Qwen2.5, Llama-2, Llama-3.x; as on the hub."""
    gpus: Positive
    """GPUs in all."""
    gpu: str = "h200"
    """Their kind: h100, h100-500w, h200, b200, a800 (megaladder/plan/hardware.yaml: peaks, memory,
    links, sources)."""
    seq_length: Positive
    """Tokens per packed row, as data.seq_length."""
    global_batch_size: Positive | None = None
    """Samples per optimizer step over all GPUs. Required for sft; for grpo it is prompts_per_step ·
    n / mini_batches."""
    precision: Literal["bf16", "fp8"] = "bf16"
    """Of the linear layers; the rest is bf16 with fp32 master weights. Needs FP8 units (H100 and
    later)."""
    lora_rank: Positive | None = None
    """Train adapters of this rank on every projection, as lora.rank, instead of the weights. null =
    all weights. Bfloat16 only."""
    sample_length: Annotated[float, Field(gt=0)] | None = None
    """Mean tokens of a sample, which are packed: fewer rows, less attention. null = every sample
    fills its row (the slowest case)."""
    tp: Positive | None = None
    """Pin the tensor parallel size. null = search."""
    pp: Positive | None = None
    """Pin the number of pipeline stages. null = search."""
    vpp: Annotated[int, Field(ge=2)] | None = None
    """Pin the model chunks per stage (interleaved schedule). null = search, off included."""
    cp: Positive | None = None
    """Pin the context parallel size; above what the trainer takes it is predicted with a note. null
    = search what the trainer takes."""
    ep: Positive | None = None
    """Pin the ranks that share a layer's experts, as parallel.ep. null = search. For mixtures of
    experts."""
    etp: Positive | None = None
    """Pin the ranks that share each expert, as parallel.etp. null = 1. For mixtures of experts."""
    imbalance: Annotated[float, Field(ge=1)] = 1.0
    """Tokens of the busiest expert-parallel rank over the mean; 1 = balanced. For mixtures of
    experts."""
    micro_batch_size: Positive | None = None
    """Pin the rows per micro-batch. null = search 1, 2, 4, 8."""
    recompute: Literal["none", "selective", "full"] | None = None
    """Pin the recomputation of activations. null = search."""
    workload: Literal["sft", "grpo"] = "sft"
    """sft = training steps; grpo = rounds of generation, log-probs, updates and weight sync (the
    fields below)."""
    prompts_per_step: Positive | None = None
    """grpo: problems per round. Required there."""
    n: Positive | None = None
    """grpo: completions per problem. Required there."""
    mini_batches: Positive = 1
    """grpo: updates per round; above 1 the old log-probs take a forward pass of their own."""
    prompt_length: Positive = 200
    """grpo: mean tokens of a prompt."""
    response_length: Positive | None = None
    """grpo: mean tokens of a completion. Required there."""
    max_tokens: Positive | None = None
    """grpo: longest completion, as rollout.max_tokens. Required there."""
    engine_tp: Positive | None = None
    """grpo: tensor parallel GPUs of an engine. null = search."""
    engine_gpus: Positive | None = None
    """grpo: GPUs that only generate; the others only train. null = engine and trainer take turns on
    all GPUs."""
    lag: Literal[0, 1] = 0
    """grpo: 1 = generation runs beside the updates (one step off-policy); needs engine_gpus."""
    top: Positive = 10
    """Layouts to print. The JSON has all that fit."""
    json_file: Annotated[Path | None, arg(name="json")] = None
    """Write everything as one JSON object."""

    @model_validator(mode="after")
    def _rules(self) -> PlanConfig:
        problems = _sft_problems(self) if self.workload == "sft" else _grpo_problems(self)
        if self.lora_rank is not None and self.precision == "fp8":
            problems.append(
                f"--lora-rank {self.lora_rank} with --precision fp8: the trainer has no adapters on"
                " FP8 weights; fix: --precision bf16"
            )
        raise_all([*problems, *unread_problems(self, _READ_IF)])
        return self


def _sft_problems(config: PlanConfig) -> list[str]:
    if config.global_batch_size is None:
        return [
            "--global-batch-size is required; fix: the samples of one optimizer step, such as"
            " --global-batch-size 256"
        ]
    if config.sample_length is not None and config.sample_length > config.seq_length:
        return [
            f"--sample-length {config.sample_length:g} is more than --seq-length"
            f" {config.seq_length}; fix: at most that"
        ]
    return []


def _grpo_problems(config: PlanConfig) -> list[str]:
    prompts, n = config.prompts_per_step, config.n
    response_length, max_tokens = config.response_length, config.max_tokens
    if prompts is None or n is None or response_length is None or max_tokens is None:
        return [
            f"--{name.replace('_', '-')} is required for --workload grpo; fix:"
            f" --{name.replace('_', '-')} NUMBER"
            for name in GRPO_FLAGS
            if getattr(config, name) is None
        ]
    problems, samples = [], prompts * n
    if samples % config.mini_batches:
        problems.append(
            f"--mini-batches {config.mini_batches} does not divide {samples} completions; fix: a"
            " divisor"
        )
    elif config.global_batch_size not in (None, samples // config.mini_batches):
        problems.append(
            f"--global-batch-size {config.global_batch_size} is not prompts · n / mini-batches ="
            f" {samples // config.mini_batches}; fix: leave it out"
        )
    if response_length > max_tokens:
        problems.append(
            f"--response-length {response_length} is the mean, and above --max-tokens"
            f" {max_tokens}; fix: at most that"
        )
    if config.prompt_length + max_tokens > config.seq_length:
        problems.append(
            f"--prompt-length {config.prompt_length} and --max-tokens {max_tokens} do not"
            f" fit --seq-length {config.seq_length}; fix: --seq-length"
            f" {config.prompt_length + max_tokens}"
        )
    if config.lag and config.engine_gpus is None:
        problems.append("--lag 1 needs GPUs for the engine alone; fix: --engine-gpus N")
    if config.engine_gpus is not None and config.engine_gpus >= config.gpus:
        problems.append(
            f"--engine-gpus {config.engine_gpus} leaves none of {config.gpus} to train; fix: fewer"
        )
    return problems


_READ_IF: tuple[ReadIf[PlanConfig], ...] = (
    ReadIf(
        (*GRPO_FLAGS, "mini_batches", "prompt_length", "engine_tp", "engine_gpus", "lag"),
        lambda plan: plan.workload == "grpo",
        "--workload grpo",
    ),
    ReadIf(("sample_length",), lambda plan: plan.workload == "sft", "--workload sft"),
)
