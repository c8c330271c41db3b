"""Kills a study at five moments, starts the same command again each time, and compares what it
found with a run that nothing disturbed.

    PYTHONPATH=.:tests python tests/study/interrupt.py s1 --out /tmp/s1     # writes interrupt.json

Both runs are made at OUT/study, since samples and notes name the folders that they belong to; the
undisturbed one lies at OUT/whole afterwards, and is taken from there by a later start.

The moments: data is being made, a model trains (Ctrl-C), an evaluation has drawn some samples, all
evaluations are done and nothing is measured yet, findings are written and the report is not. Kills
are SIGKILL to the study and every process below it, or to the study alone, whose children the
kernel has to end. CPU seconds are of all processes, the killed ones too (Linux).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from waiting import adopt_orphans, descendants, pause

LOOK_S = 0.05  # between two looks at the folder
SOME_STEPS, SOME_SAMPLES = 20, 40
# rows that hold the time of day or seconds
CLOCKS = ("metrics.jsonl", "config_history.jsonl")


@dataclass
class Start:
    """One start of the study: when it was stopped, how, and how it ended. `status` is negative for
    a signal; left_s: seconds until the last process below it was gone."""

    moment: str
    how: str
    status: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    left_s: float = 0.0


@dataclass
class Comparison:
    """What is written at the end."""

    study: str
    jobs: int = 0
    whole: list[Start] = field(default_factory=list)
    disturbed: list[Start] = field(default_factory=list)
    equal_findings: bool = False
    equal_verdicts: bool = False
    files: int = 0
    other_files: list[str] = field(default_factory=list)


def _rows(out: Path, pattern: str, count: int) -> bool:
    """Whether a file that the pattern names has at least so many lines."""
    # a file that was there a moment ago may have got its final name since
    with contextlib.suppress(FileNotFoundError):
        return any(path.read_bytes().count(b"\n") >= count for path in out.glob(pattern))
    return False


def _last_stage_is_done(out: Path) -> bool:
    return (out / ".study/evaluate/all/record.json").is_file()


# name, whether the moment has come, what is done then
MOMENTS: tuple[tuple[str, Callable[[Path], bool], str], ...] = (
    ("data", lambda out: _rows(out, "data/*.jsonl", 1), "kill all"),
    ("training", lambda out: _rows(out, "*/**/metrics.jsonl", SOME_STEPS), "Ctrl-C"),
    ("evaluation", lambda out: _rows(out, "*/**/journal.jsonl", SOME_SAMPLES), "kill all"),
    ("analysis", _last_stage_is_done, "kill parent"),
    ("report", lambda out: (out / "findings.json").is_file(), "kill all"),
)


def run(
    command: Sequence[str], out: Path, moment: tuple[str, Callable[[Path], bool], str]
) -> Start:
    """One start, stopped when its moment comes; all its processes are gone when this returns."""
    name, has_come, how = moment
    start, begun = Start(name, how), time.monotonic()
    with (out.parent / f"{out.name}.log").open("ab") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    while is_running(child) and not has_come(out):
        pause(LOOK_S)
    if is_running(child):
        _stop(child.pid, how)
    else:
        start.how = "ended by itself"
    stopped = time.monotonic()
    start.status, start.cpu_s = _collect(child.pid)
    start.wall_s, start.left_s = time.monotonic() - begun, time.monotonic() - stopped
    print(json.dumps(asdict(start)), flush=True)
    return start


def is_running(child: subprocess.Popen[bytes]) -> bool:
    """Whether it has not ended; it stays to be waited for."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _stop(pid: int, how: str) -> None:
    below = descendants(pid) if how == "kill all" else {}
    os.killpg(pid, signal.SIGINT if how == "Ctrl-C" else signal.SIGKILL)
    for process in below:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _collect(pid: int) -> tuple[int, float]:
    """The study's exit status, and CPU seconds of it and of all processes below it, once they are
    gone: those whose parent was killed are ours (`adopt_orphans`)."""
    status, cpu_s = 0, 0.0
    while True:
        try:
            ended, code, used = os.wait4(-1, 0)
        except ChildProcessError:
            return status, cpu_s
        cpu_s += used.ru_utime + used.ru_stime
        if ended == pid:
            status = os.waitstatus_to_exitcode(code)


def results(out: Path) -> dict[str, bytes]:
    """What the jobs wrote that no clock is in, by path: rows, samples and weights.

    A journal has its samples in the order in which they were finished; here they are sorted.
    """
    found = [path for path in out.rglob("*.jsonl") if path.name not in CLOCKS]
    found += out.rglob("*.safetensors")
    parts = {path: path.relative_to(out).parts for path in sorted(found)}
    kept = {path: names for path, names in parts.items() if not names[0].startswith(".")}
    return {"/".join(names): _content(path) for path, names in kept.items()}


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return b"".join(sorted(content.splitlines(True))) if path.name == "journal.jsonl" else content


def compare(study: str, whole: Path, disturbed: Path) -> Comparison:
    """Both runs' findings and files."""
    a, b = (
        json.loads((out / "findings.json").read_text())["findings"] for out in (whole, disturbed)
    )
    ours, theirs = results(whole), results(disturbed)
    other = [
        name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)
    ]
    verdicts = [[row["verdict"] for row in rows] for rows in (a, b)]
    return Comparison(
        study,
        jobs=len(list(whole.glob(".study/*/*/record.json"))),
        equal_findings=a == b,
        equal_verdicts=verdicts[0] == verdicts[1],
        files=len(ours),
        other_files=other,
    )


def main() -> int:
    """Status 0: the findings are equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("study", help="a shipped study, or a folder with a study.yaml")
    parser.add_argument("--out", type=Path, required=True, help="for both runs and interrupt.json")
    parser.add_argument("--jobs", default="2", help="jobs at a time")
    given = parser.parse_args()
    adopt_orphans()
    given.out.mkdir(parents=True, exist_ok=True)
    place, whole = given.out / "study", given.out / "whole"
    command = [sys.executable, "-m", "megaladder", "study", given.study, "--jobs", given.jobs]
    command += ["--out", str(place)]
    never = ("none", lambda out: False, "nothing")
    shutil.rmtree(place, ignore_errors=True)
    undisturbed = []
    if not (whole / "findings.json").is_file():
        undisturbed.append(run(command, place, never))
        place.rename(whole)
    starts = [run(command, place, moment) for moment in (*MOMENTS, never)]
    found = compare(given.study, whole, place)
    found.whole, found.disturbed = undisturbed, starts
    (given.out / "interrupt.json").write_text(json.dumps(asdict(found), indent=1) + "\n")
    print(json.dumps({key: value for key, value in asdict(found).items() if key != "disturbed"}))
    return 0 if found.equal_findings else 1


if __name__ == "__main__":
    sys.exit(main())
