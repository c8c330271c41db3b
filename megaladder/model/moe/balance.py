"""How evenly a step used the experts: counted over all ranks, kept in balance, told.

Collective where it says so; nothing happens for a model without experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megaladder import parallel, platform
from megaladder.model.hf_config import ModelShape
from megaladder.model.moe.router import Router


@dataclass(frozen=True, slots=True)
class LayerBalance:
    """One sparse layer over one step.

    layer: from 0. load: tokens of each expert, int64 [E]; aux_loss: E · Σ share of tokens · mean
    score over the whole batch, 1 where all are used alike; z_loss: mean log²(Σ exp logits).
    compared: choices of an engine; differing: those that the router would not have made."""

    layer: int
    load: torch.Tensor
    aux_loss: float
    z_loss: float
    compared: int = 0
    differing: int = 0

    @property
    def max_load(self) -> float:
        """Tokens of the busiest expert over the mean; 1 where all have the same."""
        return float(self.load.max() / self.load.double().mean().clamp(min=1e-9))

    @property
    def idle_share(self) -> float:
        """Experts that no token was sent to."""
        return float((self.load == 0).double().mean())

    @property
    def effective_experts(self) -> float:
        """exp of the entropy of the load: how many equally used experts it is worth."""
        share = self.load.double() / self.load.sum().clamp(min=1)
        return float(torch.exp(-torch.special.xlogy(share, share).sum()))


@dataclass(frozen=True, slots=True)
class Balance:
    """All sparse layers over one step, equal on every rank."""

    layers: tuple[LayerBalance, ...]
    top_k: int

    def metrics(self) -> dict[str, Any]:
        """For metrics.jsonl: lists with one number a sparse layer, and the worst of each."""
        if not self.layers:
            return {}
        max_load = [round(layer.max_load, 4) for layer in self.layers]
        return {
            "moe_max_load": max(max_load),
            "moe_max_load_by_layer": max_load,
            "moe_effective_experts_by_layer": [
                round(layer.effective_experts, 3) for layer in self.layers
            ],
            "moe_idle_share_by_layer": [round(layer.idle_share, 4) for layer in self.layers],
            "moe_aux_loss_by_layer": [round(layer.aux_loss, 6) for layer in self.layers],
            "moe_z_loss_by_layer": [round(layer.z_loss, 6) for layer in self.layers],
        }

    def choices(self) -> dict[str, Any]:
        """For metrics.jsonl: how often engine and router choose other experts; {} where unknown."""
        compared = sum(layer.compared for layer in self.layers)
        if not compared:
            return {}
        differing = [layer.differing for layer in self.layers]
        return {
            "moe_differing_choices": sum(differing),
            "moe_differing_share": sum(differing) / compared,
            "moe_differing_choices_by_layer": differing,
        }

    def collapsed(self) -> list[LayerBalance]:
        """Layers whose load is worth fewer than a quarter of the experts.

        Or hardly more than the K that every token takes."""
        return [
            layer
            for layer in self.layers
            if layer.effective_experts < max(len(layer.load) / 4, 1.25 * self.top_k)
        ]


class CollapseWatch:
    """Tells once of each layer that has collapsed, and again when it does so anew."""

    def __init__(self) -> None:
        self._told: set[int] = set()

    def warning(self, step: int, balance: Balance) -> str | None:
        """What to tell after a step; None where nothing is new."""
        found = {layer.layer: layer for layer in balance.collapsed()}
        new = [layer for index, layer in found.items() if index not in self._told]
        self._told = set(found)
        if not new:
            return None
        shown = ", ".join(
            f"layer {one.layer} (as if {one.effective_experts:.1f} of {len(one.load)}, busiest"
            f" {one.max_load:.1f} times the mean)"
            for one in new[:5]
        )
        more = f" and {len(new) - 5} more" if len(new) > 5 else ""
        return (
            f"step {step}: experts collapse: {shown}{more}; fix: moe.aux_loss global_batch, or a"
            " smaller optim.lr"
        )


def routers(chunks: Sequence[Any]) -> Iterator[Router]:
    """Of this rank's layers, in order."""
    for chunk in chunks:
        yield from (module for module in chunk.modules() if isinstance(module, Router))


def begin_step(chunks: Sequence[Any], num_tokens: int) -> None:
    """Tells the routers what one token counts.

    num_tokens: real ones of this rank's micro-batches. Collective over data parallelism for a model
    with experts."""
    mine = list(routers(chunks))
    if not mine:
        return
    count = torch.full((), num_tokens, dtype=torch.float32, device=platform.device())
    factor = parallel.sum_over_data_parallel(count).clamp_(min=1.0).reciprocal_()
    for router in mine:
        router.begin_step(factor)


def step_balance(chunks: Sequence[Any], shape: ModelShape) -> Balance | None:
    """What the routers counted since `begin_step`, over all ranks.

    Collective; None for a model without experts."""
    moe = shape.moe
    if moe is None:
        return None
    sums = torch.zeros(
        shape.num_layers, 2 * moe.num_experts + 3, dtype=torch.float64, device=platform.device()
    )
    for router in routers(chunks):
        if router.sums is not None:  # else no real token came by
            sums[router.layer_number - 1] = router.sums
    # every token is on one rank of each layer's stage: tp > 1 comes with sequence parallelism
    parallel.sum_over(sums)
    found = [_layer(index, row) for index, row in enumerate(sums.cpu()) if shape.is_sparse(index)]
    return Balance(tuple(found), moe.top_k)


def _layer(index: int, row: torch.Tensor) -> LayerBalance:
    count = row.numel() // 2 - 1
    load, scores = row[:count], row[count : 2 * count]
    z_loss, compared, differing = row[2 * count :].tolist()
    choices = load.sum().clamp(min=1.0)
    num_tokens = scores.sum().clamp(min=1e-9)  # a token's scores sum to 1
    aux_loss = count * (load / choices * scores / num_tokens).sum()
    return LayerBalance(
        index,
        load.long(),
        float(aux_loss),
        z_loss / float(num_tokens),
        round(compared),
        round(differing),
    )


@torch.no_grad()
def move_biases(chunks: Sequence[Any], balance: Balance, rate: float) -> None:
    """Bias-based balancing (arXiv 2412.19437, §2.1.2).

    Up by `rate` for experts with fewer tokens than the mean, down for those with more. The same on
    every rank."""
    by_layer = {layer.layer: layer.load.double() for layer in balance.layers}
    for router in routers(chunks):
        load = by_layer[router.layer_number - 1]
        step = torch.sign(load.mean() - load) * rate
        router.expert_bias += step.to(router.expert_bias)
