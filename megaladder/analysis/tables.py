"""Strict reading of the small tables that people export, and how results are written.

CSV and JSON lines; there is one way to write.

A table that cannot be read is bad input: `file:line: what, the value; fix: …` and exit status 2. A
byte order mark and CRLF line ends are accepted (spreadsheets write them); thousands separators,
decimal commas, percent signs, blanks and NaN where a number must stand are not. Not here: what the
columns mean (each study), sample files (`samples`).
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaladder.errors import DataError
from megaladder.run_dir import atomic_write, to_json, unsealed

CELL_LIMIT = 10_000_000  # characters; csv's own default of 131,072 is below one long completion
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
THOUSANDS = re.compile(r"[-+]?\d{1,3}([,'’_\s]\d{3})+(\.\d+)?")
DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")


class Warnings:
    """Collects warnings in order, each once.

    They go to stderr and into the JSON; a warning never changes the exit status."""

    def __init__(self, said: bool = True) -> None:
        self._said, self._seen = said, dict[str, None]()

    def add(self, text: str) -> None:
        if text in self._seen:
            return
        self._seen[text] = None
        if self._said:
            print(f"warning: {text}", file=sys.stderr)

    def list(self) -> list[str]:
        return list(self._seen)


@dataclass(frozen=True, slots=True)
class Row:
    """One CSV row.

    `where` is `file:line` of its last physical line; `cells` maps column name → text, stripped."""

    where: str
    cells: dict[str, str] = field(repr=False)

    def text(self, column: str) -> str:
        value = self.cells.get(column, "")
        if not value:
            raise DataError(
                f"{self.where}: column '{column}' is blank; fix: fill it in, or delete the row"
            )
        return value

    def number(
        self, column: str, low: float = -math.inf, high: float = math.inf, unit: str = ""
    ) -> float:
        """The cell as a finite number in [low, high]."""
        return parse_number(self.text(column), f"{self.where}: column '{column}'", low, high, unit)

    def number_or_none(
        self, column: str, low: float = -math.inf, high: float = math.inf, unit: str = ""
    ) -> float | None:
        return self.number(column, low, high, unit) if self.cells.get(column) else None

    def integer(self, column: str, low: int = 0) -> int:
        value = self.number(column, low=low)
        if value != int(value):
            raise DataError(
                f"{self.where}: column '{column}' is {value:g}, expected a whole number; fix: the"
                " cell"
            )
        return int(value)


def parse_number(text: str, what: str, low: float, high: float, unit: str) -> float:
    """A plain decimal number, or a DataError that says which spelling was found instead."""
    if not NUMBER.fullmatch(text):
        raise DataError(f"{what} is {text[:40]!r}, {_spelling(text)}")
    value = float(text)
    if not math.isfinite(value) or not low <= value <= high:
        bounds = f"{low:g} to {high:g}" if math.isfinite(high) else f"at least {low:g}"
        raise DataError(
            f"{what} is {text[:40]}, expected {bounds}{f' ({unit})' if unit else ''}; fix: the cell"
        )
    return value


def _spelling(text: str) -> str:
    if THOUSANDS.fullmatch(text):
        plain = re.sub(r"[,'’_\s]", "", text)
        return f"which looks like a thousands separator; fix: write {plain}"
    if DECIMAL_COMMA.fullmatch(text):
        return f"which looks like a decimal comma; fix: write {text.replace(',', '.')}"
    if text.endswith("%") and NUMBER.fullmatch(text[:-1].strip()):
        return f"the unit is percent already; fix: write {text[:-1].strip()}"
    return "expected a number such as 41.3; fix: the cell (leave no NaN, dash or note in it)"


def read_csv(path: str | Path, required: Sequence[str]) -> list[Row]:
    """All rows of a comma-separated file with a header line.

    It has at least the `required` columns.

    Errors (DataError): no file, not UTF-8, NUL bytes, no rows, missing or doubled columns, a row
    with too few or too many cells. Wholly blank lines are skipped, as every spreadsheet does.
    """
    text = read_text(path)
    if "\0" in text:
        raise DataError(f"{path}: holds NUL bytes, expected CSV text; fix: export it as UTF-8 CSV")
    csv.field_size_limit(CELL_LIMIT)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header, required)
        rows = []
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                hint = (
                    " (a number with a thousands separator splits into two cells)"
                    if len(cells) > len(header)
                    else ""
                )
                raise DataError(
                    f"{where}: {len(cells)} cells, the header has {len(header)}{hint}; fix: the"
                    " row, or quote its commas"
                )
            rows.append(
                Row(where, {name: cell.strip() for name, cell in zip(header, cells, strict=True)})
            )
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}: not CSV ({error}); fix: the quotes in that line"
        ) from None
    if not rows:
        raise DataError(f"{path}: has a header but no rows; fix: add rows, or give another file")
    return rows


def _check_header(path: str | Path, header: list[str], required: Sequence[str]) -> None:
    if not any(header):
        raise DataError(
            f"{path}: is empty, expected a header line with {', '.join(required)}; fix: give"
            " another file"
        )
    doubled = sorted({name for name in header if name and header.count(name) > 1})
    if doubled:
        raise DataError(
            f"{path}:1: column {', '.join(map(repr, doubled))} stands there twice; fix: rename or"
            " remove one"
        )
    missing = [name for name in required if name not in header]
    if missing:
        separator = next(
            (
                name
                for char, name in ((";", "semicolons"), ("\t", "tabs"))
                if len(header) == 1 and char in header[0]
            ),
            None,
        )
        fix = (
            f"save it with commas instead of {separator}"
            if separator
            else "add the column, or rename one (names are case-sensitive)"
        )
        raise DataError(
            f"{path}:1: no column {', '.join(map(repr, missing))}; found {', '.join(header)[:300]};"
            f" fix: {fix}"
        )


@contextmanager
def _unreadable_in_words(path: str | Path) -> Iterator[None]:
    """A file that cannot be opened is a DataError."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; fix: the path") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, expected a file; fix: the path") from None
    except PermissionError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); fix: its permissions"
        ) from None


