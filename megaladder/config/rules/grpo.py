"""Rules that only GRPO has."""

from __future__ import annotations

from typing import Protocol

from megaladder.capabilities import LayerSizes
from megaladder.config.rules.run import without_adapters
from megaladder.config.rules.unread import ReadIf
from megaladder.config.sections.evaluate import EvaluateSection
from megaladder.config.sections.grpo import GrpoSection, RolloutSection
from megaladder.config.sections.reward import OverlongTerm, RewardSection
from megaladder.config.sections.shared import DataSection, LoraSection, OptimSection


class GrpoRun(Protocol):
    """The sections that GRPO's conditions look at."""

    @property
    def rollout(self) -> RolloutSection: ...

    @property
    def grpo(self) -> GrpoSection: ...

    @property
    def reward(self) -> RewardSection: ...


READ_IF: tuple[ReadIf[GrpoRun], ...] = (
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
        ("grpo.max_resamples",),
        lambda run: run.grpo.dynamic_sampling != "none",
        "grpo.dynamic_sampling accuracy or reward",
    ),
    ReadIf(
        ("grpo.recompute_old_logprobs",),
        lambda run: run.grpo.mini_batches > 1 or run.grpo.recompute_old_logprobs == "always",
        "grpo.mini_batches above 1",
    ),
    ReadIf(
        ("rollout.replay_dir",), lambda run: run.rollout.engine == "replay", "rollout.engine replay"
    ),
    ReadIf(
        ("reward.extract",),
        lambda run: run.reward.kind in ("auto", "math", "gsm8k", "choice", "exact"),
        "reward.kind auto, math, gsm8k, choice or exact",
    ),
    ReadIf(
        ("rollout.server_concurrency",), lambda run: bool(run.rollout.servers), "rollout.servers"
    ),
)
"""Refused where they are changed and not read."""
READ_BY_ENGINE: tuple[ReadIf[GrpoRun], ...] = (
    ReadIf(
        ("grpo.correction", "grpo.correction_low", "grpo.correction_high"),
        lambda run: run.rollout.engine != "fake",
        "an engine that has log-probs, so not rollout.engine fake,",
    ),
    ReadIf(
        ("grpo.router_replay",),
        lambda run: run.rollout.engine != "fake" and run.grpo.mode == "train",
        "an engine that has experts and a run that trains, so not rollout.engine fake,",
    ),
    ReadIf(("rollout.sync",), lambda run: run.rollout.engine == "vllm", "rollout.engine vllm"),
    ReadIf(("rollout.tp",), lambda run: run.rollout.engine == "vllm", "rollout.engine vllm"),
    ReadIf(
        ("rollout.gpu_memory_utilization", "rollout.cpu_kv_cache_gib"),
        lambda run: run.rollout.engine == "vllm" and not run.rollout.servers,
        "rollout.engine vllm and no rollout.servers",
    ),
    ReadIf(
        ("rollout.sync_bucket_mib", "rollout.check_sync"),
        lambda run: run.rollout.engine != "replay" and run.grpo.mode == "train",
        "an engine that takes weights (rollout.engine vllm or fake, grpo.mode train)",
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
    ReadIf(
        tuple(f"optim.{name}" for name in OptimSection.model_fields),
        lambda run: run.grpo.mode == "train",
        "grpo.mode train",
    ),
)
"""Said where they are changed and the engine or mode does not read them: the same file is tried
with another one."""


def asks_experts(run: GrpoRun, shape: LayerSizes) -> bool:
    """Whether the engine is to tell which experts it chose."""
    wanted = run.grpo.router_replay != "none" and run.grpo.mode == "train"
    return wanted and shape.moe is not None and run.rollout.engine == "vllm"


def grpo_problems(
    rollout: RolloutSection,
    grpo: GrpoSection,
    reward: RewardSection,
    data: DataSection,
    evaluate: EvaluateSection,
    lora: LoraSection,
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
    if grpo.kl != "none" and grpo.reference is None and lora.start is not None:
        problems.append(
            f"grpo.kl {grpo.kl} with lora.start {lora.start}: without its adapters the model is not"
            " the one that training starts from; fix: `megaladder convert merge` and grpo.reference"
            " with the result, or kl none"
        )
    if rollout.sync == "adapter":
        problems += without_adapters("rollout.sync", lora)
    problems += [*_servers(rollout, grpo), *_evaluate(rollout, grpo, data, evaluate)]
    if grpo.correction_low >= grpo.correction_high:
        problems.append(
            f"grpo.correction_low {grpo.correction_low:g} is not below correction_high"
            f" {grpo.correction_high:g}; fix: below it"
        )
    problems += _reward_terms(reward, rollout.max_tokens)
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
    if rollout.sync == "adapter":
        problems.append(
            "rollout.sync adapter reaches engines of the job's own nodes, rollout.servers are"
            " others; fix: sync nccl or file, which bring the merged model"
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


def _evaluate(
    rollout: RolloutSection, grpo: GrpoSection, data: DataSection, evaluate: EvaluateSection
) -> list[str]:
    """Benchmarks are answered by the engine that makes the rollouts."""
    if not evaluate.benchmarks:
        return []
    names = ",".join(evaluate.benchmarks)
    problems = []
    if rollout.engine == "replay":
        problems.append(
            f"evaluate.benchmarks {names} needs an engine, rollout.engine replay starts none; fix:"
            " `megaladder eval RUN_DIR` afterwards, or another engine"
        )
    if grpo.mode == "rollout_only":
        problems.append(
            f"evaluate.benchmarks {names}: grpo.mode rollout_only trains nothing to evaluate; fix:"
            " `megaladder eval`, or mode train"
        )
    if evaluate.max_tokens is not None and evaluate.max_tokens >= data.seq_length:
        problems.append(
            f"evaluate.max_tokens {evaluate.max_tokens} leaves no room for a prompt in"
            f" data.seq_length {data.seq_length}, which the engine is started with; fix: a larger"
            " seq_length or a smaller max_tokens"
        )
    return problems


def _reward_terms(reward: RewardSection, max_tokens: int) -> list[str]:
    """Terms that need more room than there is, or a name of their own."""
    problems = []
    for term in reward.terms_of(OverlongTerm):
        if term.tokens > max_tokens:
            problems.append(
                f"reward.terms overlong {term.tokens} tokens is more than rollout.max_tokens"
                f" {max_tokens}; fix: at most that"
            )
    labels = [term.label for term in reward.terms]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        problems.append(
            f"reward.terms has {', '.join(twice)} more than once; fix: one term each, or a `name:`"
            " for functions"
        )
    if not reward.terms:
        problems.append("reward.terms is empty; fix: at least one term, such as correctness")
    return problems
