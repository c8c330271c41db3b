"""Configuration of GRPO: its sections and the rules between them."""

from __future__ import annotations

from pydantic import model_validator

from megaladder.config.rules.grpo import grpo_problems
from megaladder.config.rules.run import run_problems
from megaladder.config.rules.unread import ReadIf, raise_all, unread_problems
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
            [
                *run_problems(self),
                *grpo_problems(self.rollout, self.grpo, self.reward, self.data),
                *unread_problems(self, _READ_IF),
            ]
        )
        return self


_READ_IF: tuple[ReadIf[GrpoConfig], ...] = (
    ReadIf(
        ("grpo.kl_coef", "grpo.kl_importance_weight", "grpo.reference"),
        lambda run: run.grpo.kl != "none",
        "grpo.kl k1, k2 or k3",
    ),
    ReadIf(
        ("grpo.correction_low", "grpo.correction_high"),
        lambda run: run.grpo.correction != "none",
        "grpo.correction tis, icepop or sequence_mask",
    ),
    ReadIf(
        ("grpo.dual_clip",), lambda run: run.grpo.policy_loss == "clip", "grpo.policy_loss clip"
    ),
    ReadIf(
        ("grpo.max_resamples",), lambda run: run.grpo.dynamic_sampling, "grpo.dynamic_sampling true"
    ),
    ReadIf(
        ("grpo.recompute_old_logprobs",),
        lambda run: run.grpo.mini_batches > 1 or run.grpo.recompute_old_logprobs == "always",
        "grpo.mini_batches above 1",
    ),
    ReadIf(
        ("grpo.correction",),
        lambda run: run.rollout.engine != "fake",
        "an engine that has log-probs, so not rollout.engine fake,",
    ),
    ReadIf(
        ("rollout.replay_dir",), lambda run: run.rollout.engine == "replay", "rollout.engine replay"
    ),
    ReadIf(("rollout.sync",), lambda run: run.rollout.engine == "vllm", "rollout.engine vllm"),
    ReadIf(("rollout.tp",), lambda run: run.rollout.engine == "vllm", "rollout.engine vllm"),
    ReadIf(
        ("rollout.gpu_memory_utilization", "rollout.cpu_kv_cache_gib"),
        lambda run: run.rollout.engine == "vllm" and not run.rollout.servers,
        "rollout.engine vllm and no rollout.servers",
    ),
    ReadIf(
        ("rollout.server_concurrency",), lambda run: bool(run.rollout.servers), "rollout.servers"
    ),
    ReadIf(
        ("rollout.sync_bucket_mib", "rollout.check_sync"),
        lambda run: run.rollout.engine != "replay" and run.grpo.mode == "train",
        "an engine that takes weights (rollout.engine vllm or fake, grpo.mode train)",
    ),
    ReadIf(
        ("reward.overlong_penalty",), lambda run: run.reward.overlong is not None, "reward.overlong"
    ),
    ReadIf(
        tuple(f"reward.{name}" for name in RewardSection.model_fields),
        lambda run: run.rollout.engine != "replay",
        "answers that are graded anew (rollout.engine vllm or fake)",
    ),
    ReadIf(
        ("rollout.top_p", "rollout.top_k", "grpo.dynamic_sampling"),
        lambda run: run.rollout.engine != "replay",
        "an engine that samples (rollout.engine vllm or fake)",
    ),
)
