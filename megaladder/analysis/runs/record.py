"""What the studies know of a model: where it came from, its steps, its scores.

A `RunRecord` is one training run with all its evaluated steps, or a model that no run made (a base
model, a downloaded one). `Runs` holds those of one call, in the order of the ladder: base models,
what was trained from them, what was trained from that. Made by `read.read_runs`; nothing is read
from a folder here but samples, when a study asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from megaladder.analysis.samples.files import flatten
from megaladder.analysis.samples.sets import SampleSet, read_samples
from megaladder.analysis.tables import Warnings
from megaladder.errors import DataError
from megaladder.evaluation.report import PLAIN_NUMBERS

_OF_THE_MODEL = ("model", "fingerprint", "tokenizer_sha256", "model_args", "megaladder")
Stage = Literal["base", "sft", "grpo", "model"]  # model: nothing says what it is


@dataclass(frozen=True)
class Score:
    """One model on one benchmark under one protocol.

    `means`: what its own results file says, by metric: shares in [0, 1], lengths in tokens; the
    headline is the score. Empty where only samples lie there, `samples` None where only means do.
    """

    benchmark: str
    step: int
    samples: Path | None = None
    headline: str | None = None
    means: Mapping[str, float] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)  # nested, as recorded

    @property
    def where(self) -> str:
        """The file or folder that it came from."""
        return str(self.samples or self.benchmark)

    @property
    def budget(self) -> dict[str, Any]:
        """The settings of a forced or asked-for thinking budget that differ from none.

        {} for a plain evaluation."""
        found = self.protocol.get("budget")
        return found if isinstance(found, dict) else {"tokens": found} if found else {}

    @property
    def num_samples(self) -> int:
        """n of the protocol; 0 where it does not say."""
        n = self.protocol.get("n")
        return n if isinstance(n, int) else 0

    @property
    def protocol_key(self) -> str:
        """Equal for scores that were made alike, whatever the weights."""
        settings = flatten(dict(self.protocol)).items()
        return str(sorted(item for item in settings if item[0].split(".")[0] not in _OF_THE_MODEL))


@dataclass(frozen=True)
class Origin:
    """The model that a run began with: the record's name, and its step."""

    name: str
    step: int


