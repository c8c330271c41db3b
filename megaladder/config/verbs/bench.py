"""Configuration of the training benchmark."""
from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megaladder.config.base import CommaInts, CommaStrs, StrictModel

Positive = Annotated[int, Field(ge=1)]


class BenchTrainConfig(StrictModel):
    """Tokens/s of one SFT step: ours against plain transformers loops on the same model, samples and thread count, interleaved."""

    data: str
    """SFT data file; its samples give the lengths and loss masks. A tokenizer is trained on it."""
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
    """Timed steps of each contender, in turns; the median counts. One more step of each warms up."""
    contenders: CommaStrs = ("ours", "padded", "sorted", "packed")
    """ours; padded = transformers, batches of 8 padded to their longest; sorted = the same after sorting by length; packed = transformers
    on our packed rows with a block-diagonal mask."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations, the same for all."""
    profile: bool = False
    """Also show where our step's time goes, by kind of operation (torch profiler, one step)."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Of weights and samples."""
    json_out: str | None = None
    """Write the numbers to this file."""
