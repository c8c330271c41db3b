"""How the vocabulary lies over tensor-parallel ranks, and the only collectives of the loss head.

T = tokens, V_local = columns that this rank stores, H = hidden size, R = tensor-parallel ranks.
Every rank holds equal `targets`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """This rank's place among those that share the vocabulary.

    `None` in its stead means a vocabulary that is not split.

    Columns `vocab_start … vocab_start + n_valid` of the true vocabulary are this rank's first
    `n_valid` local columns; shards may differ in size, and a shard may be empty (n_valid = 0).
    `widest`: stored columns of the widest rank, by which all ranks cut their tokens into equal
    chunks; 0 means that all ranks store equally many.
    """

    group: Any  # torch.distributed process group
    rank: int
    size: int
    vocab_start: int
    widest: int = 0

    @classmethod
    def even(cls, group: Any, v_local: int) -> TensorParallel:
        """Megatron's layout: every rank stores `v_local` columns, in rank order."""
        rank = dist.get_rank(group)
        return cls(
            group=group, rank=rank, size=dist.get_world_size(group), vocab_start=rank * v_local
        )


def valid_columns(v_true: int, v_local: int, tp: TensorParallel | None) -> int:
    """How many of this rank's `v_local` columns belong to the true vocabulary.

    The rest is Megatron's padding."""
    return max(0, min(v_local, v_true - vocab_start(tp)))


def vocab_start(tp: TensorParallel | None) -> int:
    return 0 if tp is None else tp.vocab_start


def is_split(tp: TensorParallel | None) -> TypeGuard[TensorParallel]:
    return tp is not None and tp.size > 1


def _collective(name: str, older_name: str):
    """torch.distributed's function under its present name, or the one it had before torch 2.12."""
    return getattr(dist, name, None) or getattr(dist, older_name)


def _all_gather(out: torch.Tensor, part: torch.Tensor, group: Any) -> None:
    _collective("all_gather_single", "all_gather_into_tensor")(out, part.contiguous(), group=group)


def gather_stats(stats: torch.Tensor, tp: TensorParallel | None) -> torch.Tensor:
    """[K, T] of every rank as [R, K, T], in rank order: the loss head's one collective.

    Not differentiable."""
    if not is_split(tp):
        return stats.unsqueeze(0)
    gathered = stats.new_empty((tp.size * stats.shape[0], *stats.shape[1:]))
    _all_gather(gathered, stats, tp.group)
    return gathered.view(tp.size, *stats.shape)


def gather_tokens(hidden: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
    """Sequence parallelism: [T/R, H] of every rank as [T, H], rank 0's tokens first."""
    full = hidden.new_empty((hidden.shape[0] * tp.size, *hidden.shape[1:]))
    _all_gather(full, hidden, tp.group)
    return full


class PendingGrad:
    """d hidden on its way through the tensor-parallel reduction; `wait()` gives it.

    Start it before the d weight product."""

    def __init__(
        self, d_hidden: torch.Tensor, tp: TensorParallel | None, *, sequence_parallel: bool
    ) -> None:
        self._result, self._input = d_hidden, d_hidden
        self._work: dist.Work | None = None
        if not is_split(tp):
            return
        if sequence_parallel:
            self._result = d_hidden.new_empty((d_hidden.shape[0] // tp.size, *d_hidden.shape[1:]))
            scatter = _collective("reduce_scatter_single", "reduce_scatter_tensor")
            self._work = scatter(self._result, d_hidden, group=tp.group, async_op=True)
        else:
            self._work = dist.all_reduce(d_hidden, group=tp.group, async_op=True)

    def wait(self) -> torch.Tensor:
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._result
