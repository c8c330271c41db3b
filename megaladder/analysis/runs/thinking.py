"""Thinking tokens of stored answers whose evaluation did not count them.

One that forced a budget did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megaladder.analysis.runs.record import RunRecord, Score
from megaladder.analysis.samples.rows import response_ids, sample_rows

END = "</think>"


def tokenizer_beside(record: RunRecord) -> Path | None:
    """The tokenizer.json that a record's model answered with, where it still lies there.

    Of a run what travels with its weights, of a model its own."""
    folders = (Path(record.path) / "model_files", Path(record.path))
    files = (folder / "tokenizer.json" for folder in folders)
    return next((path for path in files if path.is_file()), None)


def count_thinking(record: RunRecord, score: Score) -> float | None:
    """Mean tokens before the end of thinking, of the whole answer where it never ends.

    The end is `budget.end`, else </think>. None without stored ids or tokenizer, or where no answer
    has such an end."""
    path = tokenizer_beside(record)
    if path is None or score.samples is None:
        return None
    from tokenizers import Tokenizer

    end = str(score.budget.get("end") or END)
    marker = Tokenizer.from_file(str(path)).encode(end, add_special_tokens=False).ids
    counts, ended = [], False
    for where, row in sample_rows(score.samples):
        for ids in response_ids(row, where):
            at = _first(ids, marker)
            ended |= at is not None
            counts.append(len(ids) if at is None else at)
    return sum(counts) / len(counts) if ended else None


def _first(ids: Sequence[int], marker: Sequence[int]) -> int | None:
    """Where `marker` begins in `ids`."""
    size = len(marker)
    places = range(len(ids) - size + 1)
    return next((at for at in places if list(ids[at : at + size]) == list(marker)), None)
