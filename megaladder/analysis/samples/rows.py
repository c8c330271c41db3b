"""One stored row as samples: its verdicts, answers, lengths and texts, whatever program wrote it.

Read: every layout of stored samples of `data.layouts.table`: what `grade` writes, our eval folders
(lists over samples in `doc.samples`), lm-eval `samples_*.jsonl` (also the s1 fork's lists), plain
`{"id", "correct": […]}`, LIMO's, evalchemy's and Rethinking SFT's outputs, JSON lines or not. One
row may hold one sample or a problem's list of samples. Not here: grading (rewards).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megaladder.analysis.tables import read_json_lines
from megaladder.data.layouts.stored import lifted, stored_layout
from megaladder.data.read import BadRow
from megaladder.data.sources.find import as_data_file
from megaladder.data.sources.source import open_source
from megaladder.errors import DataError
from megaladder.files.sums import refuse_changed
from megaladder.types import UNDECIDED_REASONS

CORRECT_KEYS = ("correct", "exact_matches", "answers_correctness", "accuracy", "exact_match")
ANSWER_KEYS = (
    "extracted_answers",
    "extracted_answer",
    "answer",
    "answers",
    "generated_answers",
    "prediction",
)
LENGTH_KEYS = ("num_tokens", "lengths", "tokens")
TEXT_KEYS = ("responses", "response", "resps", "generated_responses")
QUESTION_KEYS = ("problem", "question", "Question", "query", "prompt", "input")


class NoVerdictError(DataError):
    """A sample row without a right-or-wrong verdict.

    Not graded yet, a judged benchmark, or one with other metrics."""


def sample_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, row) of every row of a file of samples.

    Under one set of names, whatever program wrote it; see `data.layouts.stored`. Raises DataError.
    """
    refuse_changed(path)
    for where, raw in raw_rows(path):
        row = with_sample_lists(raw)
        layout = stored_layout(row, where)
        stored = layout.stored if layout is not None else None
        yield where, lifted(row, stored) if stored is not None else row


def raw_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, row) as the file has them, null fields included; blank lines are skipped."""
    if str(path).endswith(".jsonl") or (Path(path).is_file() and as_data_file(str(path)) is None):
        yield from read_json_lines(path)
        return
    for row in open_source(path).rows():
        if isinstance(row, BadRow):
            raise row
        yield row.where, row.whole


def with_sample_lists(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the lists over its samples lifted out of `doc.samples`.

    Our eval rows keep them there, since lm-eval's schema has no place for them."""
    doc = row.get("doc")
    lists = doc.get("samples") if isinstance(doc, dict) else None
    return {**row, **lists} if isinstance(lists, dict) else row


def problem_id(row: dict[str, Any], where: str) -> str:
    """`doc.id`, else `id`, `doc_id`, `unique_id`; else a content hash of the question."""
    doc = row["doc"] if isinstance(row.get("doc"), dict) else {}
    for source, name in (
        (doc, "id"),
        (row, "id"),
        (doc, "unique_id"),
        (row, "doc_id"),
        (row, "unique_id"),
    ):
        value = source.get(name)
        if value is not None and not isinstance(value, (dict, list)):
            return str(value)
    question = question_of(row)
    if question is None:
        raise DataError(
            f"{where}: no 'id', 'doc.id', 'doc_id' or question text; fix: give each problem an id"
        )
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def question_of(row: dict[str, Any]) -> str | None:
    """The question as text, where the row has one."""
    doc = row["doc"] if isinstance(row.get("doc"), dict) else {}
    for source in (doc, row):
        for name in QUESTION_KEYS:
            value = source.get(name)
            if isinstance(value, str) and value:
                return value
            if isinstance(value, list) and value and isinstance(value[-1], dict):  # chat messages
                return str(value[-1].get("content", ""))
    return None


