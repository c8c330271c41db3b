"""What a stop signal does, moment by moment: real runs, each stopped once, as a Markdown table.

    python -m megaladder.tools.signal_table --out runs/signals                the whole table
    python -m megaladder.tools.signal_table --out runs/signals --layouts tp1 --signals SIGINT

A cell is a run of a tiny model on the CPU that sends itself the signal at that moment (a fault
point, never a moment earlier or later): to the process that was started, or to its whole group.
Printed for each: exit status, whether the last finished step is in a committed checkpoint, and
seconds from the signal to the end. Expected everywhere: status 3, nothing unsaved. Exit status 1
when a cell shows anything else. Cells that `OUT/outcomes.jsonl` holds are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from megaladder.process.last_word import read
from megaladder.run_dir import JsonlFile, read_jsonl
from megaladder.tools.make_tiny_model import TinyModelConfig, write_tiny_model

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")
TARGETS = {"one": "launcher", "group": "group"}
# moment -> fault point and passage
MOMENTS = {
    "sft": {
        "data": "data:1",
        "first step": "update:1",
        "mid-save": "writing:1",
        "evaluation": "evaluate:3",
    },
    "grpo": {
        "data": "data:1",
        "first step": "update:1",
        "mid-save": "writing:1",
        "generation": "completion:2",
    },
}
LAYOUTS = {
    "tp1": (),
    "tp2·pp2": ("--parallel.tp", "2", "--parallel.pp", "2", "--parallel.ranks", "4"),
    "tp1, vLLM": ("--rollout.engine", "vllm"),
}
COMMON = ("--train.max-steps", "40", "--checkpoint.every", "2", "--optim.lr", "1e-3")
FLAGS = {
    "sft": (
        *("--data.seq-length", "128", "--train.global-batch-size", "8", "--train.epochs", "50"),
        *("--data.holdout", "0.1", "--train.eval-every", "1"),
    ),
    "grpo": (
        *("--data.seq-length", "256", "--rollout.n", "4", "--rollout.max-tokens", "40"),
        *("--grpo.preset", "dr_grpo", "--grpo.prompts-per-step", "3", "--reward.workers", "1"),
    ),
}
LIMIT_S = 300.0
OUTCOMES = "outcomes.jsonl"


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the table, and its name there."""

    verb: str
    layout: str
    moment: str
    signal: str
    target: str

    @property
    def fault(self) -> str:
        return f"{MOMENTS[self.verb][self.moment]}:{self.signal}@{TARGETS[self.target]}"

    @property
    def folder(self) -> str:
        parts = (self.verb, self.layout, self.moment, self.signal, self.target)
        return "_".join(re.sub(r"\W+", "-", part) for part in parts)

    @property
    def flags(self) -> tuple[str, ...]:
        stand_in = ("--rollout.engine", "fake") if self.verb == "grpo" else ()
        layout = LAYOUTS[self.layout]
        return (
            *COMMON,
            *FLAGS[self.verb],
            *(layout if "vLLM" in self.layout else stand_in + layout),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    saved: None where no step was finished yet; reason: its last word; seconds: from the signal,
    None where the run ended before it."""

    status: int
    saved: bool | None
    step: int | None
    reason: str
    seconds: float | None

    @property
    def is_right(self) -> bool:
        stopped = self.status == 3 and self.reason.startswith("signal")
        return stopped and self.saved is not False and self.seconds is not None


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--verbs", nargs="+", default=list(MOMENTS), choices=list(MOMENTS))
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--signals", nargs="+", default=list(SIGNALS), choices=SIGNALS)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    every = list(dict.fromkeys(moment for moments in MOMENTS.values() for moment in moments))
    parser.add_argument("--moments", nargs="+", default=every, choices=every)
    asked = parser.parse_args(argv)
    prepare(asked.out)
    outcomes = measured(asked.out)
    wanted = [cell for cell in all_cells() if _is_asked(cell, asked)]
    for cell in wanted:
        if cell not in outcomes:
            outcomes[cell] = run(cell, asked.out)
            note(cell, outcomes[cell], asked.out)
            print(f"{cell.folder}: {outcomes[cell]}", file=sys.stderr, flush=True)
    found = {cell: outcomes[cell] for cell in wanted}
    print("\n".join(table(found)))
    return 0 if all(outcome.is_right for outcome in found.values()) else 1


def all_cells() -> Iterator[Cell]:
    for layout, verb in itertools.product(LAYOUTS, MOMENTS):
        if verb == "sft" and "vLLM" in layout:
            continue
        for moment, name, target in itertools.product(MOMENTS[verb], SIGNALS, TARGETS):
            yield Cell(verb, layout, moment, name, target)


def _is_asked(cell: Cell, asked: argparse.Namespace) -> bool:
    return (
        cell.verb in asked.verbs
        and cell.layout in asked.layouts
        and cell.moment in asked.moments
        and cell.signal in asked.signals
        and cell.target in asked.targets
    )


def measured(out: Path) -> dict[Cell, Outcome]:
    """The cells that earlier calls have measured."""
    path = out / OUTCOMES
    rows = read_jsonl(path) if path.is_file() else ()
    return {Cell(**row["cell"]): Outcome(**row["outcome"]) for row in rows}


def note(cell: Cell, outcome: Outcome, out: Path) -> None:
    with JsonlFile(out / OUTCOMES) as file:
        file.append({"cell": asdict(cell), "outcome": asdict(outcome)})


def prepare(out: Path) -> None:
    """A tiny model, and additions to learn."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"{a}+{b}", "question": f"What is {a} + {b}?", "answer": f"#### {a + b}"}
        for a in range(10)
        for b in range(10)
    ]
    data = out / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not (out / "model" / "config.json").is_file():
        sizes = {"hidden": 64, "heads": 2, "kv_heads": 2, "layers": 2, "ffn": 64}
        write_tiny_model(TinyModelConfig(data=str(data), out=str(out / "model"), **sizes))


