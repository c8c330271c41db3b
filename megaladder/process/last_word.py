"""`last_word.json` in a run folder: how its latest start ended, for programs.

    {"reason": "signal", "status": 3, "saved": true, "step": 40, "saved_step": 40, "rank": 0,
     "host": "node17", "message": "stopped by SIGTERM …", "time": "2026-01-31T12:00:00Z", …}

reason is `running` from the moment the folder is locked; the first ending replaces it, whoever
sees it: the run itself, a rank's watchdog, or the launcher for a rank that was killed. One that
still says `running` while process `pid` on `host` is gone was ended by SIGKILL or a power cut.
`truth` says so; the next start does in its log. `best_step`: the one with the highest score on
`evaluate.benchmarks`. `saved`: no finished step is missing from the newest committed checkpoint. Steps are null before the
first one.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megaladder.process.ranks import attempt, host, process_start, rank_from_env
from megaladder.process.storage import remove_abandoned, replacing, with_digest, without_digest

NAME = "last_word.json"
_KEYS = (
    *("status", "message", "saved", "step", "saved_step", "best_step"),
    *("rank", "host", "pid", "started", "attempt", "time"),
)
RUNNING = "running"
KILLED = "killed"
# reason -> words; the steps follow
REASONS = {
    "finished": "finished",
    "signal": "stopped by a signal",
    "signal_at_start": "stopped by a signal while it started",
    "interrupted": "ended by a second Ctrl-C",
    "hang": "a rank hung",
    "rank_died": "a rank was killed",
    "rank_failed": "a rank failed",
    "storage": "the disk failed",
    "engine": "the engine was lost",
    "not_finite": "numbers were not finite",
    "stopped": "stopped itself",
    "input": "refused its input",
    "bug": "a bug",
    RUNNING: "running",
    KILLED: "killed without a word, or a power cut",
}
_OF_A_RANK = ("hang", "rank_died", "rank_failed")


@dataclass
class _Progress:
    folder: Path | None = None
    step: int | None = None
    saved_step: int | None = None
    best_step: int | None = None
    before: dict[str, Any] | None = None
    damaged: bool = False


_run = _Progress()


@dataclass(frozen=True, slots=True)
class Ending:
    """One ending in words.

    rank, host: where the cause is, if not in this process; step: the last finished one, where this
    process does not know it."""

    reason: str
    status: int
    message: str
    rank: int | None = None
    host: str | None = None


def begin(folder: Path, *, writer: bool) -> None:
    """Endings of this process belong to the run in `folder` from now on.

    writer: this process holds its lock."""
    global _run
    _run = _Progress(folder)
    if writer:
        _run.before, _run.damaged = read(folder), damaged(folder)
        _write(folder, {"reason": RUNNING, "status": None, "message": "", **_here()})


def note_step(step: int) -> None:
    """`step` is finished: its update is done."""
    _run.step = step


def note_saved(step: int) -> None:
    """A committed checkpoint holds `step`: it was saved, or resumed from."""
    _run.saved_step = step
    _run.step = max(step, _run.step or 0)


def note_best(step: int | None) -> None:
    """The step that scored best on the run's benchmarks; None where none was evaluated."""
    _run.best_step = step


def start_before() -> dict[str, Any] | None:
    """The last word of the start before this one, where this process holds the folder's lock."""
    return _run.before


def before_is_damaged() -> bool:
    """Whether the start before this one left a word that cannot be read any more."""
    return _run.damaged


def word_of_this_start() -> dict[str, Any] | None:
    """The word that this start has left already, None while it is running."""
    found = read(_run.folder) if _run.folder is not None else None
    ended = found is not None and found["reason"] != RUNNING and found["attempt"] == attempt()
    return found if ended else None


def finished_step() -> int | None:
    return _run.step


def saved_step() -> int | None:
    return _run.saved_step


def leave(ending: Ending) -> bool:
    """Writes how this start ended, unless another process of it did so before: then False.

    A failing disk must not hide the ending itself, so errors of writing are dropped."""
    if _run.folder is None:
        return True
    with contextlib.suppress(OSError):
        return leave_for(_run.folder, ending, _here())
    return True


