"""The life of a training run around its steps, told once for SFT and GRPO.

    step = life.resume()                     where this start begins; the log is open from here on
    life.listen()                            stop signals count from here on
    life.watch(benchmarks, step)             optional: what is evaluated by an engine
    while step < life.last_step:
        step += 1
        …                                    one step of the algorithm
        life.note_update(step, updated, …)   progress is updates, not steps or checkpoints
        life.end_of_step(step)               background saves, evaluation, checkpoint, stop
    life.finish(step)                        last checkpoint, export, the final table

What differs between the two (what else a checkpoint holds, what is printed) is a `RunContents`;
SFT's held-out loss is an `Evaluation`, scores on benchmarks are `Benchmarks`. Every method is
collective; the main rank alone writes and prints.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from megaladder import parallel
from megaladder.checkpoint import lineage
from megaladder.checkpoint.store import MARKER, step_dir
from megaladder.checkpoints_conv.adapters.run import adapter_folder
from megaladder.checkpoints_conv.megatron_to_hf import convert_to_hf
from megaladder.checkpoints_conv.writer import WriteOptions, is_exported
from megaladder.config.sections.run import RunConfig
from megaladder.errors import RunStopped
from megaladder.files.typed import typed
from megaladder.finished import write_finished
from megaladder.log import RunLog, evaluation_command, format_table, open_run_log
from megaladder.process import heartbeat, last_word
from megaladder.run_dir import RunDir
from megaladder.train.health import NonFiniteGuard, StopSignals, stopped
from megaladder.train.life.resume import check_same_run, write_run_identity
from megaladder.train.life.start import Start, find_start
from megaladder.train.trainer import Trainer


class RunContents(Protocol):
    """What one kind of training adds to the life of its runs."""

    title: str
    """What has ended when the run is finished, e.g. 'SFT finished'."""

    def identity(self) -> dict[str, Any]:
        """Hashes of what goes in, for fingerprint.json."""

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint holds beside model and optimizer; plain JSON."""

    def restore(self, saved: dict[str, Any]) -> None:
        """Takes back what `state` gave."""

    def begin(self, log: RunLog, step: int) -> None:
        """The log is open and `step` steps are done: say what a person should know."""

    def before_save(self) -> None:
        """Brings background work to rest: files are written by forked processes."""

    def rows(self) -> list[tuple[str, str]]:
        """The rows of the final table that are about the training itself."""


class Evaluation(Protocol):
    """What is measured of the model between steps."""

    def evaluation_due(self, step: int, saving: bool, last: bool) -> bool:
        """Whether the model is evaluated after `step`; `saving`: a checkpoint follows.

        `last`: no step does."""

    def evaluate(self, step: int) -> None:
        """Evaluates the model as it is after `step`."""


class Benchmarks(Evaluation, Protocol):
    """An evaluation that is remembered, and that decides what is kept and when it is enough."""

    def begin(self, log: RunLog, step: int, line: str) -> None:
        """`step` steps are done, on the run's line of that name."""

    def wanted(self, step: int) -> frozenset[int]:
        """Steps up to `step` whose checkpoints are kept for their scores."""

    def enough(self) -> bool:
        """Whether more steps are not worth it."""

    def best(self) -> int | None:
        """The step with the highest score; None before the first evaluation."""

    def record_best(self) -> None:
        """Writes down which step is best, and where its weights are. Main rank only."""

    def rows(self) -> list[tuple[str, str]]:
        """The rows of the final table that are about scores."""