def response_texts(row: dict[str, Any]) -> list[str]:
    """The generated texts of a row, as many as it has (lm-eval nests them as `resps: [[…]]`)."""
    for name in TEXT_KEYS:
        value = row.get(name)
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and value:
            inner = value[0] if len(value) == 1 and isinstance(value[0], list) else value
            return [str(item[0] if isinstance(item, list) and item else item) for item in inner]
    return []


def response_ids(row: dict[str, Any], where: str) -> list[list[int]]:
    """Token ids of each response: `response_ids` as one list of ints or a list of such lists.

    [] where the row has none."""
    value = row.get("response_ids")
    if value is None:
        return []
    if isinstance(value, list) and all(_is_token(item) for item in value):
        return (
            [value]
            if not isinstance(row.get("responses"), list) or value
            else [[] for _ in row["responses"]]
        )
    if isinstance(value, list) and all(
        isinstance(ids, list) and all(_is_token(item) for item in ids) for ids in value
    ):
        return value
    raise DataError(
        f"{where}: 'response_ids' must be a list of token ids, or a list of such lists; fix:"
        " the row"
    )


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def row_verdicts(row: dict[str, Any], where: str) -> tuple[list[bool | None], bool]:
    """The row's verdicts, one a sample (None: undecided), and whether it holds a list of them."""
    for name in CORRECT_KEYS:
        value = row.get(name)
        if name in row and value is None and _all_undecided(row):
            return [None], False
        if value is None or (name == "accuracy" and not isinstance(value, list)):
            continue
        items = value if isinstance(value, list) else [value]
        if not items:
            raise DataError(f"{where}: '{name}' is an empty list; fix: delete the row, or grade it")
        if all(item is None for item in items) and not _all_undecided(row):
            raise NoVerdictError(
                f"{where}: '{name}' is null: not graded, or a judged benchmark; fix: leave it out"
                " of this analysis"
            )
        for item in items:
            if item not in (0, 1, None):
                raise DataError(
                    f"{where}: '{name}' holds {item!r}, expected true or false; fix: grade the row"
                )
        return [None if item is None else bool(item) for item in items], isinstance(value, list)
    raise NoVerdictError(
        f"{where}: no verdict ({', '.join(CORRECT_KEYS)}); found {', '.join(list(row)[:12])};"
        " fix: megaladder grade --input … --output … first"
    )


def _all_undecided(row: dict[str, Any]) -> bool:
    """Whether the grader says of every sample that it could not decide (not: nobody asked it)."""
    reasons = row.get("reasons", row.get("reason"))
    listed = reasons if isinstance(reasons, list) else [reasons]
    return bool(listed) and all(reason in UNDECIDED_REASONS for reason in listed)


def row_gold(row: dict[str, Any]) -> str | None:
    """The gold answer as text, where the row has one."""
    doc = row["doc"] if isinstance(row.get("doc"), dict) else {}
    for source, name in ((row, "gold"), (row, "target"), (doc, "answer"), (row, "gold_answer")):
        if source.get(name) is not None:
            return str(source[name])
    return None


def aligned(row: dict[str, Any], keys: tuple[str, ...], num_samples: int, where: str) -> list[Any]:
    """The first of these columns, one text (or None) a sample; [] where the row has none of them."""
    for name in keys:
        value = row.get(name)
        if value is None and not (name in row and num_samples == 1):
            continue
        items = value if isinstance(value, list) else [value]
        if len(items) == num_samples:
            return [None if item is None else str(item) for item in items]
        if isinstance(value, list):
            raise DataError(
                f"{where}: '{name}' has {len(items)} entries for {num_samples} verdicts; fix:"
                " the row"
            )
    return []


def token_counts(row: dict[str, Any], num_samples: int, where: str) -> list[int]:
    """Tokens of each sample, by its ids or a column of counts; [] where the row has neither."""
    ids = response_ids(row, where)
    if len(ids) == num_samples:
        return [len(item) for item in ids]
    for name in LENGTH_KEYS:
        value = row.get(name)
        items = value if isinstance(value, list) else [value]
        if len(items) == num_samples and all(_is_token(item) for item in items):
            return [int(item) for item in items if item is not None]
    return []
