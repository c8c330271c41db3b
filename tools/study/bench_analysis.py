"""Seconds and peak memory of the analysis verbs on big inputs.

And the start-up time of `analyze --help`.

    python tools/study/bench_analysis.py                          # 2,000 problems × 256 samples ×
    20 models, about a minute python tools/study/bench_analysis.py --problems 200 --models 4

Each verb runs as its own process, as a user starts it; time is wall clock, memory the process's
largest resident set. Files are generated from a seed in a temporary folder (sizes are printed). Not
measured: grading, the report.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Measured:
    """What one process took.

    Wall-clock seconds, processor seconds, largest resident set in bytes, exit status."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    status: int


def measure(arguments: list[str], out: Path) -> Measured:
    """Runs `megaladder arguments…`, its output into a file."""
    command = [sys.executable, "-m", "megaladder", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    with out.open("wb") as sink:
        actions = [(os.POSIX_SPAWN_DUP2, sink.fileno(), 1), (os.POSIX_SPAWN_DUP2, sink.fileno(), 2)]
        process = os.posix_spawn(sys.executable, command, environment, file_actions=actions)
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - started
    return Measured(
        seconds,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,
        os.waitstatus_to_exitcode(status),
    )


def generate(folder: Path, problems: int, samples: int, models: int, seed: int) -> int:
    """One graded file a model and runs.csv with a post-RL score that follows the model's skill.

    Returns the bytes written."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=problems)
    lines, total = ["run,L_val,post_rl"], 0
    for m in range(models):
        skill = rng.normal()
        share = 1 / (1 + np.exp(difficulty - skill))
        correct = rng.random((problems, samples)) < share[:, None]
        text = "".join(
            json.dumps({"id": f"p{i}", "correct": row.tolist()}) + "\n"
            for i, row in enumerate(correct)
        )
        total += (folder / f"m{m}.jsonl").write_text(text)
        lines.append(
            f"m{m},{1 - 0.1 * skill + 0.01 * rng.normal():.6f},{40 + 5 * skill + rng.normal():.4f}"
        )
    (folder / "runs.csv").write_text("\n".join(lines) + "\n")
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = generate(folder, args.problems, args.samples, args.models, args.seed)
        print(
            f"{args.problems:,} problems × {args.samples} samples × {args.models} models:"
            f" {size / 1e6:.0f} MB of verdicts\n"
        )
        files = [str(folder / f"m{m}.jsonl") for m in range(args.models)]
        big = max(k for k in (1, 8, 64, 256) if k <= args.samples)
        verbs = {
            "analyze --help": ["analyze", "--help"],
            "analyze pass-at-k, one model": ["analyze", "pass-at-k", files[0], "--k", f"1,{big}"],
            f"analyze predict, {args.models} models from samples": [
                *(
                    "analyze",
                    "predict",
                    "--table",
                    str(folder / "runs.csv"),
                    "--target",
                    "post_rl",
                    "--samples",
                    str(folder),
                ),
                *("--metrics", f"pass@1,pass@{big},L_val", "--lower-is-better", "L_val"),
            ],
            f"analyze compare, {args.models - 1} models against one": [
                "analyze",
                "compare",
                "--base",
                files[0],
                *files[1:],
            ],
        }
        print("| verb | seconds | of it processor | peak memory MiB |\n|---|---|---|---|")
        worst = 0
        for verb, arguments in verbs.items():
            found = measure(arguments, folder / "out.txt")
            print(
                f"| {verb} | {found.seconds:.2f} | {found.cpu_seconds:.2f} |"
                f" {found.peak_bytes / 2**20:.0f} |",
                flush=True,
            )
            if found.status:
                print((folder / "out.txt").read_text(), file=sys.stderr)
            worst = max(worst, found.status)
    return worst


if __name__ == "__main__":
    sys.exit(main())
