"""Rows of columnar files and of data sets that `datasets` holds: parquet, Arrow, hub.

Read in batches, so memory does not grow with the file. Nothing is converted between shards: a
column may have another type in another file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from megaladder.data.read import RawRow, without_nulls
from megaladder.data.sources.find import DataFile, SavedFolder, SourceSpec, choose_split
from megaladder.errors import DataError

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 256


def table_batches(
    item: DataFile | SavedFolder, spec: SourceSpec
) -> Iterable[pyarrow.RecordBatch | pyarrow.Table]:
    """The rows of a table, BATCH_ROWS at a time.

    Of a parquet or Arrow file, of a saved folder or a hub data set."""
    if isinstance(item, SavedFolder):
        data = _load_hub(item.path, spec) if item.on_hub else _load_saved(item.path, spec)
        return _valid(item.path, data.with_format("arrow").iter(batch_size=BATCH_ROWS))
    return _file_batches(item)


def table_rows(
    path: str, batches: Iterable[pyarrow.RecordBatch | pyarrow.Table]
) -> Iterator[RawRow]:
    """Rows with their place, `path:row N`."""
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
            yield without_nulls(f"{path}:row {number}", row)


def batch_key_sets(table: pyarrow.RecordBatch | pyarrow.Table) -> Counter[frozenset[str]]:
    """How many rows have which non-null columns, without making rows."""
    names = table.schema.names
    if not any(table.column(name).null_count for name in names):
        return Counter({frozenset(names): table.num_rows})
    valid = [table.column(name).is_valid().to_pylist() for name in names]
    return Counter(
        frozenset(name for name, there in zip(names, row, strict=True) if there)
        for row in zip(*valid, strict=True)
    )


def _file_batches(file: DataFile) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow
    from pyarrow import parquet

    try:
        with file.open() as stream:
            # a columnar file is read from its end: what was compressed as a whole is unpacked first
            source = pyarrow.BufferReader(stream.read()) if file.compression else stream
            if file.kind == "parquet":
                batches = parquet.ParquetFile(source).iter_batches(batch_size=BATCH_ROWS)
            else:
                batches = _ipc_batches(source)
            for batch in batches:
                _refuse_doubled(file.path, batch)
                yield batch
    except (pyarrow.ArrowException, MemoryError, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file.path}: expected a complete {file.kind} file, found: {error}; fix: copy or"
            " download it again"
        ) from error


def _refuse_doubled(path: str, batch: pyarrow.RecordBatch | pyarrow.Table) -> None:
    """Decodes the names of the columns, and raises DataError for one that stands there twice."""
    twice = [name for name, count in Counter(batch.schema.names).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: expected a name a column, found {', '.join(map(repr, twice))} twice; fix:"
            " rename one of them"
        )


def _valid(path: str, batches: Iterable[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    """Tables whose offsets lie inside of them: they are used as they are."""
    import pyarrow

    try:
        for batch in batches:
            batch.validate(full=True)
            _refuse_doubled(path, batch)
            yield batch
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: expected complete Arrow files, found: {error}; fix: save it again"
        ) from error


def _ipc_batches(source: Any) -> Iterator[pyarrow.RecordBatch]:
    """Both Arrow forms: the file with a footer, and the stream that `datasets` writes."""
    import pyarrow

    start = source.read(6)
    source.seek(0)
    if start == b"ARROW1":
        reader = pyarrow.ipc.open_file(source)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        batches = iter(pyarrow.ipc.open_stream(source))
    for batch in batches:
        batch.validate(full=True)  # its offsets are used as they are
        yield batch


def _load_saved(path: str, spec: SourceSpec) -> Any:
    import datasets

    try:
        data = datasets.load_from_disk(path)
    # files of another kind raise anything on their way through the library
    except Exception as error:
        raise DataError(
            f"{path}: expected a folder written by datasets.save_to_disk, found"
            f" {type(error).__name__}: {error}; fix: save it again"
        ) from error
    return data[choose_split(path, list(data), spec.split)] if isinstance(data, dict) else data


def _load_hub(name: str, spec: SourceSpec) -> Any:
    import datasets

    try:
        data = datasets.load_dataset(name, spec.config, revision=spec.revision)
    # offline, rate limits and unknown ids are all OSErrors
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{name} at {spec.revision}: expected a data set that can be downloaded or is in the"
            f" local cache, found {type(error).__name__}: {error}; fix: data.config where that"
            " error lists several, else, on a machine with network, `hf download --repo-type"
            f" dataset {name} --revision {spec.revision}`, then give its folder as data.path"
        ) from error
    return data[choose_split(name, list(data), spec.split)]
