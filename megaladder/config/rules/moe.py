"""The rules of a mixture of experts: what its sizes and the layout allow."""

from __future__ import annotations

from megaladder.capabilities import FP8_BLOCK, ExpertSizes, LayerSizes
from megaladder.config.sections.grpo import GrpoSection
from megaladder.config.sections.moe import MoeSection
from megaladder.config.sections.run import RunConfig
from megaladder.config.sections.shared import ParallelSection


def moe_problems(config: RunConfig, shape: LayerSizes) -> list[str]:
    """Settings that the model's experts, or their absence, do not go with."""
    if shape.moe is None:
        return _dense_problems(config)
    return [
        *_layout_problems(config, shape.moe),
        *_fp8_problems(config, shape.moe),
        *_balance_problems(config.moe, shape.moe),
        *_lora_problems(config),
    ]


def _dense_problems(config: RunConfig) -> list[str]:
    """Keys of experts that a model without them does not read."""
    layout = config.parallel
    changed = {
        **{f"parallel.{key}": getattr(layout, key) for key in ("ep", "etp")},
        **{f"moe.{key}": getattr(config.moe, key) for key in MoeSection.model_fields},
    }
    defaults = {"parallel.ep": 1, "parallel.etp": 1} | {
        f"moe.{key}": field.default for key, field in MoeSection.model_fields.items()
    }
    grpo = getattr(config, "grpo", None)
    if isinstance(grpo, GrpoSection):
        changed["grpo.router_replay"] = grpo.router_replay
        defaults["grpo.router_replay"] = GrpoSection.model_fields["router_replay"].default
    return [
        f"{key} {value} is read for a mixture of experts only, this model has none; fix: leave it"
        " out"
        for key, value in changed.items()
        if value != defaults[key]
    ]


def _layout_problems(config: RunConfig, moe: ExpertSizes) -> list[str]:
    layout, problems = config.parallel, []
    if moe.num_experts % layout.ep:
        fits = [n for n in range(1, moe.num_experts + 1) if moe.num_experts % n == 0]
        problems.append(
            f"parallel.ep {layout.ep} does not divide the model's {moe.num_experts} experts; fix:"
            f" ep one of {fits}"
        )
    if moe.ffn_hidden_size % layout.etp:
        problems.append(
            f"parallel.etp {layout.etp} does not divide an expert's feed-forward size"
            f" {moe.ffn_hidden_size}; fix: etp 1"
        )
    if layout.tp > 1 and not layout.sequence_parallel:
        problems.append(
            f"parallel.tp {layout.tp} without sequence_parallel would route every token on each of"
            " its ranks; fix: sequence_parallel true"
        )
    if layout.cp > 1:
        problems.append(
            f"parallel.cp {layout.cp} is not built for a mixture of experts: its balance does not"
            " know what sequences are padded by; fix: parallel.cp 1"
        )
    bare = _stages_without(moe.sparse_layers, layout)
    if bare:
        problems.append(
            f"parallel.pp {layout.pp} gives stage {bare[0]} no layer with experts (of"
            f" {len(moe.sparse_layers)} layers {sum(moe.sparse_layers)} have some), so that a"
            " checkpoint could not be loaded at another pp; fix: a smaller pp"
        )
    return problems


def _fp8_problems(config: RunConfig, moe: ExpertSizes) -> list[str]:
    """Widths of an expert that FP8 blocks do not divide.

    Its tokens need no rule: Transformer Engine's grouped layers pad them, expert by expert."""
    recipe, layout = config.train.fp8, config.parallel
    width = moe.ffn_hidden_size // layout.etp
    if recipe is None or width % FP8_BLOCK[recipe] == 0:
        return []
    block = FP8_BLOCK[recipe]
    fix = "a smaller etp" if moe.ffn_hidden_size % block == 0 else "train.fp8 null"
    if block > 16 and width % 16 == 0:
        fix += ", or tensorwise (16)"
    return [
        f"train.fp8 {recipe} needs an expert's feed-forward size / etp {layout.etp} = {width} to be"
        f" a multiple of {block}; fix: {fix}"
    ]


def _stages_without(sparse_layers: tuple[bool, ...], layout: ParallelSection) -> list[int]:
    """Pipeline stages, from 0, that hold dense layers only."""
    chunks = layout.pp * (layout.vpp or 1)
    size = len(sparse_layers) // chunks
    held: list[list[bool]] = [[] for _ in range(layout.pp)]
    for chunk in range(chunks):
        held[chunk % layout.pp] += sparse_layers[chunk * size : (chunk + 1) * size]
    return [stage for stage, layers in enumerate(held) if layers and not any(layers)]


def _lora_problems(config: RunConfig) -> list[str]:
    """What adapters beside experts do not go with."""
    layout, rate = config.parallel, config.moe.bias_update_rate
    problems: list[str] = []
    if not config.lora.enabled:
        return problems
    if layout.etp > 1:
        problems.append(
            f"parallel.etp {layout.etp} with lora: adapters of a cut expert are not built; fix:"
            " etp 1 (ep instead)"
        )
    if rate:
        problems.append(
            f"moe.bias_update_rate {rate:g} with lora would move the model's own router, which"
            " stays as it is; fix: bias_update_rate 0"
        )
    return problems


def _balance_problems(section: MoeSection, moe: ExpertSizes) -> list[str]:
    if section.bias_update_rate and not moe.bias:
        return [
            f"moe.bias_update_rate {section.bias_update_rate:g}: this model's router has no bias;"
            " fix: moe.aux_loss instead"
        ]
    return []
