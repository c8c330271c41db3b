"""What `check` says of a run's data.

What the rows became, one sample with its loss tokens marked, or one problem as it will be prompted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megaladder.config.grpo import GrpoConfig
from megaladder.config.sections.shared import ModelSection
from megaladder.config.sft import SftConfig
from megaladder.errors import ConfigError
from megaladder.types import Tokenizer

if TYPE_CHECKING:
    from rich.text import Text

SAMPLE_CHARACTERS = 4000  # of the rendered sample, the middle is left out


def check_data(config: SftConfig | GrpoConfig) -> list[str]:
    """Prints what the data became and one sample or prompt; returns what is missing."""
    from megaladder.data.layouts.layout import Use
    from megaladder.data.layouts.table import layout_of
    from megaladder.data.sources.find import SourceSpec
    from megaladder.data.sources.source import open_source

    files = list(config.data.paths)
    if isinstance(config, SftConfig) and isinstance(config.data.holdout, str):
        files.append(config.data.holdout)
    missing = [f"data file {path}: not found here" for path in files if _is_missing(path)]
    if missing:
        return missing
    use: Use = "learn" if isinstance(config, SftConfig) else "ask"
    for part in config.data.parts:
        source = open_source(SourceSpec.of(part))
        show("layout", f"{source.path}: {layout_of(source, part.format, use).name}")
    if not Path(config.model.tokenizer or config.model.path).is_dir():
        return []
    if isinstance(config, SftConfig):
        _samples(config)
    elif isinstance(config, GrpoConfig):
        _problems(config)
    return []


def _is_missing(path: str) -> bool:
    """A local path that stands for nothing here; globs, URLs and hub ids are found when opened."""
    return not (Path(path).exists() or "://" in path or any(mark in path for mark in "*?["))


def _tokenizer(model: ModelSection) -> Tokenizer:
    from megaladder.data.chat.tokenizer import model_tokenizer

    return model_tokenizer(model)


def _samples(config: SftConfig) -> None:
    """What the rows became, and one sample with its loss tokens."""
    from megaladder.data.chat.samples import marked_sample, render_sample
    from megaladder.data.chat.tokenizer import tokenizer_fingerprint, tokenizer_folder
    from megaladder.data.repeats import repeats_line
    from megaladder.data.store_build import open_train_and_holdout

    tokenizer = _tokenizer(config.model)
    fingerprint = tokenizer_fingerprint(tokenizer_folder(config.model), tokenizer.chat_template)
    store, held_out = open_train_and_holdout(
        config.data, config.data.cache_dir, config.train.seed, tokenizer, fingerprint
    )
    report = store.report
    show(
        "data",
        f"{report.path}: {report.rows:,} rows of schema {report.schema}, {len(store):,} training"
        " samples" + (f", {len(held_out):,} held out" if held_out else ""),
    )
    show(
        "tokens",
        f"{report.num_tokens:,}, {report.loss_token_share:.1%} with loss; lengths "
        + ", ".join(f"{name} {length:,}" for name, length in report.token_quantiles.items()),
    )
    counts = {**report.bad_rows, **report.dropped, "cut to seq_length": report.truncated}
    for reason, count in {**counts, "without an end-of-turn token": report.no_end_of_turn}.items():
        if count:
            show("counted", f"{reason}: {count:,}")
    if report.duplicate_rows:
        show("counted", repeats_line(report.duplicate_rows, report.duplicates))
    show("steps", _steps_line(config, len(store)))
    if sys.stdout.isatty():
        _show_sample(render_sample(store[0], tokenizer), store[0].id)
    else:
        _show_plain(marked_sample(store[0], tokenizer), store[0].id)


def _problems(config: GrpoConfig) -> None:
    """How many problems can be used, and one as it will be prompted."""
    from megaladder.train.rl.problems import read_parts

    tokenizer = _tokenizer(config.model)
    parts = read_parts(config, tokenizer)
    for part in parts:
        show(
            "data",
            f"{part.name}: {part.num_read:,} problems, {len(part.problems):,} with prompts of at"
            f" most {part.limit:,} tokens",
        )
        for line in part.lines:
            show("counted", line)
    problem, prompt_ids = parts[0].problems[0], parts[0].prompt_ids[0]
    show("prompt", f"{problem.id} ({len(prompt_ids):,} tokens), as the engine gets it")
    print(tokenizer.decode(prompt_ids, skip_special_tokens=False))
    show("answer", f"{problem.gold} (graded as {problem.kind})")


def _steps_line(config: SftConfig, num_samples: int) -> str:
    from fractions import Fraction
    from math import ceil

    batch = config.train.global_batch_size
    if batch > num_samples:
        raise ConfigError(
            f"train.global_batch_size {batch} is more than the {num_samples} training samples; fix:"
            f" at most {num_samples}"
        )
    steps = ceil(num_samples // batch * Fraction(str(config.train.epochs)))
    capped = (
        f", train.max_steps ends it at {config.train.max_steps}"
        if config.train.max_steps and config.train.max_steps < steps
        else ""
    )
    return f"{num_samples // batch} an epoch × {config.train.epochs:g} epochs = {steps}{capped}"


def _show_sample(text: Text, sample_id: str) -> None:
    from rich.console import Console

    show("sample", f"{sample_id} (loss tokens bold green)")
    Console(highlight=False).print(text)


def _show_plain(text: str, sample_id: str) -> None:
    show("sample", f"{sample_id} (loss tokens between ⟦ and ⟧)")
    if len(text) > SAMPLE_CHARACTERS:
        half, left = SAMPLE_CHARACTERS // 2, len(text) - SAMPLE_CHARACTERS
        text = f"{text[:half]}\n… {left:,} characters …\n{text[-half:]}"
    print(text)


def show(name: str, value: str) -> None:
    """One finding."""
    print(f"{name:<12}{value}")
