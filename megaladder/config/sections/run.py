"""What every training run has, as one type: the sections that `sft` and `grpo` share.

Rules and trainer take it; the two runs (`config/sft.py`, `config/grpo.py`) put their own sections
in and call the rules.
"""

from __future__ import annotations

from megaladder.config.base import StrictModel
from megaladder.config.sections.evaluate import EvaluateSection
from megaladder.config.sections.gpu import GpuSection
from megaladder.config.sections.moe import MoeSection
from megaladder.config.sections.shared import (
    CheckpointSection,
    DataSection,
    LogSection,
    LoraSection,
    OptimSection,
    ParallelSection,
    TrainedModelSection,
    TrainSection,
)


class RunConfig(StrictModel):
    """What every training run has."""

    run_dir: str = "runs/run"
    """Everything this run writes goes here. A second start in the same folder resumes."""
    model: TrainedModelSection = TrainedModelSection()
    data: DataSection = DataSection()
    parallel: ParallelSection = ParallelSection()
    train: TrainSection = TrainSection()
    optim: OptimSection = OptimSection()
    lora: LoraSection = LoraSection()
    moe: MoeSection = MoeSection()
    checkpoint: CheckpointSection = CheckpointSection()
    evaluate: EvaluateSection = EvaluateSection()
    log: LogSection = LogSection()
    gpu: GpuSection = GpuSection()

    @property
    def collective_timeout_s(self) -> float:
        """Seconds after which a collective counts as stuck."""
        return self.gpu.nccl_timeout_s or 2 * self.train.timeout_s

    @property
    def samples_per_update(self) -> int:
        """Samples in one optimizer update over all ranks."""
        raise NotImplementedError

    @property
    def num_best_kept(self) -> int | None:
        """Checkpoints kept for their held-out loss; None where no such loss is taken."""
        return None

    @property
    def unread(self) -> list[str]:
        """Keys that were changed and that this run does not read, a line each."""
        return []
