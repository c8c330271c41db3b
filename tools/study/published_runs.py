"""What others (and we) measured (published_runs.yaml) and what this model predicts for it.

The rules of choice and split are stated in published_runs.yaml and were written before anything was
fitted. docs/plan.md and the gate in tests/plan/ read the same `comparisons()`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from megaladder.config.strict_yaml import load_yaml
from megaladder.model.hf_config import ModelShape
from megaladder.plan.experts import ExpertCalibration
from megaladder.plan.grpo import GrpoCalibration, Round, grpo_calibration, round_time
from megaladder.plan.hardware import find_gpu, find_model
from megaladder.plan.layout import SOFTWARE, PlannedLayout, Work
from megaladder.plan.throughput import Calibration, Cluster, step_time

HERE = Path(__file__).parent
UNITS = {"tokens_per_s_gpu": "tokens/s/GPU", "step_s": "s/step"}


def family_of(source: str) -> str:
    """The repository, or the first word, of a source."""
    return source.split()[0].split("/")[-1]


@dataclass(frozen=True, slots=True)
class Run:
    """One published training run.

    `value` in the unit `measure`; `group` names the configuration."""

    id: str
    model: str
    gpu: str
    gpus: int
    layout: PlannedLayout
    work: Work
    software: str
    measure: str
    value: float
    source: str
    status: str
    reason: str
    layers: int | None = None  # of a slice; None: the whole model
    differs: tuple[tuple[str, bool], ...] = ()  # what its software has or lacks besides

    @property
    def shape(self) -> ModelShape:
        whole = find_model(self.model)
        return whole if self.layers is None else replace(whole, num_layers=self.layers)

    @property
    def family(self) -> str:
        """Who measured."""
        return family_of(self.source)

    @property
    def group(self) -> str:
        layout, work = self.layout, self.work
        cut = "" if self.layers is None else f" {self.layers} layers"
        return (
            f"{self.model}{cut} {self.gpu} {'lora' if work.lora else 'full'} {work.precision}"
            f" {self.software} tp{layout.tp} pp{layout.pp} vpp{layout.vpp or 1} cp{layout.cp}"
            f" ep{layout.ep} {dict(self.differs)} mbs{layout.micro_batch_size} seq{work.seq_length}/{work.context:g}"
        )

    def compare(
        self, role: str, fitted: Calibration | None = None, experts: ExpertCalibration | None = None
    ) -> Comparison:
        """The figure beside the prediction."""
        return Comparison(
            self.id,
            self.group,
            self.measure,
            self.value,
            self.predict(fitted, experts),
            role,
            self.source,
            self.reason,
        )

    def predict(
        self, fitted: Calibration | None = None, experts: ExpertCalibration | None = None
    ) -> float:
        """The same measure by this model."""
        software = replace(SOFTWARE[self.software], **dict(self.differs))
        machine = Cluster(find_gpu(self.gpu), software, fitted, experts)
        seconds = step_time(self.shape, self.layout, self.work, machine).total
        if self.measure == "step_s":
            return seconds
        return self.work.tokens / seconds / self.gpus


@dataclass(frozen=True, slots=True)
class Comparison:
    """A published figure beside ours. `role`: calibration, held out, or untuned."""

    id: str
    what: str
    measure: str
    published: float
    predicted: float
    role: str
    source: str
    reason: str

    @property
    def family(self) -> str:
        """Who measured."""
        return family_of(self.source)

    @property
    def experts(self) -> bool:
        """Whether it is of a mixture of experts."""
        return find_model(self.what.split()[0]).moe is not None

    @property
    def error(self) -> float:
        """Predicted over published, less one."""
        return self.predicted / self.published - 1


@dataclass(frozen=True, slots=True)
class RoundRun:
    """One published GRPO run; `value`: seconds of a round."""

    id: str
    model: str
    gpu: str
    layout: PlannedLayout
    round: Round
    engine_share: float
    value: float
    source: str

    def compare(
        self,
        role: str,
        fitted: GrpoCalibration | None = None,
        experts: ExpertCalibration | None = None,
    ) -> Comparison:
        """The figure beside the prediction."""
        what, seconds = f"{self.model} {self.layout}", self.predict(fitted, experts)
        return Comparison(self.id, what, "step_s", self.value, seconds, role, self.source, "")

    def predict(
        self, fitted: GrpoCalibration | None = None, experts: ExpertCalibration | None = None
    ) -> float:
        """Seconds of the round by this model."""
        shape, gpu = find_model(self.model), find_gpu(self.gpu)
        budget, machine = (
            self.engine_share * gpu.memory_bytes,
            Cluster(gpu, SOFTWARE["megatron-plain"], fitted_experts=experts),
        )
        return round_time(
            shape, self.layout, self.round, machine, budget, fitted or grpo_calibration()
        ).total


def _round_run(row: dict[str, Any]) -> RoundRun:
    colocated = row["colocated"]
    training = row["gpus"] - (0 if colocated else row["engine_gpus"])
    cp = row.get("cp", 1)
    layout = PlannedLayout(
        tp=row["tp"],
        pp=row["pp"],
        cp=cp,
        dp=training // row["tp"] // row["pp"] // cp,
        recompute=row["recompute"],
        ep=row.get("ep", 1),
    )
    names = (
        "prompts",
        "n",
        "mini_batches",
        "prompt_length",
        "response_length",
        "max_response_length",
        "seq_length",
        "precision",
        "logprob_passes",
        "engine_tp",
        "engine_gpus",
        "colocated",
    )
    asked = Round(
        **{name: row[name] for name in names},
        rollout_precision=row["precision"],
        overlapped=not colocated,
    )
    return RoundRun(
        row["id"],
        row["model"],
        row["gpu"],
        layout,
        asked,
        row["engine_share"],
        row["step_s"],
        row["source"],
    )


def _run(row: dict[str, Any]) -> Run:
    measure = next(name for name in UNITS if name in row)
    parts = {
        name: row.get(name, default)
        for name, default in (("tp", 1), ("pp", 1), ("vpp", None), ("cp", 1), ("ep", 1))
    }
    dp = row["gpus"] // (parts["tp"] * parts["pp"] * parts["cp"])
    layout = PlannedLayout(
        **parts, dp=dp, micro_batch_size=row["micro_batch"], recompute=row.get("recompute", "none")
    )
    # the sources count packed rows as one
    per_row = row["seq_length"] / row.get("sample_length", row["seq_length"])
    work = Work(
        row["seq_length"],
        round(row["global_batch"] * per_row),
        row["precision"],
        row.get("sample_length"),
        row.get("lora", False),
    )
    return Run(
        row["id"],
        row["model"],
        row["gpu"],
        row["gpus"],
        layout,
        work,
        row.get("software", "megatron"),
        measure,
        row[measure],
        row["source"],
        row.get("status", "tuned"),
        row.get("reason", ""),
        row.get("layers"),
        tuple(row.get("with", {}).items()),
    )


def training_runs() -> list[Run]:
    """Every training row of published_runs.yaml, in its order."""
    return [_run(row) for row in _rows("training")]


def expert_runs() -> list[Run]:
    """Every training row of a mixture of experts."""
    return [_run(row) for row in _rows("experts")]


def _rows(section: str) -> list[dict[str, Any]]:
    return load_yaml(HERE / "published_runs.yaml").values[section]


def calibrating(groups: Sequence[str]) -> set[str]:
    """The 1st, 3rd, 5th … of the sorted names."""
    return set(sorted(set(groups))[::2])


def calibrating_runs() -> list[Run]:
    """The rows of training that the fit sees: tuned ones, and our own measurements."""
    return [run for run in training_runs() if run.status != "untuned"]


def calibrating_expert_runs() -> list[Run]:
    """The rows of experts that the fit sees."""
    return [run for run in expert_runs() if run.status != "untuned"]


def training_comparisons(fitted: Calibration | None = None) -> list[Comparison]:
    """All training rows with predictions."""
    return [
        run.compare("untuned" if run.status == "untuned" else "calibration", fitted)
        for run in training_runs()
    ]


def round_runs() -> list[RoundRun]:
    """Every GRPO row of published_runs.yaml."""
    return [_round_run(row) for row in _rows("grpo")]


def expert_rounds() -> list[RoundRun]:
    """Every GRPO row of a mixture of experts."""
    return [_round_run(row) for row in _rows("expert_grpo")]


def round_comparisons(fitted: GrpoCalibration | None = None) -> list[Comparison]:
    """All GRPO rows with predictions."""
    return [run.compare(role, fitted) for run, role in split(round_runs())]


def split(runs: Sequence[RoundRun]) -> list[tuple[RoundRun, str]]:
    """Each with its role."""
    calibrates = calibrating([run.id for run in runs])
    return [(run, "calibration" if run.id in calibrates else "held out") for run in runs]


def expert_comparisons(fitted: ExpertCalibration | None = None) -> list[Comparison]:
    """All training rows of mixtures of experts with predictions."""
    return [
        run.compare("untuned" if run.status == "untuned" else "calibration", experts=fitted)
        for run in expert_runs()
    ]


def expert_round_comparisons() -> list[Comparison]:
    """All GRPO rows of mixtures of experts with predictions."""
    return [run.compare(role) for run, role in split(expert_rounds())]


def not_modelled() -> list[dict[str, str]]:
    """Published figures without a row, with the reason."""
    return _rows("not_modelled")


def of_configurations(comparisons: Sequence[Comparison]) -> tuple[int, float, float]:
    """Configurations, and (median, largest) absolute error where each counts once.

    Its releases are averaged."""
    groups: dict[str, list[float]] = defaultdict(list)
    for comparison in comparisons:
        groups[comparison.what].append(comparison.error)
    errors = [abs(mean(found)) for found in groups.values()]
    return len(errors), median(errors), max(errors)


def summary(comparisons: Sequence[Comparison]) -> tuple[float, float]:
    """(median, largest) absolute error."""
    errors = [abs(comparison.error) for comparison in comparisons]
    return median(errors), max(errors)
