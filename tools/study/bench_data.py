"""Seconds and peak memory of `data stats`, tokenising and packing at several numbers of rows.

    python tools/study/bench_data.py --rows 100000 300000 1000000 [--out FILE.md]

Each figure is a process of its own: it imports everything and does the work on a few rows first, so
that `start` is the memory of the program and `peak` less `start` that of the rows. Memory is
resident memory (VmHWM of /proc/self/status, Linux), pages of mapped files included. The rows are
arithmetic questions with ids, every one another; the tokenizer is the byte-level one of
`make_tiny_model`. `pack` walks one epoch of a training loader: order, plan and arrays of each
global batch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

WARM_UP_ROWS, BATCH = 500, 512


def write_rows(path: Path, count: int) -> Path:
    """`count` rows of `id`, `question`, `answer`, none like another, about 150 bytes each."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            a, b = number * 7919 % 1_000_003, number % 1013
            answer = f"{a} + {b} = {a + b}, so the result is {a + b}."
            row = {"id": f"row-{number}", "question": f"What is {a} + {b}?", "answer": answer}
            file.write(json.dumps(row) + "\n")
    return path


def run_stats(rows: Path, model: Path) -> None:
    """The verb, without a tokenizer."""
    from megaladder.cli import main

    assert main(["data", "stats", str(rows)]) == 0


def run_stats_with_tokens(rows: Path, model: Path) -> None:
    """The verb, with one."""
    from megaladder.cli import main

    assert main(["data", "stats", str(rows), "--tokenizer", str(model)]) == 0


def tokenize(rows: Path, model: Path) -> None:
    """What the first rank of an SFT run does before its first step.

    The second time it only opens what is there."""
    from megaladder.data.chat.tokenizer import load_tokenizer, tokenizer_fingerprint
    from megaladder.data.sources.find import SourceSpec
    from megaladder.data.store_build import DataSpec, open_store

    tokenizer = load_tokenizer(model)
    spec = DataSpec(SourceSpec(str(rows)), 512, cache_dir=str(rows.parent / "cache"))
    open_store(spec, tokenizer, tokenizer_fingerprint(model))


def pack(rows: Path, model: Path) -> None:
    """An epoch of a training loader over what `tokenize` left."""
    from megaladder.data.loader import SftLoader
    from megaladder.data.pack import PackSpec
    from megaladder.data.store import SampleStore

    (folder,) = (rows.parent / "cache").glob("data-*/")
    store = SampleStore.open(folder)
    loader = SftLoader(store, BATCH, 42, PackSpec(seq_length=512, micro_batch_size=4))
    for _ in range(loader.steps_per_epoch):
        next(loader)


STAGES: dict[str, Callable[[Path, Path], None]] = {
    "data stats": run_stats,
    "data stats --tokenizer": run_stats_with_tokens,
    "tokenise": tokenize,
    "open again": tokenize,
    "pack": pack,
}


def memory_mib(name: str) -> float:
    """VmRSS (now) or VmHWM (the most so far) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(line for line in lines if line.startswith(f"{name}:"))
    return int(found.split()[1]) / 1024


def measure(stage: str, folder: Path) -> None:
    """The child: prints one JSON line with what the stage took on the rows of `folder`."""
    model = folder.parent / "model"
    with tempfile.TemporaryDirectory() as warm, open(os.devnull, "w") as nowhere:
        few = write_rows(Path(warm) / "rows.jsonl", WARM_UP_ROWS + BATCH)
        with contextlib.redirect_stdout(nowhere):
            if stage == "pack":
                tokenize(few, model)
            STAGES[stage](few, model)
            Path("/proc/self/clear_refs").write_text("5")
            start_mib, began = memory_mib("VmRSS"), (time.perf_counter(), time.process_time())
            STAGES[stage](folder / "rows.jsonl", model)
            seconds, cpu_s = time.perf_counter() - began[0], time.process_time() - began[1]
    found = {"seconds": seconds, "cpu_s": cpu_s, "start": start_mib, "peak": memory_mib("VmHWM")}
    print(json.dumps(found))


def table(all_rows: list[int], found: dict[tuple[str, int], dict[str, float]]) -> str:
    """Markdown: a line a stage and number of rows."""
    lines = [
        "| stage | rows | seconds | of a CPU | µs of a CPU a row | peak, MiB | of the rows, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage in STAGES:
        for rows in all_rows:
            one = found[stage, rows]
            share = one["cpu_s"] / rows * 1e6
            more = one["peak"] - one["start"]
            lines.append(
                f"| {stage} | {rows:,} | {one['seconds']:.1f} | {one['cpu_s']:.1f} | {share:.0f} |"
                f" {one['peak']:.0f} | {more:.0f} |"
            )
    return "\n".join(lines)


def run_all(all_rows: list[int], work: Path) -> str:
    """Every stage at every number of rows, one after another."""
    from megaladder.tools.make_tiny_model import TinyModelConfig, write_tiny_model

    few = write_rows(work / "few.jsonl", WARM_UP_ROWS)
    write_tiny_model(TinyModelConfig(data=str(few), out=str(work / "model"), weights=False))
    found = {}
    for rows in all_rows:
        folder = work / str(rows)
        folder.mkdir()
        write_rows(folder / "rows.jsonl", rows)
        for stage in STAGES:
            command = [sys.executable, __file__, "--stage", stage, "--work", str(folder)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[stage, rows] = json.loads(done.stdout.splitlines()[-1])
            print(f"{rows:,} rows, {stage}: {found[stage, rows]}", file=sys.stderr, flush=True)
    return table(all_rows, found)


def main() -> None:
    """Parent: all figures as a table. Child (`--stage`): one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--out", help="file for the table; stdout gets it too")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--work", help="folder for rows and tokens; null = a temporary one")
    args = parser.parse_args()
    if args.stage:
        measure(args.stage, Path(args.work))
        return
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        text = run_all(args.rows, Path(work))
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
