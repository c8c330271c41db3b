"""A source of rows → `Example`s, in order: what SFT learns from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from megaladder.data.layouts.layout import check_fits
from megaladder.data.layouts.learn import ReadOptions
from megaladder.data.layouts.table import layout_of
from megaladder.data.read import BadRow, BadRowLog, RawRow, describe
from megaladder.data.repeats import Repeats, numbered
from megaladder.data.sources.find import SourceSpec
from megaladder.data.sources.source import open_source
from megaladder.errors import DataError
from megaladder.types import Example

LIMO_SYSTEM_PROMPT = r"Please reason step by step, and put your final answer within \boxed{}."


class ExampleReader:
    """Iterates a source as Examples, in order.

    After the iteration `rows`, `repeats.count` and `bad_rows` say what happened.

    Ids: the row's `id` (text or integer; 1 and "1" are the same), else a hash of the content.
    most_rows: only so many of the first rows; None = all.
    """

    def __init__(
        self,
        spec: SourceSpec | str | Path,
        options: ReadOptions,
        bad_rows: BadRowLog | None = None,
        most_rows: int | None = None,
    ) -> None:
        self.source = open_source(spec)
        self.options = options
        self.layout = layout_of(self.source, options.format, "learn")
        self.bad_rows = bad_rows or BadRowLog(options.on_bad_row)
        self.repeats = Repeats(self.source, options.duplicates)
        self.rows, self._most_rows = 0, most_rows

    def __iter__(self) -> Iterator[Example]:
        for row in islice(self.source.rows(), self._most_rows):
            self.rows += 1
            try:
                if isinstance(row, BadRow):
                    raise row
                example = self._convert(row)
            except BadRow as bad:
                self.bad_rows.handle(bad)
                continue
            if example is not None:
                yield example
        if self.rows == 0:
            raise DataError(
                f"{self.source.path}: expected at least one row, found none; fix: give a file with"
                " rows"
            )

    def _convert(self, row: RawRow) -> Example | None:
        """The row as an example; None for a repeat that is left out."""
        check_fits(self.layout, row)
        # `layout_of` refuses the others
        assert self.layout.learn is not None
        example = self.layout.learn(row, self.options)
        content = repr(replace(example, id="", where="", metadata={}))
        given = row_id(row)
        copy = self.repeats.take(self.rows, row.where, given, content)
        if copy == 0:
            return None
        name = given or hashlib.sha256(content.encode("utf-8")).hexdigest()[:16]
        return replace(example, id=numbered(name, copy))


def row_id(row: RawRow) -> str | None:
    """The row's own `id` as text. Raises BadRow for one that is neither text nor an integer."""
    given = row.data.get("id")
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        fix = "rename the field, or use text ids"
        raise BadRow(row.where, "bad id", "text or an integer as 'id'", describe(given), fix)
    return str(given)
