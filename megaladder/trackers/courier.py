"""A tracker's thread, so that a run never waits for one.

The thread reads the run folder when it is woken, so nothing is lost to a tracker that is slow: it
gets the rest once it answers again. One that has not finished `END_S` after the run's end is left
to itself.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from pathlib import Path

from megaladder.events.callback import Callback
from megaladder.events.follower import Follower
from megaladder.process import last_word

# without an answer for so long, it is told once
PATIENCE_S = 300.0
# the run waits for this one
END_S = 120.0


class Courier:
    """One tracker's thread. warn: gets a sentence about what is lost, from any thread."""

    def __init__(
        self,
        name: str,
        tracker: Callback,
        folder: Path,
        warn: Callable[[str], None],
        patience_s: float = PATIENCE_S,
        end_s: float = END_S,
    ) -> None:
        self._name, self._folder, self._warn = name, folder, warn
        self._patience_s, self._end_s = patience_s, end_s
        # what the folder has now is not new
        self._follower = Follower(folder, {name: tracker}, warn)
        self._turn = threading.Condition()
        # looks asked for and done; the wait at the end of which nothing had come of it
        self._asked, self._done, self._in_vain = 1, 0, -1
        self._since, self._slow = time.monotonic(), False
        self._status: int | None = None
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something new in the run folder. Never waits, never raises."""
        with self._turn:
            if self._done == self._asked:
                self._since = time.monotonic()
            self._asked += 1
            self._turn.notify_all()
        if not self._slow and time.monotonic() - self._since > self._patience_s:
            self._slow = True
            self._warn(
                f"{self._name} has given no answer for {self._patience_s:g} s; the run goes on, it"
                " gets the rest when it answers"
            )

    def rest(self, limit_s: float) -> None:
        """Returns when all is told, or after `limit_s`; at once where the last wait was in vain."""
        with self._turn:
            if self._in_vain == self._done:
                return
            if not self._turn.wait_for(lambda: self._done == self._asked, limit_s):
                self._in_vain = self._done

    def end(self, exit_status: int | None = None) -> None:
        """Tells what is left and the run's end; waits no longer than `end_s`.

        exit_status: None = as the run folder's last word has it."""
        atexit.unregister(self.end)
        if exit_status is None:
            word = last_word.read(self._folder) or {}
            exit_status = 1 if word.get("status") is None else word["status"]
        with self._turn:
            self._status = exit_status
            self._turn.notify_all()
        self._thread.join(0 if self._slow else self._end_s)
        if self._thread.is_alive():
            self._warn(f"{self._name} did not finish with the run; what it had not taken is lost")

    def _work(self) -> None:
        self._look(1)
        # a run that ends by an error still hands on what it has; after what the tracker's own
        # package has registered, so before it at the exit
        atexit.register(self.end)
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._status is not None or self._done < self._asked)
                asked, status = self._asked, self._status
            if status is not None:
                return self._follower.end(status)
            self._look(asked)

    def _look(self, asked: int) -> None:
        self._follower.look()
        with self._turn:
            self._done, self._since, self._slow = asked, time.monotonic(), False
            self._turn.notify_all()
