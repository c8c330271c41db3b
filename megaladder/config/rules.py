"""Cross-field rules of training configurations: pure functions, all violations reported at once,
each with its fix.

First what the values alone decide (called when a config is validated), then what needs more: the
model's shape (`validate_layout`), the number of ranks (`check_world`), the machine
(`check_platform`). `batch_line` is the arithmetic that `check` prints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megaladder.config.gpu_rules import Machine, gpu_problems, layout_problems, platform_problems
from megaladder.errors import ConfigError

if TYPE_CHECKING:
    from megaladder.config.grpo import GrpoConfig
    from megaladder.config.train import SftConfig
    from megaladder.model.hf_config import ModelShape


def raise_all(problems: list[str]) -> None:
    """One ValueError with every problem on its own line, or nothing."""
    if problems:
        raise ValueError("\n".join(problems))


def check_training_rules(config: SftConfig | GrpoConfig) -> list[str]:
    """Violations of everything that `sft` and `grpo` share."""
    problems = [
        *_layout(config),
        *_schedule(config),
        *_data(config),
        *_checkpoint(config),
        *_profile(config),
        *gpu_problems(config),
    ]
    if not config.data.path:
        problems.insert(
            0, "data.path is empty; fix: set data.path to a data file or hub id (--data.path FILE)"
        )
    if not config.model.path:
        problems.insert(
            0,
            "model.path is empty; fix: set model.path to a Hugging Face folder or hub id"
            " (--model.path DIR)",
        )
    return problems


def grpo_problems(config: GrpoConfig) -> list[str]:
    """Violations that only GRPO knows."""
    rollout, grpo, problems = config.rollout, config.grpo, []
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
    if rollout.max_tokens >= config.data.seq_length:
        problems.append(
            f"rollout.max_tokens {rollout.max_tokens} leaves no room for a prompt in"
            f" data.seq_length {config.data.seq_length}; fix: a larger seq_length or a smaller"
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
    problems += _servers(config)
    if grpo.correction_low >= grpo.correction_high:
        problems.append(
            f"grpo.correction_low {grpo.correction_low:g} is not below correction_high"
            f" {grpo.correction_high:g}; fix: below it"
        )
    if config.reward.overlong is not None and config.reward.overlong > rollout.max_tokens:
        problems.append(
            f"reward.overlong {config.reward.overlong} is more than rollout.max_tokens"
            f" {rollout.max_tokens}; fix: at most that"
        )
    return problems


def _servers(config: GrpoConfig) -> list[str]:
    """Engines on machines where no rank runs."""
    rollout, problems = config.rollout, []
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
    if config.grpo.mode == "rollout_only":
        problems.append(
            "grpo.mode rollout_only sends no weights, and who knows what rollout.servers hold; fix:"
            " no servers, or mode train"
        )
    return problems


def batch_problems(global_batch: int, micro_batch: int, dp: int, packing: bool) -> list[str]:
    """Batch arithmetic. Packed rows are cut to fit, so only unpacked batches have to divide
    evenly."""
    problems = []
    if packing and global_batch < dp:
        problems.append(
            f"train.global_batch_size {global_batch} is smaller than dp {dp}: some ranks would get"
            f" nothing; fix: at least {dp}"
        )
    if not packing and global_batch % (dp * micro_batch):
        per_round = dp * micro_batch
        below, above = (
            global_batch // per_round * per_round,
            -(-global_batch // per_round) * per_round,
        )
        fix = f"{above}" if below == 0 else f"{below} or {above}"
        problems.append(
            f"train.global_batch_size {global_batch} is not a multiple of dp {dp} ×"
            f" micro_batch_size {micro_batch} = {per_round} (data.packing is off); fix:"
            f" global_batch_size {fix}, or another micro_batch_size"
        )
    return problems


def _layout(config: SftConfig | GrpoConfig) -> list[str]:
    layout, problems = config.parallel, []
    if layout.vpp is not None and layout.pp == 1:
        problems.append(
            f"parallel.vpp {layout.vpp} needs pipeline stages, pp is 1; fix: pp ≥ 2, or vpp null"
        )
    if config.data.seq_length % layout.tp and layout.uses_sequence_parallel:
        up = -(-config.data.seq_length // layout.tp) * layout.tp
        problems.append(
            f"data.seq_length {config.data.seq_length} is not a multiple of tp {layout.tp}, which"
            f" sequence_parallel needs; fix: seq_length {up}, or sequence_parallel false"
        )
    if layout.ranks is None:
        return problems
    if layout.ranks % layout.model_ranks:
        problems.append(
            f"parallel.ranks {layout.ranks} is not a multiple of tp {layout.tp} × pp {layout.pp} ×"
            f" cp {layout.cp} = {layout.model_ranks}; fix: ranks"
            f" {-(-layout.ranks // layout.model_ranks) * layout.model_ranks}, or a smaller tp or pp"
        )
        return problems
    dp = layout.ranks // layout.model_ranks
    return problems + batch_problems(
        config.samples_per_update, config.train.micro_batch_size, dp, config.data.packing
    )


def _schedule(config: SftConfig | GrpoConfig) -> list[str]:
    optim, problems = config.optim, []
    if optim.min_lr > optim.lr:
        problems.append(
            f"optim.min_lr {optim.min_lr:g} is above optim.lr {optim.lr:g}; fix: min_lr ≤ lr"
        )
    warmup = optim.warmup_ratio if optim.warmup_steps is None else 0.0
    if optim.schedule == "wsd" and warmup + optim.wsd_decay_ratio > 1:
        problems.append(
            f"optim.warmup_ratio {optim.warmup_ratio:g} + optim.wsd_decay_ratio"
            f" {optim.wsd_decay_ratio:g} take more than all steps; fix: together at most 1"
        )
    max_steps = config.train.max_steps
    if max_steps is not None and optim.warmup_steps is not None and optim.warmup_steps > max_steps:
        problems.append(
            f"optim.warmup_steps {optim.warmup_steps} is more than train.max_steps {max_steps};"
            " fix: fewer warm-up steps"
        )
    return problems


def _data(config: SftConfig | GrpoConfig) -> list[str]:
    data, problems = config.data, []
    if isinstance(data.holdout, float) and not 0 < data.holdout <= 0.5:
        problems.append(
            f"data.holdout {data.holdout:g} is no share of the samples; fix: a share in (0, 0.5], a"
            " number, a file, or null"
        )
    if isinstance(data.holdout, int) and data.holdout < 1:
        problems.append(
            f"data.holdout {data.holdout} holds nothing out; fix: a number ≥ 1, a share in (0,"
            " 0.5], a file, or null"
        )
    if config.train.eval_every and data.holdout is None:
        problems.append(
            f"train.eval_every {config.train.eval_every} needs data.holdout; fix: data.holdout 0.02"
            " or a file, or eval_every 0"
        )
    return problems


def _checkpoint(config: SftConfig | GrpoConfig) -> list[str]:
    checkpoint, problems = config.checkpoint, []
    if checkpoint.keep_best is not None and config.data.holdout is None:
        problems.append(
            f"checkpoint.keep_best {checkpoint.keep_best} needs a held-out loss; fix: data.holdout"
            " 0.02 or a file, or keep_best null"
        )
    bad = [step for step in checkpoint.keep_steps if step < 1]
    if bad:
        problems.append(f"checkpoint.keep_steps {bad} are no steps; fix: numbers ≥ 1")
    return problems


def _profile(config: SftConfig | GrpoConfig) -> list[str]:
    train, problems = config.train, []
    last = train.max_steps
    bad = [step for step in train.profile_steps if step < 1 or (last is not None and step > last)]
    if bad:
        problems.append(
            f"train.profile_steps {bad} never happen (steps run from"
            f" 1{f' to {last}' if last else ''}); fix: steps that do"
        )
    bad = [
        rank
        for rank in train.profile_ranks
        if rank < 0 or (config.parallel.ranks is not None and rank >= config.parallel.ranks)
    ]
    if bad:
        problems.append(
            f"train.profile_ranks {bad} are no ranks; fix: numbers from 0 to the number of ranks"
            " less one"
        )
    return problems


def validate_layout(config: SftConfig | GrpoConfig, shape: ModelShape) -> None:
    """Does this model fit this layout? Raises with every division that fails, and the sizes that
    would work."""
    layout = config.parallel
    problems = [
        *shape_problems(shape, layout.tp, layout.pp, layout.vpp, prefix="parallel."),
        *layout_problems(config, shape),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def shape_problems(
    shape: ModelShape, tp: int, pp: int, vpp: int | None, prefix: str = ""
) -> list[str]:
    """Divisions of the model by the layout that leave a remainder, each with the sizes that would
    work. Also what `plan` searches by."""
    problems = []
    common = [
        n
        for n in range(1, shape.num_query_groups + 1)
        if shape.num_attention_heads % n == shape.num_query_groups % n == 0
    ]
    for name, count in (
        ("attention heads", shape.num_attention_heads),
        ("key/value groups", shape.num_query_groups),
    ):
        if count % tp:
            problems.append(
                f"{prefix}tp {tp} does not divide the model's {count} {name}; fix: tp one of"
                f" {common}"
            )
    if shape.ffn_hidden_size % tp:
        problems.append(
            f"{prefix}tp {tp} does not divide the model's feed-forward size"
            f" {shape.ffn_hidden_size}; fix: another tp"
        )
    chunks = pp * (vpp or 1)
    if shape.num_layers % chunks:
        fits = [n for n in range(1, shape.num_layers + 1) if shape.num_layers % n == 0]
        factor = f" × vpp {vpp}" if vpp else ""
        problems.append(
            f"{prefix}pp {pp}{factor} = {chunks} chunks do not divide the model's"
            f" {shape.num_layers} layers; fix: pp·vpp one of {fits}"
        )
    return problems


def data_parallel_size(config: SftConfig | GrpoConfig, world_size: int) -> int:
    """dp = ranks / (tp·pp·cp); a remainder is a ConfigError."""
    layout = config.parallel
    if world_size % layout.model_ranks:
        raise ConfigError(
            f"{world_size} ranks do not divide into copies of tp {layout.tp} × pp {layout.pp} × cp"
            f" {layout.cp} = {layout.model_ranks}; fix: start"
            f" {-(-world_size // layout.model_ranks) * layout.model_ranks} ranks, or a smaller tp"
            " or pp"
        )
    return world_size // layout.model_ranks


def check_world(config: SftConfig | GrpoConfig, world_size: int) -> int:
    """The number of ranks that really run against the config: returns dp, or raises ConfigError."""
    wanted = config.parallel.ranks
    if wanted is not None and wanted != world_size:
        raise ConfigError(
            f"parallel.ranks is {wanted}, but {world_size} ranks were started; fix:"
            f" --parallel.ranks {world_size} (or null), or torchrun with {wanted} processes in all"
        )
    dp = data_parallel_size(config, world_size)
    problems = batch_problems(
        config.samples_per_update, config.train.micro_batch_size, dp, config.data.packing
    )
    if problems:
        raise ConfigError("\n".join(problems))
    return dp


def batch_line(config: SftConfig | GrpoConfig, world_size: int) -> str:
    """`global batch 256 = dp 4 × micro 2 × accum 32`; packed, the number of micro-batches depends
    on the lengths."""
    train, dp = config.train, data_parallel_size(config, world_size)
    if config.data.packing:
        tokens = train.micro_batch_size * config.data.seq_length
        return (
            f"global batch {config.samples_per_update} samples = dp {dp} × as many packed"
            f" micro-batches of {train.micro_batch_size} × {config.data.seq_length:,} = {tokens:,}"
            " tokens as they fill"
        )
    accumulation = config.samples_per_update // (dp * train.micro_batch_size)
    return (
        f"global batch {config.samples_per_update} = dp {dp} × micro {train.micro_batch_size} ×"
        f" accum {accumulation}"
    )


def check_platform(config: SftConfig | GrpoConfig, machine: Machine) -> None:
    """What this machine cannot do, with the reasons. Called where the platform is known; `check`
    reports it as a note."""
    problems = platform_problems(config, machine)
    if problems:
        raise ConfigError("\n".join(problems))


def layout_notes(config: SftConfig | GrpoConfig) -> list[str]:
    """Settings that are allowed and have no effect here."""
    notes = []
    if config.parallel.sequence_parallel and config.parallel.tp == 1:
        notes.append("parallel.sequence_parallel has no effect at tp 1")
    if config.data.packing and config.data.truncation == "right":
        notes.append(
            f"samples above {config.data.seq_length:,} tokens are cut at the end (data.truncation"
            " right) and counted"
        )
    return notes
