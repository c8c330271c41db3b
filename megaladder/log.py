"""What a run says.

One line a step, `metrics.jsonl`, `log.txt`, a final table that ends with the next command; trackers
(`trackers`) read the run folder and are woken when there is something new.

Rank 0 speaks; every other rank's `RunLog` is silent. Colour and tables only on a terminal. Numbers
in files are full precision; rounding is for eyes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

from megaladder.config.sections.run import RunConfig
from megaladder.console import VOICE, Task, clock, is_quiet
from megaladder.events.callback import Callback
from megaladder.files.typed import typed
from megaladder.process import last_word
from megaladder.run_dir import JsonlFile, RunDir, drop_rows_after, read_jsonl
from megaladder.trackers.courier import Courier
from megaladder.trackers.services import chosen_trackers

GIB = 1024**3
# seconds that a save waits for trackers to be at rest
REST_S = 2.0


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One optimizer step, global over all ranks.

    None = not known (shown as nothing, written as null).

    >>> StepMetrics(step=12, total_steps=640, loss=0.81, lr=5e-5, grad_norm=1.2, tokens=40960,
    step_s=2.1).tokens_per_s 19504.761904761905
    """

    step: int  # 1-based: after this many updates
    total_steps: int
    loss: float | None  # mean over the step's loss tokens, nats
    lr: float
    grad_norm: float | None  # before clipping
    tokens: int  # non-padding tokens that went through the model
    step_s: float  # wall-clock seconds
    loss_tokens: int | None = None
    # model FLOPs of the step, over all its phases (`ledger`)
    flops: float | None = None
    # model FLOP/s of the trainer, over all ranks, while it computed
    flops_per_s: float | None = None
    # the same over the peak of the ranks' devices; None where the peak is not known (CPU)
    mfu: float | None = None
    non_padding_share: float | None = None
    # peak of the fullest rank: device memory on CUDA, resident set on CPU
    memory_bytes: int | None = None
    # further keys of the metrics.jsonl row, such as held-out loss
    extra: Mapping[str, Any] = field(default_factory=dict)
    # of `extra`, what the console line has too; None = every number
    shown: tuple[str, ...] | None = None

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.step_s if self.step_s > 0 else 0.0

    def row(self) -> dict[str, Any]:
        """The metrics.jsonl object."""
        row = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("extra", "shown")
        }
        clash = (row.keys() | {"tokens_per_s"}) & self.extra.keys()
        assert not clash, f"extra metrics shadow {sorted(clash)}"
        return {**row, "tokens_per_s": self.tokens_per_s, **self.extra}

    def line(self) -> str:
        """The step as a line of the console.

        `step 12/640  loss 0.8100  lr 5.00e-05  grad 1.200  19,505 tok/s  mfu 41.2%  filled 98.6%
        mem 4.10 GiB  2.10 s`"""
        parts = [
            f"step {self.step}/{self.total_steps}",
            f"loss {_number(self.loss, '.4f')}",
            f"lr {self.lr:.2e}",
        ]
        parts += [f"grad {_number(self.grad_norm, '.3f')}", f"{self.tokens_per_s:,.0f} tok/s"]
        parts += [speed] if (speed := self._speed()) else []
        parts += (
            [f"filled {self.non_padding_share:.1%}"] if self.non_padding_share is not None else []
        )
        parts += [f"mem {self.memory_bytes / GIB:.2f} GiB"] if self.memory_bytes is not None else []
        parts.append(f"{self.step_s:.2f} s")
        parts += [
            f"{key} {_number(value, '.4g')}"
            for key, value in self.extra.items()
            if _is_number(value) and self._is_shown(key)
        ]
        return "  ".join(parts)

    def _speed(self) -> str:
        """`mfu 41.2%`, or what was reached where the peak is not known."""
        if self.mfu is not None:
            return f"mfu {self.mfu:.1%}"
        return f"{self.flops_per_s / 1e9:.3g} GFLOP/s" if self.flops_per_s else ""

    def _is_shown(self, key: str) -> bool:
        return self.shown is None or key in self.shown


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: float | None, spec: str) -> str:
    return "none" if value is None else format(value, spec)


