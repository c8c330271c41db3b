"""Process groups that record every operation and move nothing; one rank's program as a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import GroupName

BACKEND = "megaladder_dryrun"
_REDUCTIONS = ("SUM", "AVG", "MIN", "MAX")


@dataclass(frozen=True, slots=True)
class Group:
    """A communicator: its name in megatron-core, and its global ranks in order."""

    name: str
    ranks: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.ranks)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a rank asks of a communicator.

    op: all_reduce, all_gather, reduce_scatter (with its reduction), all_to_all, broadcast, barrier,
    object (a pickled Python value), send, recv, or wait (for transfer batch `batch`). num_bytes: of
    the whole tensor: gathered, before it is scattered, or given out. peer: global rank of a
    transfer. batch: transfers that start together. where: the part of the step.
    """

    op: str
    group: Group
    dtype: str = ""
    num_bytes: int = 0
    where: str = ""
    peer: int | None = None
    batch: int | None = None

    @property
    def is_transfer(self) -> bool:
        return self.op in ("send", "recv")

    @property
    def signature(self) -> tuple[str, str, int, str, int, str]:
        """What every rank of the group has to agree on, in the order of the program."""
        return (self.op, self.group.name, self.group.size, self.dtype, self.num_bytes, self.where)

    def __str__(self) -> str:
        to = {"send": f" to rank {self.peer}", "recv": f" from rank {self.peer}"}.get(self.op, "")
        size = f" {self.num_bytes:,} B {self.dtype}" if self.dtype else ""
        return f"{self.op}{to}{size} in {self.group.name} of {self.group.size} ({self.where})"


@dataclass(slots=True)
class Recorder:
    """The program of the rank that is being simulated. `where`: the part of the step it is in."""

    events: list[Event] = field(default_factory=list)
    where: str = "start"
    batches: int = 0
    open_batch: int | None = None

    def add(self, op: str, group: Group, tensors: Sequence[torch.Tensor] = (), **more: Any) -> None:
        """`tensors`: those whose bytes count."""
        dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
        size = sum(tensor.nbytes for tensor in tensors)
        self.events.append(Event(op, group, dtype, size, self.where, **more))

    def begin_batch(self) -> int:
        """Numbers transfers that start together; ends with the next call or `end_batch`."""
        self.batches += 1
        return self.batches

    def clear(self) -> None:
        """Forgets what was recorded: what only a start does is no part of a step."""
        self.events.clear()


class Done(dist._Work):
    """The handle of an operation without data; `wait` is recorded for transfers."""

    def __init__(self, recorder: Recorder | None = None, event: Event | None = None) -> None:
        super().__init__()
        self._recorder, self._event = recorder, event

    def wait(self, timeout: Any = None) -> bool:
        if self._recorder is not None and self._event is not None:
            event = self._event
            where = self._recorder.where
            self._recorder.events.append(
                Event("wait", event.group, where=where, peer=event.peer, batch=event.batch)
            )
            self._recorder = None
        return True

    def is_completed(self) -> bool:
        return True


def _reduction(opts: Any) -> str:
    """sum, avg, min or max, of what torch passes along."""
    asked = getattr(opts, "reduceOp", dist.ReduceOp.SUM)
    return next(
        (name.lower() for name in _REDUCTIONS if asked == getattr(dist.ReduceOp, name)), "other"
    )


