"""One rank of a world of any size, in this process: recording groups, tensors without data.

Tensors are torch's fake ones: shapes, types and autograd are real, values are not there. Where the
program asks for a value (a norm, a count, a flag) it gets 1, the same on every rank; where it asks
which values are not zero, all are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from megaladder import parallel, platform
from megaladder.dryrun.record import BACKEND, Event, Group, Recorder, RecordingGroup
from megaladder.kernels import linear_common
from megaladder.parallel import Layout

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Place:
    """Coordinates of a rank. Megatron-core orders ranks tp fastest, then cp, dp, pp."""

    tp: int = 0
    cp: int = 0
    dp: int = 0
    pp: int = 0

    def rank(self, layout: Layout, dp_size: int) -> int:
        return self.tp + layout.tp * (self.cp + layout.cp * (self.dp + dp_size * self.pp))

    def __str__(self) -> str:
        return f"pp {self.pp} dp {self.dp} cp {self.cp} tp {self.tp}"


class _Ones(TorchDispatchMode):
    """Answers for values that fake tensors do not have."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten._local_scalar_dense.default:
            return 1.0 if args[0].dtype.is_floating_point else 1
        if func is _aten.nonzero.default:
            return args[0].new_zeros((args[0].numel(), args[0].dim()), dtype=torch.long)
        return func(*args, **(kwargs or {}))


@contextmanager
def simulated_rank(layout: Layout, world_size: int, rank: int) -> Iterator[Recorder]:
    """Rank `rank` of `world_size`: process groups, environment, platform. One at a time."""
    recorder = Recorder()
    names = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {k: str(v) for k, v in names.items()}))
        stack.enter_context(platform.standing_for_cuda())
        platform.prepare_megatron()
        _start_groups(recorder, rank, world_size)
        stack.callback(parallel.shutdown)
        parallel.initialize(layout)
        recorder.clear()
        for target, name, stand_in in _stand_ins(recorder):
            stack.enter_context(patch.object(target, name, stand_in))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_Ones())
        yield recorder


def _start_groups(recorder: Recorder, rank: int, world_size: int) -> None:
    everyone = Group("world", tuple(range(world_size)))
    dist.Backend.register_backend(
        BACKEND, lambda *_: RecordingGroup(recorder, rank, everyone), devices=["cpu"]
    )
    dist.init_process_group(BACKEND, store=dist.HashStore(), rank=rank, world_size=world_size)


def _stand_ins(recorder: Recorder) -> list[tuple[Any, str, Any]]:
    """What cannot run without data, with what takes its place."""
    from megatron.core.optimizer import clip_grads

    from megaladder.dryrun import experts
    from megaladder.model import head
    from megaladder.model.build import LadderGPT
    from megaladder.train import step

    send_together = dist.batch_isend_irecv

    def batched(operations: list[Any]) -> Any:
        recorder.open_batch = recorder.begin_batch()
        try:
            return send_together(operations)
        finally:
            recorder.open_batch = None

    def gathered_objects(objects: list[Any], value: Any, group: Any = None) -> None:
        asked = group or dist.group.WORLD
        assert isinstance(asked, RecordingGroup), "every group of a simulated rank records"
        recorder.events.append(Event("object", asked._group, where=recorder.where))
        objects[:] = [value] * len(objects)

    def norm(_size: int, _flag: Any, _lists: Any, _per_tensor: bool) -> tuple[Any, None]:
        return torch.zeros(1), None

    def values(tensor: torch.Tensor) -> np.ndarray:
        kind = np.float32 if tensor.dtype.is_floating_point else np.int64
        return np.ones(tuple(tensor.shape), kind)

    budget = head.ScratchBudget()
    return [
        (head, "SCRATCH", budget),
        (step, "SCRATCH", budget),
        # blocks of logits as in the first step on CUDA
        (linear_common, "_CPU_SCRATCH", linear_common.LEAST_SCRATCH),
        (dist, "batch_isend_irecv", batched),
        (dist, "all_gather_object", gathered_objects),
        (clip_grads, "l2_norm_impl", norm),
        (FakeTensor, "numpy", values),
        # parameters are made in their type already, and fake ones cannot be replaced
        (LadderGPT, "to", lambda chunk, **_: chunk),
        *experts.stand_ins(),
    ]
