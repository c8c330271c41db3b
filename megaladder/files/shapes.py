"""Values of other kinds in files of ours: an older version's, edited ones, a stranger's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megaladder.errors import DataError, MegaladderError

# what using a value of another kind raises
OTHER_KIND = (
    *(LookupError, TypeError, AttributeError),
    *(ValueError, ArithmeticError, RecursionError),
)


@contextmanager
def expected(path: str | Path, what: str, fix: str) -> Iterator[None]:
    """Around taking values out of a file: one of another kind is a DataError that names the file.

    what: what the file should be. Errors of ours pass as they are.
    """
    try:
        yield
    except MegaladderError:
        raise
    except OTHER_KIND as error:
        found = f"{type(error).__name__}: {str(error)[:200]}"
        raise DataError(
            f"{path}: expected {what}, found other values ({found}); fix: {fix}"
        ) from None


def as_number(value: Any) -> float | None:
    """A number of a JSON text as a float; None for another value, or one beyond every float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
