"""What the page shows at this moment, kept up to date from the folders, which are only read.

What grows with every step is read on from where the last reading ended. The rest (scores with
their intervals, costs, analyses) is built again beside it, at most every `AGAIN_S` seconds, and so
seldom that it takes a twentieth of the time.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaladder.analysis.report.blocks import Panels, RolloutList, Section
from megaladder.analysis.report.charts import points_a_line
from megaladder.analysis.report.collect import (
    Inputs,
    TrainRun,
    collect,
    named_apart,
    run_folders,
    train_run,
)
from megaladder.analysis.report.contents import CHAPTERS, Material, notes_section
from megaladder.analysis.report.metrics import Metrics
from megaladder.analysis.report.palette import palette
from megaladder.analysis.report.render import Part, part_of
from megaladder.analysis.report.sections.rollouts import rollout_section, sources_of
from megaladder.config.verbs.analysis import ReportConfig
from megaladder.errors import MegaladderError
from megaladder.watch.now import now_section

AGAIN_S = 15.0
SHARE_OF_TIME = 0.05
FRESH_S = 0.5  # two who ask within it get the same answer
MAX_PROBLEMS = 20
# a run that has not finished a step yet
BEGUN = ("config.yaml", "last_word.json")


@dataclass
class _Slow:
    """Sections that are not built at every look, by the chapter that they belong to."""

    inputs: Inputs = field(default_factory=Inputs)
    sections: dict[int, list[Section]] = field(default_factory=dict)
    problem: str | None = None


class Live:
    """The runs and evaluations under some paths; for several threads."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self._paths = paths
        self._config = ReportConfig(run_dirs=paths)
        self._metrics: dict[Path, Metrics] = {}
        self._facts: dict[Path, tuple[tuple[int, ...], TrainRun]] = {}
        self._problems: dict[str, None] = {}
        self._waiting: list[str] = []
        self._slow = _Slow()
        self._builder: threading.Thread | None = None
        self._next_build = self._looked = 0.0
        self._lock = threading.Lock()
        self._inputs = Inputs(folders=list(paths))
        self._parts: list[Part] = []
        self._grown: dict[int, list[Section]] = {}
        self._grown_from: object = None
        self._rendered: dict[int, tuple[Section, int, Part]] = {}

    # ---- what the page asks for

    def parts(self) -> list[Part]:
        """The sections as they are now."""
        with self._lock:
            if time.monotonic() - self._looked > FRESH_S:
                self._look()
                self._looked = time.monotonic()
            return self._parts

    def sections(self) -> list[Section]:
        """For a file of its own: all sections, rollouts inside."""
        self.parts()
        with self._lock:
            return self._sections(rollout_section(self._inputs, self._config))

    def inputs(self) -> Inputs:
        """The runs and evaluations as they were at the last look."""
        with self._lock:
            return self._inputs

    def wait_until_built(self) -> None:
        """Until the sections that take long are there."""
        builder = self._builder
        if builder is not None:
            builder.join()

    # ---- reading

    def _look(self) -> None:
        changed = self._read_runs()
        self._build_slow()
        slow = self._slow
        self._inputs.evals, self._inputs.analyses = slow.inputs.evals, slow.inputs.analyses
        runs = tuple(
            (run.name, run.path, run.stage, len(run.rollouts)) for run in self._inputs.runs
        )
        # the runs, and the models that share the colours with them
        state = (runs, tuple(self._inputs.models))
        if changed or state != self._grown_from:
            self._grown_from = state
            self._grown = self._build({i for i, chapter in enumerate(CHAPTERS) if chapter.grows})
        sections = self._sections(self._rollouts())
        panels = [b for section in sections for b in section.blocks if isinstance(b, Panels)]
        limit = points_a_line(sum(len(c.series) for panel in panels for c in panel.charts))
        self._parts = [self._part(section, limit) for section in sections]
        # those of sections that are gone
        kept = {id(section) for section in sections}
        self._rendered = {key: one for key, one in self._rendered.items() if key in kept}

    def _part(self, section: Section, limit: int) -> Part:
        """The section as HTML and data; as before where it is the same one."""
        found = self._rendered.get(id(section))
        if found is None or found[0] is not section or found[1] != limit:
            found = self._rendered[id(section)] = section, limit, part_of(section, limit)
        return found[2]

    def _read_runs(self) -> bool:
        """Reads what is new of every run; whether any number is."""
        folders, self._waiting = [], []
        for text in self._paths:
            found = _folders(Path(text))
            folders += [folder for folder in found if folder not in folders]
            if not found and not Path(text).is_dir():
                self._waiting.append(text)
        changed = False
        for gone in self._metrics.keys() - set(folders):
            del self._metrics[gone]
            changed = True
        runs = []
        for folder in folders:
            metrics = self._metrics.setdefault(folder, Metrics.of(folder, self._tell))
            changed = metrics.read() or changed
            run = self._run(folder, metrics)
            runs += [run] if run is not None else []
        runs.sort(key=lambda run: run.stage != "SFT")
        self._inputs = Inputs(folders=list(self._paths), runs=named_apart(runs))
        return changed

    def _run(self, folder: Path, metrics: Metrics) -> TrainRun | None:
        try:
            return train_run(folder, metrics)
        except (OSError, MegaladderError) as error:
            self._tell(str(error))
            return None

    def _tell(self, problem: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems[problem] = None

    # ---- building

    def _build_slow(self) -> None:
        """Starts what takes long, where it is due."""
        idle = self._builder is None or not self._builder.is_alive()
        if idle and time.monotonic() >= self._next_build and any(map(_there, self._paths)):
            self._builder = threading.Thread(target=self._build_beside, daemon=True)
            self._builder.start()

    def _build_beside(self) -> None:
        began = time.monotonic()
        paths = tuple(text for text in self._paths if _there(text))
        try:
            inputs = collect(paths)
            still = {i for i, chapter in enumerate(CHAPTERS) if not chapter.grows}
            # a run that has only begun stands among those of this moment
            self._slow = _Slow(inputs, self._build(still, inputs)) if inputs.size else _Slow()
        except (OSError, MegaladderError) as error:
            self._slow = _Slow(problem=str(error))
        took = time.monotonic() - began
        self._next_build = time.monotonic() + max(AGAIN_S, took / SHARE_OF_TIME)

    def _build(self, which: set[int], inputs: Inputs | None = None) -> dict[int, list[Section]]:
        inputs = inputs or self._inputs
        material = Material(inputs, self._config, palette(inputs))
        return {
            i: chapter.build(material)
            for i, chapter in enumerate(CHAPTERS)
            if i in which and not chapter.rollouts
        }

    def _sections(self, rollouts: Section) -> list[Section]:
        """In the page's order: where the runs stand first, notes last."""
        slow = self._slow
        sections = [now_section(self._inputs.runs, palette(self._inputs), self._waiting)]
        for i, chapter in enumerate(CHAPTERS):
            built = self._grown if chapter.grows else slow.sections
            sections += [rollouts] if chapter.rollouts else built.get(i, [])
        told = [*self._problems, *slow.inputs.notes, *([slow.problem] if slow.problem else [])]
        return [section for section in (*sections, notes_section(told, [])) if section.blocks]

    def _rollouts(self) -> Section:
        section = Section("rollouts", "Rollouts to read")
        if sources_of(self._inputs):
            note = "Newest steps first. Up and down go from one to the next, Escape closes."
            section.blocks.append(RolloutList([], note, live=True))
        return section


def _there(text: str) -> bool:
    return Path(text).is_dir()


def _folders(path: Path) -> list[Path]:
    """Runs in a folder or one level below, those that have only begun too."""
    try:
        if not path.is_dir():
            return []
        begun = [
            folder
            for folder in (path, *sorted(path.iterdir()))
            if all((folder / name).is_file() for name in BEGUN)
        ]
        return list(dict.fromkeys([*run_folders(path), *begun]))
    except OSError:
        return []


def digest(text: str) -> str:
    """What tells one text from another."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]


def changes(parts: list[Part], have: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """What a page that has some digests (section → of HTML, of charts) lacks."""
    found = []
    for part in parts:
        digests = {"html": digest(part.html), "charts": digest(part.charts)}
        known = have.get(part.id, ("", ""))
        entry: dict[str, Any] = {"id": part.id, "title": part.title, "digests": digests}
        entry |= {"html": part.html} if digests["html"] != known[0] else {}
        entry |= {"charts": part.charts} if digests["charts"] != known[1] else {}
        found.append(entry)
    return found
