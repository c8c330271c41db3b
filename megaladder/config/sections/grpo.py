"""What only GRPO reads: the sections `rollout` and `grpo`.

Formulas behind the names: `train/objectives/policy_loss.py`. A preset (`config/presets.yaml`) sets
what a published method fixes; every key of it can still be set. The default sizes are a laptop's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from megaladder.config.base import StrictModel
from megaladder.config.sections.engine import SyncedEngineSection
from megaladder.config.sections.shared import Positive
from megaladder.config.strict_yaml import load_yaml

NonNegative = Annotated[float, Field(ge=0)]


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Preset name → keys of the section `grpo` that it sets."""
    return load_yaml(Path(__file__).parents[1] / "presets.yaml").values


class RolloutSection(SyncedEngineSection):
    """Generation: one engine for training and evaluation."""

    engine: Literal["vllm", "fake", "replay"] = "vllm"
    """vllm; fake = a deterministic stand-in for tests; replay = train from rollouts that an earlier
    run stored (replay_dir)."""
    n: Positive = 16
    """Completions per prompt: the group."""
    temperature: NonNegative = 1.0
    """Sampling temperature; the trainer's log-probs use the same. 0 = greedy (evaluation only)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus. Below 1 the engine's log-probs are those of the cut distribution."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keep the k likeliest tokens. 0 = all."""
    max_tokens: Positive = 512
    """Longest completion, tokens. Prompt and completion together must fit data.seq_length."""
    prompt_suffix: str = ""
    """Appended to each question before the chat template, e.g. '\\nPut your final answer within
    \\boxed{}.' (\\n is a new line)."""
    max_prompt_tokens: Positive | None = None
    """Problems with a longer prompt are left out and counted. null = data.seq_length −
    max_tokens."""
    servers: tuple[str, ...] = ()
    """vLLM servers on machines where no training rank runs, e.g. http://node7:8000 (how to start
    one: docs/slurm.md). none = engines on the job's own nodes. VLLM_API_KEY in the environment is
    sent along."""
    server_concurrency: Positive = 256
    """Requests under way at once per server."""
    sync_dir: str | None = None
    """For servers with sync file: a folder that this machine and the servers see under the same
    path. null = run_dir/engine."""
    replay_dir: str | None = None
    """For engine replay: a run folder with rollouts/, or that folder."""


class GrpoSection(StrictModel):
    """The objective.

    One round: prompts → groups → advantages → `mini_batches` updates → new weights to the engine.
    """

    preset: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = "dapo"
    """Published method whose settings are the defaults of this section (config/presets.yaml, with
    sources)."""

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The preset's values.

        An unknown preset has none: the field's own check names the known ones.
        """
        return presets().get(given.get("preset", "dapo"), {})

    prompts_per_step: Positive = 16
    """Problems per round."""
    mini_batches: Positive = 1
    """Updates per round; above 1 the later ones are off-policy, which clipping and correction
    bound."""
    mode: Literal["train", "rollout_only"] = "train"
    """rollout_only = generate, grade, store; no update."""
    lag: Literal[0, 1] = 0
    """1 = generate the next round with the present weights while training on this one (one step
    off-policy). 0 = strictly in turn."""
    policy_loss: Literal["clip", "cispo"] = "clip"
    """clip = PPO's clipped ratio; cispo = clipped, detached ratio times log-prob (arXiv
    2506.13585)."""
    ratio: Literal["token", "sequence"] = "token"
    """Importance ratio per token, or GSPO's length-normalised one per sequence (arXiv
    2507.18071)."""
    clip_low: NonNegative = 0.2
    """Ratio is clipped below at 1 − clip_low."""
    clip_high: NonNegative = 0.28
    """Ratio is clipped above at 1 + clip_high (above clip_low: DAPO's clip-higher, arXiv
    2503.14476)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound c on the ratio of negative advantages: their loss is at most −c·A, usually 3 (arXiv
    1912.09729). null = off."""
    baseline: Literal["mean", "leave_one_out"] = "mean"
    """What is subtracted from a reward: the group's mean, or the mean of the others."""
    std: bool = True
    """Divide advantages by the group's standard deviation (Dr.GRPO does not, arXiv 2503.20783)."""
    aggregation: Literal[
        "token_mean",
        "sequence_mean_token_mean",
        "sequence_mean_token_sum",
        "sequence_mean_token_sum_norm",
    ] = "token_mean"
    """How token losses become one number, always by counts over all ranks; …_norm divides by
    rollout.max_tokens (Dr.GRPO)."""
    kl: Literal["none", "k1", "k2", "k3"] = "none"
    """Estimator of the KL divergence to the reference model; none = no reference model is loaded.
    Without kl_importance_weight the expected gradient of k1 is 0 on-policy, that of k2 the true
    one, that of k3 the one of KL(reference ‖ policy)."""
    kl_coef: NonNegative = 0.001
    """Weight of the KL term. Not read with kl none."""
    kl_importance_weight: bool = False
    """Multiply the KL term by the token's importance ratio, which makes its gradient unbiased,
    off-policy too (arXiv 2512.02556)."""
    reference: str | None = None
    """Reference model: Hugging Face folder. null = the model that training started from."""
    entropy_coef: NonNegative = 0.0
    """Weight of an entropy bonus, nats."""
    correction: Literal["none", "tis", "icepop", "sequence_mask"] = "tis"
    """For the gap between engine and trainer: truncate the token weight to the bounds (tis), zero
    it outside them (icepop), or drop sequences whose geometric mean weight is outside them
    (sequence_mask; its useful bounds are close to 1)."""
    correction_low: NonNegative = 0.0
    """Lower bound of the weight exp(logp_old − logp_rollout)."""
    correction_high: Annotated[float, Field(gt=0)] = 2.0
    """Upper bound of that weight."""
    router_replay: Literal["replay", "count", "none"] = "replay"
    """Mixtures of experts: the trainer sends each token to the experts that the engine sent it to,
    for old log-probs and updates, not for the reference. count = they are only compared (metrics
    moe_differing_*); none = the engine does not tell them. Takes layers × K bytes a token."""
    off_policy_mask: Annotated[float, Field(gt=0)] | None = None
    """Drop sequences with negative advantage whose mean logp_sampled − logp exceeds this, nats;
    sampled: the engine's, else the old ones (DeepSeek-V3.2, arXiv 2512.02556). null = off."""
    skip_zero_advantage: bool = True
    """Leave tokens of advantage 0 out of the loss head where they have no gradient (no kl, no
    entropy bonus): same loss and gradient, less time. Entropy, ratio and mismatch are then means
    over the tokens that teach something; false = over all tokens of the round."""
    recompute_old_logprobs: Literal["auto", "always", "never"] = "auto"
    """Old log-probs by a forward pass before the first update. auto = only where they can differ
    from the update's own (mini_batches > 1); never = with mini_batches > 1 the engine's stand in
    for them (bypass: the ratio itself is then the correction, so correction none)."""
    dynamic_sampling: Literal["none", "accuracy", "reward"] = "none"
    """Replace groups that teach nothing by fresh ones, at most max_resamples rounds: accuracy = all
    answers correct or none (DAPO, arXiv 2503.14476); reward = all rewards equal."""
    max_resamples: Positive = 3
    """Cap of dynamic sampling; what is missing then is left out and counted."""
    filter_truncated: bool = False
    """Completions cut at max_tokens get no loss (overlong filtering)."""
    mismatch_limit: Annotated[float, Field(gt=0)] = 0.5
    """Stop (status 3) when the mean |Δ log-prob| between trainer and engine exceeds this, nats."""
