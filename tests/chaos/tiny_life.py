"""A training run whose model is one integer: the real `RunLife`, run folder, log, lineage and
checkpoint store, around arithmetic that says by its value which steps made it, and how.

    value(0) = 1;  value(step) = value(step - 1) * 31 + step + rate   modulo 1,000,003
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.calls import Call, Calls

from megaladder.checkpoint import store
from megaladder.config.resolve import resolve
from megaladder.config.sft import SftConfig
from megaladder.errors import CheckpointError, MegaladderError
from megaladder.log import StepMetrics
from megaladder.process import last_word
from megaladder.run_dir import RunDir
from megaladder.train.life.run_life import RunLife

SAVED_EVERY, KEPT = 2, 3


def next_value(value: int, step: int, rate: int) -> int:
    return (value * 31 + step + rate) % 1_000_003


@dataclass(frozen=True)
class Start:
    """What a start is asked for. `signal_at`: a stop signal arrives in that step; `kill_at`: at
    which mutating call below the run folder it is killed; in half a write, where it is one."""

    last_step: int
    rate: int = 1
    resume: str = "auto"
    seed: int = 0
    signal_at: int | None = None
    kill_at: int | None = None


class Deadly(Calls):
    """Kills this process at one of its mutating calls."""

    def __init__(self, root: Path, kill_at: int | None) -> None:
        super().__init__(root, Path(os.devnull))
        self._left = kill_at

    def _write_down(self, call: Call) -> None: ...

    def _is_last(self, path: str) -> bool:
        if self._left is None or not self._is_ours(path):
            return False
        self._left -= 1
        return self._left < 0

    def through(self, call: Call, action: Callable[[], Any]) -> Any:
        if self._is_last(call.path):
            os.kill(os.getpid(), signal.SIGKILL)
        return action()

    def write(self, path: str, offset: int, data: Any, action: Callable[[Any], int]) -> int:
        if self._is_last(path):
            action(bytes(data)[: len(bytes(data)) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return action(bytes(data))


class TinyCheckpoints:
    """`Checkpointer` for the integer."""

    def __init__(self, root: Path, trainer: TinyTrainer) -> None:
        self.root, self._trainer = root, trainer
        self.also_kept: frozenset[int] = frozenset()

    def save(self, step: int, state: dict[str, Any]) -> None:
        path = store.step_dir(self.root, step)
        store.prepare_folder(path, 100)
        (path / "value").write_text(str(self._trainer.value))
        store.write_json(path / store.TRAINER, state)
        store.commit(path)
        store.apply_retention(self.root, store.Retention(keep_last=KEPT))
        last_word.note_saved(step)

    def damage(self, path: Path) -> str | None:
        try:
            store.verify(path)
        except CheckpointError as error:
            return str(error)
        return None

    def poll(self) -> None: ...

    def close(self) -> None: ...


class TinyTrainer:
    """What `RunLife` asks of a trainer."""

    layout = "tp1"
    adapters = None

    def __init__(self, run: RunDir) -> None:
        self.value = 1
        self.checkpoints = TinyCheckpoints(run.checkpoints, self)

    def restore(self, path: Path) -> dict[str, Any]:
        self.value = int((path / "value").read_text())
        found = store.read_trainer(path)
        last_word.note_saved(found["step"])
        return found


class TinyContents:
    """`RunContents` without contents."""

    title = "tiny run finished"

    def identity(self) -> dict[str, Any]:
        return {"data_sha256": "0"}

    def state(self, step: int) -> dict[str, Any]:
        return {}

    def restore(self, saved: dict[str, Any]) -> None: ...

    def begin(self, log: Any, step: int) -> None:
        print(f"begins after {step}", file=sys.stderr)

    def before_save(self) -> None: ...

    def rows(self) -> list[tuple[str, str]]:
        return []


def run_start(start: Start, folder: Path) -> None:
    """The run, to its end. Raises what a verb would raise."""
    flags = {
        "run-dir": folder,
        "model.path": folder.parent / "model",
        "data.path": folder.parent / "data.jsonl",
        "train.max-steps": start.last_step,
        "train.seed": start.seed,
        "optim.lr": start.rate * 1e-5,
        "checkpoint.every": SAVED_EVERY,
        "checkpoint.keep-last": KEPT,
        "checkpoint.export-hf": "false",
        "checkpoint.resume": start.resume,
    }
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    config = resolve(SftConfig, words, prog="tiny")
    with RunDir(folder, writer=True) as run:
        trainer = TinyTrainer(run)
        life = RunLife(config, run, TinyContents(), trainer, start.last_step)  # type: ignore[arg-type]
        step = life.resume()
        signals = life.listen()
        while step < life.last_step:
            step += 1
            trainer.value = next_value(trainer.value, step, start.rate)
            life.log.step(
                StepMetrics(step, start.last_step, float(trainer.value), 1e-5, 1.0, 1, 0.1)
            )
            life.note_update(step, True, list)
            if step == start.signal_at:
                signals._request.number = 15
            life.end_of_step(step)
        life.finish(step)


def status_of(start: Start, folder: Path, said: Path) -> int:
    """Runs it in a fork; the exit status, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for number, name in ((1, os.devnull), (2, said)):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            status = _status(start, folder)
        finally:
            os._exit(status)
    _, how = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(how)


def _status(start: Start, folder: Path) -> int:
    import traceback

    try:
        with Deadly(folder, start.kill_at):
            run_start(start, folder)
        return 0
    except MegaladderError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except BaseException:
        traceback.print_exc()
        return 1


def prepare(parent: Path) -> None:
    """The inputs that a configuration names."""
    (parent / "model").mkdir(parents=True)
    (parent / "model" / "config.json").write_text("{}")
    (parent / "data.jsonl").write_text("{}\n")


def values(rates: Sequence[int]) -> list[int]:
    """value(1), value(2), … where step n had the rate `rates[n - 1]`."""
    found, value = [], 1
    for step, rate in enumerate(rates, start=1):
        value = next_value(value, step, rate)
        found.append(value)
    return found
