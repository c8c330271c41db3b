"""Configuration of supervised fine-tuning: its sections and the rules between them."""

from __future__ import annotations

from pydantic import model_validator

from megaladder.config.rules.run import run_problems
from megaladder.config.rules.sft import READ_BY_ENGINE, READ_IF, sft_problems
from megaladder.config.rules.unread import raise_all, unread_notes, unread_problems
from megaladder.config.sections.evaluate import SftEvaluateSection
from megaladder.config.sections.run import RunConfig
from megaladder.config.sections.sft import SftCheckpointSection, SftDataSection, SftTrainSection


class SftConfig(RunConfig):
    """Supervised fine-tuning."""

    run_dir: str = "runs/sft"
    """Everything this run writes goes here. A second start in the same folder resumes."""
    data: SftDataSection = SftDataSection()
    train: SftTrainSection = SftTrainSection()
    checkpoint: SftCheckpointSection = SftCheckpointSection()
    evaluate: SftEvaluateSection = SftEvaluateSection()

    @model_validator(mode="after")
    def _cross_field_rules(self) -> SftConfig:
        raise_all(
            [
                *run_problems(self),
                *sft_problems(self.data, self.train, self.checkpoint),
                *unread_problems(self, READ_IF),
            ]
        )
        return self

    @property
    def unread(self) -> list[str]:
        """Keys that the chosen engine does not read, a line each."""
        return unread_notes(self, READ_BY_ENGINE)

    @property
    def samples_per_update(self) -> int:
        """Samples in one optimizer update over all ranks."""
        return self.train.global_batch_size

    @property
    def num_best_kept(self) -> int | None:
        """Checkpoints kept for their held-out loss."""
        return self.checkpoint.keep_best
