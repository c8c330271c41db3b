"""Our keys that follow from several of another trainer's.

Batches, schedule, precision, saving, sources, rewards, layout."""

from __future__ import annotations

import os
import re
from typing import Any

from megaladder.config.foreign.adapters import adapters
from megaladder.config.foreign.sets import sources
from megaladder.config.foreign.work import Conversion, as_list
from megaladder.errors import ConfigError

COMMIT = re.compile(r"[0-9a-f]{40}")
KL_TYPES = {"low_var_kl": "k3", "k3": "k3", "kl": "k1", "k1": "k1", "mse": "k2", "k2": "k2"}
THINK = {"name": "format", "rule": "think"}
REWARDS: dict[str, Any] = {
    "accuracy": "correctness",
    "accuracy_reward": "correctness",
    "format": THINK,
    "think_format_reward": THINK,
}


def compute(work: Conversion) -> None:
    """Everything that needs more than one key, in an order in which each finds what it reads."""
    for step in (_model, adapters, sources, _rows, _layout, _batch):
        step(work)
    for step in (_schedule, _precision, _saving, _trackers):
        step(work)
    if work.method == "grpo":
        for step in (_lengths, _objective, _sampling, _rewards):
            step(work)


def _model(work: Conversion) -> None:
    path = str(work.ours.get("model.path", ""))
    revision = work.take("model_revision")
    if COMMIT.fullmatch(str(revision)):
        work.put("model.revision", revision, "model_revision")
    elif path and not os.path.isdir(os.path.expanduser(path)) and path.count("/") == 1:
        work.say("to do", "model.path", f"{path} is a hub id: set model.revision, or give a folder")
    template = work.take("chat_template")
    if template and "{" in str(template):
        work.say("to do", "chat_template", "put the text into a file: model.chat_template: FILE")
    if (name := work.take("template_name")) not in (None, "tokenizer_default"):
        work.say(
            "to do",
            "chat_template",
            f"{name}, the other tool's own: prompts here use the tokenizer's; compare a sample in"
            " `megaladder check`, or model.chat_template: FILE",
        )
    if (thinking := work.take("enable_thinking")) is not None:
        kwargs = {"enable_thinking": thinking}
        work.put("model.chat_template_kwargs", kwargs, "enable_thinking")
    if kwargs := work.take("template_kwargs"):
        work.put("model.chat_template_kwargs", kwargs, "chat_template_kwargs")


def _rows(work: Conversion) -> None:
    """Packing, truncation, and which turns are trained."""
    if work.take("mask_history") is True:
        work.put("data.reasoning", "last-turn", "mask_history")
    if (packing := work.take("packing")) is not None and work.method == "sft":
        work.put("data.packing", bool(packing), "packing")
    truncation = work.take("verl_truncation")
    if truncation is not None and work.method == "sft":
        if truncation in ("error", "right"):
            work.put("data.truncation", truncation, "data.truncation")
        else:
            work.say(
                "refused",
                "data.truncation",
                f"{truncation}: data.truncation knows drop, right, error",
            )


def _layout(work: Conversion) -> None:
    """Ranks: what the file says, else --gpus, else one for each part of the model."""
    inside = [work.own(f"parallel.{name}", 1) for name in ("tp", "pp", "cp")]
    model_ranks = inside[0] * inside[1] * inside[2]
    stated = work.take("gpus")
    if work.gpus is None and stated is not None:
        work.gpus = work.whole("gpus", 1) * work.whole("nodes", 1)
    if work.gpus is None:
        work.gpus = model_ranks
        work.say(
            "to do", "GPUs", f"the file does not say how many: counted as {work.gpus}; --gpus N"
        )
    if work.gpus > 1:
        work.put("parallel.ranks", work.gpus, "GPUs")


