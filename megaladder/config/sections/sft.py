"""What only supervised fine-tuning reads of `data`, `train` and `checkpoint`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megaladder.config.sections.shared import CheckpointSection, DataSection, Positive, TrainSection
from megaladder.types import TokenWeighting


class SftDataSection(DataSection):
    """Training data and how it becomes token batches."""

    truncation: Literal["drop", "right", "error"] = "right"
    """A sample longer than seq_length: drop it, cut its end, or stop. Counted and reported in each
    case."""
    holdout: int | float | str | None = None
    """Held-out loss on: a file; or training samples set apart, a number of them (≥ 1) or a share in
    (0, 0.5]. null = none."""
    response_template: str | None = None
    """Only for pre-templated `text` rows: the string after which the loss starts, e.g.
    '<|im_start|>assistant'."""
    reasoning: Literal["keep", "strip", "last-turn", "split"] = "keep"
    """<think> blocks: keep = as the data has them; strip = remove them (NoCoT); last-turn = loss on
    the last assistant turn only; split = one sample per assistant turn. The last two are for
    templates that drop earlier <think> blocks (Qwen3)."""
    s1_teacher: Literal["gemini", "deepseek"] | None = None
    """Only for s1K rows that hold both: whose reasoning to train on."""
    cache_dir: str | None = None
    """Folder for tokenised data, keyed by data, tokenizer and template. null = no cache."""


class SftTrainSection(TrainSection):
    """The training loop. A step is one optimizer update."""

    global_batch_size: Positive = 32
    """Samples per step over all ranks. Packing keeps it: only the number of rows they fill
    varies."""
    loss: TokenWeighting = TokenWeighting.VANILLA
    """Token weighting of the SFT loss, the ten modes of arXiv 2604.06628 (formulas:
    train/objectives/token_loss.py). vanilla = plain cross-entropy."""
    clip_ratio_low: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Lower clip of ratio-based losses: ratio ≥ 1 − low. 1.0 as in that paper's runs. Not read by
    vanilla, teacher-weighted, adv-only."""
    clip_ratio_high: Annotated[float, Field(ge=0)] = 1.0
    """Upper clip of ratio-based losses: ratio ≤ 1 + high."""
    eval_every: Annotated[int, Field(ge=0)] = 0
    """Held-out loss every N steps. 0 = only before the first and after the last. Needs
    data.holdout."""


class SftCheckpointSection(CheckpointSection):
    """What is saved, and what a restart does."""

    keep_best: Annotated[int, Field(ge=1)] | None = None
    """Keep the K checkpoints with the lowest held-out loss. Needs data.holdout."""
