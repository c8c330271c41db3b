"""Rows of text files: JSON lines, JSON, CSV and plain text, each with its physical line.

JSON lines are read here and not by `datasets`, whose tables know no lines, fill every column of
every row and refuse a column with two types.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from functools import partial
from typing import IO, Any

from megaladder.data.read import BadRow, RawRow, describe, without_nulls
from megaladder.data.sources.find import DataFile
from megaladder.errors import DataError

UTF8_MARK = b"\xef\xbb\xbf"
OTHER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
BINARY_MARKS = {
    b"\x1f\x8b": "a gzip archive (.gz)",
    b"\x28\xb5\x2f\xfd": "a zstd archive (.zst)",
    b"BZh": "a bzip2 archive (.bz2)",
    b"\xfd7zXZ": "an xz archive (.xz)",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a parquet file (.parquet)",
    b"ARROW1": "an Arrow file (.arrow)",
    b"SQLite format 3": "an SQLite database",
    b"\x89PNG": "a picture",
    b"%PDF": "a PDF",
}
# a few bytes of a compressed file can stand for any number of them
MAX_LINE_BYTES, MAX_FILE_BYTES = 1 << 30, 1 << 33
_PIECE_BYTES = 1 << 20
# where a JSON file keeps its rows beside other things
ROWS_IN_OBJECT = ("data", "rows", "examples", "instances", "samples")


def jsonl_rows(file: DataFile) -> Iterator[RawRow | BadRow]:
    """One row a line. Blank lines are bad rows where another row follows."""
    with file.open() as stream:
        yield from _rows_of_lines(file.path, _lines(file.path, stream))


def text_rows(file: DataFile) -> Iterator[RawRow | BadRow]:
    """Each line that is not blank as `{"text": line}`."""
    with file.open() as stream:
        for number, raw in enumerate(_lines(file.path, stream), 1):
            if not raw.strip():
                continue
            where = f"{file.path}:{number}"
            try:
                yield RawRow(where, {"text": raw.rstrip(b"\r\n").decode("utf-8")})
            except UnicodeDecodeError as error:
                yield _not_utf8(where, raw, error)


def csv_rows(file: DataFile) -> Iterator[RawRow | BadRow]:
    """Comma-, semicolon- or tab-separated rows under a header line, which says which.

    Every cell is text, an empty one is absent. A row's place is its last physical line."""
    csv.field_size_limit(1 << 28)
    with file.open() as stream:
        start = stream.peek(4)[:4096]
        _check_encoding(file.path, start)
        delimiter = _delimiter(file.path, start.partition(b"\n")[0])
        lines = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            _check_header(file.path, header)
            for cells in reader:
                if any(cells):
                    yield _csv_row(f"{file.path}:{reader.line_num}", header, cells)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file.path}:{reader.line_num + 1} or a few lines later: expected UTF-8 text,"
                f" found byte 0x{error.object[error.start]:02x}; fix: save the file as UTF-8"
            ) from error
        except csv.Error as error:
            raise DataError(
                f"{file.path}:{reader.line_num}: expected CSV, found {error}; fix: the quotes"
                " in that line"
            ) from error


def _delimiter(path: str, header: bytes) -> str:
    """A tab in `.tsv`; else the comma, unless the header has none of it but another one."""
    if ".tsv" in path.lower():
        return "\t"
    return next((mark for mark in ",;\t" if mark.encode() in header), ",")


def _check_header(path: str, header: list[str]) -> None:
    doubled = sorted({name for name in header if header.count(name) > 1})
    if not header or doubled:
        found = f"{', '.join(doubled)} twice" if doubled else "none"
        raise DataError(
            f"{path}:1: expected a header line with a name a column, found {found}; fix: the first"
            " line"
        )


def _csv_row(where: str, header: list[str], cells: list[str]) -> RawRow | BadRow:
    if len(cells) != len(header):
        expected = f"{len(header)} cells as in the header"
        return BadRow(where, "other cells", expected, f"{len(cells)}", "quote commas in cells")
    return RawRow(where, {name: cell for name, cell in zip(header, cells, strict=True) if cell})