def _batch(work: Conversion) -> None:
    if work.trainer.name == "verl":
        _verl_batch(work)
        return
    per_device, steps = work.whole("per_device", 1), work.whole("accumulation", 1)
    inside = [work.own(f"parallel.{name}", 1) for name in ("tp", "pp", "cp")]
    replicas = max(1, int(work.gpus or 1) // (inside[0] * inside[1] * inside[2]))
    batch, of = per_device * steps * replicas, f"batch {per_device} × {steps} × {replicas} GPUs"
    if work.method == "grpo":
        rounds = work.whole("steps_per_generation", steps)
        _round(work, per_device * replicas * rounds, batch, of)
        return
    work.put("train.global_batch_size", batch, of)
    work.put("train.micro_batch_size", per_device, "per device")
    if work.take("packing"):
        length = work.ours.get("data.seq_length")
        work.say(
            "to do",
            "packing",
            f"their batch counts packed rows of {length} tokens, train.global_batch_size counts samples",
        )


def _round(work: Conversion, completions: int, update: int, of: str) -> None:
    """TRL counts completions: a round is `completions`, an update `update` of them."""
    n = work.own("rollout.n", 8)
    if completions % n or completions % update:
        raise ConfigError(
            f"{of}: {completions} completions a round are no whole number of groups of {n} and"
            f" updates of {update}; fix: --gpus N with the number of GPUs that train"
        )
    work.put("grpo.prompts_per_step", completions // n, of)
    if completions > update:
        work.put("grpo.mini_batches", completions // update, of)


def _verl_batch(work: Conversion) -> None:
    batch = work.whole("verl_batch", 0, least=0)
    if work.method == "sft":
        work.put("train.global_batch_size", batch, "data.train_batch_size")
        return
    work.put("grpo.prompts_per_step", batch, "data.train_batch_size")
    mini = work.whole("verl_mini_batch", max(batch, 1))
    if batch % mini:
        work.say(
            "refused", "ppo_mini_batch_size", f"{mini} does not divide {batch}: grpo.mini_batches 1"
        )
    elif batch > mini:
        work.put("grpo.mini_batches", batch // mini, f"{batch} / ppo_mini_batch_size {mini}")


def _schedule(work: Conversion) -> None:
    steps, ratio = work.take("warmup_steps"), work.take("warmup_ratio")
    if work.trainer.name == "axolotl" and steps is None and ratio is None:
        share = "axolotl takes 3 % of the steps, 100 at most"
        work.put("optim.warmup_ratio", 0.03, share, "default")
    if isinstance(steps, (int, float)) and 0 < steps < 1:
        steps, ratio = None, steps
    if isinstance(steps, (int, float)) and steps > 0:
        work.put("optim.warmup_steps", int(steps), "warmup_steps")
    elif ratio is not None or steps == 0:
        work.put("optim.warmup_ratio", ratio or 0.0, "warmup_ratio")
    if (rate := work.take("min_lr_rate")) and work.ours.get("optim.schedule") != "constant":
        low = float(f"{float(rate) * float(work.ours['optim.lr']):.12g}")
        work.put("optim.min_lr", low, f"{rate} of the peak")
    total = work.take("max_steps")
    if isinstance(total, int) and total > 0:
        work.put("train.max_steps", total, "max_steps")
    betas = [work.take(name, usual) for name, usual in (("beta1", 0.9), ("beta2", 0.999))]
    if betas != [0.9, 0.999]:
        work.put("optim.betas", betas, "adam_beta1, adam_beta2")


def _precision(work: Conversion) -> None:
    names = {"bfloat16": "bf16", "bf16": "bf16", "float32": "fp32", "fp32": "fp32"}
    wanted = "bf16" if work.take("bf16") is True else names.get(str(work.take("dtype", "")))
    if wanted:
        work.put("train.precision", wanted, "bf16, torch_dtype")


def _saving(work: Conversion) -> None:
    strategy, steps = work.take("save_strategy", "steps"), work.take("save_steps")
    if strategy == "epoch":
        work.put("checkpoint.every", 0, "save_strategy epoch")
        work.say(
            "to do",
            "save_strategy",
            "epoch: checkpoint.every counts steps (megaladder check shows how many an epoch has)",
        )
    elif strategy in ("no", "best", False):
        work.put("checkpoint.every", 0, f"save_strategy {strategy}")
    elif isinstance(steps, int):
        work.put("checkpoint.every", max(0, steps), "save_steps")
    elif steps is not None:
        work.say("refused", "save_steps", f"{steps}: checkpoint.every counts steps")


def _trackers(work: Conversion) -> None:
    named = [str(name) for name in as_list(work.take("report_to", []))]
    project = work.take("wandb_project")
    wandb = "wandb" in named or (project is not None and work.trainer.name != "verl")
    known = {name: name in named for name in ("tensorboard", "mlflow", "trackio")}
    known["wandb"] = wandb
    for name in (name for name, on in known.items() if on):
        work.put(f"log.{name}", True, "report_to")
    if project and (wandb or known["mlflow"] or known["trackio"]):
        work.put("log.project", project, "project")
    if wandb and (entity := work.take("wandb_entity")):
        work.put("log.entity", entity, "wandb_entity")
    for name in named:
        if name not in (*known, "none", "console", "all"):
            work.say("refused", "report_to", f"{name}: trackers are {', '.join(known)}")


def _lengths(work: Conversion) -> None:
    prompt = work.own("rollout.max_prompt_tokens", 512)
    answer = work.own("rollout.max_tokens", 512)
    work.put("data.seq_length", prompt + answer, f"prompt {prompt} + answer {answer}")


def _objective(work: Conversion) -> None:
    work.put("grpo.preset", "grpo", "method")
    if (epsilon := work.take("epsilon")) is not None:
        for key in ("grpo.clip_low", "grpo.clip_high"):
            if key not in work.ours:
                work.put(key, epsilon, "epsilon")
    coefficient = work.number("kl_coef", 0.0)
    active = work.take("use_kl") is True if work.trainer.name == "verl" else coefficient > 0
    kind = KL_TYPES.get(str(work.take("kl_type", "low_var_kl"))) if active else "none"
    if kind is None:
        work.say("refused", "kl_loss_type", f"{work.take('kl_type')}: grpo.kl knows k1, k2, k3")
    else:
        work.put("grpo.kl", kind, "KL to the reference")
        if active:
            work.put("grpo.kl_coef", coefficient, "KL to the reference")
    estimator = work.take("adv_estimator", "grpo")
    if estimator not in ("grpo", "rloo"):
        raise ConfigError(
            f"algorithm.adv_estimator {estimator}: needs a critic or another estimator that is not"
            " built; fix: grpo or rloo"
        )
    if estimator == "rloo":
        work.put("grpo.baseline", "leave_one_out", "adv_estimator rloo")
        work.put("grpo.std", False, "adv_estimator rloo")
    if work.trainer.name == "verl":
        work.put("grpo.correction", "none", "no correction for the engine's log-probs")


def _sampling(work: Conversion) -> None:
    if work.take("top_k") is not None:
        work.put("rollout.top_k", max(0, work.whole("top_k", 0, least=-1)), "top_k")
    if work.take("filter_groups") is not True:
        return
    metric = str(work.take("filter_metric", "acc"))
    kind = "accuracy" if metric == "acc" else "reward"
    work.put("grpo.dynamic_sampling", kind, f"filter_groups by {metric}")
    batches = work.whole("filter_batches", 0, least=0)
    if batches > 1:
        work.put("grpo.max_resamples", batches - 1, "max_num_gen_batches")
    else:
        work.say("to do", "max_num_gen_batches", "no bound: grpo.max_resamples is one")


def _rewards(work: Conversion) -> None:
    named = as_list(work.take("reward_funcs", []))
    weights = as_list(work.take("reward_weights", [1.0] * len(named)))
    if len(weights) != len(named):
        raise ConfigError(
            f"reward_weights {weights}: {len(weights)} for {len(named)} of reward_funcs; fix: one"
            " weight for each"
        )
    terms: list[Any] = []
    for name, weight in zip(named, weights, strict=True):
        if name == "format":
            text = (
                "open-r1 also asks for <answer>…</answer> after the thinking; rule think does not"
            )
            work.say("to do", "reward_funcs format", text)
        if term := REWARDS.get(str(name).removeprefix("trl.rewards.")):
            terms.append(
                term
                if weight == 1.0
                else {**({"name": term} if isinstance(term, str) else term), "weight": weight}
            )
        else:
            work.say(
                "refused",
                f"reward_funcs {name}",
                "no term of ours; write it as reward.terms: [mine.py:score]",
            )
    if path := work.take("reward_path"):
        terms.append(f"{path}:{work.take('reward_name', 'compute_score')}")
    if work.take("overlong") is True:
        weight = work.number("overlong_weight", 1.0)
        terms = terms or ["correctness"]
        terms.append({"name": "overlong", "tokens": work.take("overlong_tokens"), "weight": weight})
    if terms:
        work.put("reward.terms", terms, "rewards")
