"""The rules of layout and batch.

What the values decide, what the model's shape decides, what the number of ranks and the machine
decide.
"""

from __future__ import annotations

from megaladder.capabilities import LayerSizes, Machine
from megaladder.config.rules.gpu import layout_problems, model_problems, platform_problems
from megaladder.config.rules.moe import moe_problems
from megaladder.config.sections.run import RunConfig
from megaladder.config.sections.shared import ParallelSection
from megaladder.errors import ConfigError


def batch_problems(global_batch: int, micro_batch: int, dp: int, packing: bool) -> list[str]:
    """The violations of batch arithmetic.

    Packed rows are cut to fit, so only unpacked batches have to divide evenly.
    """
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


def values_problems(config: RunConfig) -> list[str]:
    """Violations of layout and batch that the values alone decide."""
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
    if layout.ranks % layout.least_ranks:
        problems.append(
            f"parallel.ranks {layout.ranks} is not a multiple of {_least(layout)}; fix: ranks"
            f" {-(-layout.ranks // layout.least_ranks) * layout.least_ranks}, or a smaller tp or pp"
        )
        return problems
    dp = layout.ranks // layout.model_ranks
    return problems + batch_problems(
        config.samples_per_update, config.train.micro_batch_size, dp, config.data.packing
    )


def validate_layout(config: RunConfig, shape: LayerSizes) -> None:
    """Raises where the model does not fit the layout.

    With every division that fails, and the sizes that would work.
    """
    layout = config.parallel
    problems = [
        *shape_problems(shape, layout.tp, layout.pp, layout.vpp, prefix="parallel."),
        *layout_problems(config, shape),
        *model_problems(config, shape),
        *moe_problems(config, shape),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def shape_problems(
    shape: LayerSizes, tp: int, pp: int, vpp: int | None, prefix: str = ""
) -> list[str]:
    """Divisions of the model by the layout that leave a remainder.

    Each with the sizes that would work. Also what `plan` searches by.
    """
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
    problems += [
        f"{prefix}tp {tp} does not divide the model's {name} {size}; fix: another tp"
        for name, size in shape.feed_forward_sizes.items()
        if size % tp
    ]
    chunks = pp * (vpp or 1)
    if shape.num_layers % chunks:
        fits = [n for n in range(1, shape.num_layers + 1) if shape.num_layers % n == 0]
        factor = f" × vpp {vpp}" if vpp else ""
        problems.append(
            f"{prefix}pp {pp}{factor} = {chunks} chunks do not divide the model's"
            f" {shape.num_layers} layers; fix: pp·vpp one of {fits}"
        )
    return problems


def _least(layout: ParallelSection) -> str:
    """What the number of ranks is a multiple of, and why."""
    model = f"tp {layout.tp} × pp {layout.pp} × cp {layout.cp}"
    if layout.least_ranks == layout.model_ranks:
        return f"{model} = {layout.model_ranks}"
    experts = f"ep {layout.ep} × etp {layout.etp} × pp {layout.pp}"
    return f"{layout.least_ranks}, which {model} and {experts} divide"


def data_parallel_size(config: RunConfig, world_size: int) -> int:
    """dp = ranks / (tp·pp·cp); a remainder is a ConfigError."""
    layout = config.parallel
    if world_size % layout.least_ranks:
        raise ConfigError(
            f"{world_size} ranks do not divide into copies of {_least(layout)}; fix: start"
            f" {-(-world_size // layout.least_ranks) * layout.least_ranks} ranks, or a smaller tp"
            " or pp"
        )
    return world_size // layout.model_ranks


def check_world(config: RunConfig, world_size: int) -> int:
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


def batch_line(config: RunConfig, world_size: int) -> str:
    """`global batch 256 = dp 4 × micro 2 × accum 32`.

    Packed, the number of micro-batches depends on the lengths.
    """
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


def check_platform(config: RunConfig, machine: Machine) -> None:
    """What this machine cannot do, with the reasons.

    Called where the platform is known; `check` reports it as a note.
    """
    problems = platform_problems(config, machine)
    if problems:
        raise ConfigError("\n".join(problems))
