"""Carries events to a tracker in a thread of its own, so that a run never waits for one.

A tracker that raises is dropped at once; one that gives no answer for `PATIENCE_S`, is `BEHIND`
events behind, or has not finished `END_S` after the run's end, is given up and left to itself.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from megaladder.trackers.sinks import Sink

PATIENCE_S = 300.0
# the run waits for this one
END_S = 120.0
BEHIND = 10_000


class Courier:
    """One tracker's thread. give_up: gets the reason, once, from any thread."""

    def __init__(
        self,
        name: str,
        sink: Sink,
        give_up: Callable[[str], None],
        patience_s: float = PATIENCE_S,
        end_s: float = END_S,
        behind: int = BEHIND,
    ) -> None:
        self._name, self._sink, self._give_up = name, sink, give_up
        self._patience_s, self._end_s = patience_s, end_s
        self._events: queue.Queue[tuple[str, tuple[Any, ...]]] = queue.Queue(behind)
        self._doing: tuple[str, float] | None = None
        self._over, self._hangs = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def put(self, method: str, *args: Any) -> None:
        """Asks for a call of the sink's `method`. Never waits, never raises."""
        if self._over.is_set():
            return
        doing = self._doing
        if doing is not None and time.monotonic() - doing[1] > self._patience_s:
            self._hangs = True
            self._drop(f"gave no answer to {doing[0]} for {self._patience_s:g} s")
            return
        try:
            self._events.put_nowait((method, args))
        except queue.Full:
            self._drop(f"is {self._events.maxsize} events behind")

    def rest(self, limit_s: float) -> None:
        """Returns when nothing is left to carry, or after `limit_s`."""
        done = self._events.all_tasks_done
        with done:
            done.wait_for(lambda: self._over.is_set() or not self._events.unfinished_tasks, limit_s)

    def end(self, exit_status: int) -> None:
        """Carries what is left and the run's end; waits no longer than `end_s`."""
        self.put("finish", exit_status)
        self._thread.join(0 if self._hangs else self._end_s)
        if self._thread.is_alive():
            self._drop(f"did not finish within {self._end_s:g} s")

    def _work(self) -> None:
        method = ""
        while method != "finish" and not self._over.is_set():
            method, args = self._events.get()
            self._doing = method, time.monotonic()
            try:
                getattr(self._sink, method)(*args)
            # a tracker must not end a run
            except Exception as error:  # noqa: BLE001
                self._drop(f"failed at {method}: {type(error).__name__}: {error}")
            self._doing = None
            self._events.task_done()

    def _drop(self, why: str) -> None:
        if self._over.is_set():
            return
        self._over.set()
        with self._events.all_tasks_done:
            self._events.all_tasks_done.notify_all()
        self._give_up(f"{self._name} {why}; it is switched off for this run")
