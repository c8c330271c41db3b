"""Configuration of the verbs `bench train | kernels | rollout`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from megaladder.config.base import CommaInts, CommaStrs, StrictModel
from megaladder.config.rules.unread import ReadIf, raise_all, unread_problems
from megaladder.config.sections.engine import JsonPath

Positive = Annotated[int, Field(ge=1)]


class BenchTrainConfig(StrictModel):
    """Tokens/s of one SFT step.

    Ours against plain transformers loops on the same model, samples and thread count, interleaved.
    """

    data: str | None = None
    """SFT data file; its samples give the lengths and loss masks. A tokenizer is trained on it. Not
    with --shape."""
    shape: Literal["qwen3-14b", "qwen3-8b", "tiny"] | None = None
    """Instead: our step alone at a model's real layer shapes, with random weights and tokens, on
    this device: tokens/s/GPU, TFLOP/s, MFU, peak memory, phases. Uses layers, rounds, precision and
    the keys that say so; the other keys are refused."""
    sequence: Positive = 8192
    """With shape: tokens per sequence."""
    micro_batch_tokens: Positive = 8192
    """With shape: tokens per micro-batch, a multiple of sequence."""
    micro_batches: Positive = 4
    """With shape: micro-batches per step."""
    fp8: Literal["tensorwise", "blockwise", "delayed", "mxfp8"] | None = None
    """With shape: FP8 recipe of the linear layers."""
    recompute: Literal["none", "selective", "full"] = "none"
    """With shape: activations recomputed in backward."""
    warmup: Annotated[int, Field(ge=0)] = 3
    """With shape: steps that are not timed."""
    profile_dir: str | None = None
    """With shape: write a torch trace of one more step to this folder."""
    hidden_sizes: CommaInts = (128, 512)
    """Hidden sizes to measure (feed-forward 3×, heads of 32 or 64)."""
    layers: Positive = 4
    """Decoder layers."""
    vocab_size: Annotated[int, Field(ge=300)] = 2048
    """Tokenizer's vocabulary."""
    samples: Positive = 64
    """Samples per step."""
    seq_length: Positive = 1024
    """Tokens per packed row."""
    rounds: Positive = 7
    """Timed steps of each contender, in turns; the median counts. One more step of each warms
    up."""
    contenders: CommaStrs = ("ours", "padded", "sorted", "packed")
    """ours; padded = transformers, batches of 8 padded to their longest; sorted = the same after
    sorting by length; packed = transformers on our packed rows with a block-diagonal mask."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations, the same for all."""
    profile: bool = False
    """Also show where our step's time goes, by kind of operation (torch profiler, one step)."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Of weights and samples."""
    json_out: str | None = None
    """Write the numbers to this file."""

    @model_validator(mode="after")
    def _one_subject(self) -> BenchTrainConfig:
        if (self.data is None) == (self.shape is None):
            raise ValueError(
                "--data FILE compares with transformers, --shape NAME measures our step at a"
                " model's size; fix: one of them"
            )
        if self.shape and self.micro_batch_tokens % self.sequence:
            raise ValueError(
                f"micro_batch_tokens {self.micro_batch_tokens} is not a multiple of sequence"
                f" {self.sequence}; fix: a multiple"
            )
        raise_all(unread_problems(self, _TRAIN_READ_IF))
        return self


_TRAIN_READ_IF: tuple[ReadIf[BenchTrainConfig], ...] = (
    ReadIf(
        (
            "sequence",
            "micro_batch_tokens",
            "micro_batches",
            "fp8",
            "recompute",
            "warmup",
            "profile_dir",
        ),
        lambda bench: bench.shape is not None,
        "--shape NAME",
    ),
    ReadIf(
        ("hidden_sizes", "vocab_size", "samples", "seq_length", "contenders", "profile", "seed"),
        lambda bench: bench.data is not None,
        "--data FILE",
    ),
)


class BenchKernelsConfig(StrictModel):
    """Times the loss head against its peers (tools/bench_kernels.py).

    On a CPU a smoke test at small sizes."""

    tokens: CommaInts = (8192, 16384, 32768)
    """Tokens of a shape."""
    hidden: CommaInts = (4096, 2048, 5120)
    """Hidden sizes."""
    vocab: Positive = 151_936
    """Vocabulary."""
    shards: CommaInts = (1, 2, 4, 8)
    """Divisors of the vocabulary: what a tensor-parallel rank has."""
    rounds: Positive = 30
    """Timed rounds of every contender."""
    budget_s: Annotated[float, Field(gt=0)] = 540.0
    """Seconds after which no further shape is begun."""
    device: Literal["cuda", "cpu"] | None = None
    """null = cuda where there is one."""
    csv: str | None = None
    """Write the rows to this file."""
    markdown: str | None = None
    """Write the table to this file."""
    head: bool = False
    """The eight shapes by which the head is judged (SFT, GRPO dense and half inactive, a shard of
    eight, an odd vocabulary) instead of the sweep."""
    checks: bool = False
    """Instead: beyond 2^31 elements, determinism, CUDA graph, torch.compile."""

    @model_validator(mode="after")
    def _no_unread_key(self) -> BenchKernelsConfig:
        others = tuple(name for name in type(self).model_fields if name != "checks")
        timed: ReadIf[BenchKernelsConfig] = ReadIf(
            others, lambda bench: not bench.checks, "--checks false"
        )
        swept: ReadIf[BenchKernelsConfig] = ReadIf(
            ("tokens", "hidden", "vocab", "shards"), lambda bench: not bench.head, "--head false"
        )
        raise_all(unread_problems(self, [timed] if self.checks else [swept]))
        return self


class BenchRolloutConfig(StrictModel):
    """Tokens per second of our engine and of bare vllm.LLM.generate.

    On the same prompts, in turn."""

    model: str
    """Hugging Face folder."""
    num_prompts: Positive = 64
    """Prompts per round, random token ids."""
    prompt_tokens: Positive = 64
    """Tokens per prompt."""
    max_tokens: Positive = 128
    """Tokens generated per prompt, exactly (end-of-sequence is ignored)."""
    rounds: Positive = 5
    """Timed rounds of each after a warm-up round; the best and the median are reported."""
    tp: Positive = 1
    """Tensor parallel GPUs (CPU: processes)."""
    dtype: str = "auto"
    """Of weights and activations."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Of the prompts."""
    json_path: JsonPath = None
    """Write the numbers to this file."""
