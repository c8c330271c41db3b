"""A long GRPO run with a fault about every minute, started again by the same command whenever it
ends, beside a quiet run of the same steps.

    PYTHONPATH=.:tests python -m chaos.soak [--minutes 60] [--every 60] [--out soak.json]

Held at the end: every status is 0, 3 or the signal's; every step's row is there once and equal to
the quiet run's; memory, descriptors, threads, processes, shared memory and temporary files do not
grow over the life of a process; nothing is left behind. The engine is a child process that answers
without a model, trainer and grader are real. A full disk is a small tmpfs that is really full: that
fault needs the right to mount, and is left out without it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chaos.soak_curves import CURVES, Sample, curves, growth, look, tree_of

# of a run that goes on, of one that has to be started again
MILD, DEADLY = ("engine", "grader", "stop"), ("kill", "term", "full")
MAX_STEPS = 100_000
COMPARED = ("step", "groups_sha256", "loss", "grad_norm", "reward")
TMPFS_MIB = 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Folders of a soak."""

    root: Path
    disk: Path
    mounted: bool

    @classmethod
    def make(cls, root: Path) -> Place:
        """`disk` is a file system of its own where that is allowed."""
        disk = root / "disk"
        disk.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MIB}m", "soak", str(disk)]
        done = subprocess.run(mount, capture_output=True, check=False)
        return cls(root, disk, done.returncode == 0)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.disk)], check=False)


