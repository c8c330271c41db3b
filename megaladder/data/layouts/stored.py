"""Raw row → its stored samples: responses, gold answer, verdicts under one set of names.

`lifted` gives a row the names that `grade` and the analyses read, whatever program wrote it; the
row's other columns stay. Which columns hold what: `table`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from megaladder.data.layouts.layout import Layout, Stored, fitting
from megaladder.data.layouts.table import LAYOUTS
from megaladder.errors import DataError

# what an extracted answer may be called; in other layouts some of these are the gold answer
ANSWER_COLUMNS = (
    *("extracted_answers", "extracted_answer", "answer", "answers", "generated_answers"),
    "prediction",
)


def stored_layout(row: Mapping[str, Any], where: str) -> Layout | None:
    """The layout of a row of stored samples; None for one that the table does not have.

    Raises:
        DataError: several fit.
    """
    names = _fitting(frozenset(name for name, value in row.items() if value is not None))
    if len(names) > 1:
        raise DataError(
            f"{where}: expected a row of one layout of samples, found that"
            f" {' and '.join(sorted(names))} fit; fix: remove the columns of one"
        )
    return LAYOUTS[next(iter(names))] if names else None


@cache
def _fitting(columns: frozenset[str]) -> frozenset[str]:
    return frozenset(
        name for name in fitting(LAYOUTS.values(), columns) if LAYOUTS[name].can("stored")
    )


def lifted(row: dict[str, Any], stored: Stored) -> dict[str, Any]:
    """The row under our names, as far as it has them.

    `id`, `responses` (or `response`), `gold`, `correct`, `extracted_answers`. A verdict or an
    answer that is null is kept: it says that there is none. What `grade` wrote counts before what
    the row came with."""
    taken = (*ANSWER_COLUMNS, "response", "responses", "correct")
    plain = {name: value for name, value in row.items() if name not in taken}
    responses = texts_of(find(row, stored.responses))
    found = {
        "id": find(row, stored.ids),
        "gold": find(row, stored.gold),
        "responses" if isinstance(responses, list) else "response": responses,
        "verifier": find(row, (stored.kind,)),
    }
    plain |= {name: value for name, value in found.items() if value is not None}
    verdicts, answers = ("correct", *stored.verdicts), ("extracted_answer", *stored.answers)
    for name, columns in (("correct", verdicts), ("extracted_answers", answers)):
        column = next((column for column in columns if _has(row, column)), None)
        if column is not None:
            plain[name] = find(row, (column,))
    return plain


def _has(row: Mapping[str, Any], column: str) -> bool:
    return column in row if "." not in column else find(row, (column,)) is not None


def texts_of(value: Any) -> Any:
    """A text, or a list of texts: lm-eval nests them as `[[…]]`, or `[[text], [text]]`."""
    if not isinstance(value, list):
        return value
    inner = value[0] if len(value) == 1 and isinstance(value[0], list) else value
    return [item[0] if isinstance(item, list) and item else item for item in inner]


def find(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of these columns that is not null; a dot reaches inside."""
    for name in names:
        value: Any = row
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None
