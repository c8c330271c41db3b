"""When to stop: signals, numbers that are not finite, and no progress."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from megaladder import parallel
from megaladder.console import VOICE
from megaladder.errors import NonFiniteError, StopRequested
from megaladder.process import ending, heartbeat, last_word, signals
from megaladder.process.heartbeat import PERIOD_S, SILENT_S, Beat, Heartbeat, suspect
from megaladder.process.last_word import Ending
from megaladder.process.ranks import LAUNCHER_PID, leave_status


class StopSignals:
    """Turns a stop signal into a stop after the current step, agreed by all ranks.

    Built right before the loop: until then nothing has to be saved, and a signal ends the process.
    """

    def __init__(self) -> None:
        self._request = signals.StopRequest(ending.asked_to_stop, ending.without_saving)
        if not signals.listening():
            signals.listen(self._request)
        signals.replace_action(self._request)

    @property
    def received(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._request.number is not None

    def agreed(self) -> bool:
        """True on every rank when any rank was asked to stop. Collective."""
        return parallel.any_rank(self.received)


def stopped(text: str) -> StopRequested:
    """The error of a stop that all ranks agreed on: rank 0 says it."""
    error = StopRequested(text)
    error.told_elsewhere = not parallel.is_main()
    return error


@dataclass
class NonFiniteGuard:
    """Counts updates in a row that were skipped because loss or gradient norm was not finite."""

    limit: int
    in_a_row: int = 0
    skipped: list[int] = field(default_factory=list)

    def record(self, step: int, updated: bool, names: Callable[[], Sequence[str]]) -> str | None:
        """A warning for the log when this step was skipped; `names` gives the step's sample ids.

        Raises:
            NonFiniteError: `limit` steps in a row were skipped (same decision on every rank: the
            numbers are global).
        """
        if updated:
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        self.skipped.append(step)
        sample_ids = names()
        shown = ", ".join(sample_ids[:20]) + (
            f" … ({len(sample_ids)} in all)" if len(sample_ids) > 20 else ""
        )
        text = f"step {step}: loss or gradient is not finite; no rank was updated; samples: {shown}"
        if self.in_a_row >= self.limit:
            raise NonFiniteError(
                f"{text}; {self.in_a_row} such steps in a row; fix: lower optim.lr or look at those"
                " samples, then start again to resume from the last checkpoint"
            )
        return text


class Watchdog:
    """Ends the process when no `beat` came for `timeout_s`.

    A hung collective or a stuck rank must not hold the machine.

    Every second it gives a sign of life (`process.heartbeat`), by which the others of a rank that
    hangs name it, and looks for ranks that were killed, where no launcher of ours does. At the end it prints every thread's stack, names the rank that the others wait
    for, leaves the run's last word and exits with status 3; the launcher ends the other ranks.
    """

    def __init__(self, timeout_s: float, run_dir: str | Path) -> None:
        self._timeout_s = self._patience_s = timeout_s
        self._doing, self._since = "starting", time.monotonic()
        self._done = threading.Event()
        self._lost_since: float | None = None
        self._heart = Heartbeat(Path(run_dir), timeout_s)
        VOICE.turn(self._doing)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, doing: str, patience_s: float | None = None) -> None:
        """Says that the rank is alive and what it does next.

        patience_s: how long that may take, where it is not `timeout_s`.
        """
        self._patience_s = patience_s or self._timeout_s
        self._doing, self._since = doing, time.monotonic()
        self._heart.turn(doing)
        VOICE.turn(doing)

    def stop(self) -> None:
        """All is done: the process may end at any time."""
        self._done.set()
        self._heart.end()
        VOICE.end()

    def _watch(self) -> None:
        while not self._done.wait(min(PERIOD_S, self._timeout_s / 4)):
            self._heart.write()
            silent_s = time.monotonic() - self._since
            if silent_s > self._patience_s:
                self._give_up(*self._hang(silent_s))
            if LAUNCHER_PID not in os.environ:
                self._look_for_killed()

    def _look_for_killed(self) -> None:
        """Says at once that a rank was killed; ends this one when its collective does not."""
        peer = self._heart.lost()
        if peer is None:
            return
        if self._lost_since is None:
            self._lost_since = time.monotonic()
            heartbeat.leave_killed_word(peer)
        if time.monotonic() - self._lost_since > heartbeat.HANGS_ON_S:
            self._give_up(heartbeat.killed_in_words(peer), "rank_died", peer)

    def _hang(self, silent_s: float) -> tuple[str, str, Beat | None]:
        guilty = suspect(self._heart.mine(), self._heart.others())
        text = (
            f"rank {parallel.rank_from_env()} made no progress for {silent_s:.0f} s while"
            f" {self._doing} (train.timeout_s); {_blame(guilty)}"
        )
        way_out = "start the same command again, it resumes from the last checkpoint"
        return f"{text}; fix: {way_out}", "hang", guilty

    def _give_up(self, text: str, reason: str, guilty: Beat | None) -> NoReturn:
        ranked = (guilty.rank, guilty.host) if guilty else (None, None)
        last_word.leave(Ending(reason, ending.RESUMABLE, text, *ranked))
        if leave_status(ending.RESUMABLE):
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
            print(f"megaladder: {text}", file=sys.stderr, flush=True)
        os._exit(ending.RESUMABLE)


def _blame(guilty: Beat | None) -> str:
    """Which rank hangs, as far as the signs of life tell."""
    if guilty is None:
        return "all ranks that can be seen are at the same place: a collective or a device hangs"
    if guilty.rank == parallel.rank_from_env():
        return "the others wait for this rank"
    silence = f"; no sign of life for {guilty.silent_s:.0f} s" if guilty.silent_s > SILENT_S else ""
    return f"waiting for {guilty} for {guilty.doing_s + guilty.silent_s:.0f} s{silence}"
