"""Makes rounds on rank 0 and gives them to all ranks.

A thread makes them, one ahead where the lag allows, and stores them; training gets a broadcast.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path

from megaladder import parallel
from megaladder.config.grpo import GrpoConfig
from megaladder.process.faults import fault_point
from megaladder.rewards.verifiers.pool import VerifierPool
from megaladder.train.health import StopSignals, Watchdog
from megaladder.train.life.background import in_background
from megaladder.train.rl.records import Round, read_round, remove_after, write_round
from megaladder.train.rl.rounds import RoundSource
from megaladder.train.rl.samples import SampleTable, table_of
from megaladder.types import required

POLL_S = 0.2
# on top of generation: a full round of hanging rewards is slower than that only with a very long
# timeout
GRADING_PATIENCE_S = 600.0


class RoundFeed:
    """`begin` starts a round on rank 0, `take` gives it to every rank.

    Built on every rank; `source` is None but on rank 0.
    """

    def __init__(
        self,
        config: GrpoConfig,
        folder: Path,
        source: RoundSource | None,
        watchdog: Watchdog,
        signals: StopSignals,
    ) -> None:
        self._folder, self._source, self._watchdog, self._signals = (
            folder,
            source,
            watchdog,
            signals,
        )
        self._filter_truncated = config.grpo.filter_truncated
        self._store = config.rollout.engine != "replay"
        filters = config.grpo.dynamic_sampling != "none"
        waves = 1 + (config.grpo.max_resamples if filters else 0)
        self.patience_s = waves * (config.rollout.timeout_s + GRADING_PATIENCE_S)
        self._begun: set[int] = set()
        self._future: Future | None = None

    @property
    def grader(self) -> VerifierPool | None:
        """The rounds' grader; None but on rank 0."""
        return None if self._source is None else self._source.grader

    def resume_after(self, step: int) -> None:
        """Forgets rounds of lost work.

        The one right after `step` stays: it came from this very checkpoint, or from the one before
        it.
        """
        if self._source is not None and self._store:
            remove_after(self._folder, step + 1)

    def begun(self, step: int) -> bool:
        return step in self._begun

    def begin(self, step: int, version: int) -> None:
        """Starts sampling the round of `step` by weights `version`; rank 0 returns at once."""
        self._begun.add(step)
        if self._source is not None:
            assert self._future is None or self._future.done(), "one round at a time"
            self._future = in_background(lambda: self._make(step, version))

    def settle(self) -> None:
        """Waits until nothing runs in the background; what failed there is raised by `take`."""
        if self._future is not None:
            while not self._future.done():
                time.sleep(POLL_S / 10)

    def take(self, step: int) -> SampleTable | None:
        """The trainable samples of a round that was begun, on every rank. Collective.

        None when a stop signal came first.

        Raises:
            MegaladderError: what sampling or grading raised, on every rank.
        """
        self._watchdog.beat(f"waiting for the rollouts of step {step}", patience_s=self.patience_s)
        self._wait()
        name = f"round {step}"
        parallel.wait_for_main(name, self.patience_s, lambda: self._signals.received)
        return parallel.on_main(lambda: self._finished(step))

    def close(self) -> None:
        """Ends the engine and the grading processes, whatever they are doing."""
        if self._source is not None:
            self._source.close()

    def _wait(self) -> None:
        while self._future is not None and not self._future.done() and not self._asked_to_stop():
            time.sleep(POLL_S / 10)

    def _asked_to_stop(self) -> bool:
        return self._signals.received or parallel.asked_by_others()

    def _finished(self, step: int) -> SampleTable | None:
        assert self._future is not None
        if not self._future.done():
            return None
        # the signal may have reached the engine as well: what was asked for is a stop
        if self._asked_to_stop() and self._future.exception() is not None:
            return None
        found: Round = self._future.result()
        assert found.step == step, f"round {found.step} was made, {step} asked for"
        return table_of(found, self._filter_truncated)

    def _make(self, step: int, version: int) -> Round:
        """Reads a round that lies on disk already, or makes it.

        A stored round of a killed run with the same settings is as good as a new one.
        """
        source = required(self._source, "rank 0's source of rounds")
        stored = read_round(self._folder, step, source.key) if self._store else None
        if stored is not None:
            source.cursor = stored.cursor
            return stored
        found = source.collect(step, version)
        if self._store:
            fault_point("before_rollouts_stored")
            write_round(self._folder, found, source.key)
            fault_point("rollouts_stored")
        return found
