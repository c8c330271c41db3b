"""`data stats`: what a person wants to see first of a data file.

Reads it as a stream; keeps numbers, not texts.

Rows, columns, schema, lengths by tokenizer (words without one), the share of tokens with loss,
repeated questions, bad rows by reason, and one rendered sample with its loss tokens marked. Nothing
is written but `--json`.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from megaladder.console import doing
from megaladder.curate.ngrams import words
from megaladder.curate.rows import Row, prompt_text, text_leaves
from megaladder.data.chat.samples import marked_sample, render_sample, tokenize_batch
from megaladder.data.chat.templates import TemplateOptions
from megaladder.data.chat.tokenizer import load_tokenizer, tokenizer_dir
from megaladder.data.layouts.layout import USES, AmbiguousLayoutError
from megaladder.data.layouts.learn import ReadOptions
from megaladder.data.layouts.table import LAYOUTS, recognise
from megaladder.data.read import BadRow, RawRow
from megaladder.data.read_examples import ExampleReader
from megaladder.data.repeats import hash_text, repeats_line
from megaladder.data.sources.find import SourceSpec
from megaladder.data.sources.source import open_source
from megaladder.data.store import length_quantiles
from megaladder.errors import DataError
from megaladder.run_dir import atomic_write, to_json
from megaladder.types import Tokenizer

if TYPE_CHECKING:
    from rich.text import Text

    from megaladder.config.verbs.data import StatsConfig
    from megaladder.types import TokenSample

BATCH_ROWS = 64
# rows that are looked at without a tokenizer
LOOKED_AT = 1000
SAMPLE_CHARACTERS = 2400


@dataclass
class RowCounts:
    """First pass: rows as they stand in the file."""

    rows: int = 0
    columns: Counter[str] = field(default_factory=Counter)
    bad_rows: Counter[str] = field(default_factory=Counter)
    first_bad: BadRow | None = None
    key_sets: Counter[frozenset[str]] = field(default_factory=Counter)
    # number of words → rows
    num_words: Counter[int] = field(default_factory=Counter)
    questions: int = 0
    repeated_rows: int = 0
    repeated_questions: int = 0


@dataclass
class TokenCounts:
    """Second pass: rows as samples. Number of tokens → samples."""

    lengths: Counter[int] = field(default_factory=Counter)
    loss_lengths: Counter[int] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)
    shown: TokenSample | None = None


def run_stats(config: StatsConfig) -> None:
    """The verb `data stats`.

    Raises:
        DataError: rows of no known layout or of several, after all that can be said of them.
    """
    spec = SourceSpec(
        config.path, config.config, config.split, config.revision, tuple(config.fields.items())
    )
    folder = tokenizer_dir(config.tokenizer) if config.tokenizer else None
    counts = count_rows(spec)
    summary = _row_summary(spec, counts)
    refused: DataError | None = None
    tokens, tokenizer, note = None, None, None
    try:
        summary["layouts"] = _layouts(spec, config.format, counts)
    except DataError as error:
        refused = error
    if refused is None and folder is not None:
        arguments = config.chat_template_kwargs
        tokenizer = load_tokenizer(folder, chat_template=config.chat_template, arguments=arguments)
        try:
            tokens = _tokens(config, spec, summary, tokenizer)
        except DataError as error:
            note = str(error)
    elif refused is None:
        summary["unusable_rows"] = _unusable(config, spec, counts.bad_rows)
    if config.json_file:
        atomic_write(config.json_file, to_json(summary, sort_keys=True, indent=2) + "\n")
    _print(summary, note, tokens, tokenizer)
    if refused is not None:
        raise refused


def _row_summary(spec: SourceSpec, counts: RowCounts) -> Row:
    return {
        "file": spec.name,
        "layouts": {},
        "rows": counts.rows,
        "columns": dict(counts.columns.most_common()),
        "bad_rows": dict(counts.bad_rows),
        "first_bad_row": None if counts.first_bad is None else str(counts.first_bad),
        "repeated_rows": counts.repeated_rows,
        "questions": counts.questions,
        "repeated_questions": counts.repeated_questions,
        "word_quantiles": length_quantiles(counts.num_words),
    }


def _layouts(spec: SourceSpec, name: str, counts: RowCounts) -> dict[str, str]:
    """Use → the layout that the rows have for it.

    Raises DataError where no use is known, where several layouts fit for one, and where no row is
    good."""
    if name != "auto" and name not in LAYOUTS:
        raise DataError(
            f"format: expected auto or one of {', '.join(LAYOUTS)}, found {name!r}; fix:"
            " --format auto"
        )
    if counts.first_bad is not None and not counts.key_sets:
        raise counts.first_bad
    found: dict[str, str] = {}
    refused: list[DataError] = []
    for use in USES:
        try:
            named = LAYOUTS.get(name)
            layout = recognise(spec.name, counts.key_sets, use) if named is None else named
        except AmbiguousLayoutError:
            raise
        except DataError as error:
            refused.append(error)
        else:
            found |= {use: layout.name} if layout.can(use) else {}
    if not found:
        raise refused[0]
    return found


def _tokens(
    config: StatsConfig, spec: SourceSpec, summary: Row, tokenizer: Tokenizer
) -> TokenCounts:
    """Adds what the rows are as samples to `summary`.

    Raises DataError for rows that are not for training on answers."""
    reader = ExampleReader(spec, _read_options(config))
    template = TemplateOptions(response_template=config.response_template)
    tokens = count_tokens(reader, tokenizer, template, config.sample)
    summary |= _token_summary(tokens)
    if reader.repeats.count:
        summary["repeats"] = repeats_line(reader.repeats.count, config.duplicates)
    return tokens


def _read_options(config: StatsConfig) -> ReadOptions:
    return ReadOptions(
        format=config.format,
        on_bad_row="skip",
        duplicates=config.duplicates,
        s1_teacher=config.s1_teacher,
    )


def _unusable(config: StatsConfig, spec: SourceSpec, bad: Counter[str]) -> dict[str, int]:
    """Reason → rows among the first ones that training on answers could not use, `bad` ones aside."""
    try:
        reader = ExampleReader(spec, _read_options(config), most_rows=LOOKED_AT)
    except DataError:  # not for training on answers
        return {}
    for _ in reader:
        pass
    return {why: count for why, count in reader.bad_rows.counts.items() if why not in bad}


def count_rows(spec: SourceSpec) -> RowCounts:
    """Counts over the raw rows; bad rows are counted by reason, an empty file is a DataError."""
    counts = RowCounts()
    # 8-byte hashes, one a row or question: what repeats is counted at the end
    rows, questions = array("Q"), array("Q")
    with doing(f"counting {spec.name}") as task:
        for row in open_source(spec).rows():
            counts.rows += 1
            task.add()
            if isinstance(row, BadRow):
                counts.bad_rows[row.reason] += 1
                counts.first_bad = counts.first_bad or row
                continue
            _count(counts, row)
            rows.append(hash_text(to_json(row.data, sort_keys=True)))
            question = prompt_text(row.data)
            if question is not None:
                questions.append(hash_text(" ".join(words(question))))
    if not counts.rows:
        raise DataError(
            f"{spec.name}: expected at least one row, found none; fix: give a file with rows"
        )
    counts.questions = len(questions)
    counts.repeated_rows, counts.repeated_questions = _repeats(rows), _repeats(questions)
    return counts


def _count(counts: RowCounts, row: RawRow) -> None:
    counts.columns.update(row.data.keys())
    counts.key_sets[frozenset(row.data)] += 1
    counts.num_words[sum(len(words(text)) for _, text in text_leaves(row.data))] += 1


def _repeats(hashes: array[int]) -> int:
    if not hashes:
        return 0
    # in place: `hashes` is not needed in its order any more
    values = np.frombuffer(hashes, np.uint64)
    values.sort()
    return int(np.count_nonzero(values[1:] == values[:-1]))


def count_tokens(
    reader: ExampleReader, tokenizer: Tokenizer, options: TemplateOptions, shown: int
) -> TokenCounts:
    """Renders and tokenises every row as training would, without truncation.

    Rows that cannot be used are counted by reason."""
    counts = TokenCounts()
    examples, number = iter(reader), 0
    with doing(f"tokenising {reader.source.path}") as task:
        while chunk := list(islice(examples, BATCH_ROWS)):
            task.add(len(chunk))
            for result in tokenize_batch(chunk, tokenizer, options):
                if isinstance(result, BadRow):
                    counts.unusable[result.reason] += 1
                    continue
                if number == shown:
                    counts.shown = result
                number += 1
                counts.lengths[result.num_tokens] += 1
                counts.loss_lengths[result.num_loss_tokens] += 1
    counts.unusable += reader.bad_rows.counts
    return counts


def _token_summary(tokens: TokenCounts) -> Row:
    total, loss = _total(tokens.lengths), _total(tokens.loss_lengths)
    return {
        "samples": tokens.lengths.total(),
        "unusable_rows": dict(tokens.unusable),
        "tokens": total,
        "loss_tokens": loss,
        "loss_token_share": loss / total if total else None,
        "token_quantiles": length_quantiles(tokens.lengths),
        "loss_token_quantiles": length_quantiles(tokens.loss_lengths),
    }


def _total(lengths: Counter[int]) -> int:
    return sum(length * count for length, count in lengths.items())


def _print(
    summary: Row, reason: str | None, tokens: TokenCounts | None, tokenizer: Tokenizer | None
) -> None:
    for name, value in _lines(summary, reason):
        print(f"{name:<18}{value}")
    if tokenizer is not None and tokens is not None and tokens.shown is not None:
        _show(tokens.shown, tokenizer)


def _show(sample: TokenSample, tokenizer: Tokenizer) -> None:
    from rich.console import Console

    text: Text | str = render_sample(sample, tokenizer)
    how = "in bold"
    if not sys.stdout.isatty():
        text, how = marked_sample(sample, tokenizer), "between ⟦ and ⟧"
    print(f"\none sample ({sample.num_tokens:,} tokens; loss tokens {how}):")
    Console(soft_wrap=True, highlight=False, markup=False).print(text[:SAMPLE_CHARACTERS])
    if len(text) > SAMPLE_CHARACTERS:
        print(f"… {len(text) - SAMPLE_CHARACTERS:,} characters more")


def _lines(summary: Row, reason: str | None) -> Iterator[tuple[str, str]]:
    yield "file", summary["file"]
    yield "rows", f"{summary['rows']:,}"
    named = [f"{USES[use]}: {name}" for use, name in summary["layouts"].items()]
    yield (
        "layout",
        ("; ".join(named) or "none recognised")
        + (f" ({reason.splitlines()[0]})" if reason else ""),
    )
    yield (
        "columns",
        ", ".join(
            f"{name} {count:,}" if count < summary["rows"] else name
            for name, count in summary["columns"].items()
        ),
    )
    if summary["bad_rows"]:
        yield "bad rows", f"{_reasons(summary['bad_rows'])}; first: {summary['first_bad_row']}"
    yield (
        "repeated",
        (
            f"{summary['repeated_rows']:,} rows, {summary['repeated_questions']:,} of"
            f" {summary['questions']:,} questions"
        ),
    )
    yield "words a row", _quantiles(summary["word_quantiles"])
    if "tokens" in summary:
        share = summary["loss_token_share"]
        yield (
            "tokens",
            f"{summary['tokens']:,} in {summary['samples']:,} samples"
            + (f", {share:.1%} with loss" if share is not None else ""),
        )
        yield "tokens a sample", _quantiles(summary["token_quantiles"])
        yield "of these loss", _quantiles(summary["loss_token_quantiles"])
        if "repeats" in summary:
            yield "repeats", summary["repeats"]
    elif "learn" in summary["layouts"]:
        yield (
            "tokens",
            "not counted: --tokenizer MODEL does, and shows a sample with its loss tokens",
        )
    if summary.get("unusable_rows"):
        of_first = "" if "tokens" in summary else f" (of the first {LOOKED_AT:,})"
        yield "unusable rows", _reasons(summary["unusable_rows"]) + of_first


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} × {reason}" for reason, count in counts.items())


def _quantiles(values: dict[str, int]) -> str:
    return "  ".join(f"{name} {value:,}" for name, value in values.items()) or "none"
