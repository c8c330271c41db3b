"""Where each run stands: its state in words, how far it is, when it will be done.

A run says itself how it ended (`last_word.json`). Whether one that says `running` still does is seen
by its process, by its ranks' signs of life, and by how long its last step is ago.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from megaladder.analysis.report.blocks import CsvRow, Drawing, Prose, Section, Table
from megaladder.analysis.report.collect import TrainRun
from megaladder.analysis.report.formats import amount, clock, count, significant
from megaladder.analysis.report.palette import Palette
from megaladder.analysis.report.svg import filled
from megaladder.process import last_word
from megaladder.process.heartbeat import FOLDER, SILENT_S, Beat, read_beats

# a step that takes so many times the usual is worth a word, and never below a minute
SLOW_FACTOR, SLOW_S = 10.0, 60.0
# a run's files and its ranks are silent for so long where its process was stopped or its host is gone
QUIET_S = 30.0
# steps whose mean duration the forecast takes
RECENT = 50
SIGNS = ("metrics.jsonl", "held_out.jsonl", "evaluations.jsonl", "log.txt", "last_word.json")


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    step_s: mean of its recent steps; quiet_s: seconds since it wrote anything; None = not known."""

    state: str
    step: int
    total: int | None
    step_s: float | None
    quiet_s: float | None

    @property
    def left_s(self) -> float | None:
        """Seconds of the steps that are left, without checkpoints and evaluations.

        None where nothing goes on."""
        if self.state != "running" or self.total is None or self.step_s is None:
            return None
        return max(0, self.total - self.step) * self.step_s


def standing(run: TrainRun, now: float) -> Standing:
    """Where a run stands at `now`, seconds since the epoch."""
    steps, seconds = run.metrics.curve("step_s")
    step_s = float(seconds[-RECENT:].mean()) if len(steps) else None
    total = run.metrics.last("total_steps")
    quiet_s = _quiet(run.path, now)
    return Standing(
        _state(run, step_s, quiet_s, now),
        run.metrics.last_step,
        None if total is None else int(total),
        step_s,
        quiet_s,
    )


def _quiet(folder: Path, now: float) -> float | None:
    """Seconds since a file of the run changed."""
    stamps = []
    for name in SIGNS:
        try:
            stamps.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(0.0, now - max(stamps)) if stamps else None


def _state(run: TrainRun, step_s: float | None, quiet_s: float | None, now: float) -> str:
    word = run.last_word
    if word is None:
        return "no last_word.json" if run.metrics.last_step else "not started"
    if word["reason"] != last_word.RUNNING:
        return last_word.how_it_ended(word)
    beats, beat_s = _signs_of_life(run.path, now)
    silent = max(beats, key=lambda beat: beat.silent_s, default=None)
    if beat_s is not None and beat_s > QUIET_S:
        return f"no sign of life for {clock(beat_s)}"
    if silent is not None and silent.silent_s > SILENT_S:
        return f"rank {silent.rank} is silent for {clock(silent.silent_s)}, {silent.doing}"
    if quiet_s is not None and quiet_s > max(SLOW_S, SLOW_FACTOR * (step_s or 0)):
        doing = f", {beats[0].doing} for {clock(beats[0].doing_s)}" if beats else ""
        return f"nothing new for {clock(quiet_s)}{doing}"
    return "running"


def _signs_of_life(run: Path, now: float) -> tuple[list[Beat], float | None]:
    """What the ranks said last, and seconds since the newest.

    A launcher's ranks leave theirs elsewhere."""
    try:
        stamps = [path.stat().st_mtime for path in (run / FOLDER).glob("rank_*.json")]
    except OSError:
        return [], None
    return read_beats(run / FOLDER), now - max(stamps) if stamps else None


def now_section(runs: list[TrainRun], styles: Palette, waiting: list[str]) -> Section:
    """A row for each run, and its own words where it did not come to its end."""
    section = Section("now", "Now")
    rows: list[list[str | Drawing]] = []
    numbers: list[CsvRow] = []
    now = time.time()
    for run in runs:
        at = standing(run, now)
        share = at.step / at.total if at.total else None
        label = f"{run.name}: step {at.step}" + (f" of {at.total}" if at.total else "")
        rows.append(
            [
                run.name,
                at.state,
                count(at.step) + (f" of {count(at.total)}" if at.total else ""),
                Drawing(filled(share, styles[run.name], label)),
                clock(at.left_s),
                clock(at.step_s),
                significant(run.metrics.last("loss"), 4),
                significant(run.metrics.last("reward"), 4),
                amount(run.metrics.last("tokens_per_s")),
                clock(at.quiet_s),
            ]
        )
        numbers.append(CsvRow("now", "step", run.name, None, float(at.step)))
    if rows:
        columns = (
            *("run", "state", "step", "done", "left", "a step", "loss", "reward"),
            *("tokens/s", "wrote ago"),
        )
        caption = "Left: recent steps' mean times the steps left; checkpoints and evaluations come on top."
        section.blocks.append(Table(columns, rows, caption, numbers, frozenset({2, *range(4, 10)})))
    words = ((run.name, run.last_word) for run in runs)
    lines = [f"{name}: {word['message']}" for name, word in words if word and word["status"]]
    lines += [f"{name}: not there yet." for name in waiting]
    section.blocks += [Prose(lines, as_list=True)] if lines else []
    if not section.blocks:
        section.blocks.append(Prose(["No training run in these folders yet."]))
    return section