def read_text(path: str | Path) -> str:
    """A UTF-8 text file as it is (line ends kept), without a byte order mark."""
    with _unreadable_in_words(path):
        raw = Path(path).read_bytes()
    if not raw.strip():
        raise DataError(f"{path}: is empty; fix: give another file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: is not UTF-8 text (byte {error.start}); fix: save it as UTF-8"
        ) from None


def read_json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, object) of every line, read as a stream.

    Blank lines are skipped; a line that is no JSON object is a DataError."""
    found = False
    with _unreadable_in_words(path), Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                found, where = True, f"{path}:{number}"
                yield where, _json_object(line, where, complete=line.endswith(b"\n"))
    if not found:
        raise DataError(f"{path}: is empty; fix: give another file")


def read_growing(path: str | Path) -> tuple[list[tuple[str, dict[str, Any]]], str | None]:
    """Rows of a file that a run may still be writing, and a note.

    The note says that it is empty, or that its last line is torn (that line is left out)."""
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{path}: no such file; fix: the folder of a training run")
    raw, note = file.read_bytes(), None
    if not raw.strip():
        return [], f"{path}: is empty (the run has not finished a step)."
    if not raw.endswith(b"\n"):
        note = (
            f"{path}: its last line is torn (still being written, or the run was killed) and is"
            " left out."
        )
        raw = raw[: raw.rfind(b"\n") + 1]
    lines = enumerate(raw.split(b"\n"), start=1)
    return [
        (f"{path}:{number}", _json_object(line, f"{path}:{number}", complete=True))
        for number, line in lines
        if line.strip()
    ], note


def _json_object(line: bytes, where: str, complete: bool) -> dict[str, Any]:
    try:
        value = json.loads(unsealed(line, where))
    except RecursionError:
        raise DataError(f"{where}: nested too deeply for a sample; fix: delete that line") from None
    except ValueError as error:
        torn = "" if complete else " and the line is torn (no newline): the writer was killed"
        raise DataError(
            f"{where}: not JSON ({str(error)[:120]}){torn}; fix: delete that line"
        ) from None
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: expected a JSON object, found {type(value).__name__}; fix: one {{…}} a line"
        )
    return value


def write_result(path: str | None, result: dict[str, Any]) -> None:
    """The `--json` file: one object, keys sorted, atomically.

    NaN and Infinity become null (their warnings are the caller's)."""
    if path is not None:
        atomic_write(path, to_json(result, sort_keys=True, indent=2) + "\n")


def format_columns(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned plain text for the terminal; numbers to the right, with two decimals.

    None is shown as `–`."""
    body = [[_cell(value) for value in row] for row in rows]
    lines = [list(header), *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    out = []
    for line in lines:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append("  ".join(cells).rstrip())
    return "\n".join(out)


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else printable(str(value))


def printable(text: str, limit: int = 80) -> str:
    """A name from a file as one safe terminal cell.

    Control and bidirectional characters replaced, cut at `limit`."""
    clean = "".join(char if char.isprintable() else "�" for char in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
