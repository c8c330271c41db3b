"""Configuration of GRPO: its sections and the rules between them."""

from __future__ import annotations

from pydantic import model_validator

from megaladder.config.rules.grpo import READ_BY_ENGINE, READ_IF, grpo_problems
from megaladder.config.rules.run import run_problems
from megaladder.config.rules.unread import raise_all, unread_notes, unread_problems
from megaladder.config.sections.grpo import GrpoSection, RolloutSection
from megaladder.config.sections.reward import RewardSection
from megaladder.config.sections.run import RunConfig


class GrpoConfig(RunConfig):
    """Group-relative policy optimization."""

    run_dir: str = "runs/grpo"
    """Everything this run writes goes here. A second start in the same folder resumes."""
    rollout: RolloutSection = RolloutSection()
    grpo: GrpoSection = GrpoSection()
    reward: RewardSection = RewardSection()

    @property
    def samples_per_update(self) -> int:
        """Completions in one optimizer update.

        Takes the place of train.global_batch_size, which GRPO does not read.
        """
        return self.grpo.prompts_per_step * self.rollout.n // self.grpo.mini_batches

    @model_validator(mode="after")
    def _cross_field_rules(self) -> GrpoConfig:
        raise_all(
            [
                *run_problems(self),
                *grpo_problems(
                    self.rollout, self.grpo, self.reward, self.data, self.evaluate, self.lora
                ),
                *unread_problems(self, READ_IF),
            ]
        )
        return self

    @property
    def unread(self) -> list[str]:
        """Keys that the chosen engine or mode does not read, a line each."""
        return unread_notes(self, READ_BY_ENGINE)
