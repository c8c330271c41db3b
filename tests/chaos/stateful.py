"""Histories of a run folder, drawn by hypothesis, against a model of what a run may say.

    PYTHONPATH=.:tests python -m chaos.stateful [--examples 2000] [--steps 12] [--seed 1]

Starts, kills at any call, stops, rewinds, other settings, damaged bytes, in any order; each start
is the real `RunLife` in a fork (`tiny_life`). After each: the status is one that the request allows,
no step has two rows or none, every row and every checkpoint has the value that its line of steps
makes, a start begins at the newest good checkpoint, and what was left behind is set aside.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from chaos.tiny_life import Start, prepare, run_start, status_of, values
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from megaladder.checkpoint import store
from megaladder.errors import CheckpointError

MOST_STEPS = 9
KILLED = -9


class Histories(RuleBasedStateMachine):
    """`rates`: of each step of the current line, as far as a start may have come; None once the
    line is not known (a rewind that was killed) until the next start that ends well."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="histories-", dir=_fast_folder()))
        self.run, self.said = self.root / "run", self.root / "said"
        self.lines: list[list[int]] = [[]]  # what the current line may be, step by step
        self.seed: int | None = None

    def teardown(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    @initialize()
    def begin(self) -> None:
        prepare(self.root)

    # --- what may be done

    @rule(last=st.integers(1, MOST_STEPS), rate=st.integers(1, 3))
    def start(self, last: int, rate: int) -> None:
        self._go_on(Start(last, rate))

    @rule(last=st.integers(1, MOST_STEPS), rate=st.integers(1, 3), at=st.integers(0, 120))
    def killed(self, last: int, rate: int, at: int) -> None:
        self._go_on(Start(last, rate, kill_at=at))

    @rule(last=st.integers(2, MOST_STEPS), rate=st.integers(1, 3), at=st.integers(1, MOST_STEPS))
    def stopped(self, last: int, rate: int, at: int) -> None:
        self._go_on(Start(last, rate, signal_at=at))

    @precondition(lambda self: self._good())
    @rule(data=st.data(), last=st.integers(1, MOST_STEPS), rate=st.integers(1, 3))
    def rewound(self, data: st.DataObject, last: int, rate: int) -> None:
        step = data.draw(st.sampled_from(self._good()))
        self._rewind(Start(last, rate, resume=str(store.step_dir(self._checkpoints, step))), step)

    @precondition(lambda self: self._good())
    @rule(data=st.data(), rate=st.integers(1, 3), at=st.integers(0, 120))
    def rewound_and_killed(self, data: st.DataObject, rate: int, at: int) -> None:
        step = data.draw(st.sampled_from(self._good()))
        place = str(store.step_dir(self._checkpoints, step))
        self._rewind(Start(MOST_STEPS, rate, resume=place, kill_at=at), step)

    @precondition(lambda self: self._good())
    @rule()
    def another_seed(self) -> None:
        before = self._good()
        assert status_of(Start(MOST_STEPS, seed=7), self.run, self.said) == 2, self._words()
        assert "train.seed" in self._words() and self._good() == before

    @precondition(lambda self: self._good())
    @rule()
    def never(self) -> None:
        before = self._good()
        assert status_of(Start(3, resume="never"), self.run, self.said) == 2, self._words()
        assert self._good() == before

    @precondition(lambda self: self._good())
    @rule(data=st.data())
    def damaged(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(self._good()))
        file = data.draw(st.sampled_from(["value", store.TRAINER, store.INTEGRITY]))
        path = store.step_dir(self._checkpoints, step) / file
        raw = bytearray(path.read_bytes())
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1
        path.write_bytes(raw)

    # --- what must hold

    def _go_on(self, start: Start) -> None:
        good, there = self._good(), store.committed_steps(self._checkpoints)
        status = status_of(start, self.run, self.said)
        if there and not good:
            assert status in (2, KILLED), self._words()
            if status == 2:
                assert "none of the checkpoints" in self._words()
            return
        begun = good[-1] if good else 0
        self._check(start, status, [(line[:begun], begun) for line in self.lines])

    def _rewind(self, start: Start, step: int) -> None:
        good = self._good()
        status = status_of(start, self.run, self.said)
        # a repeated command goes on from the newest; anything else begins at that step
        self._check(
            start, status, [(line[:at], at) for line in self.lines for at in (step, good[-1])]
        )

    def _check(self, start: Start, status: int, begins: list[tuple[list[int], int]]) -> None:
        assert status in (0, 3, KILLED), self._words()
        assert (status == KILLED) <= (start.kill_at is not None) and (status == 3) <= (
            start.signal_at is not None
        )
        more = [line + [start.rate] * (start.last_step - at) for line, at in begins]
        if status == KILLED:
            self.lines = [*self.lines, *more]
        else:
            self.lines = self._that_fit(more, status, start)
            assert self.lines, f"rows {self._rows()}, none of {more}; {self._words()}"
            begun = int(self._words().split("begins after ")[1].split()[0])
            assert begun in {at for _, at in begins}
        self._check_checkpoints()

    def _that_fit(self, lines: list[list[int]], status: int, start: Start) -> list[list[int]]:
        """The lines whose values the rows have, all of them once and in order."""
        rows = self._rows()
        assert [step for step, _ in rows] == list(range(1, len(rows) + 1)), rows
        if status == 0:
            assert len(rows) >= start.last_step
            lines = [line for line in lines if len(line) >= len(rows)]
        found = [line for line in lines if [v for _, v in rows] == values(line)[: len(rows)]]
        return list({tuple(line): line for line in found}.values())

    def _check_checkpoints(self) -> None:
        known = {(step, value) for line in self.lines for step, value in enumerate(values(line), 1)}
        for step in self._good():
            value = int((store.step_dir(self._checkpoints, step) / "value").read_text())
            assert (step, value) in known, f"step {step} has {value}; {self._words()}"

    # --- what is there

    @property
    def _checkpoints(self) -> Path:
        return self.run / "checkpoints"

    def _good(self) -> list[int]:
        found = []
        for step in store.committed_steps(self._checkpoints):
            try:
                store.verify(store.step_dir(self._checkpoints, step))
                found.append(step)
            except CheckpointError:
                continue
        return found

    def _rows(self) -> list[tuple[int, int]]:
        lines = (self.run / "metrics.jsonl").read_text().splitlines()
        return [(row["step"], int(row["loss"])) for row in map(json.loads, lines)]

    def _words(self) -> str:
        return self.said.read_text() if self.said.exists() else ""


def _fast_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def explore(examples: int, steps: int, shrink: bool = True, number: int | None = None) -> None:
    """Runs so many histories of so many steps; raises for the shortest that breaks something.

    Without `shrink` for the first that does. `number`: of a seed; the same histories each time
    without one too."""
    warm = Path(tempfile.mkdtemp(prefix="histories-"))
    try:  # what the first start imports, its forks need not
        prepare(warm)
        run_start(Start(1), warm / "run")
    finally:
        shutil.rmtree(warm)
    case = Histories.TestCase
    if number is not None:
        seed(number)(Histories)
    case.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=number is None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        report_multiple_bugs=shrink,
    )
    case("runTest").runTest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, help="other histories for each")
    given = parser.parse_args()
    explore(given.examples, given.steps, number=given.seed)
    print(f"{given.examples} histories of up to {given.steps} steps: all held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