def leave_for(
    folder: Path,
    ending: Ending,
    here: dict[str, Any] | None = None,
    instead_of: tuple[str, ...] = (RUNNING,),
) -> bool:
    """The same from outside: for a process of this start that can no longer speak for itself."""
    found = read(folder)
    if found is None or found["reason"] not in instead_of or found["attempt"] != attempt():
        return False
    told = {key: value for key, value in asdict(ending).items() if value is not None}
    _write(folder, {**found, **(here or {}), **told, "time": _now()})
    return True


def read(folder: Path) -> dict[str, Any] | None:
    """The last word in a run folder; None where there is none that can be read."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return _checked(without_digest(found)) if isinstance(found, dict) else None
    except (OSError, ValueError, RecursionError):
        return None


def forget_unwritten(folder: Path) -> None:
    """Removes what killed writers of one left: no start of a finished run comes by with its lock."""
    remove_abandoned(folder, f".{NAME}.")


def damaged(folder: Path) -> bool:
    """Whether there is a last word that nobody can read."""
    return (folder / NAME).is_file() and read(folder) is None


def _checked(word: dict[str, Any]) -> dict[str, Any] | None:
    """The word, where all of it is there and of the right kinds."""
    texts = all(isinstance(word.get(key), str) for key in ("reason", "attempt"))
    numbers = (word.get(key) for key in ("step", "saved_step", "pid", "status", "rank"))
    if not texts or not all(isinstance(number, int | None) for number in numbers):
        return None
    return {**dict.fromkeys(_KEYS), **word}


def truth(folder: Path) -> dict[str, Any] | None:
    """`read`, for a reader who was not there.

    `killed` where it says `running` and the process that wrote it is gone from this machine. Its
    steps are then those of the folder."""
    word = read(folder)
    if word is None or word["reason"] != RUNNING or word["host"] != host():
        return word
    if word.get("started") is None or process_start(word["pid"]) == word["started"]:
        return word
    kept = committed_step(folder, sys.maxsize)
    return {**word, "reason": KILLED, "status": 3, "saved": False, "saved_step": kept}


def committed_step(folder: Path, last: int | None) -> int | None:
    """The newest committed step up to `last`, from the folder itself.

    For a process that is gone, whose own word may be a moment old."""
    found = [
        int(path.parent.name.removeprefix("step_"))
        for path in folder.glob("checkpoints/step_*/COMMITTED")
        if path.parent.name.removeprefix("step_").isdigit()
    ]
    return max((step for step in found if last is not None and step <= last), default=None)


def how_it_ended(word: dict[str, Any]) -> str:
    """One phrase for people, with the steps where they matter."""
    how = REASONS.get(word["reason"], word["reason"])
    if word["reason"] in ("finished", RUNNING):
        return how
    if word["reason"] == KILLED:
        kept = "nothing" if word["saved_step"] is None else f"step {word['saved_step']}"
        return f"{how}; {kept} is saved"
    where = f" (rank {word['rank']} on {word['host']})" if word["reason"] in _OF_A_RANK else ""
    return f"{how}{where}; {in_words(word)}"


def in_words(word: dict[str, Any]) -> str:
    """What of the work is kept, in a few words."""
    if word["step"] is None:
        return "no step was finished in this start"
    if word["saved"]:
        return f"step {word['step']} is saved"
    kept = "nothing" if word["saved_step"] is None else f"step {word['saved_step']}"
    return f"step {word['step']} was finished, {kept} is saved"


def _here() -> dict[str, Any]:
    return {
        "saved": _run.step == _run.saved_step,
        "step": _run.step,
        "saved_step": _run.saved_step,
        "best_step": _run.best_step,
        "rank": rank_from_env(),
        "host": host(),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "attempt": attempt(),
        "time": _now(),
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _write(folder: Path, word: dict[str, Any]) -> None:
    """Atomic; a reader sees the old word or the new one. What killed writers of one left goes."""
    line = json.dumps(with_digest(word), ensure_ascii=False) + "\n"
    with replacing(folder / NAME) as file:
        file.write(line.encode("utf-8", "surrogatepass"))


def main(folder: str) -> int:
    """`python -m megaladder.process.last_word RUN_DIR`: one line for job scripts."""
    word = truth(Path(folder))
    if word is None:
        print(f"{folder}: none")
        return 2
    where = f"rank {word['rank']} on {word['host']}, {word['time']}"
    print(f"{word['reason']}, status {word['status']}: {how_it_ended(word)} ({where})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
