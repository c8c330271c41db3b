"""The data of an SFT run: tokenised once, packed for the layout.

The ranks of a machine share one copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megaladder import parallel
from megaladder.config.sft import SftConfig
from megaladder.data.chat.tokenizer import model_tokenizer, tokenizer_fingerprint, tokenizer_folder
from megaladder.data.loader import BatchStats, SftLoader, eval_batches
from megaladder.data.mixture import MixedStore
from megaladder.data.pack import PackSpec
from megaladder.data.repeats import repeats_line
from megaladder.data.store import SampleStore
from megaladder.data.store_build import open_train_and_holdout
from megaladder.errors import DataError
from megaladder.model.hf_config import ModelShape
from megaladder.parallel import Layout
from megaladder.process.faults import fault_point
from megaladder.train.health import Watchdog
from megaladder.train.model_files import ModelFiles, model_files
from megaladder.train.objectives.token_loss import NEEDS_ADVANTAGE, NEEDS_OLD_LOGPROBS
from megaladder.train.packing import check_vocabulary, pack_spec
from megaladder.types import PackedBatch, required


@dataclass(frozen=True, slots=True)
class SftData:
    """Training and held-out samples with everything the loop asks of them."""

    train: SampleStore
    held_out: SampleStore | None
    loader: SftLoader
    total_steps: int
    spec: PackSpec
    tokenizer_hash: str
    files: ModelFiles

    def names(self, indices: np.ndarray) -> Sequence[str]:
        """Sample ids as the data names them."""
        return [self.train[int(index)].id for index in indices]

    def held_out_batches(self) -> Iterator[tuple[list[PackedBatch], BatchStats]]:
        """Every held-out sample once, in batches of the training batch size."""
        return eval_batches(
            required(self.held_out, "held_out"),
            self.loader.global_batch_size,
            self.spec,
            self.loader.dp_rank,
            self.loader.dp_size,
        )

    def identity(self) -> dict[str, Any]:
        """Hashes of what went in, for fingerprint.json."""
        held_out = self.held_out.fingerprint if self.held_out is not None else None
        return {
            "data": self.train.fingerprint,
            "num_samples": len(self.train),
            "held_out": held_out,
            "tokenizer": self.tokenizer_hash,
            "stop_token_ids": self.files.stop_ids,
        }

    def summary(self) -> str:
        report = self.train.report
        lost = sum(report.dropped.values()) + sum(report.bad_rows.values())
        return (
            f"{report.rows:,} rows → {report.samples:,} samples, {report.truncated:,} truncated,"
            f" {lost:,} dropped"
        )

    def describe(self) -> list[str]:
        """What a person should know before the first step.

        Schema, counts, lengths, what is left out and why."""
        report, loader = self.train.report, self.loader
        quantiles = report.token_quantiles
        lines = [
            (
                f"data {report.path}: schema {report.schema}; {self.summary()};"
                f" {report.num_tokens:,} tokens, {report.loss_token_share:.0%} with loss; lengths"
                f" p50 {quantiles.get('p50')}, p95 {quantiles.get('p95')}, max"
                f" {quantiles.get('p100')}"
            ),
            f"epoch: {len(self.train):,} samples / {loader.global_batch_size} ="
            f" {loader.steps_per_epoch} steps"
            + (
                f", {loader.dropped_per_epoch} left out (others each epoch)"
                if loader.dropped_per_epoch and self.train.mixture is None
                else ""
            ),
        ]
        if report.no_end_of_turn:
            lines.append(
                f"  {report.no_end_of_turn:,} samples end without an end-of-turn token (the"
                " template has none)"
            )
        if report.duplicate_rows:
            lines.append(f"  {repeats_line(report.duplicate_rows, report.duplicates)}")
        if isinstance(self.train, MixedStore):
            lines += self.train.lines(loader.steps_per_epoch * loader.global_batch_size)
        lines += [
            f"  {count:,} rows: {reason}"
            for reason, count in {**report.bad_rows, **report.dropped}.items()
        ]
        return lines


def prepare_data(
    config: SftConfig,
    layout: Layout,
    shape: ModelShape,
    model_folder: Path,
    watchdog: Watchdog | None = None,
) -> SftData:
    """Tokenises (rank 0, once) and opens the data on every rank. Collective.

    Raises:
        DataError: unreadable rows, or a token weighting that needs a column which the data lacks.
        ModelError: no tokenizer, or one with ids that the model's vocabulary does not have.
    """
    if watchdog is not None:
        watchdog.beat("tokenising the data", patience_s=24 * 3600.0)
    with parallel.main_rank_first():
        fault_point("data")
        folder = tokenizer_folder(config.model, model_folder)
        tokenizer = model_tokenizer(config.model, folder)
        tokenizer_hash = tokenizer_fingerprint(folder, tokenizer.chat_template)
        # tokenised data is cached in the run folder unless another place is named
        cache_dir = config.data.cache_dir or str(Path(config.run_dir) / "data")
        train, held_out = open_train_and_holdout(
            config.data, cache_dir, config.train.seed, tokenizer, tokenizer_hash
        )
    _check_columns(config, train)
    check_vocabulary(train.largest_token_id, shape, folder)
    spec = pack_spec(
        config.data,
        config.train,
        config.parallel,
        config.gpu,
        pad_token_id=tokenizer.pad_token_id or 0,
        hidden_size=shape.hidden_size,
    )
    loader = SftLoader(
        train,
        config.train.global_batch_size,
        config.train.seed,
        spec,
        parallel.dp_rank(),
        parallel.dp_size(),
        shuffle=config.data.order == "shuffled",
    )
    total_steps = loader.total_steps(config.train.epochs)
    if config.train.max_steps is not None:
        total_steps = min(total_steps, config.train.max_steps)
    files = model_files(model_folder, folder, tokenizer, train)
    return SftData(train, held_out, loader, total_steps, spec, tokenizer_hash, files)


def _check_columns(config: SftConfig, store: SampleStore) -> None:
    mode = config.train.loss
    if mode in NEEDS_ADVANTAGE and not store.has_advantages:
        raise DataError(
            f"{store.report.path}: train.loss {mode} needs an `advantage` in every row; "
            "fix: add the column, or train.loss vanilla"
        )
    if mode in NEEDS_OLD_LOGPROBS and not store.has_old_logprobs:
        raise DataError(
            f"{store.report.path}: train.loss {mode} needs `logprob` (one number a response token,"
            " end of sequence included) in every row; fix: add the column (`megaladder data"
            " sample` writes it), or train.loss vanilla"
        )
