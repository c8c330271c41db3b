"""Configuration of GRPO: its sections and the rules between them."""

from __future__ import annotations

from pydantic import model_validator

from megaladder.config.rules.grpo import grpo_problems
from megaladder.config.rules.run import raise_all, run_problems
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
        """Completions in one optimizer update; takes the place of train.global_batch_size, which
        GRPO does not read."""
        return self.grpo.prompts_per_step * self.rollout.n // self.grpo.mini_batches

    @model_validator(mode="after")
    def _cross_field_rules(self) -> GrpoConfig:
        raise_all(
            [*run_problems(self), *grpo_problems(self.rollout, self.grpo, self.reward, self.data)]
        )
        return self
