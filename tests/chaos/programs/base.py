"""What a program is to the harness: something that goes on from whatever lies in its folder, as the
same command started again does."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megaladder.errors import MegaladderError
from megaladder.process import ending, signals
from megaladder.process.storage import storage_error

Mark = Callable[[str], None]


class Workload:
    """`run` brings the folder to its end and marks what it promises on the way; `result` is what
    must be the same as in an undisturbed run; `broken_promise` says what a reader lacks of what was
    promised.

    wired: its pipes and sockets are disturbed too. resumes: stop signals end it with status 3 or
    after a save; else they may end it as they end any process. reads_only: `broken_promise` changes
    nothing. dear: a start takes seconds, so calls are drawn and not walked through. patience_s: for
    a start; grace_s: for its helpers after it.
    """

    name: str
    wired = False
    resumes = False
    reads_only = True
    dear = False
    patience_s = 300.0
    grace_s = 60.0

    def prepare(self, scratch: Path) -> None:
        """Once before the first start: inputs that all starts share, outside the run's folder."""

    def run(self, folder: Path, mark: Mark) -> int | None:
        """One start; the exit status where it is not 0."""
        raise NotImplementedError

    def result(self, folder: Path) -> Any:
        raise NotImplementedError

    def broken_promise(self, folder: Path, marks: Sequence[str]) -> str | None:
        return None


def status_of(program: Workload, folder: Path, mark: Mark) -> int:
    """Runs it; its status as the command line makes it of what was raised."""
    if program.resumes:
        signals.listen(ending.at_once)
    try:
        return program.run(folder, mark) or 0
    except MegaladderError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return ending.INTERRUPTED
    except BaseException as error:
        words = storage_error(error)
        if words is not None:
            print(words, file=sys.stderr)
            return words.exit_status
        traceback.print_exc()
        return 1


# module -> the programs in it, and each one's share of the time: a start of the first takes 15 ms of
# processor time, one of the last seconds
_WHERE = {
    "small": {"training": 0.5, "evaluation": 0.5, "rewinding": 0.5},
    "tensors": {"export": 0.5, "conversion": 0.5},
    "verbs": {
        "data-make": 1.0,
        "data-select": 1.0,
        "decontaminate": 1.0,
        "push": 1.0,
        "grade": 1.0,
        "data-sample": 1.0,
        "eval": 1.0,
        "convert": 1.0,
        "convert-back": 1.0,
        "merge": 1.0,
        "data-score": 1.0,
        "study": 1.0,
    },
    "trainings": {"sft": 2.0, "sft-tp2": 2.0, "sft-pp2": 2.0, "grpo": 2.0, "sft-experts": 2.0},
    "engines": {"grpo-vllm": 2.0, "eval-vllm": 2.0},
}
_OF_TESTS = {"faulty": {"careless": 1.0, "leaving": 1.0, "hoarding": 1.0}}
NAMES = tuple(name for names in _WHERE.values() for name in names)
WITH_POWER_CUTS = (*_WHERE["small"], *_WHERE["tensors"], "careless")
_ALL = {**_WHERE, **_OF_TESTS}


def weight_of(name: str) -> float:
    """A program's share of the time."""
    return next(names[name] for names in _ALL.values() if name in names)


def workload(name: str) -> Workload:
    """By its name."""
    module = next(module for module, names in _ALL.items() if name in names)
    found: Workload = importlib.import_module(f"chaos.programs.{module}").WORKLOADS[name]
    return found