class RunLog:
    """The voice of one run.

    Build it on every rank; with `run=None` (ranks other than 0) every call is silent.

    resumed_step: rows of metrics.jsonl past it belong to lost work and are dropped, so that no step
    is there twice (held_out.jsonl and evaluations.jsonl too).
    """

    def __init__(
        self,
        run: RunDir | None,
        resumed_step: int = 0,
        every: int = 1,
        stream: TextIO | None = None,
    ):
        self._run, self._every, self._stream = run, every, stream
        self._steps = Task("steps")
        self._couriers: list[Courier] = []
        if run is None:
            return
        self.dropped_rows = drop_rows_after(run.metrics, resumed_step)
        drop_rows_after(run.held_out, resumed_step)
        drop_rows_after(run.evaluation_rows, resumed_step)
        self._metrics, self._held_out = JsonlFile(run.metrics), JsonlFile(run.held_out)
        self._evaluations = JsonlFile(run.evaluation_rows)
        self._text = run.log_text.open("a", encoding="utf-8", buffering=1)

    def start_trackers(self, trackers: Mapping[str, Callback]) -> None:
        """Starts each, by its name, in a thread of its own; one that fails is reported."""
        if self._run is not None:
            self._couriers = [
                Courier(name, tracker, self._run.path, self.warn)
                for name, tracker in trackers.items()
            ]

    def info(self, text: str) -> None:
        """A line on the console (not with --quiet) and, with the time, in log.txt."""
        if self._run is not None:
            self._say(text, None if is_quiet() else self._out)

    def warn(self, text: str) -> None:
        if self._run is not None:
            self._say(f"warning: {text}", sys.stderr)

    def step(self, metrics: StepMetrics) -> None:
        """Tells one finished step.

        metrics.jsonl always, the console every `every` steps and at the last one."""
        last_word.note_step(metrics.step)
        if self._run is None:
            return
        row = metrics.row()
        self._metrics.append(row)
        left = self._time_left(metrics)
        if metrics.step % self._every == 0 or metrics.step == metrics.total_steps:
            self.info(metrics.line() + left)
        self._wake()

    def _time_left(self, metrics: StepMetrics) -> str:
        """`  ETA 1:35`, by the steps of this start; nothing with its first step and the last."""
        VOICE.steps(metrics.step, metrics.total_steps)
        steps = self._steps
        if steps.total is None:
            steps.first, steps.began = metrics.step, time.monotonic()
        steps.done, steps.total = metrics.step, metrics.total_steps
        left_s = steps.left_s(time.monotonic())
        return f"  ETA {clock(left_s)}" if left_s else ""

    def held_out(self, step: int, loss: float, **work: float) -> None:
        """Held-out loss after `step` updates, nats a token.

        A row of held_out.jsonl. work: keys of the ledger."""
        if self._run is None:
            return
        self._held_out.append({"step": step, "held_out_loss": loss, **work})
        self._wake()

    def evaluated(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Scores of benchmarks after a step: rows of evaluations.jsonl."""
        if self._run is None:
            return
        for row in rows:
            self._evaluations.append(row)
        self._wake()

    def sync(self) -> None:
        """Makes every row so far durable."""
        if self._run is not None:
            self._metrics.sync()
            self._held_out.sync()
            self._evaluations.sync()
            for courier in self._couriers:
                courier.rest(REST_S)

    def missing_rows(self, after: int, until: int) -> str:
        """The steps in (after, until] that metrics.jsonl has no row of, e.g. '3, 7–9'; '' if none."""
        if self._run is None:
            return ""
        there = {row["step"] for row in read_jsonl(self._run.metrics)}
        return spans([step for step in range(after + 1, until + 1) if step not in there])

    def finish(
        self,
        title: str,
        rows: Sequence[tuple[str, str]],
        next_command: str | None,
        exit_status: int = 0,
    ) -> None:
        """The final table, then the command that comes next (resume, export, evaluate).

        Closes files and trackers."""
        if self._run is None:
            return
        self._say(format_table(title, rows), self._out)
        if next_command:
            self._say(f"next: {next_command}", self._out)
        self.close(exit_status)

    def close(self, exit_status: int = 1) -> None:
        """Ends the trackers and closes the files; safe to call twice."""
        if self._run is not None:
            for courier in self._couriers:
                courier.end(exit_status)
            self._metrics.close()
            self._held_out.close()
            self._evaluations.close()
            self._text.close()
            self._run = None

    @property
    def _out(self) -> TextIO:
        """Standard output as it is now: above a bar, where one is drawn."""
        return self._stream or sys.stdout

    def _say(self, text: str, stream: TextIO | None) -> None:
        if stream is not None:
            VOICE.said()
            _print_line(text, stream)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self._text.writelines(f"{stamp} {line}\n" for line in text.splitlines())

    def _wake(self) -> None:
        for courier in self._couriers:
            courier.wake()


def open_run_log(run: RunDir | None, config: RunConfig, resumed_step: int) -> RunLog:
    """The log of a run with the trackers its `config.log` asks for.

    run: None on ranks that are silent; config: of a training verb; resumed_step: steps already
    done, -1 to drop every old row."""
    log = RunLog(run, resumed_step=resumed_step, every=config.log.every)
    if run is not None:
        log.start_trackers(chosen_trackers(config.log, run.path, resumed_step))
    return log


def spans(steps: Sequence[int]) -> str:
    """Ascending numbers with runs drawn together: 1, 3–5."""
    spans: list[list[int]] = []
    for step in steps:
        if spans and step == spans[-1][1] + 1:
            spans[-1][1] = step
        else:
            spans.append([step, step])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in spans)


def evaluation_command(model: Path, data_path: str) -> str:
    """The command that evaluates a model after its training.

    On the benchmark that the data belongs to where its path says so (…/gsm8k/train.jsonl, as `data
    get` writes it), else to be chosen."""
    data = Path(data_path)
    if data.stem in ("train", "test") and data.parent.name:
        chosen = f"{typed(data.parent.name)} --data-dir {typed(data.parent.parent)}"
    else:
        chosen = "NAME or FILE.jsonl (--benchmark list prints the names)"
    return f"megaladder eval --model {typed(model)} --benchmark {chosen}"


def _print_line(text: str, stream: TextIO) -> None:
    """Prints plain text.

    A console that went away (closed pipe) does not stop a run, log.txt has it all."""
    try:
        print(text, file=stream, flush=True)
    except (BrokenPipeError, ValueError):
        return


def format_table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Two aligned columns under a title.

    Plain characters, so that logs and terminals show the same."""
    width = max((len(name) for name, _ in rows), default=0)
    rule = "-" * max(len(title), width + 2 + max((len(value) for _, value in rows), default=0))
    return "\n".join(
        [rule, title, rule, *(f"{name:<{width}}  {value}" for name, value in rows), rule]
    )
