"""The sections that every training run has.

Model, data, layout, loop, optimizer, checkpoints, log.

Key names are a contract. The defaults are a laptop's (one rank, CPU); the shipped files in
`examples/configs/` are the H200 recipes. The string under a field is its `--help` text: unit,
meaning, source of the value. No torch here.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from megaladder.config.base import CommaInts, CommaStrs, StrictModel, YamlObject
from megaladder.config.sections.data import SourceSection

Positive = Annotated[int, Field(ge=1)]
TEMPLATE_DATE = "2024-07-26"
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class ModelSection(StrictModel):
    """Which model, and its tokenizer."""

    path: str = ""
    """Hugging Face folder (config.json, *.safetensors, tokenizer) or hub id. Required."""
    revision: str | None = None
    """Commit of the hub repository; required for a hub id, so that a run can be repeated. Not
    for a folder."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; null = the model's own."""
    chat_template: str | None = None
    """Path of a Jinja chat template that replaces the tokenizer's; null = the tokenizer's."""
    chat_template_kwargs: YamlObject = Field(default_factory=dict)
    """Arguments of the chat template, e.g. {enable_thinking: false} (Qwen3). They become its
    defaults, also in the exported template; a row's own chat_template_kwargs win."""
    template_date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] = TEMPLATE_DATE
    """Today's date for chat templates that print it (Llama 3.1 and later), fixed so that every
    start of a run, its rollouts and its evaluation see the same prompts."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model folder. Leave it off for models of strangers:
    the code has all your rights."""


class TrainedModelSection(ModelSection):
    """Which model is trained, and its tokenizer."""

    init: Literal["pretrained", "random"] = "pretrained"
    """pretrained = load the folder's weights; random = only its config.json counts (no weights
    need to be there), weights are drawn from train.seed."""


class DataSection(SourceSection):
    """Training data and how it becomes token batches."""

    seq_length: Positive = 2048
    """Tokens per packed row, and the longest sample. One micro-batch holds micro_batch_size ·
    seq_length tokens."""
    order: Literal["shuffled", "file"] = "shuffled"
    """Order of the rows: shuffled anew in each epoch by train.seed, or as they stand in the file (a
    curriculum)."""
    packing: bool = True
    """Lay several samples end to end in a row (they do not see each other). Off = one sample a row,
    padded."""
    system_prompt: str | None = None
    """A system message put before conversations that have none."""


class ParallelSection(StrictModel):
    """How the model is laid out over ranks.

    Data parallelism is what is left: dp = ranks / (tp·pp·cp)."""

    tp: Positive = 1
    """Tensor parallel ranks: each holds 1/tp of every matrix. Must divide attention heads and
    key/value groups; keep inside a node."""
    pp: Positive = 1
    """Pipeline stages. pp·vpp must divide the number of layers."""
    vpp: Annotated[int, Field(ge=2)] | None = None
    """Model chunks per pipeline stage (interleaved schedule, smaller bubble). Needs pp > 1. null =
    off."""
    cp: Positive = 1
    """Context parallel ranks: each holds 1/cp of every sequence, for traces whose activations do
    not fit otherwise. Needs Transformer Engine on CUDA. seq_length must be a multiple of 2·cp."""
    ep: Positive = 1
    """Expert parallel ranks: each holds 1/ep of every layer's experts; tokens travel to them.
    Taken out of the same ranks as tp and dp. Must divide the number of experts."""
    etp: Positive = 1
    """Tensor parallel ranks of each expert; the other matrices have tp. Experts are narrow: 1 is
    nearly always best."""
    sequence_parallel: bool = True
    """Split norms and dropout along the sequence over the tp ranks: less activation memory, same
    traffic."""
    ranks: Positive | None = None
    """Processes in all. null = what torchrun started, else as few as the layout takes (tp·pp·cp, or
    more for ep·etp) on this machine."""

    @property
    def model_ranks(self) -> int:
        """Ranks that one copy of the model takes: tp·pp·cp."""
        return self.tp * self.pp * self.cp

    @property
    def least_ranks(self) -> int:
        """Ranks that hold whole copies of the model and of its experts."""
        return self.pp * math.lcm(self.tp * self.cp, self.ep * self.etp)

    @property
    def uses_sequence_parallel(self) -> bool:
        """`sequence_parallel` where it has a meaning (tp > 1)."""
        return self.sequence_parallel and self.tp > 1


