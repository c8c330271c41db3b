"""`data decontaminate` against a plain single-pass read of the same file.

On generated long rows, in one run.

    python tools/study/bench_decontaminate.py --rows 100000 --against data/math500
    data/aime24

Each measurement is a process of its own, so that peak memory is its own; the file is read once
before, so that all read it from the page cache. The rows are seeded word salad over an English-like
vocabulary; 100 hold a planted benchmark question.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
READ = """
import json, resource, sys, time
begun = time.perf_counter()
rows = words = 0
with open(sys.argv[1], "rb") as file:
    for line in file:
        rows += 1
        if sys.argv[2] == "parse":
            words += len(json.loads(line))
usage = resource.getrusage(resource.RUSAGE_SELF)
figures = {
    "rows": rows,
    "seconds": time.perf_counter() - begun,
    "cpu_s": usage.ru_utime + usage.ru_stime,
    "peak_mib": usage.ru_maxrss / 1024,
}
print(json.dumps(figures))
"""


def make_file(path: Path, num_rows: int, words_a_row: int, benchmarks: list[str]) -> int:
    """Writes the rows; returns the number of planted questions (one every num_rows / 100)."""
    from megaladder.curate.decontaminate import _benchmark_files
    from megaladder.curate.ngrams import words
    from megaladder.curate.rows import iter_rows, prompt_text

    questions = [
        prompt_text(row.data) or ""
        for path_ in benchmarks
        for file in _benchmark_files(path_)
        for row in iter_rows(file)
    ]
    questions = [question for question in questions if len(words(question)) >= 13]
    vocabulary = sorted({word for question in questions for word in words(question)}) + [
        f"word{i}" for i in range(20_000)
    ]
    rng = random.Random(42)
    planted = 0
    with path.open("w", encoding="utf-8") as file:
        for index in range(num_rows):
            text = " ".join(
                rng.choices(vocabulary, k=rng.randrange(words_a_row // 2, words_a_row * 3 // 2))
            )
            if index % max(1, num_rows // 100) == 7:
                planted += 1
                text = f"{text[: len(text) // 2]} {rng.choice(questions)} {text[len(text) // 2 :]}"
            file.write(
                json.dumps({"id": index, "question": f"row {index}", "response": text}) + "\n"
            )
    return planted


def run_child(args: list[str]) -> tuple[float, float, float, str]:
    """(seconds of the whole process, of these on a processor, peak MiB, output)."""
    begun = time.perf_counter()
    process = subprocess.Popen(args, cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = _wait(process)
    assert status == 0, f"{args}: status {status}"
    return (
        time.perf_counter() - begun,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss / 1024,
        output,
    )


def _wait(process: subprocess.Popen) -> tuple[int, int, resource.struct_rusage]:
    pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return pid, process.returncode, usage


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000, help="rows to generate")
    parser.add_argument("--words", type=int, default=1500, help="mean words a row")
    parser.add_argument("--against", nargs="+", required=True, help="benchmark folders")
    parser.add_argument(
        "--folder", type=Path, default=Path("/tmp/bench_decontaminate"), help="where the files go"
    )
    parser.add_argument("--n", type=int, default=13, help="words per n-gram")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / f"rows_{args.rows}_{args.words}.jsonl"
    planted = make_file(path, args.rows, args.words, args.against)
    size_mib = path.stat().st_size / 2**20
    print(f"{args.rows:,} rows, {size_mib:,.0f} MiB, {planted} planted questions")
    results = []
    for name, kind in (("read lines", "lines"), ("read and parse JSON", "parse")):
        report = json.loads(run_child([sys.executable, "-c", READ, str(path), kind])[3])
        results.append((name, report["seconds"], report["cpu_s"], report["peak_mib"]))
    out = args.folder / "clean.jsonl"
    command = [
        sys.executable,
        "-m",
        "megaladder",
        "data",
        "decontaminate",
        str(path),
        "--against",
        *args.against,
        "--n",
        str(args.n),
        "--out",
        str(out),
    ]
    *measured, output = run_child(command)
    results.append(("decontaminate, all", *measured))
    summary = json.loads(Path(f"{out}.summary.json").read_text(encoding="utf-8"))
    hits = {
        json.loads(line)["id"]
        for line in Path(f"{out}.hits.jsonl").read_text(encoding="utf-8").splitlines()
    }
    print(output)
    print(f"{'':22}{'wall s':>9}{'CPU s':>9}{'rows/CPU s':>12}{'MiB/CPU s':>11}{'peak MiB':>10}")
    for name, seconds, cpu_s, peak in results:
        rates = f"{args.rows / cpu_s:12,.0f}{size_mib / cpu_s:11.1f}"
        print(f"{name:22}{seconds:9.1f}{cpu_s:9.1f}{rates}{peak:10.0f}")
    print(f"rows with hits: {len(hits)} (planted {planted}); kept {summary['kept']:,}")
    return 0 if len(hits) == planted else 1


if __name__ == "__main__":
    sys.exit(main())
