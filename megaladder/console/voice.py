"""Words for whoever waits: what goes on, since when, how much is left.

    with console.doing("tokenising d.jsonl", unit="rows") as task:
        task.add(len(chunk))

A terminal shows a bar with the time left, drawn over. A pipe or a log gets plain lines, and few: one
as soon as nothing was said for some seconds, then further apart. All of it goes to standard error,
standard output holds results. With `--quiet` nothing of it is there. Trainings say what they do
through `turn` and `steps` (`train.health.Watchdog`, `log.RunLog`).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

QUIET = "MEGALADDER_QUIET"
LOOK_S = 0.5
# seconds without a word before the first line of a pipe, and between the ones that follow
FIRST_S, THEN_S, LATER_S = 4.0, 10.0, 30.0
LATER_AFTER_S = 120.0


def is_quiet() -> bool:
    """Whether progress is left out: asked for by `--quiet`, or a rank that does not speak."""
    return bool(os.environ.get(QUIET)) or os.environ.get("RANK", "0") != "0"


def draws() -> bool:
    """Whether a bar is shown: standard error is a terminal that can draw over."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`.

    >>> clock(3723), clock(12.4)
    ('1:02:03', '0:12')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Task:
    """Something that takes a while.

    total: of `unit`, where it is known; done: of those; first: of those, before it began."""

    what: str
    total: float | None = None
    unit: str = "rows"
    done: float = 0.0
    first: float = 0.0
    began: float = field(default_factory=time.monotonic)
    # of what it does now
    since: float = field(default_factory=time.monotonic)

    def add(self, count: float = 1) -> None:
        """Counts `count` more."""
        self.done += count

    def left_s(self, now: float) -> float | None:
        """Seconds until the total is reached, at the speed so far."""
        if not self.total or self.done <= self.first:
            return None
        return (now - self.began) / (self.done - self.first) * (self.total - self.done)

    def words(self, now: float) -> str:
        """`tokenising d.jsonl: 1,200 of 10,000 rows (12%), for 0:13, about 1:35 left`."""
        parts = [f"for {clock(now - self.since)}"]
        if self.total:
            share = self.done / self.total
            parts.insert(0, f"{self.done:,.0f} of {self.total:,.0f} {self.unit} ({share:.0%})")
        elif self.done:
            parts.insert(0, f"{self.done:,.0f} {self.unit}")
        left_s = self.left_s(now)
        if left_s is not None:
            parts.append(f"about {clock(left_s)} left")
        return f"{self.what}: {', '.join(parts)}"


class Voice:
    """What this process does at the moment, and the thread that tells it. Safe from any thread."""

    def __init__(self) -> None:
        self._tasks: list[Task] = []
        self._root: Task | None = None
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._said = self._lines = 0.0
        self._bar: _Bar | None = None

    def open(self, task: Task) -> None:
        """From here on it is told, until `close`."""
        if is_quiet():
            return
        with self._lock:
            self._tasks.append(task)
            if len(self._tasks) == 1:
                self._said, self._lines = time.monotonic(), 0
                self._ended = threading.Event()
                threading.Thread(
                    target=self._run, args=(self._ended,), name="console", daemon=True
                ).start()

    def close(self, task: Task) -> None:
        """It is over."""
        with self._lock:
            self._tasks = [other for other in self._tasks if other is not task]
            if not self._tasks:
                self._ended.set()
                self._wipe()

    def turn(self, what: str) -> None:
        """The process as a whole goes on to something else."""
        with self._lock:
            if self._root is None:
                self._root = Task(what, unit="steps")
                self.open(self._root)
            self._root.what, self._root.since = what, time.monotonic()

    def steps(self, done: int, total: int) -> None:
        """How far the process as a whole is."""
        with self._lock:
            root = self._root
            if root is not None:
                if root.total is None:
                    root.first, root.began = done, time.monotonic()
                root.done, root.total = done, total

    def said(self) -> None:
        """Somebody else has printed a line: nobody waits in silence."""
        self._said, self._lines = time.monotonic(), 0

    def end(self) -> None:
        """Nothing goes on any more."""
        with self._lock:
            self._tasks, self._root = [], None
            self._ended.set()
            self._wipe()

    def forget(self) -> None:
        """In a forked child: what the parent does is not told twice, its locks are not ours."""
        self._lock, self._tasks, self._root = threading.RLock(), [], None
        self._ended = threading.Event()
        if self._bar is not None:
            self._bar.forget()
            self._bar = None

    def _run(self, ended: threading.Event) -> None:
        while not ended.wait(LOOK_S):
            with self._lock:
                if not ended.is_set():
                    self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Draws the bar, or prints a line where it is time for one."""
        if not self._tasks:
            return
        if draws():
            self._bar = self._bar or _Bar()
            self._bar.show(self._tasks)
            return
        patience_s = THEN_S if self._lines else FIRST_S
        task = self._tasks[-1]
        if now - task.since > LATER_AFTER_S:
            patience_s = LATER_S
        if now - self._said >= patience_s:
            self._said, self._lines = now, self._lines + 1
            with suppress(BrokenPipeError, ValueError):
                print(task.words(now), file=sys.stderr, flush=True)

    def _wipe(self) -> None:
        if self._bar is not None:
            self._bar.wipe()
            self._bar = None


class _Bar:
    """The tasks on a terminal, by rich.

    The cursor stays visible: a process that is killed leaves the terminal as it was."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        class Cursor(Console):
            def show_cursor(self, show: bool = True) -> bool:
                return False

        self._streams = sys.stdout, sys.stderr
        self._progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Cursor(stderr=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._ids: dict[int, TaskID] = {}
        self._progress.start()

    def show(self, tasks: list[Task]) -> None:
        """Draws them, the outermost first."""
        for gone in self._ids.keys() - {id(task) for task in tasks}:
            self._progress.remove_task(self._ids.pop(gone))
        for task in tasks:
            number = self._ids.get(id(task))
            if number is None:
                number = self._ids[id(task)] = self._progress.add_task(task.what, total=None)
            self._progress.update(
                number, description=task.what, total=task.total, completed=task.done
            )
        self._progress.refresh()

    def wipe(self) -> None:
        self._progress.stop()

    def forget(self) -> None:
        sys.stdout, sys.stderr = self._streams


VOICE = Voice()
os.register_at_fork(after_in_child=VOICE.forget)


def tell(text: str) -> None:
    """A line about progress, where no bar shows it."""
    VOICE.said()
    if not (is_quiet() or draws()):
        print(text, file=sys.stderr, flush=True)


@contextmanager
def doing(
    what: str, total: float | None = None, unit: str = "rows", done: float = 0.0
) -> Iterator[Task]:
    """The body takes a while: says so. Yields the task, whose `add` counts."""
    task = Task(what, total, unit, done, done)
    VOICE.open(task)
    try:
        yield task
    finally:
        VOICE.close(task)