class TrainSection(StrictModel):
    """The training loop. A step is one optimizer update."""

    micro_batch_size: Positive = 1
    """Rows of seq_length tokens that pass through the model at once on a rank. Changes memory and
    speed, not the result."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the data; fractions allowed."""
    max_steps: Positive | None = None
    """Stop after this many steps, even inside an epoch; the schedule ends there too. null = epochs
    decide."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of weights and activations; master weights and optimizer state are fp32. auto = bf16 on CUDA,
    fp32 on CPU."""
    fp8: Literal["tensorwise", "blockwise", "delayed", "mxfp8"] | None = None
    """FP8 recipe of Transformer Engine's linear layers (H200: tensorwise or blockwise; mxfp8 needs
    Blackwell). null = off."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations recomputed in backward: attention core (selective) or whole layers (full: about a
    third more time, least memory)."""
    recompute_modules: CommaStrs = ("core_attn",)
    """With recompute selective: core_attn (free with flash attention, which keeps no scores
    anyway), mlp (the widest activations), both."""
    logits: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the loss head's logits where weights are bf16. fp32 = sums of the product as they
    are; bf16 = rounded once: log-probs move by 0.003 nats on average (0.044 at most, measured),
    half the memory, about 3 % of the head's time less (calculated). auto = bf16 in SFT, fp32 in
    GRPO, whose ratios would cross the clip by rounding."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of sample order, random initialisation and dropout."""
    nonfinite_limit: Positive = 3
    """Steps in a row with a non-finite loss or gradient before the run stops itself (status 3).
    Each such step changes nothing."""
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds without progress on some rank before the run ends instead of hanging."""
    profile_steps: CommaInts = ()
    """Steps to capture a profile of, e.g. 12,13. Choose them past the first few: kernels are
    compiled and memory grows there."""
    profiler: Literal["torch", "nsys"] = "torch"
    """torch = a trace per captured step in run_dir/profile (open it at ui.perfetto.dev); nsys = the
    capture range of `nsys profile --capture-range=cudaProfilerApi`, with named ranges for
    forward-backward, optimizer and layers."""
    profile_ranks: CommaInts = (0,)
    """Ranks that write a profile."""


class OptimSection(StrictModel):
    """AdamW and its learning-rate schedule."""

    lr: Annotated[float, Field(gt=0)] = 5.0e-5
    """Peak learning rate."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at the end of a cosine, linear or wsd schedule."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Adam's moment decay."""
    eps: Annotated[float, Field(gt=0)] = 1.0e-8
    """Adam's denominator offset."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay; not applied to norms and biases."""
    clip_grad: Annotated[float, Field(ge=0)] = 1.0
    """Global gradient norm above which gradients are scaled down. 0 = off."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """After warm-up: cosine or linear to min_lr, constant, or wsd (constant, then a last linear
    decay)."""
    warmup_ratio: Share = 0.1
    """Warm-up as a share of all steps, linear from 0."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Warm-up in steps; replaces warmup_ratio when set."""
    wsd_decay_ratio: Share = 0.1
    """Share of all steps that wsd's final decay takes."""


class LoraSection(StrictModel):
    """Low-rank adapters, trained beside weights that stay as they are.

    Off without rank and start."""

    rank: Positive | None = None
    """Rank of new adapters, e.g. 32. null = none: all weights are trained, or `start` says it."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """An adapter's product counts alpha / rank times."""
    targets: CommaStrs = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Projections that get an adapter, by the last part of their Hugging Face name."""
    rslora: bool = False
    """Count the product alpha / √rank times instead (arXiv 2312.03732), for high ranks."""
    start: str | None = None
    """PEFT folder (adapter_config.json, adapter_model.safetensors) whose adapters are trained on;
    its rank, alpha and targets hold. null = new ones, drawn from train.seed."""
    merged_export: bool = True
    """Beside the adapter of each export (adapters/step_N), write the whole model with it merged in
    (hf/step_N), which eval, chat and serve read."""

    @property
    def enabled(self) -> bool:
        """Whether adapters are trained instead of the weights."""
        return self.rank is not None or self.start is not None


class CheckpointSection(StrictModel):
    """What is saved, and what a restart does."""

    every: Annotated[int, Field(ge=0)] = 10
    """Save every N steps. 0 = only at the end (and on SIGTERM, SIGUSR1)."""
    keep_last: Positive = 2
    """Newest checkpoints to keep; listed and best ones are kept besides."""
    keep_steps: CommaInts = ()
    """Steps that are saved and never deleted, e.g. 10,20,40,80,160,320,640."""
    export_hf: bool = False
    """Write a Hugging Face folder hf/step_N beside each checkpoint that is kept for good, and at
    the end."""
    async_save: bool = False
    """Write files in the background while training goes on; an error surfaces at the next step."""
    resume: str = "auto"
    """auto = newest committed checkpoint of run_dir, else start; never = start fresh (refused if
    run_dir has any); or a step_N folder."""


class LogSection(StrictModel):
    """Where numbers go. metrics.jsonl and log.txt in the run folder are always written."""

    every: Positive = 1
    """Print a step line every N steps; metrics.jsonl gets every step."""
    wandb: bool = False
    """Also log to Weights & Biases (the package and its login must be there): numbers, scores, 16
    answers of each round. A tracker never stops a run nor slows it: one that fails is left out with
    a warning, one that hangs gets the rest when it answers again."""
    tensorboard: bool = False
    """Also write TensorBoard files to run_dir/tensorboard."""
    mlflow: bool = False
    """Also log to MLflow, at its own MLFLOW_TRACKING_URI."""
    trackio: bool = False
    """Also log to trackio."""
    project: str = "megaladder"
    """Project of Weights & Biases and trackio, experiment of MLflow."""
    entity: str | None = None
    """Weights & Biases team or user. null = your default."""
    group: str | None = None
    """Group of runs in Weights & Biases and trackio. null = none."""
    tags: CommaStrs = ()
    """Tags of the run in Weights & Biases and MLflow."""
