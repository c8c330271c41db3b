"""What token data must fit: micro-batches for the layout, ids for the vocabulary."""

from __future__ import annotations

from pathlib import Path

from megaladder.capabilities import sequence_alignment, token_alignment
from megaladder.config.rules.gpu import needs_static_shapes
from megaladder.config.sections.gpu import GpuSection
from megaladder.config.sections.shared import DataSection, ParallelSection, TrainSection
from megaladder.data.pack import PackSpec
from megaladder.errors import DataError
from megaladder.model.hf_config import ModelShape


def pack_spec(
    data: DataSection,
    train: TrainSection,
    parallel: ParallelSection,
    gpu: GpuSection,
    *,
    pad_token_id: int = 0,
    hidden_size: int | None = None,
) -> PackSpec:
    """How this run's samples become micro-batches.

    Static shapes where they are needed, token counts that the layout and FP8 divide.
    """
    cost = {"attention_cost_tokens": 12 * hidden_size} if hidden_size else {}
    return PackSpec(
        seq_length=data.seq_length,
        micro_batch_size=train.micro_batch_size,
        packing=data.packing,
        static=needs_static_shapes(parallel, gpu),
        align=token_alignment(
            tp=parallel.tp,
            cp=parallel.cp,
            sequence_parallel=parallel.uses_sequence_parallel,
            fp8=train.fp8,
        ),
        sequence_align=sequence_alignment(parallel.cp),
        pad_token_id=pad_token_id,
        micro_batches_multiple_of=parallel.pp if parallel.vpp else 1,
        **cost,
    )


def check_vocabulary(largest_id: int, shape: ModelShape, tokenizer: str | Path) -> None:
    """Refuses token ids that the model has no row for.

    Raises:
        DataError: names the tokenizer and both numbers.
    """
    if largest_id >= shape.vocab_size:
        raise DataError(
            f"the tokenizer {tokenizer} gives token id {largest_id}, the model's vocabulary has"
            f" {shape.vocab_size} rows; fix: model.tokenizer: the one that belongs to model.path"
        )
