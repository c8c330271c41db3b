"""The last lines of a process.

What an error or a signal becomes for people, for whoever started the process, and for programs.

| status | meaning |
|---|---|
| 0 | done |
| 2 | your input or configuration is wrong; one message that names the fix |
| 3 | stopped, and the same command goes on: by a signal, by itself, by a disk, by a lost process |
| 130 | Ctrl-C in a command that has nothing to resume |
| anything else | a bug |
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from megaladder import startup
from megaladder.errors import ConfigError, MegaladderError
from megaladder.process import last_word
from megaladder.process.heartbeat import killed_rank_behind
from megaladder.process.last_word import Ending
from megaladder.process.ranks import LAUNCHER_PID, leave_status, may_speak
from megaladder.process.storage import storage_error

RESUMABLE, INTERRUPTED = startup.RESUMABLE, startup.INTERRUPTED
BROKEN_PIPE = 141  # 128 + SIGPIPE: the reader of our output went away
BUG = 1
# a place that was typed and cannot be what it should be
ODD_PLACES = {
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.EISDIR: "is a folder, expected a file",
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.ELOOP: "a link that leads back to itself",
}
SPOILS_WHAT_IS_BELOW = (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def of_error(error: MegaladderError) -> int:
    """Says an expected error once, leaves it as last word, returns its status.

    A rank that only ends with another one lets that leave its word first: it knows the cause."""
    word = Ending(error.reason, error.exit_status, str(error))
    if not error.told_elsewhere:
        last_word.leave(word)
    sys.stdout.flush()
    if may_speak(error.exit_status, error.told_elsewhere):
        print(f"megaladder: {error}", file=sys.stderr, flush=True)
    if error.told_elsewhere:
        last_word.leave(word)
    return error.exit_status


def of_bug(error: BaseException, args: Sequence[str]) -> int | None:
    """The status of any other exception, None for a bug.

    It has one where a disk, a killed rank or a path among the command's words is behind it (said in
    words). A bug's traceback has to be seen."""
    words = storage_error(error) or killed_rank_behind(error) or odd_place(error, args)
    if words is not None:
        return of_error(words)
    last_word.leave(Ending("bug", BUG, f"{type(error).__name__}: {error}"))
    leave_status(BUG)
    return None


def odd_place(error: BaseException, args: Sequence[str]) -> ConfigError | None:
    """The error in words where a path that was typed cannot be used as it was meant.

    A path that was not typed is no slip: the program chose it."""
    if not isinstance(error, OSError) or error.errno not in ODD_PLACES:
        return None
    places = [Path(os.path.abspath(name)) for name in (error.filename, error.filename2) if name]
    for before, word in zip(("", *args), args, strict=False):
        name, equals, value = word.partition("=")
        named = value if equals and name.startswith("--") else word
        typed = Path(os.path.abspath(named))
        below = error.errno in SPOILS_WHAT_IS_BELOW and any(typed in p.parents for p in places)
        if below or any(place in (typed, *typed.parents) for place in places):
            flag = name if equals else before
            which = f"another {flag}" if flag.startswith("--") else "another path"
            return ConfigError(f"{named}: {ODD_PLACES[error.errno]}; fix: {which}")
    return None


def at_once(number: int) -> NoReturn:
    """What a stop signal means where nothing is in memory only.

    Before a run's first step, and in verbs whose results are files that the next start continues.
    """
    end_now(number, "signal_at_start", "; what was finished before is on disk")


def without_saving(number: int) -> NoReturn:
    """What a second Ctrl-C means."""
    end_now(number, "interrupted", " again: not saved, the last committed checkpoint stays")


def end_now(number: int, reason: str, how: str) -> NoReturn:
    """Ends the process from any thread.

    What it writes survives a kill at any moment, so nothing has to be put in order."""
    text = f"stopped by {signal.Signals(number).name}{how}; start the same command again"
    last_word.leave(Ending(reason, RESUMABLE, text))
    if leave_status(RESUMABLE):
        print(f"megaladder: {text}", file=sys.stderr, flush=True)
    os._exit(RESUMABLE)


def asked_to_stop(number: int) -> None:
    """The answer to the first signal in the loop. Ranks of our launcher leave it to that."""
    if LAUNCHER_PID not in os.environ and os.environ.get("RANK", "0") == "0":
        print(stopping_line(number), file=sys.stderr, flush=True)


def stopping_line(number: int) -> str:
    again = "; Ctrl-C again ends it now" if number == signal.SIGINT else ""
    return (
        f"megaladder: {signal.Signals(number).name}: a step that has begun is finished and saved,"
        f" then the run ends with status {RESUMABLE}{again}"
    )
