"""Data files → raw rows (dicts) with the place each one comes from. What the rows mean is
`schemas`' business.

JSONL, JSON (an array of objects), parquet, a folder saved by `datasets`, or a hub id with a pinned
commit. Rules: UTF-8 only; only `\\n` ends a line (U+2028 and friends are text); line numbers are
1-based physical lines; lone surrogates, NaN and non-objects are bad rows. A bad row is *yielded* as
a `BadRow`, so that the caller's policy decides; a file that cannot be read at all raises DataError.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from megaladder.errors import DataError

if TYPE_CHECKING:
    import pyarrow

MAX_BAD_SHARE = 0.01  # of the rows, under on_bad_row: skip
SourceKind = Literal["jsonl", "json", "parquet", "arrow", "hub"]
SUFFIXES: dict[str, SourceKind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
ARROW_BATCH_ROWS = 256
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class BadRow(DataError):
    """One row that cannot be used. `reason` is the short class it is counted under; the message is
    `where: expected …, found …; fix: …`."""

    def __init__(self, where: str, reason: str, expected: str, found: str, fix: str) -> None:
        super().__init__(f"{where}: expected {expected}, found {found}; fix: {fix}")
        self.where, self.reason = where, reason


@dataclass(frozen=True, slots=True)
class RawRow:
    """`where` is `file:line` (text files) or `file:row N` (1-based, columnar files). Null fields
    are left out of `data`."""

    where: str
    data: dict[str, Any]


@dataclass
class BadRowLog:
    """Applies `on_bad_row`. `counts` is by reason, `first` keeps the first message of each
    reason."""

    policy: Literal["error", "skip"] = "error"
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def handle(self, bad: BadRow) -> None:
        """Raises under `error`, counts under `skip`."""
        if self.policy == "error":
            raise bad
        self.counts[bad.reason] += 1
        self.first.setdefault(bad.reason, str(bad))

    def check(self, path: str, rows: int) -> None:
        """Raises DataError when more than MAX_BAD_SHARE of `rows` were skipped."""
        skipped = self.counts.total()
        if skipped > MAX_BAD_SHARE * rows:
            listing = "\n".join(
                f"  {count} × {reason}; first: {self.first[reason]}"
                for reason, count in self.counts.most_common()
            )
            raise DataError(
                f"{path}: expected at most {MAX_BAD_SHARE:.0%} bad rows under on_bad_row skip,"
                f" found {skipped} of {rows}:\n{listing}\n  fix: repair these rows, or check"
                " data.format"
            )


@dataclass(frozen=True, slots=True)
class RowSource:
    """A data file, folder or hub data set that can be iterated more than once."""

    path: str
    kind: SourceKind
    revision: str | None = None

    def rows(self) -> Iterator[RawRow | BadRow]:
        """Every row in file order; unusable ones as BadRow."""
        if self.kind == "jsonl":
            return _jsonl_rows(self.path)
        if self.kind == "json":
            return _json_rows(self.path)
        return _arrow_rows(self.path, self._batches())

    def key_sets(self) -> Counter[frozenset[str]]:
        """How many rows have which non-null fields. Reads everything, keeps nothing."""
        if self.kind in ("jsonl", "json"):
            return Counter(frozenset(row.data) for row in self.rows() if isinstance(row, RawRow))
        counts: Counter[frozenset[str]] = Counter()
        for table in self._batches():
            counts.update(_arrow_key_sets(table))
        return counts

    def files(self) -> list[Path]:
        """The files whose bytes make up the data, sorted; empty for a hub data set, which its
        commit identifies."""
        if self.kind == "hub":
            return []
        path = Path(self.path)
        return (
            sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        )

    def _batches(self) -> Iterable[pyarrow.RecordBatch | pyarrow.Table]:
        if self.kind == "parquet":
            return _parquet_batches(self.path)
        data = (
            _load_hub(self.path, self.revision)
            if self.kind == "hub"
            else _load_arrow_folder(self.path)
        )
        return data.with_format("arrow").iter(batch_size=ARROW_BATCH_ROWS)


def open_source(path: str | Path, revision: str | None = None) -> RowSource:
    """Finds out what `path` is. Raises DataError for nothing there, an empty file, an unknown
    suffix, or a hub id without a commit."""
    name, local = str(path), Path(path)
    if local.is_dir():
        if not ((local / "state.json").is_file() or (local / "dataset_dict.json").is_file()):
            raise DataError(
                f"{name}: expected a folder written by datasets.save_to_disk (state.json), found"
                " none; fix: give the file itself, or load the folder with datasets.load_dataset"
                " and save it with save_to_disk"
            )
        return RowSource(name, "arrow")
    if local.is_file():
        kind = SUFFIXES.get(local.suffix.lower())
        if kind is None:
            raise DataError(
                f"{name}: expected a file ending in {', '.join(SUFFIXES)}, found {local.suffix!r};"
                " fix: convert or rename it"
            )
        if local.stat().st_size == 0:
            raise DataError(
                f"{name}: expected at least one row, found an empty file (0 bytes); fix: give a"
                " file with rows"
            )
        return RowSource(name, kind)
    if not _HUB_ID.fullmatch(name) or local.suffix.lower() in SUFFIXES:
        raise DataError(
            f"{name}: expected a data file, an Arrow folder or a hub id, found nothing there; fix:"
            " data.path"
        )
    if revision is None or not _COMMIT.fullmatch(revision):
        raise DataError(
            f"{name}: expected a file or folder, or the hub id of a data set with data.revision set"
            f" to a commit (40 hex digits), found no such path and revision {revision}; fix:"
            " data.path, or data.revision"
        )
    return RowSource(name, "hub", revision)


def _jsonl_rows(path: str) -> Iterator[RawRow | BadRow]:
    with open(path, "rb") as file:
        # blank lines are an error only when a row follows: trailing ones are harmless
        blank: list[int] = []
        for number, raw in enumerate(file, 1):  # a binary file splits at \n only
            if not raw.strip():
                blank.append(number)
                continue
            for line in blank:
                yield BadRow(
                    f"{path}:{line}",
                    "blank line",
                    "a JSON object",
                    "an empty line",
                    "delete the line",
                )
            blank.clear()
            yield _parse_line(
                f"{path}:{number}", raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            )


def _parse_line(where: str, raw: bytes) -> RawRow | BadRow:
    try:
        text = raw.removesuffix(b"\n").decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line"
        return BadRow(where, "not UTF-8", "UTF-8 text", found, "save the file as UTF-8")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        found = f"{error.msg} at column {error.colno}: {_excerpt(text, error.pos)}"
        fix = "one complete object per line (a multi-line file must be an array and end in .json)"
        return BadRow(where, "invalid JSON", "one JSON object in this line", found, fix)
    except (ValueError, RecursionError) as error:
        return BadRow(where, "invalid JSON", "plain JSON values", str(error), "repair the row")
    return _checked(where, value, may_have_surrogates=b"\\u" in raw)


def _json_rows(path: str) -> Iterator[RawRow | BadRow]:
    raw = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not raw.lstrip().startswith(b"["):
        yield from _jsonl_rows(path)  # JSON lines under the name .json, as many data sets have it
        return
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: expected UTF-8 text, found byte 0x{raw[error.start]:02x}; fix: save"
            " the file as UTF-8"
        ) from error
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
    return RawRow(where, {key: item for key, item in value.items() if item is not None})


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


def describe(value: Any) -> str:
    """A short form of a value for messages."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return f"an object with {sorted(value)[:8]}" if value else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}" + (f" ({type(value[0]).__name__} first)" if value else "")
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}"


