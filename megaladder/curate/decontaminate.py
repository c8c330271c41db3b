"""The verb `data decontaminate`.

Training rows that share word n-grams with a benchmark (or repeat each other) are reported and left
out.

Two passes over the file: the first scans every row and keeps only the hits, the second copies the
clean rows (JSONL byte for byte). Writes beside `--out F`: `F.hits.jsonl` (a row per span) and
`F.summary.json`. Memory: the benchmarks' n-grams, and the hits.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from megaladder.curate.dedup import Duplicate, ExactDuplicates, NearDuplicates
from megaladder.curate.ngrams import NgramIndex, Span, words
from megaladder.curate.rows import (
    ID_COLUMNS,
    Row,
    RowIds,
    RowWriter,
    copy_rows,
    iter_rows,
    prompt_text,
    text_leaves,
)
from megaladder.data.sources.find import as_data_file
from megaladder.errors import ConfigError, DataError
from megaladder.run_dir import atomic_write, to_json
from megaladder.types import required

if TYPE_CHECKING:
    from megaladder.config.verbs.data import DecontaminateConfig

NUM_COMMON = 10  # most frequent n-grams that the summary lists
SKIPPED_PLACES = (*ID_COLUMNS, "role", "from")


class Hit(NamedTuple):
    """One span in one row; `column` says where in the row, `text` are the equal words."""

    position: int
    where: str
    id: str
    column: str
    span: Span
    text: str

    def as_row(self) -> Row:
        problem = self.span.problem
        return {
            "where": self.where,
            "id": self.id,
            "column": self.column,
            "benchmark": problem.benchmark,
            "problem": problem.id,
            "start_word": self.span.start,
            "end_word": self.span.start + self.span.length,
            "problem_start_word": self.span.problem_start,
            "problem_words": len(problem.word_ids),
            "text": self.text,
        }


@dataclass
class Scan:
    """What the first pass found. `dropped` maps a row's position to the reason it is left out."""

    rows: int = 0
    hits: list[Hit] = field(default_factory=list)
    dropped: dict[int, str] = field(default_factory=dict)
    duplicates: list[Row] = field(default_factory=list)
    ignored_ngrams: Counter[str] = field(default_factory=Counter)


def run_decontaminate(config: DecontaminateConfig) -> None:
    """The verb `data decontaminate`."""
    started = time.perf_counter()
    index = build_index(config.against, config.n, config.min_words, config.path)
    scan = scan_file(config, index)
    scan_s = time.perf_counter() - started
    _drop_hits(scan, config.max_matches)
    out = Path(config.out)
    with RowWriter(out) as writer:
        copy_rows(config.path, scan.dropped, writer)
    with RowWriter(f"{out}.hits.jsonl") as writer:
        writer.write_all([*(hit.as_row() for hit in scan.hits), *scan.duplicates])
    summary = _summary(config, index, scan)
    atomic_write(f"{out}.summary.json", to_json(summary, sort_keys=True, indent=2) + "\n")
    _print(summary, scan, scan_s)


def build_index(
    benchmarks: Sequence[str], n: int, min_words: int, training_file: str
) -> NgramIndex:
    """The n-grams of every benchmark's questions.

    A benchmark is a file or a folder of .jsonl files; two of one name are told apart.

    The training file itself may be among them: then a row matches the earlier rows of the file.
    """
    index = NgramIndex(n, min_words)
    for path in benchmarks:
        for file in _benchmark_files(path):
            name = "itself" if _same_file(file, training_file) else _benchmark_name(file)
            for position, row in enumerate(iter_rows(file)):
                problem = next(
                    (str(row.data[key]) for key in ID_COLUMNS if key in row.data), str(position + 1)
                )
                text = prompt_text(row.data)
                if text is None:
                    raise DataError(
                        f"{row.where}: no question found (problem, question, prompt, messages…);"
                        " fix: rename its column"
                    )
                index.add(name, problem, position, text)
    index.seal()
    return index


def scan_file(config: DecontaminateConfig, index: NgramIndex) -> Scan:
    """First pass: every row's spans and duplicates."""
    scan, ids = Scan(), RowIds(config.path, config.id_column)
    finders: list[tuple[str, Any]] = []
    if config.dedup in ("exact", "near"):
        finders.append(("exact duplicate", ExactDuplicates()))
    if config.dedup == "near":
        finders.append(("near duplicate", NearDuplicates(config.near_threshold)))
    for position, row in enumerate(iter_rows(config.path)):
        scan.rows += 1
        # which repeats are left out is the business of `dedup`
        row_id = required(ids.take(row), "id")
        for column, text in _scanned(row.data, config.columns, row.where):
            for span in index.find(text):
                if span.problem.benchmark != "itself" or span.problem.position < position:
                    found = words(text)[span.start : span.start + span.length]
                    scan.hits.append(
                        Hit(position, row.where, row_id, column, span, " ".join(found))
                    )
        for reason, finder in finders:
            text = prompt_text(row.data) or " ".join(
                text for _, text in _scanned(row.data, (), row.where)
            )
            duplicate: Duplicate | None = finder.check(row_id, text)
            if duplicate is not None:
                scan.dropped.setdefault(position, reason)
                scan.duplicates.append(
                    {
                        "where": row.where,
                        "id": row_id,
                        "duplicate_of": duplicate.of,
                        "similarity": duplicate.similarity,
                        "reason": reason,
                    }
                )
                break
    return scan