def _lines(path: str, stream: IO[bytes]) -> Iterator[bytes]:
    """Lines as bytes (a binary file splits at \\n only), the first without a UTF-8 mark."""
    for number, raw in enumerate(iter(partial(stream.readline, MAX_LINE_BYTES + 1), b""), 1):
        if len(raw) > MAX_LINE_BYTES:
            raise DataError(
                f"{path}:{number}: a line of more than {MAX_LINE_BYTES >> 20} MiB; fix: one row a"
                " line"
            )
        if number == 1:
            _check_encoding(path, raw)
            raw = raw.removeprefix(UTF8_MARK)
        yield raw


def _check_encoding(path: str, start: bytes) -> None:
    """Raises DataError for a file in another encoding, whose lines would all be refused."""
    kind = next((name for mark, name in BINARY_MARKS.items() if start.startswith(mark)), None)
    if kind is not None:
        raise DataError(
            f"{path}:1: expected text, found {kind}; fix: the ending that says so, or unpack it"
        )
    found = next((name for mark, name in OTHER_MARKS.items() if start.startswith(mark)), None)
    if found is None and b"\0" in start[:64]:
        if all(start[first:16:2].strip(b"\0") for first in (0, 1)):
            raise DataError(
                f"{path}:1: expected text, found bytes that are none (the file starts with"
                f" {start[:4].hex(' ')}); fix: the file that holds the rows"
            )
        found = "UTF-16 without a byte order mark"
    if found is not None:
        raise DataError(
            f"{path}:1: expected UTF-8 text, found {found} (the file starts with"
            f" {start[:4].hex(' ')}); fix: save the file as UTF-8, e.g. iconv -f"
            f" {found.split()[0]} -t UTF-8 {path}"
        )


def _rows_of_lines(path: str, lines: Iterable[bytes]) -> Iterator[RawRow | BadRow]:
    # blank lines are an error only when a row follows: trailing ones are harmless
    blank: list[int] = []
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            blank.append(number)
            continue
        for line in blank:
            where = f"{path}:{line}"
            yield BadRow(where, "blank line", "a JSON object", "an empty line", "delete the line")
        blank.clear()
        yield _parse_line(f"{path}:{number}", raw)


def _not_utf8(where: str, raw: bytes, error: UnicodeDecodeError) -> BadRow:
    found = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line"
    return BadRow(where, "not UTF-8", "UTF-8 text", found, "save the file as UTF-8")


def _parse_line(where: str, raw: bytes) -> RawRow | BadRow:
    try:
        text = raw.removesuffix(b"\n").decode("utf-8")
    except UnicodeDecodeError as error:
        return _not_utf8(where, raw, error)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        found = f"{error.msg} at column {error.colno}: {_excerpt(text, error.pos)}"
        fix = "one complete object per line (a multi-line file must be an array and end in .json)"
        return BadRow(where, "invalid JSON", "one JSON object in this line", found, fix)
    except (ValueError, RecursionError) as error:
        return BadRow(where, "invalid JSON", "plain JSON values", str(error), "repair the row")
    return _checked(where, value, may_have_surrogates=b"\\u" in raw)