class RecordingGroup(dist.ProcessGroup):
    """A communicator of the simulated rank. Torch calls these methods; each name is its own."""

    def __init__(self, recorder: Recorder, rank: int, group: Group, name: str = BACKEND) -> None:
        # the constructor without a store is missing from torch's stub
        super().__init__(rank, group.size)  # type: ignore[call-arg]
        self._recorder, self._group, self._name = recorder, group, name

    @property
    def group_name(self) -> GroupName:
        return cast("GroupName", self._name)

    def shutdown(self) -> None:
        """Nothing is open."""

    def getBackendName(self) -> str:
        return BACKEND

    def new_group(
        self, ranks: Sequence[int], *, group_name: str, group_desc: str | None = None, **_: Any
    ) -> RecordingGroup | None:
        """Torch hands the making of every further group to the first one."""
        me = dist.get_rank()
        if me not in ranks:
            return None
        group = Group((group_desc or "unnamed").removesuffix("_GROUP").lower(), tuple(ranks))
        return RecordingGroup(self._recorder, group.ranks.index(me), group, group_name)

    def _add(self, op: str, tensors: Sequence[torch.Tensor] = ()) -> Done:
        self._recorder.add(op, self._group, tensors)
        return Done()

    # of the stub's overloads (a list, or one tensor with its options spread out) torch calls the
    # first only: [override] below
    def allreduce(  # type: ignore[override]
        self, tensors: Sequence[torch.Tensor], opts: Any = None
    ) -> Done:
        return self._add(f"all_reduce {_reduction(opts)}", tensors)

    allreduce_coalesced = allreduce

    def broadcast(  # type: ignore[override]
        self, tensors: Sequence[torch.Tensor], opts: Any = None
    ) -> Done:
        return self._add("broadcast", tensors)

    def barrier(self, opts: Any = None) -> Done:
        return self._add("barrier")

    def _allgather_base(self, output: torch.Tensor, _input: torch.Tensor, opts: Any = None) -> Done:
        return self._add("all_gather", [output])

    def _reduce_scatter_base(
        self, _output: torch.Tensor, whole: torch.Tensor, opts: Any = None
    ) -> Done:
        return self._add(f"reduce_scatter {_reduction(opts)}", [whole])

    def allgather(  # type: ignore[override]
        self, outputs: Sequence[Sequence[torch.Tensor]], _inputs: Any, opts: Any = None
    ) -> Done:
        return self._add("all_gather", [part for parts in outputs for part in parts])

    def reduce_scatter(  # type: ignore[override]
        self, _outputs: Any, wholes: Sequence[Sequence[torch.Tensor]], opts: Any = None
    ) -> Done:
        parts = [part for whole in wholes for part in whole]
        return self._add(f"reduce_scatter {_reduction(opts)}", parts)

    def allgather_into_tensor_coalesced(
        self, outputs: Sequence[torch.Tensor], _inputs: Any, opts: Any = None
    ) -> Done:
        return self._add("all_gather", outputs)

    def reduce_scatter_tensor_coalesced(
        self, _outputs: Any, wholes: Sequence[torch.Tensor], opts: Any = None
    ) -> Done:
        return self._add(f"reduce_scatter {_reduction(opts)}", wholes)

    def alltoall_base(  # type: ignore[override]
        self, _output: torch.Tensor, given: torch.Tensor, *_splits: Any, **_: Any
    ) -> Done:
        return self._add("all_to_all", [given])

    # the names of newer torch versions; arguments go by place, those that do not count unnamed
    all_gather_single = _allgather_base  # type: ignore[assignment]
    reduce_scatter_single = _reduce_scatter_base  # type: ignore[assignment]
    all_to_all_single = alltoall_base  # type: ignore[assignment]
    all_gather_single_coalesced = allgather_into_tensor_coalesced  # type: ignore[assignment]
    reduce_scatter_single_coalesced = reduce_scatter_tensor_coalesced  # type: ignore[assignment]

    def send(self, tensors: Sequence[torch.Tensor], dst: int, tag: int = 0) -> Done:
        return self._transfer("send", tensors, dst)

    def recv(self, tensors: Sequence[torch.Tensor], src: int, tag: int = 0) -> Done:
        return self._transfer("recv", tensors, src)

    def _transfer(self, op: str, tensors: Sequence[torch.Tensor], peer: int) -> Done:
        recorder = self._recorder
        batch = recorder.open_batch or recorder.begin_batch()
        recorder.add(op, self._group, tensors, peer=self._group.ranks[peer], batch=batch)
        return Done(recorder, recorder.events[-1])

    def _start_coalescing(self, _device: Any) -> None:
        """Nothing to prepare: coalesced operations arrive as one call."""

    def _end_coalescing(self, _device: Any) -> Done:
        return Done()
