"""Context-parallel attention for the CPU, as a reference: every rank gathers queries, keys and
values of the whole micro-batch, attends in the original order and keeps its own tokens. Transformer
Engine passes keys and values around instead; the numbers are the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megaladder.model.batch import ContextPart, DeviceBatch
from megaladder.model.build import LadderGPT
from megaladder.model.portable import PackedCoreAttention


class _GatherForAll(torch.autograd.Function):
    """[T/c, …] → [T, …]; backward: the ranks' gradients added up, the own part of it."""

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, part: ContextPart, group: Any) -> torch.Tensor:
        ctx.part, ctx.group = part, group
        pieces = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
        dist.all_gather(pieces, local.contiguous(), group=group)
        return torch.cat(pieces).index_select(0, part.order)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad.index_select(0, ctx.part.tokens), None, None


def use_gathered_attention() -> None:
    """Lets the portable layers run under context parallelism in this process."""
    rotary, attend = LadderGPT._rotary, PackedCoreAttention.forward

    def rotary_with_part(self: LadderGPT, batch: DeviceBatch) -> Any:
        angles, layout = rotary(self, batch)
        layout.part = batch.part
        return angles, layout

    def attend_whole(
        self: PackedCoreAttention, query: Any, key: Any, value: Any, layout: Any
    ) -> torch.Tensor:
        if layout.part is None:
            return attend(self, query, key, value, layout)
        group = parallel_state.get_context_parallel_group()
        whole = [_GatherForAll.apply(x, layout.part, group) for x in (query, key, value)]
        return attend(self, *whole, layout).index_select(0, layout.part.tokens)

    LadderGPT._rotary, PackedCoreAttention.forward = rotary_with_part, attend_whole
