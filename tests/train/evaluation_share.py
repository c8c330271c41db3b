"""What the evaluations of a run cost, and whether the training noticed them.

    make quickstart && python tests/train/evaluation_share.py runs/quickstart/grpo --out runs/plain

Makes the same run once more without evaluations, with the same number of threads, and compares each
number of each row that no clock is in, and the weights at the end. Status 0: all are equal.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from megaladder.replay.record import differences
from megaladder.run_dir import read_jsonl

PERCENT = 100


def seconds_of(run: Path) -> float:
    """From the first to the last line of its log: the start of the engine counts, too."""
    lines = (run / "log.txt").read_text().splitlines()
    first, last = (datetime.fromisoformat(" ".join(lines[i].split()[:2])) for i in (0, -1))
    return (last - first).total_seconds()


def run_without(run: Path, out: Path) -> None:
    """The same settings but for `evaluate`, in another folder."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    verb = "grpo" if "grpo" in settings else "sft"
    settings.pop("evaluate")
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**settings, "run_dir": str(out)}))
    subprocess.run([sys.executable, "-m", "megaladder", verb, str(file)], check=True)


def of_training(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the ledger of what was evaluated, and without its own digest."""
    other = ("evaluation_", "sha256", "total_flops")
    return {key: value for key, value in row.items() if not key.startswith(other)}


def compared(run: Path, plain: Path) -> list[str]:
    """Steps and weights that are not equal to the bit."""
    rows, others = (list(read_jsonl(folder / "metrics.jsonl")) for folder in (run, plain))
    found = [] if len(rows) == len(others) else [f"{len(rows)} and {len(others)} steps"]
    for a, b in zip(rows, others, strict=False):
        for name, ours, theirs in differences(of_training(a), of_training(b)):
            found.append(f"step {a['step']}: {name} {ours!r}, without evaluations {theirs!r}")
    last = f"hf/step_{rows[-1]['step']}"
    weights = sorted((run / last).glob("*.safetensors"))
    found += [] if weights else [f"no weights of step {rows[-1]['step']}"]
    for path in weights:
        digests = [
            hashlib.sha256((folder / last / path.name).read_bytes()).hexdigest()
            for folder in (run, plain)
        ]
        print(f"{path.name}: sha256 {' and '.join(digest[:16] for digest in digests)}")
        found += [] if digests[0] == digests[1] else [f"{path.name} differs"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", type=Path, help="a finished run with evaluations")
    parser.add_argument("--out", type=Path, required=True, help="for the run without")
    given = parser.parse_args()
    spent = [row["seconds"] for row in read_jsonl(given.run / "evaluations.jsonl")]
    whole = seconds_of(given.run)
    share = PERCENT * sum(spent) / whole
    print(f"{len(spent)} evaluations: {sum(spent):.2f} s of {whole:.0f} s, {share:.1f} %")
    run_without(given.run, given.out)
    found = compared(given.run, given.out)
    steps = len(list(read_jsonl(given.run / "metrics.jsonl")))
    print("\n".join(found) or f"{steps} steps and the last weights are equal to the bit")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