def json_rows(file: DataFile) -> Iterator[RawRow | BadRow]:
    """An array of objects; JSON lines under the name .json, as many data sets have it.

    Or one object that holds the array under a usual name, or under `results`, one a benchmark."""
    with file.open() as stream:
        raw = _at_most(stream, MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise DataError(
            f"{file.path}: more than {MAX_FILE_BYTES >> 30} GiB of JSON, which is read as a whole;"
            " fix: one object per line in a .jsonl"
        )
    _check_encoding(file.path, raw)
    raw = raw.removeprefix(UTF8_MARK)
    if raw.lstrip().startswith(b"["):
        yield from _array_rows(file.path, _decoded(file.path, raw))
        return
    value = _whole_object(raw)
    if value is None:
        yield from _rows_of_lines(file.path, io.BytesIO(raw))
    else:
        yield from _rows_inside(file.path, value)


def _at_most(stream: IO[bytes], size: int) -> bytes:
    """What the stream holds, cut at `size`. Its own `read(size)` asks for all that memory first."""
    found = io.BytesIO()
    while piece := stream.read(min(_PIECE_BYTES, size - found.tell())):
        found.write(piece)
    return found.getvalue()


def _decoded(path: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: expected UTF-8 text, found byte 0x{raw[error.start]:02x}; fix: save"
            " the file as UTF-8"
        ) from error


def _whole_object(raw: bytes) -> dict[str, Any] | None:
    """The one object that a file of several lines is, with rows in it; else None."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _places(value) else None


def _places(value: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    """(place, rows) of the lists of objects that stand where rows are kept."""
    results = value.get("results")
    inner = results if isinstance(results, dict) else {}
    named = [(name, value.get(name)) for name in ROWS_IN_OBJECT]
    named += [
        (f"results.{task}.{name}", found[name])
        for task, found in inner.items()
        if isinstance(found, dict)
        for name in ROWS_IN_OBJECT
        if name in found
    ]
    return [
        (place, rows)
        for place, rows in named
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    ]


def _rows_inside(path: str, value: dict[str, Any]) -> Iterator[RawRow | BadRow]:
    for place, rows in _places(value):
        for index, row in enumerate(rows):
            yield _checked(f"{path}:{place}[{index}]", row, may_have_surrogates=True)


def _array_rows(path: str, text: str) -> Iterator[RawRow | BadRow]:
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    at, line, counted = text.index("[") + 1, 1, 0
    expect_comma = False
    while True:
        at = _skip(text, at, ", \t\r\n" if expect_comma else " \t\r\n")
        line, counted = line + text.count("\n", counted, at), at
        if text[at : at + 1] == "]" and not text[at + 1 :].strip():
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            place = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise DataError(
                f"{path}:{place}: expected a JSON array of objects, found {error}; fix: repair the"
                " file, or one object per line in a .jsonl"
            ) from error
        yield _checked(f"{path}:{line}", value, may_have_surrogates=True)
        expect_comma = True


def _skip(text: str, at: int, characters: str) -> int:
    """First position from `at` on that holds none of `characters`; at most one comma is skipped."""
    commas = 0
    while at < len(text) and text[at] in characters and (text[at] != "," or commas == 0):
        commas += text[at] == ","
        at += 1
    return at


def _refuse_constant(name: str) -> None:
    raise ValueError(f"the non-JSON number {name}")


def _excerpt(text: str, position: int) -> str:
    shown = text[max(position - 20, 0) : position + 20].strip()
    return repr(shown) if shown else "the end of the line"


def _checked(where: str, value: Any, may_have_surrogates: bool) -> RawRow | BadRow:
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        # as `datasets` reads a list of turns that is a row: a column for each place
        value = {str(place): item for place, item in enumerate(value)}
    if not isinstance(value, dict):
        return BadRow(
            where,
            "not an object",
            "a JSON object",
            f"{describe(value)}",
            "one object per row, fields by name",
        )
    if may_have_surrogates and (place := _find_surrogate(value, "")):
        return BadRow(
            where,
            "lone surrogate",
            "valid Unicode",
            f"a lone surrogate in {place}",
            "remove it or repair the escape pair",
        )
    return without_nulls(where, value)


def _find_surrogate(value: Any, place: str) -> str | None:
    """`field at character N` of the first half of a UTF-16 pair that stands alone, or None."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"{place or 'a field name'} at character {error.start + 1}"
        return None
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        items = [
            pair
            for key, item in value.items()
            for pair in (("", key), (f"{place}.{key}".lstrip("."), item))
        ]
    elif isinstance(value, list):
        items = [(f"{place}[{index}]", item) for index, item in enumerate(value)]
    return next((found for name, item in items if (found := _find_surrogate(item, name))), None)
