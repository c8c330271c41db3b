"""Rules that only GRPO has."""

from __future__ import annotations

from megaladder.config.sections.grpo import GrpoSection, RolloutSection
from megaladder.config.sections.reward import RewardSection
from megaladder.config.sections.shared import DataSection


def grpo_problems(
    rollout: RolloutSection, grpo: GrpoSection, reward: RewardSection, data: DataSection
) -> list[str]:
    """Violations that only GRPO knows."""
    problems = []
    if rollout.n == 1:
        problems.append(
            "rollout.n 1 makes groups of one, whose advantage is always 0; fix: rollout.n ≥ 2"
        )
    if grpo.prompts_per_step * rollout.n % grpo.mini_batches:
        problems.append(
            f"grpo.mini_batches {grpo.mini_batches} does not divide prompts_per_step"
            f" {grpo.prompts_per_step} × n {rollout.n} = {grpo.prompts_per_step * rollout.n}"
            " completions; fix: a divisor"
        )
    if rollout.max_tokens >= data.seq_length:
        problems.append(
            f"rollout.max_tokens {rollout.max_tokens} leaves no room for a prompt in"
            f" data.seq_length {data.seq_length}; fix: a larger seq_length or a smaller"
            " max_tokens"
        )
    if rollout.temperature == 0:
        problems.append(
            "rollout.temperature 0 gives a group of equal completions; fix: a temperature above 0,"
            " usually 1.0"
        )
    if rollout.engine == "replay" and rollout.replay_dir is None:
        problems.append(
            "rollout.engine replay needs rollout.replay_dir; fix: the run folder whose rollouts to"
            " train on"
        )
    problems += _servers(rollout, grpo)
    if grpo.correction_low >= grpo.correction_high:
        problems.append(
            f"grpo.correction_low {grpo.correction_low:g} is not below correction_high"
            f" {grpo.correction_high:g}; fix: below it"
        )
    if reward.overlong is not None and reward.overlong > rollout.max_tokens:
        problems.append(
            f"reward.overlong {reward.overlong} is more than rollout.max_tokens"
            f" {rollout.max_tokens}; fix: at most that"
        )
    return problems


def _servers(rollout: RolloutSection, grpo: GrpoSection) -> list[str]:
    """Engines on machines where no rank runs."""
    problems = []
    if not rollout.servers:
        if rollout.sync_dir is not None:
            problems.append(
                f"rollout.sync_dir {rollout.sync_dir} is read with rollout.servers only; fix:"
                " sync_dir null, or servers"
            )
        return problems
    if rollout.engine != "vllm":
        problems.append(
            f"rollout.servers are vLLM's, rollout.engine is {rollout.engine}; fix: engine vllm, or"
            " no servers"
        )
    bad = [url for url in rollout.servers if not url.startswith(("http://", "https://"))]
    if bad:
        problems.append(f"rollout.servers {', '.join(bad)}: no URL; fix: http://HOST:PORT")
    if len(set(rollout.servers)) < len(rollout.servers):
        problems.append(
            f"rollout.servers names a server twice: {', '.join(rollout.servers)}; fix: each once"
        )
    if rollout.sync == "ipc":
        problems.append(
            "rollout.sync ipc hands over memory of one machine, rollout.servers are others; fix:"
            " sync nccl or file"
        )
    if grpo.mode == "rollout_only":
        problems.append(
            "grpo.mode rollout_only sends no weights, and who knows what rollout.servers hold; fix:"
            " no servers, or mode train"
        )
    return problems