@dataclass(frozen=True)
class RunRecord:
    """One run, or one model that no run made (`path`: its folder or name; all scores at step 0).

    `held_out`: loss by step, nats a token. `identity`: the run's fingerprint.json.
    """

    name: str
    stage: Stage
    path: str
    parent: Origin | None = None
    scores: tuple[Score, ...] = ()
    held_out: Mapping[int, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_run(self) -> bool:
        """Whether it was trained here: it has a run folder."""
        return self.stage in ("sft", "grpo")

    @property
    def steps(self) -> list[int]:
        """Steps with a score, rising."""
        return sorted({score.step for score in self.scores})

    @property
    def benchmarks(self) -> list[str]:
        return list(dict.fromkeys(score.benchmark for score in self.scores))

    def plain(self, benchmark: str) -> list[Score]:
        """Its scores on a benchmark, by rising step.

        Under a thinking budget only where there are no others."""
        found = [score for score in self.scores if score.benchmark == benchmark]
        plain = [score for score in found if not score.budget]
        return sorted(plain or found, key=lambda score: score.step)


@dataclass
class Runs:
    """The records of one call, in the order of the ladder."""

    records: tuple[RunRecord, ...]
    warnings: Warnings
    _sets: dict[Path, SampleSet] = field(default_factory=dict, repr=False)

    def __iter__(self) -> Iterator[RunRecord]:
        return iter(self.records)

    @property
    def names(self) -> list[str]:
        return [record.name for record in self.records]

    @property
    def evaluated(self) -> list[RunRecord]:
        """Records with a score."""
        return [record for record in self.records if record.scores]

    @property
    def benchmarks(self) -> list[str]:
        return list(dict.fromkeys(name for record in self.records for name in record.benchmarks))

    def named(self, name: str) -> RunRecord:
        """Raises DataError for a name that none has."""
        found = next((record for record in self.records if record.name == name), None)
        if found is None:
            raise DataError(
                f"no run or model named {name!r}; found {', '.join(self.names)[:300]}; fix: one of"
                " them"
            )
        return found

    def parent(self, record: RunRecord) -> RunRecord | None:
        """The record of what it began with."""
        return None if record.parent is None else self.named(record.parent.name)

    def children(self, record: RunRecord, step: int) -> list[RunRecord]:
        """Runs that began with this record's weights after `step`."""
        origin = Origin(record.name, step)
        return [other for other in self.records if other.parent == origin]

    def root(self, record: RunRecord) -> RunRecord:
        """The first ancestor: the base model."""
        parent = self.parent(record)
        return record if parent is None else self.root(parent)

    def score(self, record: RunRecord, benchmark: str, step: int) -> Score | None:
        """The plain score of a step; of several the one with the most samples, with a warning."""
        found = [score for score in record.plain(benchmark) if score.step == step]
        if len(found) > 1:
            found.sort(key=lambda score: -score.num_samples)
            self.warnings.add(
                f"{record.name} step {step} on {benchmark}: evaluated {len(found)} times;"
                f" {found[0].where} (n {found[0].num_samples or 'unknown'}) is used"
            )
        return found[0] if found else None

    def last(self, record: RunRecord, benchmark: str) -> Score | None:
        """The plain score of its last step on a benchmark."""
        scores = record.plain(benchmark)
        return self.score(record, benchmark, scores[-1].step) if scores else None

    def curve(self, record: RunRecord, benchmark: str) -> dict[int, Score]:
        """Step → plain score, all of one protocol: the one with the most steps (then samples).

        Step 0 is the score of what the run began with, where the run has none of its own.
        """
        begun = [
            replace(score, step=0)
            for score in ([] if record.parent is None else self._begun(record, benchmark))
        ]
        own = record.plain(benchmark)
        groups: dict[str, dict[int, Score]] = {}
        for score in [*begun, *own]:
            groups.setdefault(score.protocol_key, {})[score.step] = score
        if not groups:
            return {}
        best = max(groups.values(), key=lambda g: (len(g), max(s.num_samples for s in g.values())))
        if 0 not in best and begun:
            best[0] = begun[0]
            self.warnings.add(
                f"{record.name} on {benchmark}: step 0 was evaluated under another protocol than the"
                " later steps"
            )
        left = len({score.step for score in own} - best.keys())
        if left:
            self.warnings.add(
                f"{record.name} on {benchmark}: {left} steps were evaluated under other protocols"
                " only, left out of its curve"
            )
        return dict(sorted(best.items()))

    def _begun(self, record: RunRecord, benchmark: str) -> list[Score]:
        assert record.parent is not None
        scores = self.named(record.parent.name).plain(benchmark)
        return [score for score in scores if score.step == record.parent.step]

    def label(self, record: RunRecord, step: int) -> str:
        """`run`, or `run/step_40` where the run was evaluated at several steps."""
        return record.name if len(record.steps) < 2 else f"{record.name}/step_{step}"

    def samples(self, record: RunRecord, score: Score, label: str | None = None) -> SampleSet:
        """The stored samples behind a score. Raises DataError where there are none."""
        if score.samples is None:
            raise DataError(
                f"{record.name} on {score.benchmark}: has scores but no stored samples; fix: the"
                " folder that holds its samples_*.jsonl"
            )
        if score.samples not in self._sets:
            name = label or self.label(record, score.step)
            found = read_samples(score.samples, name, score.benchmark, self.warnings)
            self._sets[score.samples] = found
        return self._sets[score.samples]

    def percent(self, record: RunRecord, score: Score) -> float | None:
        """The score in %: the recorded headline, else avg@n of the samples.

        None for a measure that is no share."""
        if score.headline in PLAIN_NUMBERS:
            return None
        if score.headline is not None:
            return 100 * score.means[score.headline]
        return 100 * float(self.samples(record, score).accuracy_p.mean())

    def length(self, record: RunRecord, score: Score, thinking: bool = False) -> float | None:
        """Mean tokens of an answer, or of its thinking; None where they are not recorded."""
        name = "thinking_tokens" if thinking else "response_length"
        if name in score.means or thinking or score.samples is None:
            return score.means.get(name)
        tokens = self.samples(record, score).mean_tokens_p
        return None if tokens is None else float(tokens.mean())