def _parquet_batches(path: str) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow
    from pyarrow import parquet

    try:
        yield from parquet.ParquetFile(path).iter_batches(batch_size=ARROW_BATCH_ROWS)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}: expected a complete parquet file, found: {error}; fix: copy or download it"
            " again"
        ) from error


def _arrow_rows(
    path: str, batches: Iterable[pyarrow.RecordBatch | pyarrow.Table]
) -> Iterator[RawRow | BadRow]:
    number = 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:row {number + 1} or later: expected UTF-8 text, found {error}; fix:"
                " rewrite the file"
            ) from error
        for row in rows:
            number += 1
            yield RawRow(
                f"{path}:row {number}", {key: item for key, item in row.items() if item is not None}
            )


def _arrow_key_sets(table: pyarrow.RecordBatch | pyarrow.Table) -> Counter[frozenset[str]]:
    names = table.schema.names
    if not any(table.column(name).null_count for name in names):
        return Counter({frozenset(names): table.num_rows})
    valid = [table.column(name).is_valid().to_pylist() for name in names]
    return Counter(
        frozenset(name for name, there in zip(names, row, strict=True) if there)
        for row in zip(*valid, strict=True)
    )


def _load_arrow_folder(path: str) -> Any:
    import datasets

    try:
        data = datasets.load_from_disk(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: expected a folder written by datasets.save_to_disk, found: {error}; fix: save"
            " it again"
        ) from error
    return _only_split(path, data)


def _only_split(path: str, data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    name = "train" if "train" in data else next(iter(data)) if len(data) == 1 else None
    if name is None:
        raise DataError(
            f"{path}: expected a split called train, found {sorted(data)}; fix: give the folder of"
            " one split"
        )
    return data[name]


def _load_hub(name: str, revision: str | None) -> Any:
    import datasets

    try:
        return _only_split(name, datasets.load_dataset(name, revision=revision))
    except (
        OSError,
        ValueError,
        datasets.exceptions.DatasetsError,
    ) as error:  # offline, rate limits and unknown ids are all OSErrors
        raise DataError(
            f"{name} at {revision}: expected a data set that can be downloaded or is in the local"
            f" cache, found {type(error).__name__}: {error}; fix: on a machine with network, `hf"
            f" download --repo-type dataset {name} --revision {revision}`, then give the file as"
            " data.path"
        ) from error