class RunLife:
    """Resume, save, evaluate, export, stop and finish of one run."""

    log: RunLog

    def __init__(
        self,
        config: RunConfig,
        run: RunDir,
        contents: RunContents,
        trainer: Trainer | None,
        total_steps: int,
        evaluation: Evaluation | None = None,
    ) -> None:
        """trainer: None when nothing is trained, and so nothing is saved.

        evaluation: None where nothing is measured between steps."""
        self._evaluation = evaluation
        self._benchmarks: Benchmarks | None = None
        self._config, self._run, self._contents = config, run, contents
        self._trainer, self.last_step = trainer, total_steps
        self._signals: StopSignals | None = None
        self._guard = NonFiniteGuard(config.train.nonfinite_limit)
        self._updates = 0
        self._line = lineage.Line()
        self._saved: int | None = None
        self._began = time.monotonic()

    # ---- the beginning

    def resume(self) -> int:
        """The number of steps already done; everything is restored to it. 0 for a fresh run.

        Raises:
            ConfigError: the run was started with settings that may not change.
            CheckpointError: there is no good checkpoint where one is needed.
        """
        start = Start(None, 0, lineage.Line(), [])
        if self._trainer is not None:
            start = find_start(self._config, self._run, self._trainer.checkpoints.damage)
        changes = check_same_run(self._config, self._run, resuming=start.path is not None)
        self._line = start.line
        if start.path is not None:
            self._restore(start.path)
        write_run_identity(self._config, self._run, self._contents.identity(), start.step, changes)
        # a fresh start measures the held-out loss of step 0 again
        main = self._run if parallel.is_main() else None
        self.log = open_run_log(main, self._config, start.step or -1)
        self._tell_start(start, changes)
        self._contents.begin(self.log, start.step)
        where = f"resumed after step {start.step} of" if start.step else ""
        self.log.info(f"{where} {self.last_step} steps".strip())
        if start.step == 0:
            self._evaluate(self._evaluation, 0, saving=False)
        return start.step

    def _restore(self, path: Path) -> None:
        assert self._trainer is not None
        saved = self._trainer.restore(path)
        self._contents.restore(saved)
        self._saved = saved["step"]
        self._updates = saved.get("updates", saved["step"])
        self._guard.in_a_row = saved.get("skipped_in_a_row", 0)
        self._guard.skipped = saved.get("skipped_steps", [])

    def _tell_start(self, start: Start, changes: Sequence[str]) -> None:
        before = last_word.start_before()
        if last_word.before_is_damaged():
            self.log.warn(
                f"{self._run.path / last_word.NAME}: has changed since it was written; how the start"
                " before this one ended is not known"
            )
        if before is not None and before["reason"] == last_word.RUNNING:
            self.log.warn(
                f"the start of {before['time']} ended without a last word: all of it was killed, or"
                " a power cut"
            )
        for note in start.notes:
            self.log.warn(note)
        if changes:
            self.log.info("settings changed since the last start:")
        for change in changes:
            self.log.info(f"  {change}")
        gap = self.log.missing_rows(max(start.line.fork, 0), start.step)
        if gap:
            self.log.warn(
                f"{self._run.metrics}: no rows of steps {gap}, which the checkpoint has (lost in a"
                " power cut, or edited)"
            )

    def listen(self) -> StopSignals:
        """From here on a stop signal ends the run after its step.

        Called right before the loop: until then nothing has to be saved. No rank begins a step
        before all of them listen, and have left a sign of life by which a killed one is named."""
        self._signals = StopSignals()
        heart = heartbeat.of_this_rank()
        if heart is not None:
            heart.write()
        parallel.barrier()
        return self._signals

    def watch(self, benchmarks: Benchmarks, step: int) -> None:
        """From here on scores count too. What an earlier start left open at `step` is done now.

        Raises:
            RunStopped: a signal asked for it; the step is saved.
        """
        self._benchmarks = benchmarks
        benchmarks.begin(self.log, step, self._line.name)
        self._evaluate(benchmarks, step, saving=False)
        self._heed(step)
        self._record_best()
        if self._signals is not None and self._signals.agreed():
            self.stop(step)

    # ---- each step

    def note_update(self, step: int, updated: bool, names: Callable[[], Sequence[str]]) -> None:
        """Counts an optimizer update, or warns that `step` changed nothing.

        Raises:
            RunStopped: too many updates in a row were not finite, over all starts of the run.
        """
        self._updates += updated
        warning = self._guard.record(step, updated, names)
        if warning:
            self.log.warn(warning)

    def end_of_step(self, step: int) -> None:
        """What is due after `step`: a background save's commit, evaluation, checkpoint, stop.

        Raises:
            RunStopped: a signal asked for it; the step is saved.
        """
        if self._trainer is not None:
            self._trainer.checkpoints.poll()
        saving = self._save_due(step)
        scored = self._evaluate(self._benchmarks, step, saving)
        kept = self._heed(step)
        self._evaluate(self._evaluation, step, saving)
        if saving or kept or step == self.last_step:
            self.save(step)
        if scored or saving:
            self._record_best()
        # asked after the save: a signal that came meanwhile costs no further step
        if self._signals is not None and self._signals.agreed() and step < self.last_step:
            self.save(step)
            self.stop(step)

    def _evaluate(self, evaluation: Evaluation | None, step: int, saving: bool) -> bool:
        """Evaluates where it is due; whether it was."""
        last = step == self.last_step
        if evaluation is None or not evaluation.evaluation_due(step, saving, last):
            return False
        evaluation.evaluate(step)
        return True

    def _heed(self, step: int) -> bool:
        """Draws the conclusions from the scores so far; True: this step is kept for its own."""
        if self._benchmarks is None:
            return False
        wanted = self._benchmarks.wanted(step)
        if self._trainer is not None:
            self._trainer.checkpoints.also_kept = wanted
        if self._benchmarks.enough() and step < self.last_step:
            self.log.info(
                f"the score has not risen for {self._config.evaluate.patience} evaluations"
                f" (evaluate.patience): step {step} is the last one of {self.last_step}"
            )
            self.last_step = step
        return step in wanted

    def _save_due(self, step: int) -> bool:
        section = self._config.checkpoint
        last_or_listed = step == self.last_step or step in section.keep_steps
        return last_or_listed or bool(section.every and step % section.every == 0)

    def save(self, step: int, *, at_rest: bool = True) -> None:
        """A checkpoint of this step; a Hugging Face folder beside it where it is kept for good.

        at_rest: wait for background work first.
        """
        if self._trainer is None or self._saved == step:
            return
        if at_rest:
            self._contents.before_save()
        began = time.monotonic()
        self.log.sync()  # a committed checkpoint implies durable rows of its steps
        self._trainer.checkpoints.save(step, self._state(step))
        self._saved = step
        done = "started" if self._config.checkpoint.async_save else "saved"
        self.log.info(f"checkpoint step_{step} {done} in {time.monotonic() - began:.2f} s")
        section = self._config.checkpoint
        if section.export_hf and step in section.keep_steps and step != self.last_step:
            self.log.info(f"exported {self._trainer.export(step)}")

    def _state(self, step: int) -> dict[str, Any]:
        assert self._trainer is not None
        adapters = self._trainer.adapters
        return {
            **(adapters.identity if adapters is not None else {}),
            "step": step,
            "line": self._line.name,
            "num_ranks": parallel.world_size(),
            "layout": str(self._trainer.layout),
            "updates": self._updates,
            "skipped_in_a_row": self._guard.in_a_row,
            "skipped_steps": self._guard.skipped,
            **self._contents.state(step),
        }

    # ---- the end

    def stop(self, step: int) -> NoReturn:
        """Saves and ends a run that a signal asked to stop, whatever the background is at."""
        self.save(step, at_rest=False)
        if self._trainer is not None:
            self._trainer.checkpoints.close()
        raise stopped(
            f"stopped by a signal after step {step} of {self.last_step}; saved;"
            f" {self.resume_hint()}"
        )

    def finish(self, step: int) -> None:
        """Last checkpoint, export, and the table that ends with the next command.

        Raises:
            RunStopped: not one step changed the weights: nothing was trained.
        """
        self.save(step)
        rows = [("steps", f"{step}"), *self._contents.rows()]
        if self._benchmarks is not None:
            rows += self._benchmarks.rows()
        following = None
        if self._trainer is not None:
            self._trainer.checkpoints.close()
            self._refuse_untrained(step)
            more, following = self._weights(step)
            rows += more
            self._record_best()  # the last checkpoints and exports are there now
        rows.append(("time", f"{time.monotonic() - self._began:.1f} s"))
        parallel.barrier()
        self.log.finish(self._contents.title, rows, following)
        if parallel.is_main():
            lines = [format_table(self._contents.title, rows)]
            lines += [f"next: {following}"] if following else []
            write_finished(self._config, self._run, lines)

    def _refuse_untrained(self, step: int) -> None:
        if self._updates == 0 and self._guard.skipped:
            raise RunStopped(
                f"none of {step} steps changed the weights: loss or gradient was not finite in"
                f" {len(self._guard.skipped)} of them; fix: lower optim.lr, look at the data, or"
                " train.precision; then another run_dir"
            )

    def _weights(self, step: int) -> tuple[list[tuple[str, str]], str]:
        """Rows about what was written, and the command that comes next."""
        assert self._trainer is not None
        rows = [("checkpoints", str(self._run.checkpoints))]
        if self._guard.skipped:
            rows.append(("skipped updates", f"{len(self._guard.skipped)} (not finite)"))
        folder = self._run.hf_folder(step)
        adapter = adapter_folder(self._run, step)
        if not self._config.checkpoint.export_hf:
            checkpoint = step_dir(self._run.checkpoints, step)
            return rows, (
                f"megaladder convert megatron-to-hf --megatron {typed(checkpoint)}"
                f" --out {typed(folder)}"
            )
        if not parallel.on_main(lambda: self._is_exported(step)):
            self._trainer.export(step)
        if self._trainer.adapters is not None:
            rows.append(("adapter", str(adapter)))
            if not self._config.lora.merged_export:
                return rows, (
                    f"megaladder convert merge --hf {typed(self._config.model.path)}"
                    f" --adapter {typed(adapter)} --out {typed(folder)}"
                )
        rows.append(("HF model", str(folder)))
        best = parallel.on_main(lambda: self._export_best(step))
        rows += [("HF model, best", str(path)) for path in best]
        return rows, evaluation_command(folder, self._config.data.paths[0])

    def _is_exported(self, step: int) -> bool:
        """Whether all that this run exports of a step is there, and whole."""
        wanted = [(self._run.hf_folder(step), "config.json")]
        if self._config.lora.enabled:
            wanted = wanted if self._config.lora.merged_export else []
            wanted.append((adapter_folder(self._run, step), "adapter_config.json"))
        return all(is_exported(folder, name) for folder, name in wanted)

    def _export_best(self, last: int) -> list[Path]:
        """Converts the checkpoint with the highest score, where it is not the last one."""
        best = None if self._benchmarks is None else self._benchmarks.best()
        if not best or best == last:
            return []
        checkpoint, folder = step_dir(self._run.checkpoints, best), self._run.hf_folder(best)
        if not (checkpoint / MARKER).is_file():
            return []
        if not is_exported(folder):
            convert_to_hf(checkpoint, folder, WriteOptions(force=True))
        return [folder]

    def _record_best(self) -> None:
        if self._benchmarks is not None:
            parallel.on_main(self._benchmarks.record_best)
            last_word.note_best(self._benchmarks.best())

    def resume_hint(self) -> str:
        """The command that goes on from here."""
        return "resume with: " + shlex.join(["megaladder", *sys.argv[1:]])
