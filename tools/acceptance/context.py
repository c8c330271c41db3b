"""What a stage of the acceptance run gets.

Device, size, a work folder that survives between stages, its deadline, and a way to run our own
commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from megaladder.errors import MegaladderError
from megaladder.process.gpu_stack import cudnn_environment
from megaladder.run_dir import atomic_write, read_jsonl, to_json

ROOT = Path(__file__).resolve().parents[2]
_LOG_TAIL = 3000  # characters of a failed command's output in the error
_RESERVE_S = 15.0  # of a stage's time, to write down what was found


class StageSkipped(Exception):
    """The stage cannot run here; the message says why. Nothing is wrong."""


class StageFailed(MegaladderError):
    """A command of the stage failed; the message ends with its output."""


@dataclass(frozen=True, slots=True)
class Context:
    """device: cuda or cpu; size: full or tiny.

    Records: the folder with the records of earlier stages."""

    stage: str
    device: str
    size: str
    work: Path
    records: Path
    deadline: float  # time.monotonic()

    @property
    def tiny(self) -> bool:
        return self.size == "tiny"

    @property
    def on_cuda(self) -> bool:
        return self.device == "cuda"

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic() - _RESERVE_S

    def case(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """One figure of the stage, kept as soon as it is there.

        A stage that is ended by its limit keeps what it had, and the next call goes on behind it.
        """
        kept = kept_cases(self.work, self.stage)
        if name not in kept:
            kept[name] = measure()
            atomic_write(cases_path(self.work, self.stage), to_json(kept) + "\n")
        return kept[name]

    def figures_of(self, stage: str) -> dict[str, Any]:
        """What an earlier stage found on this device at this size.

        Empty where it did not run well."""
        from megaladder.tools.acceptance.record import is_done, read_record

        record = read_record(self.records, stage)
        return record["figures"] if is_done(record, self.device, self.size) else {}

    def megaladder(self, name: str, verb: str, *arguments: str, **overrides: Any) -> Path:
        """Runs `megaladder verb` to its end; returns its log.

        overrides: `train__max_steps=3` for --train.max_steps 3.

        Raises:
            StageFailed: it ended badly, or the stage's time is up.
        """
        flags = [
            word
            for key, value in overrides.items()
            for word in (f"--{key.replace('__', '.')}", _text(value))
        ]
        return self.run(name, [sys.executable, "-m", "megaladder", verb, *arguments, *flags])

    def run(
        self, name: str, command: list[str], variables: Mapping[str, str] = MappingProxyType({})
    ) -> Path:
        """Runs a command with its output in `work`/name.log.

        Ends it when the stage's time is up. variables: further ones of its environment."""
        log = self.work / f"{name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**self.environment(), **variables},
                start_new_session=True,
            )
            try:
                status = process.wait(max(self.seconds_left(), 1.0))
            except subprocess.TimeoutExpired:
                _end(process)
                raise StageFailed(
                    f"{name}: not done when the stage's time was up; its log: {log}"
                ) from None
        if status != 0:
            tail = log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:]
            raise StageFailed(f"{name}: exit status {status}\n{tail}")
        return log

    def environment(self) -> dict[str, str]:
        """Our source tree first on the path.

        A rehearsal keeps to the CPU even on a machine with a GPU."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        forced = {} if self.on_cuda else {"MEGALADDER_PLATFORM": "cpu"}
        return {
            **os.environ,
            "PYTHONPATH": path,
            **(cudnn_environment() if self.on_cuda else {}),
            "HF_HUB_OFFLINE": "1",
            "USE_HUB_KERNELS": "NO",
            **forced,
        }

    def metrics(self, run: Path) -> list[dict[str, Any]]:
        """The rows of a run's metrics.jsonl."""
        return list(read_jsonl(run / "metrics.jsonl"))


def cases_path(work: Path, stage: str) -> Path:
    """Where a stage keeps its figures while it runs."""
    return work / f"{stage}.cases.json"


def kept_cases(work: Path, stage: str) -> dict[str, Any]:
    """The figures that a stage has kept so far."""
    path = cases_path(work, stage)
    return read_json(path) if path.exists() else {}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    return (
        ",".join(map(str, value))
        if isinstance(value, (list, tuple))
        else "null"
        if value is None
        else str(value)
    )


def _end(process: subprocess.Popen) -> None:
    """Ends a command and the ranks and engines that it started: they share its session."""
    import signal

    for signum, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(process.pid, signum)
            process.wait(patience_s)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
