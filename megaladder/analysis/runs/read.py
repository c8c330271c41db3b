"""Paths → `Runs`.

Every score beside the run and the step that made its weights, every run beside what it began with.

A score's weights are known by the recorded folder (`RUN/hf/step_40` is step 40 of RUN) where that run
is asked about, else by their digest (an export that was moved or copied), else by that folder all
the same, else by the run folder that the score lies in (`…/step_40/…`), else by the names of the
folders around it. A run that a record points to is read too where it still lies there, so an
evaluation folder alone is enough.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megaladder.analysis.runs.find import STEP, find, is_run, there
from megaladder.analysis.runs.folder import read_config, read_held_out
from megaladder.analysis.runs.record import Origin, RunRecord, Runs, Score, Stage
from megaladder.analysis.runs.scores import Scored, Weights, read_scores
from megaladder.analysis.samples.files import read_object, section, text
from megaladder.analysis.tables import Warnings
from megaladder.errors import DataError
from megaladder.run_dir import model_fingerprint

EXPORT = re.compile(r"(?P<run>.+)/hf/step_(?P<step>\d+)/?")


def read_runs(paths: Sequence[str], warnings: Warnings) -> Runs:
    """The records of all runs and evaluations under the paths, and of what they began with.

    Raises:
        DataError: a path is not there, holds nothing to analyse, or holds a broken file.
    """
    if not paths:
        raise DataError("no folder is given; fix: run or evaluation folders, or files of samples")
    runs = look_for_runs(paths, warnings)
    if not runs.records:
        raise DataError(
            f"{', '.join(paths)}: no training run and no scores in it (config.yaml with"
            " metrics.jsonl, samples_*.jsonl, results_*.json); fix: folders of runs or evaluations"
        )
    return runs


def look_for_runs(paths: Sequence[str], warnings: Warnings) -> Runs:
    """`read_runs` where finding nothing is no error."""
    found = find(paths, warnings)
    drafts = _Drafts(warnings)
    for folder in found.runs:
        drafts.add_run(folder)
    for file in found.files:
        drafts.add_scores(read_scores(file))
    drafts.link_parents()
    return Runs(drafts.records(), warnings)


@dataclass
class _Draft:
    """A record that still collects.

    `key` of a run: its resolved folder; of a model: its digest, else its path."""

    key: str
    name: str
    stage: Stage
    path: str
    config: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    held_out: dict[int, float] = field(default_factory=dict)
    scores: dict[tuple[str, int, str], Score] = field(default_factory=dict)
    parent: tuple[str, int] | None = None


class _Drafts:
    """All records while they are put together."""

    def __init__(self, warnings: Warnings) -> None:
        self._warnings = warnings
        self.by_key: dict[str, _Draft] = {}
        self._exports: dict[str, tuple[str, int]] = {}  # digest → run, step
        self._digest_of: dict[str, str] = {}  # path of a model that no run made → its key

    # ---- runs

    def add_run(self, folder: Path) -> _Draft:
        """The run that wrote into a folder, once; its exports are known by their digests."""
        key = str(folder.resolve())
        if key not in self.by_key:
            config = read_config(folder)
            stage: Stage = "grpo" if "grpo" in config else "sft"
            draft = _Draft(key, folder.resolve().name, stage, str(folder), config)
            draft.identity = read_object(folder / "fingerprint.json")
            draft.held_out = read_held_out(folder, self._warnings)
            self.by_key[key] = draft
            for export in sorted((folder / "hf").glob("step_*")):
                digest = model_fingerprint(str(export), None).get("sha256")
                if digest:
                    step = int(export.name.removeprefix("step_"))
                    self._exports.setdefault(digest, (key, step))
        return self.by_key[key]

    def link_parents(self) -> None:
        """What each run began with; base models that nobody evaluated become records too."""
        # a parent may bring in a run of its own
        waiting = [draft for draft in self.by_key.values() if draft.stage in ("sft", "grpo")]
        while waiting:
            draft = waiting.pop()
            began = section(draft.identity, "model")
            path = text(began, "path") or text(section(draft.config, "model"), "path")
            known = set(self.by_key)
            place = self._locate(Weights(path, text(began, "sha256")))
            if place is None:
                continue
            draft.parent = place
            if self.by_key[place[0]].stage == "model":
                self.by_key[place[0]].stage = "base"
            waiting += [self.by_key[key] for key in self.by_key.keys() - known]

    def _locate(self, weights: Weights) -> tuple[str, int] | None:
        """Key and step of a run's export, or of a model that no run made."""
        export = EXPORT.fullmatch(weights.path or "")
        run = None if export is None else Path(export["run"])
        # of a run and a copy of it, the one that was asked about
        is_known = run is not None and str(run.resolve()) in self.by_key
        if not is_known and weights.sha256 in self._exports:
            return self._exports[weights.sha256]
        if export is not None and run is not None:
            there = is_known or is_run(run)
            return self.add_run(run).key if there else self._moved_run(run), int(export["step"])
        if weights.path is None and weights.sha256 is None:
            return None
        return self._model(weights, Path(str(weights.path)).name).key, 0

    def _moved_run(self, folder: Path) -> str:
        """A run that lies elsewhere now.

        The only known one of that name, else a record of its own."""
        named = [draft.key for draft in self.by_key.values() if draft.name == folder.name]
        if len(named) == 1:
            return named[0]
        key = str(folder)
        self.by_key.setdefault(key, _Draft(key, folder.name, "model", key))
        return key

    def _model(self, weights: Weights, name: str) -> _Draft:
        path = str(weights.path or "")
        local = str(Path(path).resolve()) if path and there(path) else path
        key = weights.sha256 or self._digest_of.get(local) or local
        if weights.sha256 and local:
            self._digest_of[local] = weights.sha256
        return self.by_key.setdefault(key, _Draft(key, name, "model", path or name))

    # ---- scores

    def add_scores(self, scored: Scored) -> None:
        """Puts the scores of a file to the step that made their weights."""
        draft, step = self._owner(scored)
        place = str(scored.file.path.resolve())
        for score in scored.scores:
            draft.scores[score.benchmark, step, place] = replace(score, step=step)

    def _owner(self, scored: Scored) -> tuple[_Draft, int]:
        file, weights = scored.file, scored.weights
        inside = None if file.run is None else self.add_run(file.run)
        if inside is not None and (step := _step_in(file.path, Path(inside.path))) is not None:
            return inside, step
        export = EXPORT.fullmatch(weights.path or "")
        if export is not None or weights.sha256 in self._exports:
            place = self._locate(weights)
            assert place is not None
            return self.by_key[place[0]], place[1]
        if weights.sha256 is not None:
            # ours lie in <out>/<name>/<benchmark>/
            return self._model(weights, file.path.resolve().parent.parent.name), 0
        return self._by_folders(scored)

    def _by_folders(self, scored: Scored) -> tuple[_Draft, int]:
        """Samples that name no weights: the folders' names are all there is."""
        file = scored.file
        step = STEP.fullmatch((file.checkpoint or "").split("/")[-1])
        checkpoint = None if step else file.checkpoint
        name = f"{file.model}/{checkpoint}" if checkpoint else file.model
        place = file.root if file.root.name == name else file.root / name
        key = f"folder {place.resolve()}"
        draft = self.by_key.setdefault(key, _Draft(key, name, "model", str(place)))
        return draft, int(step[1]) if step else 0

    # ---- the result

    def records(self) -> tuple[RunRecord, ...]:
        """In the order of the ladder; equal names are told apart by the folder above."""
        names = self._names()
        ordered = sorted(self.by_key.items(), key=lambda item: self._depth(item[0]))
        return tuple(
            RunRecord(
                names[key],
                draft.stage,
                draft.path,
                None if draft.parent is None else Origin(names[draft.parent[0]], draft.parent[1]),
                tuple(draft.scores.values()),
                draft.held_out,
                draft.config,
                draft.identity,
            )
            for key, draft in ordered
        )

    def _depth(self, key: str) -> tuple[int, bool]:
        draft, depth = self.by_key[key], 0
        while draft.parent is not None and depth < len(self.by_key):
            draft, depth = self.by_key[draft.parent[0]], depth + 1
        first = draft.stage == "base" or "base" in draft.name.lower()
        return depth, not first

    def _names(self) -> dict[str, str]:
        taken = [draft.name for draft in self.by_key.values()]
        out: dict[str, str] = {}
        for key, draft in self.by_key.items():
            above = Path(draft.path).absolute().parent.name
            twice = taken.count(draft.name) > 1 and above
            name = f"{above}/{draft.name}" if twice else draft.name
            out[key] = name if name not in out.values() else draft.path
        return out


def _step_in(file: Path, run: Path) -> int | None:
    """The step that a folder between the run and the file names."""
    parts = file.resolve().relative_to(run.resolve()).parts[:-1]
    found = [match for part in parts if (match := STEP.fullmatch(part))]
    return int(found[0][1]) if found else None