class Run:
    """One of the two runs: `pause_s` is how long its engine takes for a round."""

    def __init__(self, folder: Path, scratch: Path, inputs: Path, pause_s: float) -> None:
        self.folder, self.scratch, self._inputs = folder, scratch, inputs
        self.temporary = scratch / "tmp"
        self.temporary.mkdir(parents=True)
        self._environment = {
            **os.environ,
            "TMPDIR": str(self.temporary),
            "SOAK_FOLDER": str(scratch),
            "SOAK_PAUSE_S": str(pause_s),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.statuses: Counter[int] = Counter()

    def start(self) -> subprocess.Popen[bytes]:
        """The same command, whatever lies in its folder."""
        flags = {
            "run-dir": self.folder,
            "model.path": self._inputs / "model",
            "data.path": self._inputs / "problems.jsonl",
            "data.seq-length": 128,
            "rollout.engine": "fake",
            "rollout.n": 4,
            "rollout.max-tokens": 40,
            "grpo.preset": "dr_grpo",
            "grpo.prompts-per-step": 3,
            "optim.lr": "1e-5",
            "optim.schedule": "constant",
            "optim.warmup-steps": 0,
            "checkpoint.every": 25,
            "reward.workers": 1,
            "train.epochs": MAX_STEPS,
            "train.max-steps": MAX_STEPS,
        }
        words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        with (self.scratch / "said.txt").open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "chaos.soak_trainer", "grpo", *words],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        return self.process

    def ended(self) -> int:
        """Waits for the end of the process; counts its status."""
        assert self.process is not None
        status = self.process.wait()
        self.statuses[status] += 1
        return status

    def stopped(self) -> int:
        """Asks it to end, and waits; its status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def rows(self) -> list[dict[str, Any]]:
        """Of the steps that it has done."""
        return _rows(self.folder / "metrics.jsonl")

    def memory(self) -> list[dict[str, Any]]:
        """What its trainers said of themselves: see `heap`."""
        return _rows(self.scratch / "heap.jsonl")

    def said(self) -> str:
        return (self.scratch / "said.txt").read_text(errors="replace")[-3000:]


class Soak:
    """Faults on one run, and what is seen of it meanwhile."""

    def __init__(self, run: Run, place: Place, rng: random.Random) -> None:
        self.run, self._place, self._rng = run, place, rng
        self.samples: list[Sample] = []
        self.faults: Counter[str] = Counter()
        self.broken: list[str] = []
        self._below: list[int] = []  # its processes as the fault came
        self._began, self._started = time.monotonic(), time.monotonic()

    # --- faults

    def fault(self, kind: str) -> None:
        """Does it, and waits until the run is on its way again."""
        process = self.run.process
        assert process is not None
        self._below = []
        if process.poll() is not None:
            self._ended("nothing", (0,))
            return
        self.faults[kind] += 1
        self._below = tree_of(process.pid)[1:]
        getattr(self, f"_{kind}")(process.pid)

    def _kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self._ended("kill", (-signal.SIGKILL,))

    def _term(self, pid: int) -> None:
        os.kill(pid, signal.SIGTERM)
        self._ended("term", (3, -signal.SIGTERM))

    def _stop(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        self.pause(5.0)
        os.kill(pid, signal.SIGCONT)

    def _engine(self, pid: int) -> None:
        self._kill_child(pid, "soak_engine")

    def _grader(self, pid: int) -> None:
        self._kill_child(pid, "rewards")

    def _kill_child(self, pid: int, word: str) -> None:
        """One that works: the second step from now needs it, whatever came before.

        One that is killed while it starts ends the run, which is told and not tried again."""
        self.until_steps(2)
        found = [one for one in tree_of(pid)[1:] if word in _command(one)]
        if not found:  # the run has ended meanwhile
            self.faults[f"no {word}"] += 1
        for one in found[:1]:
            os.kill(one, signal.SIGKILL)

    def _full(self, pid: int) -> None:
        filler = self._place.disk / "filler"
        process = self.run.process
        assert process is not None
        # again and again: what the run deletes meanwhile is room that it would go on with
        while process.poll() is None:
            _fill(filler, shutil.disk_usage(self._place.disk).free)
            self.pause(0.2)
        self._ended("full disk", (3,), before=lambda: filler.unlink(missing_ok=True))

    def _ended(
        self, what: str, allowed: tuple[int, ...], before: Callable[[], Any] = lambda: None
    ) -> None:
        """Waits for the end, notes a wrong status and what is left, and starts the command again."""
        assert self.run.process is not None
        children = {*self._below, *tree_of(self.run.process.pid)[1:]}
        status = self.run.ended()
        if status not in allowed:
            self.broken.append(f"{what}: status {status}; {self.run.said()[-600:]}")
        until = time.monotonic() + 15
        while (left := [one for one in children if _alive(one)]) and time.monotonic() < until:
            self.pause(0.2)
        if left:
            self.broken.append(f"{what}: processes left: {[_command(one) for one in left]}")
        before()
        self.run.start()
        self._started = time.monotonic()

    # --- time

    def pause(self, seconds: float) -> None:
        threading.Event().wait(seconds)

    def watch(self, seconds: float) -> None:
        """Looks at the run every few seconds."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.pause(min(5.0, max(0.0, until - time.monotonic())))
            process = self.run.process
            if process is None or process.poll() is not None:
                continue
            now = time.monotonic()
            seen = look(process.pid, self.run.temporary, now - self._began, now - self._started)
            if seen is not None:
                self.samples.append(seen)

    def until_steps(self, more: int) -> None:
        """Waits until the run has done `more` steps since now, or has ended."""
        target = len(self.run.rows()) + more
        process = self.run.process
        assert process is not None
        while (done := len(self.run.rows())) < target and process.poll() is None:
            target = min(target, done + more)  # a start takes rows of unsaved steps away
            self.watch(5.0)

    def next_fault(self, share: float) -> str:
        """Anything, but in the middle third of the time nothing deadly: a long life is seen too."""
        deadly = DEADLY if self._place.mounted else DEADLY[:2]
        mild_only = 1 / 3 <= share < 0.8
        return self._rng.choice(MILD if mild_only or self._rng.random() < 0.6 else deadly)


def _fill(filler: Path, free: int) -> None:
    """Takes the room that a disk has left: most of it at once, the rest by writing."""
    with filler.open("ab", buffering=0) as file:
        with contextlib.suppress(OSError):  # less is left meanwhile
            os.posix_fallocate(file.fileno(), file.tell(), max(1, free - 4096))
            file.seek(0, os.SEEK_END)
        with contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 512)


