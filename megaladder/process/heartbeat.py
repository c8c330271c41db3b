"""Signs of life of a job's ranks: one small file each, rewritten every second by a thread.

A file that stands still means a process that does (stopped, or stuck with Python's lock held); one
that moves tells what the rank's main thread is doing and since when. The launcher's ranks write
into its temporary folder, those of torchrun and Slurm into the run folder. A rank that ends in any
way but a kill takes its file away: one whose process is gone while its file is there was killed.
Those that live on then hang, or fail in a collective with what looks like a bug of theirs; our
launcher notices a killed rank itself, under torchrun and Slurm the other ranks have to.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megaladder.errors import RankLostError
from megaladder.process import last_word
from megaladder.process.last_word import Ending
from megaladder.process.ranks import LAUNCHER_PID, host, process_start, rank_from_env, speak_first

FOLDER_VARIABLE = "MEGALADDER_HEARTBEATS"
FOLDER = ".heartbeats"  # in the run folder
PERIOD_S = 1.0
SILENT_S = 5.0  # several periods, for a loaded machine
# a killed process is gone a moment after its connections
GONE_S = 1.0
# from there to the end of a rank that its collective does not let go
HANGS_ON_S = 10.0
_POLL_S = 0.05
# how gloo, NCCL and their store say that the other side is gone
_BROKEN_CONNECTION = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited or there was a network error",
    "ncclRemoteError",
    "failed to recv, got 0 bytes",
)
_SIZE = 1024  # always the same: rewriting it needs no room on a full disk


@dataclass(frozen=True, slots=True)
class Beat:
    """What one rank said last.

    turns: how often it went on to something new; doing_s: seconds that it has been doing this;
    parent: the process that started it; silent_s: seconds since it wrote, by the file system's
    clock."""

    rank: int
    host: str
    pid: int
    doing: str
    turns: int
    doing_s: float
    timeout_s: float
    step: int | None
    saved_step: int | None
    number: int
    parent: int
    silent_s: float = 0.0

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (process {self.pid}), {self.doing}"


def beat_folder(run: Path) -> Path | None:
    """Where this rank's file belongs; None before the run folder exists."""
    told = os.environ.get(FOLDER_VARIABLE)
    if told:
        return Path(told)
    return run / FOLDER if run.is_dir() else None