def run(cell: Cell, out: Path) -> Outcome:
    """One run, from its start to its end."""
    folder = out / cell.folder
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        *(sys.executable, "-m", "megaladder", cell.verb, "--run-dir", str(folder)),
        *("--model.path", str(out / "model"), "--data.path", str(out / "data.jsonl")),
        *cell.flags,
    ]
    environ = {**os.environ, "MEGALADDER_FAULT": cell.fault, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stderr is not None
    signalled = None
    with (out / f"{cell.folder}.stderr").open("w") as log:
        for line in child.stderr:
            log.write(line)
            if line.startswith("fault point "):
                signalled = time.monotonic()
    status = child.wait(LIMIT_S)
    seconds = None if signalled is None else time.monotonic() - signalled
    word = read(folder) or {"saved": None, "step": None, "reason": "none"}
    saved = None if word["step"] is None else bool(word["saved"])
    return Outcome(status, saved, word["step"], word["reason"], seconds)


def table(outcomes: dict[Cell, Outcome]) -> Iterator[str]:
    """Rows: verb, layout, moment; columns: signal to one process or to the group."""
    columns = list(dict.fromkeys((cell.signal, cell.target) for cell in outcomes))
    rows = list(dict.fromkeys((cell.verb, cell.layout, cell.moment) for cell in outcomes))
    yield "| run | moment | " + " | ".join(f"{name}, {target}" for name, target in columns) + " |"
    yield "|---" * (2 + len(columns)) + "|"
    for verb, layout, moment in rows:
        cells = [outcomes[Cell(verb, layout, moment, *column)] for column in columns]
        yield f"| {verb} {layout} | {moment} | " + " | ".join(map(_in_words, cells)) + " |"


def _in_words(outcome: Outcome) -> str:
    saved = {None: "no step yet", True: f"step {outcome.step} saved", False: "NOT SAVED"}
    after = "NOT REACHED" if outcome.seconds is None else f"{outcome.seconds:.1f} s"
    wrong = "" if outcome.is_right else f" ({outcome.reason})"
    return f"{outcome.status}, {saved[outcome.saved]}, {after}{wrong}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