def _rows(file: Path) -> list[dict[str, Any]]:
    """Those that are whole."""
    raw = file.read_bytes() if file.is_file() else b""
    return [json.loads(line) for line in raw.splitlines(keepends=True) if line.endswith(b"\n")]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _make_inputs(folder: Path) -> None:
    """A tiny model and problems; in a child process, which imports what that takes."""
    code = (
        "import json, sys; from pathlib import Path; from tiny_models import build_tiny_model;"
        "at = Path(sys.argv[1]); build_tiny_model(at / 'model');"
        "rows = [{'id': f'p{i}', 'question': f'What is {i} + {i}?', 'answer': str(2 * i)}"
        " for i in range(60)];"
        "(at / 'problems.jsonl').write_text(''.join(json.dumps(row) + '\\n' for row in rows))"
    )
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def soak(given: argparse.Namespace, place: Place) -> dict[str, Any]:
    """Runs it; the record of what was done and seen."""
    inputs = place.root / "inputs"
    _make_inputs(inputs)
    run = Run(place.disk / "run", place.root / "soak", inputs, given.pause)
    quiet = Run(place.root / "quiet_run", place.root / "quiet", inputs, given.pause)
    one = Soak(run, place, random.Random(given.seed))
    before = _shared()
    run.start()
    quiet.start()
    began = time.monotonic()
    one.until_steps(2)
    while (share := (time.monotonic() - began) / (60 * given.minutes)) < 1 or (
        one.faults.total() < given.faults
    ):
        one.fault(one.next_fault(share))
        one.watch(given.every * (0.75 + 0.5 * one._rng.random()))
    one.until_steps(1)
    last = run.stopped()
    minutes = (time.monotonic() - began) / 60
    while len(quiet.rows()) < len(run.rows()) and quiet.running:
        one.pause(1.0)
    quiet_status = quiet.stopped()
    return {
        "minutes": round(minutes, 1),
        "faults": dict(one.faults),
        "statuses": {str(status): count for status, count in run.statuses.items()},
        "last_status": last,
        "quiet_status": quiet_status,
        "broken": [*one.broken, *_compared(run.rows(), quiet.rows())],
        "steps": len(run.rows()),
        "quiet_steps": len(quiet.rows()),
        "shared_memory_left": sorted(_shared() - before),
        "temporary_left": sorted(p.name for p in run.temporary.rglob("*") if p.is_file()),
        "curves": curves(one.samples),
        "memory": growth(run.memory()),
        "samples": [asdict(sample) for sample in one.samples],
        "memory_rows": run.memory(),
    }


def _compared(rows: list[dict[str, Any]], quiet: list[dict[str, Any]]) -> list[str]:
    """What differs from the quiet run, over the steps that both have."""
    steps = [row["step"] for row in rows]
    wrong = [] if steps == list(range(1, len(rows) + 1)) else [f"steps of the rows: {steps}"]
    for ours, theirs in zip(rows, quiet, strict=False):
        for key in COMPARED:
            if ours.get(key) != theirs.get(key):
                wrong.append(f"step {ours['step']}: {key} {ours.get(key)}, quiet {theirs.get(key)}")
    return wrong[:10]


def _shared() -> set[str]:
    place = Path("/dev/shm")
    return {path.name for path in place.iterdir()} if place.is_dir() else set()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--faults", type=int, default=0, help="goes on until so many have come")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two faults")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds of a round's sampling")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    given = parser.parse_args()
    place = Place.make(Path(tempfile.mkdtemp(prefix="soak-")))
    try:
        record = soak(given, place)
    finally:
        place.close()
        shutil.rmtree(place.root, ignore_errors=True)
    if given.out:
        given.out.write_text(json.dumps(record, indent=1))
    print(f"{record['minutes']} minutes, {record['steps']} steps, faults {record['faults']},")
    print(f"statuses {record['statuses']}, {record['quiet_steps']} quiet steps to compare with")
    for name in CURVES:
        print(f"{name}: {record['curves'][name]}")
    print(f"of the longest life: {record['memory']}")
    growing = [name for name in CURVES if not record["curves"][name]["flat"]]
    bad = record["broken"] + [f"{name} grows" for name in growing]
    bad += [f"left: {name}" for name in record["temporary_left"]]
    print("\n".join(bad) if bad else "all held")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