class Heartbeat:
    """Writes this rank's file. One a process."""

    def __init__(self, run: Path, timeout_s: float) -> None:
        self._run, self._timeout_s = run, timeout_s
        self._doing, self._turns, self._number = "starting", 0, 0
        self._since = time.monotonic()
        self._ended = False
        global _mine
        _mine = self

    def turn(self, doing: str) -> None:
        """The main thread goes on to something new."""
        self._doing, self._turns, self._since = doing, self._turns + 1, time.monotonic()
        if FOLDER_VARIABLE in os.environ:  # a local folder, so at once: a kill may come next
            self.write()

    def write(self) -> None:
        """One sign of life. A folder that cannot be written is none of its business."""
        folder = beat_folder(self._run)
        if folder is None or self._ended:
            return
        self._number += 1
        raw = json.dumps(asdict(self._now())).encode()[:_SIZE].ljust(_SIZE)
        try:
            folder.mkdir(exist_ok=True)
            descriptor = os.open(_file(folder, rank_from_env()), os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.pwrite(descriptor, raw, 0)
            finally:
                os.close(descriptor)
        except OSError:
            return

    def end(self) -> None:
        """This rank ends in good order."""
        self._ended = True
        folder = beat_folder(self._run)
        if folder is not None:
            with contextlib.suppress(OSError):
                _file(folder, rank_from_env()).unlink()

    def lost(self) -> Beat | None:
        """A rank of this machine and this start that was killed."""
        return next((beat for beat in self.neighbours() if process_start(beat.pid) is None), None)

    def neighbours(self) -> list[Beat]:
        """The other ranks of this machine and this start, without those that ended in good order."""
        here, parent = host(), os.getppid()
        return [beat for beat in self.others() if (beat.host, beat.parent) == (here, parent)]

    def others(self) -> list[Beat]:
        """What the other ranks said last, as far as it can be read."""
        folder = beat_folder(self._run)
        found = read_beats(folder) if folder else []
        return [beat for beat in found if beat.rank != rank_from_env()]

    def mine(self) -> Beat:
        return self._now()

    def _now(self) -> Beat:
        return Beat(
            rank=rank_from_env(),
            host=host(),
            pid=os.getpid(),
            doing=self._doing[:200],
            turns=self._turns,
            doing_s=round(time.monotonic() - self._since, 1),
            timeout_s=self._timeout_s,
            step=last_word.finished_step(),
            saved_step=last_word.saved_step(),
            number=self._number,
            parent=os.getppid(),
        )


_mine: Heartbeat | None = None


def of_this_rank() -> Heartbeat | None:
    """None in a process that is no rank of a training run."""
    return _mine


def forget_earlier(run: Path) -> None:
    """Removes what an earlier start left in the run folder.

    By the holder of its lock; ranks of this start that were faster write theirs again within
    `PERIOD_S`, and before the first step."""
    for path in (run / FOLDER).glob("rank_*.json"):
        path.unlink(missing_ok=True)


def read_beats(folder: Path) -> list[Beat]:
    """Every rank's last sign, by rank. The youngest file gives the present time."""
    found = []
    for path in folder.glob("rank_*.json"):
        try:
            beat = Beat(**json.loads(path.read_bytes()))
            if isinstance(beat.rank, int) and isinstance(beat.turns, int):
                found.append((path.stat().st_mtime, beat))
        # being written, gone, or nobody's
        except (OSError, ValueError, TypeError, RecursionError):
            continue
    now = max((stamp for stamp, _ in found), default=0.0)
    beats = [replace(beat, silent_s=now - stamp) for stamp, beat in found]
    return sorted(beats, key=lambda beat: beat.rank)


def suspect(mine: Beat, others: list[Beat]) -> Beat | None:
    """Whom a rank without progress waits for.

    The one that gives no sign of life, else the one that has come less far. None when all are at
    the same place."""
    silent = max(others, key=lambda beat: beat.silent_s, default=None)
    if silent is not None and silent.silent_s > SILENT_S:
        return silent
    last = min([mine, *others], key=lambda beat: beat.turns)
    return last if last.turns < max(beat.turns for beat in [mine, *others]) else None


def _file(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.json"


def killed_rank_behind(error: BaseException) -> RankLostError | None:
    """The error in words when a killed rank is behind it, else None."""
    heart = _mine
    if heart is None or os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    said = str(error) if isinstance(error, RuntimeError) else ""
    broken = any(words in said for words in _BROKEN_CONNECTION)
    began = time.monotonic()
    while (peer := heart.lost()) is None:
        # one of them may be about to go: a loaded machine takes its time to end a process
        patience_s = SILENT_S if broken and heart.neighbours() else GONE_S
        if time.monotonic() - began >= patience_s:
            break
        time.sleep(_POLL_S)
    if peer is None and not broken:
        return None
    lost = RankLostError(killed_in_words(peer))
    if peer is not None:
        leave_killed_word(peer)
    lost.told_elsewhere = LAUNCHER_PID in os.environ or last_word.word_of_this_start() is not None
    return lost


def leave_killed_word(peer: Beat) -> None:
    """The run's last word, unless it has one; said at once where no launcher of ours says it.

    torchrun ends the ranks that are left, and on a loaded machine before one of them has come as
    far as its own ending."""
    text, status = killed_in_words(peer), RankLostError.exit_status
    first = last_word.leave(Ending("rank_died", status, text, peer.rank, peer.host))
    if first and LAUNCHER_PID not in os.environ:
        speak_first(status, text)


def killed_in_words(peer: Beat | None) -> str:
    """What happened, and the way out."""
    who = "another rank, on another machine," if peer is None else f"rank {peer.rank}"
    last = f" (process {peer.pid} on {peer.host}; last seen {peer.doing})" if peer else ""
    return (
        f"{who} was killed{last}; fix: start the same command again, it resumes from the last"
        " committed checkpoint"
    )