def _scanned(row: Row, columns: Sequence[str], where: str) -> Iterator[tuple[str, str]]:
    """(place, text) of the columns to scan.

    Those named, else every text of the row except ids and roles."""
    missing = [name for name in columns if name not in row]
    if missing:
        raise DataError(
            f"{where}: no column '{missing[0]}', which --columns names; fix: one of"
            f" {', '.join(row)}"
        )
    for name in columns or row:
        for place, text in text_leaves(row[name], name):
            if place.rpartition(".")[2] not in SKIPPED_PLACES:
                yield place, text


def _drop_hits(scan: Scan, max_matches: int | None) -> None:
    """Marks the rows with hits.

    With `max_matches`, a text that hits more rows than that is a common phrase: kept in no hit,
    counted."""
    rows_of: dict[str, set[int]] = {}
    for hit in scan.hits:
        rows_of.setdefault(hit.text, set()).add(hit.position)
    if max_matches is not None:
        common = {text: len(rows) for text, rows in rows_of.items() if len(rows) > max_matches}
        scan.ignored_ngrams.update(common)
        scan.hits = [hit for hit in scan.hits if hit.text not in common]
    for hit in scan.hits:
        scan.dropped.setdefault(hit.position, f"overlap with {hit.span.problem.benchmark}")


def _summary(config: DecontaminateConfig, index: NgramIndex, scan: Scan) -> Row:
    per_benchmark: dict[str, dict[str, Any]] = {}
    for problem in [*index.problems, *index.too_short]:
        entry = per_benchmark.setdefault(
            problem.benchmark, {"problems": 0, "too_short": [], "problems_hit": 0, "rows_hit": 0}
        )
        entry["problems"] += 1
    for problem in index.too_short:
        per_benchmark[problem.benchmark]["too_short"].append(problem.id)
    for name, entry in per_benchmark.items():
        hits = [hit for hit in scan.hits if hit.span.problem.benchmark == name]
        entry.update(
            rows_hit=len({hit.position for hit in hits}),
            problems_hit=len({hit.span.problem.position for hit in hits}),
            spans=len(hits),
        )
    frequent = Counter(text for text, _ in {(hit.text, hit.position) for hit in scan.hits})
    return {
        "file": str(config.path),
        "n": config.n,
        "min_words": config.min_words,
        "max_matches": config.max_matches,
        "rows": scan.rows,
        "kept": scan.rows - len(scan.dropped),
        "dropped": dict(Counter(scan.dropped.values())),
        "benchmarks": per_benchmark,
        "ngrams": index.num_ngrams,
        "most_frequent": [
            {"text": text, "rows": count} for text, count in frequent.most_common(NUM_COMMON)
        ],
        "ignored_common": dict(scan.ignored_ngrams),
        "dedup": config.dedup,
    }


def _print(summary: Row, scan: Scan, scan_s: float) -> None:
    print(
        f"{summary['rows']:,} rows scanned in {scan_s:.1f} s ({summary['rows'] / scan_s:,.0f}"
        f" rows/s) against {summary['ngrams']:,} n-grams"
    )
    for name, entry in summary["benchmarks"].items():
        short = (
            f", {len(entry['too_short'])} problems too short to tell" if entry["too_short"] else ""
        )
        print(
            f"  {name}: {entry['rows_hit']:,} rows share a span with {entry['problems_hit']:,} of"
            f" {entry['problems']:,} problems{short}"
        )
    for reason, count in sorted(summary["dropped"].items()):
        print(f"  dropped {count:,}: {reason}")
    if scan.hits:
        print(
            "  most frequent spans (a phrase in many rows is rarely contamination; --max-matches"
            " leaves such out):"
        )
        for item in summary["most_frequent"][:5]:
            print(f"    {item['rows']:,} rows: {item['text'][:100]}")
    print(f"kept {summary['kept']:,} of {summary['rows']:,} rows")


def _benchmark_files(path: str) -> list[Path]:
    folder = Path(path)
    if not folder.exists():
        raise ConfigError(
            f"--against {path}: no such file or folder; fix: a benchmark's folder (…/test.jsonl) or"
            " file"
        )
    if folder.is_file():
        return [folder]
    files = sorted(file for file in folder.rglob("*") if as_data_file(str(file)))
    if not files:
        raise ConfigError(
            f"--against {path}: holds no data file (.jsonl, .json, .csv, .parquet); fix: the folder with"
            " test.jsonl"
        )
    return files


def _benchmark_name(file: Path) -> str:
    """`math500/test` for …/math500/test.jsonl."""
    return f"{file.parent.name}/{file.stem}" if file.parent.name else file.stem


def _same_file(a: str | Path, b: str | Path) -> bool:
    return Path(b).exists() and Path(a).samefile(b)
