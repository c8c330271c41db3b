"""Stop signals from the first line of ours until the command itself listens.

Python's own answer to a Ctrl-C while it imports is a traceback. Nothing is in memory then that
could be lost, so the process says one line and ends at once.

Imports nothing that takes time: it is the first thing that the package does when it is a command.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

RESUMABLE = 3
INTERRUPTED = 130  # 128 + SIGINT
# verbs that go on where an earlier start was stopped: a stop signal ends them with RESUMABLE
RESUMING_VERBS = ("sft", "grpo", "eval", "study", "data sample")


def resumes(args: Sequence[str]) -> bool:
    """Whether the words behind `megaladder` are a command that goes on when it is started again."""
    words = [arg for arg in args if arg != "--quiet"]
    return any(words[: len(verb)] == verb for verb in (verb.split() for verb in RESUMING_VERBS))


def listen_if_command() -> None:
    """Takes the stop signals where this process is `megaladder …` or `python -m megaladder …`.

    A program that imports the package keeps its own."""
    behind = len(sys.orig_argv) - len(sys.argv)
    word = sys.orig_argv[behind] if behind > 0 else ""
    if os.path.basename(word).removeprefix("-m") == "megaladder":
        listen(sys.argv[1:])


def listen(args: Sequence[str]) -> None:
    """A stop signal ends the command `megaladder args…` with one line. Main thread only.

    SIGTERM and SIGUSR1 too where it can go on; elsewhere the system's answer to those is right.
    A shell's background job that is not to hear Ctrl-C does not hear it."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        end_now(signal.Signals(number), status)

    status = RESUMABLE if resumes(args) else INTERRUPTED
    for number in (signal.SIGINT, *((signal.SIGTERM, signal.SIGUSR1) if resumes(args) else ())):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def hand_over() -> None:
    """Ctrl-C is Python's KeyboardInterrupt again, for a command that can answer it."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def restart_in_utf8() -> None:
    """Begins the process anew in Python's UTF-8 mode where its locale has another encoding.

    Libraries read files of their own in the locale's encoding: under LC_ALL=C torch itself cannot
    be imported. Paths keep their bytes, what is printed the terminal's encoding; whatever this
    process starts inherits both."""
    if sys.flags.utf8_mode or sys.getfilesystemencoding() == "utf-8":
        return
    shown = f"{getattr(sys.stdout, 'encoding', None) or 'ascii'}:replace"
    environment = {"PYTHONIOENCODING": shown, **os.environ, "PYTHONUTF8": "1"}
    os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], environment)


def end_now(number: signal.Signals, status: int) -> NoReturn:
    """One line, also where the signal interrupted another line, then the end."""
    text = "interrupted"
    if status == RESUMABLE:
        text = f"stopped by {number.name} before it began; start the same command again"
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"megaladder: {text}\n".encode())
    os._exit(status)
