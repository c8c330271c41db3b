"""Data file → SampleStore.

Read, tokenise, truncate, store once, count everything that did not make it.

With a cache folder, one process builds and the others wait for it; the folder's name is a hash of
all that the tokens depend on (data bytes, tokenizer files, chat template, options, CODE_VERSION),
so a stale cache cannot be used. Not done here: packing and order.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from megaladder.config.sections.sft import SftDataSection
from megaladder.console import doing
from megaladder.data.chat.samples import split_turns, tokenize_batch
from megaladder.data.chat.stops import special_token_ids
from megaladder.data.chat.templates import TemplateOptions
from megaladder.data.layouts.learn import ReadOptions
from megaladder.data.mixture import MixedStore
from megaladder.data.read import BadRow, BadRowLog
from megaladder.data.read_examples import ExampleReader
from megaladder.data.sources.find import SourceSpec
from megaladder.data.sources.source import open_source
from megaladder.data.store import (
    DamagedStoreError,
    DataReport,
    SampleStore,
    StoreWriter,
    commit,
    split_holdout,
)
from megaladder.errors import DataError
from megaladder.run_dir import to_json
from megaladder.types import Example, Tokenizer, TokenSample

CODE_VERSION = 3  # raise it when the same input would give other tokens or masks
TOKENIZE_BATCH_ROWS = 64
Truncation = Literal["drop", "right", "error"]


@dataclass(frozen=True, slots=True)
class DataSpec:
    """A data file and how it becomes samples of at most `seq_length` tokens.

    `truncation` of longer samples: drop, right (cut the end; dropped if no loss token is left) or
    error. `cache_dir`: folder for tokenised data, None = in memory. `lock_timeout_s`: how long to
    wait for another process that builds the same cache.
    """

    source: SourceSpec
    seq_length: int
    truncation: Truncation = "right"
    read: ReadOptions = field(default_factory=ReadOptions)
    template: TemplateOptions = field(default_factory=TemplateOptions)
    cache_dir: str | None = None
    lock_timeout_s: float = 3600.0


def data_fingerprint(spec: DataSpec, tokenizer: Tokenizer, tokenizer_hash: str) -> str:
    """sha256 of everything that decides the tokens.

    `tokenizer_hash`: `chat.tokenizer_fingerprint`. Reads the data file once."""
    parts = {
        "code": CODE_VERSION,
        "data": open_source(spec.source).identity(),
        "tokenizer": tokenizer_hash,
        "chat_template": tokenizer.chat_template,
        "seq_length": spec.seq_length,
        "truncation": spec.truncation,
        "read": asdict(spec.read),
        "template": asdict(spec.template),
    }
    return hashlib.sha256(to_json(parts, sort_keys=True).encode("utf-8")).hexdigest()


def truncate(sample: TokenSample, seq_length: int) -> TokenSample | None:
    """The first `seq_length` tokens, or None when no loss token is among them."""
    cut = replace(
        sample,
        input_ids=sample.input_ids[:seq_length],
        loss_mask=sample.loss_mask[:seq_length],
        old_logprobs_n=(
            None if sample.old_logprobs_n is None else sample.old_logprobs_n[:seq_length]
        ),
    )
    return cut if cut.loss_mask.any() else None


class _Build:
    """One pass over a data file: the samples, and the counts of what happened."""

    def __init__(self, spec: DataSpec, tokenizer: Tokenizer) -> None:
        self.spec, self.tokenizer = spec, tokenizer
        self.bad_rows = BadRowLog(spec.read.on_bad_row)
        self.reader = ExampleReader(spec.source, spec.read, self.bad_rows)
        self.dropped: Counter[str] = Counter()
        self.truncated = self.no_end_of_turn = 0

    def samples(self) -> Iterator[TokenSample]:
        special = special_token_ids(self.tokenizer)
        examples = self._examples()
        with doing(f"tokenising {self.reader.source.path}") as task:
            while chunk := list(islice(examples, TOKENIZE_BATCH_ROWS)):
                task.add(len(chunk))
                results = tokenize_batch(chunk, self.tokenizer, self.spec.template)
                for example, result in zip(chunk, results, strict=True):
                    if isinstance(result, BadRow):
                        self.bad_rows.handle(result)
                        continue
                    last_loss_token = result.input_ids[np.flatnonzero(result.loss_mask)[-1]]
                    sample = self._fit(example, result)
                    if sample is not None:
                        self.no_end_of_turn += int(last_loss_token) not in special
                        yield sample

    def _examples(self) -> Iterator[Example]:
        for example in self.reader:
            if self.spec.template.reasoning == "split":
                yield from split_turns(example)
            else:
                yield example

    def _fit(self, example: Example, sample: TokenSample) -> TokenSample | None:
        """Applies the truncation policy."""
        limit, policy = self.spec.seq_length, self.spec.truncation
        if sample.num_tokens <= limit:
            return sample
        if policy == "error":
            raise DataError(
                f"{example.where}: expected at most data.seq_length {limit} tokens, found"
                f" {sample.num_tokens}; fix: seq_length {sample.num_tokens} or more, or"
                " data.truncation: right (cut the end) or drop"
            )
        if policy == "drop":
            self.dropped["longer than seq_length"] += 1
            return None
        cut = truncate(sample, limit)
        if cut is None:
            self.dropped["no loss token left after truncation"] += 1
        else:
            self.truncated += 1
        return cut

    def report(self, num_samples: int) -> DataReport:
        """Call after the pass. Raises DataError for too many bad rows, or when nothing is left."""
        path, rows = self.reader.source.path, self.reader.rows
        self.bad_rows.check(path, rows)
        if not num_samples:
            reasons = ", ".join(
                f"{count} {reason}"
                for reason, count in (self.bad_rows.counts + self.dropped).most_common()
            )
            raise DataError(
                f"{path}: expected at least one usable sample, found 0 of {rows} rows ({reasons});"
                " fix: data.seq_length or the data"
            )
        return DataReport(
            path=path,
            schema=self.reader.layout.name,
            rows=rows,
            samples=num_samples,
            bad_rows=dict(self.bad_rows.counts),
            dropped=dict(self.dropped),
            truncated=self.truncated,
            duplicate_rows=self.reader.repeats.count,
            duplicates=self.spec.read.duplicates,
            no_end_of_turn=self.no_end_of_turn,
        )


def _run(build: _Build, writer: StoreWriter) -> DataReport:
    num_samples = 0
    for num_samples, sample in enumerate(build.samples(), 1):  # noqa: B007 the count is what is wanted after the loop
        writer.add(sample)
    return build.report(num_samples)


def open_store(spec: DataSpec, tokenizer: Tokenizer, tokenizer_hash: str) -> SampleStore:
    """The tokenised samples of a data file, from the cache if they are there.

    Every rank may call this at the same time.

    `tokenizer`: from `chat.load_tokenizer`; `tokenizer_hash`: `chat.tokenizer_fingerprint` of its
    folder. Raises DataError.
    """
    fingerprint = data_fingerprint(spec, tokenizer, tokenizer_hash)
    if spec.cache_dir is None:
        writer = StoreWriter()
        report = _run(_Build(spec, tokenizer), writer)
        arrays, report = writer.finish(report)
        return SampleStore(arrays, fingerprint, report)
    target = Path(spec.cache_dir) / f"data-{fingerprint[:24]}"
    return _good_store(target) or _build_cache(spec, tokenizer, target, fingerprint)


def _build_cache(
    spec: DataSpec, tokenizer: Tokenizer, target: Path, fingerprint: str
) -> SampleStore:
    """Makes `target` under a lock and opens it.

    A process that waited finds it done; what a killed builder left is removed first; what has been
    damaged since is said and made again.
    """
    from filelock import FileLock, Timeout

    target.parent.mkdir(parents=True, exist_ok=True)
    lock_path = target.parent / f"{target.name}.lock"
    try:
        with FileLock(lock_path, timeout=spec.lock_timeout_s):
            store = _good_store(target)
            if store is not None:
                return store
            temporary = target.parent / f".tmp-{target.name}"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            try:
                writer = StoreWriter(temporary)
                commit(
                    writer, temporary, target, fingerprint, _run(_Build(spec, tokenizer), writer)
                )
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            return SampleStore.open(target)
    except Timeout as error:
        raise DataError(
            f"{spec.source.name}: expected another process to finish tokenising within"
            f" {spec.lock_timeout_s:g} s, found {lock_path} still held; fix: look whether that"
            " process hangs, or use another data.cache_dir"
        ) from error


def _good_store(target: Path) -> SampleStore | None:
    if not target.is_dir():
        return None
    try:
        return SampleStore.open(target)
    except DamagedStoreError as error:
        print(f"warning: {error}; tokenising again", file=sys.stderr)
        return None


def open_train_and_holdout(
    section: SftDataSection,
    cache_dir: str | None,
    seed: int,
    tokenizer: Tokenizer,
    tokenizer_hash: str,
) -> tuple[SampleStore, SampleStore | None]:
    """Training samples, of one source or a mixture, and the held-out ones.

    A number or share of the training samples, or a file read with the same options."""
    specs = data_specs(section, cache_dir)
    stores = [open_store(spec, tokenizer, tokenizer_hash) for spec in specs]
    weights = tuple(part.weight for part in section.parts if part.weight is not None)
    store = MixedStore(stores, weights or None) if section.mixture else stores[0]
    if section.holdout is None:
        return store, None
    if isinstance(section.holdout, str):
        source = replace(specs[0].source, path=section.holdout, split=None)
        return store, open_store(replace(specs[0], source=source), tokenizer, tokenizer_hash)
    return split_holdout(store, section.holdout, seed)


def data_specs(section: SftDataSection, cache_dir: str | None) -> list[DataSpec]:
    """How each source of a run is read and rendered."""
    return [
        DataSpec(
            source=SourceSpec.of(part),
            seq_length=section.seq_length,
            truncation=section.truncation,
            read=ReadOptions(
                format=part.format,
                on_bad_row=section.on_bad_row,
                duplicates=section.duplicates,
                system_prompt=section.system_prompt,
                s1_teacher=section.s1_teacher,
            ),
            template=TemplateOptions(
                reasoning=section.reasoning, response_template=section.response_template
            ),
            cache_dir=cache_dir,
        )
        for part in section.parts
    ]
