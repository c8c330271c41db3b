"""Process groups: the only owner of torch.distributed.

Started by torchrun, by Slurm through torchrun, or by our own local launcher.

`initialize` builds megatron-core's groups for a layout; the small functions below are what the
loops may ask. Under no launcher at all (WORLD_SIZE unset) it is a world of one.
"""

from __future__ import annotations

import datetime
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from megaladder import platform
from megaladder.errors import ConfigError, MegaladderError
from megaladder.process.ranks import STORE_SOCKET, gloo_on_loopback
from megaladder.process.storage import storage_error

T = TypeVar("T")
_stores: list[dist.Store] = []  # at most one, for all sessions of this process
_sessions = itertools.count()  # their keys are apart

_STOP_KEY, _STOP_POLL = "megaladder/stop", datetime.timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of the parallel dimensions. `dp` follows: world / (tp · pp · cp).

    `vpp` is the number of model chunks a pipeline stage holds (None or 1: no interleaving). `ep`,
    `etp`: how experts are spread over the ranks of a stage, whatever tp and dp make of them.
    """

    tp: int = 1
    pp: int = 1
    vpp: int | None = None
    cp: int = 1
    sequence_parallel: bool = False
    ep: int = 1
    etp: int = 1

    @property
    def model_parallel_size(self) -> int:
        return self.tp * self.pp * self.cp

    @property
    def least_ranks(self) -> int:
        """Ranks that hold whole copies of the model and of its experts."""
        return self.pp * math.lcm(self.tp * self.cp, self.ep * self.etp)

    @property
    def num_chunks(self) -> int:
        return self.vpp or 1

    @property
    def uses_sequence_parallel(self) -> bool:
        return self.sequence_parallel and self.tp > 1

    def __str__(self) -> str:
        parts = (
            [f"tp{self.tp}", f"pp{self.pp}"]
            + ([f"vpp{self.vpp}"] if self.vpp else [])
            + ([f"cp{self.cp}"] if self.cp > 1 else [])
            + ([f"ep{self.ep}"] if self.ep > 1 else [])
            + ([f"etp{self.etp}"] if self.etp > 1 else [])
        )
        return "·".join(parts) + ("+SP" if self.uses_sequence_parallel else "")


def world_size_from_env() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_from_env() -> int:
    return int(os.environ.get("RANK", "0"))


def local_rank_from_env() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size_from_env() -> int:
    """Ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or world_size_from_env())


def initialize(layout: Layout, *, timeout_s: float = 1800.0) -> None:
    """Starts torch.distributed and megatron-core's process groups for `layout`.

    Raises:
        ConfigError: the number of ranks is no multiple of tp·pp·cp, or of ep·etp·pp.
    """
    world = world_size_from_env()
    if world % layout.least_ranks:
        raise ConfigError(
            f"{world} ranks cannot hold {layout} (a multiple of {layout.least_ranks}); fix:"
            f" start a multiple of {layout.least_ranks} ranks, or lower parallel.tp /"
            " parallel.pp / parallel.cp / parallel.ep"
        )
    platform.prepare_megatron()
    from megatron.core import parallel_state, tensor_parallel

    if not dist.is_initialized():
        timeout = datetime.timedelta(seconds=timeout_s)
        platform.bind_device(local_rank_from_env())
        dist.init_process_group(platform.collective_backend(), timeout=timeout, **_meeting(timeout))
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.vpp if layout.vpp and layout.vpp > 1 else None,
        context_parallel_size=layout.cp,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.etp,
        distributed_timeout_minutes=max(1, int(timeout_s // 60)),
    )
    # no dropout anywhere: only satisfies megatron-core's bookkeeping
    tensor_parallel.model_parallel_cuda_manual_seed(1234)


def _meeting(timeout: datetime.timedelta) -> dict[str, Any]:
    """Where the ranks meet, if not in a store that torch opens.

    That one listens on every interface of the machine, and obeys anyone."""
    if "RANK" not in os.environ:
        # A process by itself meets nobody: no port, and nothing in the environment that makes its
        # children ranks.
        os.environ.update(gloo_on_loopback(os.environ))
        return {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    if STORE_SOCKET not in os.environ:  # torchrun's, on a network of several machines
        return {}
    store = dist.PrefixStore(f"session_{next(_sessions)}", _launchers_store(timeout))
    store.set_timeout(timeout)
    return {"store": store, "rank": rank_from_env(), "world_size": world_size_from_env()}


def _launchers_store(timeout: datetime.timedelta) -> dist.Store:
    """The store of this launch: rank 0 serves it at a socket of the loopback interface."""
    if not _stores:
        serves = rank_from_env() == 0
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            world_size_from_env(),
            is_master=serves,
            timeout=timeout,
            master_listen_fd=int(os.environ[STORE_SOCKET]) if serves else None,
        )
        _stores.append(store)
    return _stores[0]


def shutdown() -> None:
    """Ends the process groups; safe to call when nothing was started."""
    if not dist.is_initialized():
        return
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


@contextmanager
def session(layout: Layout, *, timeout_s: float = 1800.0) -> Iterator[None]:
    """`initialize` … `shutdown`.

    After an error the groups are left alone: other ranks may hang in them, the launcher ends us."""
    initialize(layout, timeout_s=timeout_s)
    yield
    shutdown()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """The rank that prints and writes."""
    return rank() == 0


def dp_rank() -> int:
    from megatron.core import parallel_state

    return parallel_state.get_data_parallel_rank()


def dp_size() -> int:
    from megatron.core import parallel_state

    return parallel_state.get_data_parallel_world_size()


def weight_replica() -> int:
    """Which whole copy of the weights this rank is part of, from 0.

    In each stage the fewest consecutive ranks with all its matrices and experts."""
    from megatron.core import parallel_state

    stage_ranks = world_size() // parallel_state.get_pipeline_model_parallel_world_size()
    experts = (
        parallel_state.get_expert_model_parallel_world_size()
        * parallel_state.get_expert_tensor_parallel_world_size()
    )
    ranks = math.lcm(parallel_state.get_tensor_model_parallel_world_size(), experts)
    return rank() % stage_ranks // ranks


def expert_replica() -> int:
    """This rank's place among those that hold the same experts, from 0."""
    from megatron.core import parallel_state

    return parallel_state.get_expert_data_parallel_rank()


def tp_rank() -> int:
    from megatron.core import parallel_state

    return parallel_state.get_tensor_model_parallel_rank()


def cp_rank() -> int:
    from megatron.core import parallel_state

    return (
        parallel_state.get_context_parallel_rank()
        if parallel_state.model_parallel_is_initialized()
        else 0
    )


def cp_size() -> int:
    from megatron.core import parallel_state

    return (
        parallel_state.get_context_parallel_world_size()
        if parallel_state.model_parallel_is_initialized()
        else 1
    )


def cp_group() -> dist.ProcessGroup:
    """The ranks that hold the other parts of this rank's tokens."""
    from megatron.core import parallel_state

    return parallel_state.get_context_parallel_group()


def is_first_chunk(vp_stage: int | None) -> bool:
    """Whether a chunk of this rank embeds the tokens.

    vp_stage: its index among this rank's chunks; None without interleaving."""
    from megatron.core import parallel_state

    return parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)


def is_last_chunk(vp_stage: int | None) -> bool:
    """Whether a chunk of this rank ends in the head; see `is_first_chunk`."""
    from megatron.core import parallel_state

    return parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)


def is_last_pipeline_stage() -> bool:
    """True on the ranks that compute the loss."""
    from megatron.core import parallel_state

    return parallel_state.is_pipeline_last_stage(ignore_virtual=True)


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def all_ranks(flag: bool) -> bool:
    """True when `flag` is true on every rank of the world.

    One small collective; every rank must call it."""
    if world_size() == 1:
        return flag
    value = torch.tensor([1 if flag else 0], dtype=torch.int32, device=platform.device())
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return bool(value.item())


def any_rank(flag: bool) -> bool:
    """True when `flag` is true on at least one rank of the world. Every rank must call it."""
    return not all_ranks(not flag)


def broadcast(value: Any, src: int = 0) -> Any:
    """`value` of rank `src`, on every rank. For small plain objects."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=src, device=platform.device())
    return box[0]


def on_main(action: Callable[[], T]) -> T:
    """`action()` run by rank 0 alone, its plain result on every rank. Every rank must call it.

    Raises:
        MegaladderError: what `action` raised; on other ranks one with the same text and exit
        status. Any other exception is a bug: it
            ends rank 0, hence the run.
    """
    value: Any = None
    raised: MegaladderError | None = None
    if is_main():
        try:
            value = action()
        except (MegaladderError, OSError) as error:
            raised = error if isinstance(error, MegaladderError) else storage_error(error)
            if raised is None:
                raise
    failure, value = broadcast((_told(raised), value))
    if raised is not None:
        raise raised
    if failure is not None:
        raise _same_error(*failure)
    return value


def _told(error: BaseException | None) -> tuple[str, int] | None:
    """What rank 0 tells of its error: text and exit status."""
    if error is None:
        return None
    return str(error) or repr(error), getattr(error, "exit_status", 1)


def _same_error(text: str, exit_status: int) -> MegaladderError:
    """Rank 0's error on another rank, which leaves it to rank 0 to say it."""
    same = MegaladderError(text)
    same.exit_status, same.told_elsewhere = exit_status, True
    return same


def all_gather(value: Any) -> list[Any]:
    """`value` of every rank, in rank order, on every rank. For small plain objects."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


@dataclass(frozen=True, slots=True)
class Nodes:
    """The machines of the job.

    leaders: the first rank of each, in order; mine: the place of this rank's machine in it."""

    leaders: tuple[int, ...]
    mine: int

    @property
    def leading(self) -> bool:
        """Whether this rank is its machine's first."""
        return rank() == self.leaders[self.mine]


def nodes() -> Nodes:
    """By the launcher's local ranks. Collective."""
    leaders = tuple(
        index for index, local in enumerate(all_gather(local_rank_from_env())) if local == 0
    )
    return Nodes(leaders, sum(leader <= rank() for leader in leaders) - 1)


def sum_over_data_parallel(value: torch.Tensor) -> torch.Tensor:
    """Sums `value` in place over the data-parallel ranks; the host does not wait for it."""
    from megatron.core import parallel_state

    dist.all_reduce(value, group=parallel_state.get_data_parallel_group())
    return value


def sum_over(value: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Sums `value` in place over a group, or over all ranks; the host does not wait for it."""
    if dist.get_world_size(group) > 1:
        dist.all_reduce(value, group=group)
    return value


def sum_over_losses(values: torch.Tensor) -> torch.Tensor:
    """Sums float64 `values` [K] over data-parallel ranks of the last pipeline stage.

    Gives every rank of the world the result.

    `values` counts on the last stage only; TP and CP ranks hold equal copies, of which one is
    counted.
    """
    if world_size() == 1:
        return values
    counted = is_last_pipeline_stage() and tp_rank() == 0 and cp_rank() == 0
    total = values if counted else torch.zeros_like(values)
    total = total.to(platform.device())
    dist.all_reduce(total)
    return total


def max_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Elementwise maximum of `values` [K] over the world; ranks with nothing to say pass -inf.

    Every rank must call it."""
    if world_size() == 1:
        return values
    values = values.to(platform.device())
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def wait_for_main(name: str, timeout_s: float, asked: Callable[[], bool]) -> None:
    """Ranks other than 0 sleep until rank 0 has called this with the same, never reused `name`.

    At most `timeout_s`. asked: whether this rank was asked to stop, which rank 0 then hears of.

    For long waits before a collective (rollouts): a collective would spin on the device and count
    against its own, shorter timeout.
    """
    if world_size() == 1:
        return
    store = dist.distributed_c10d._get_default_store()
    if is_main():
        store.set(f"megaladder/{name}", "ready")
        return
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return store.wait([f"megaladder/{name}"], _STOP_POLL)
        except dist.DistStoreError:
            if time.monotonic() > deadline:
                raise
        if asked():
            store.set(_STOP_KEY, "asked")


def asked_by_others() -> bool:
    """On rank 0: whether a rank that sits in `wait_for_main` was asked to stop."""
    return world_size() > 1 and dist.distributed_c10d._get_default_store().check([_STOP_KEY])


@contextmanager
def main_rank_first() -> Iterator[None]:
    """Rank 0 runs the body before the others: for downloads and caches.

    An error on rank 0 reaches all ranks."""
    error: BaseException | None = None
    if is_main():
        try:
            yield
        # whatever it is, the other ranks are waiting to hear of it
        except Exception as caught:  # noqa: BLE001
            error = storage_error(caught) or caught
    failed = broadcast(_told(error))
    if error is not None:
        raise error
    if failed is not None:
        raise _same_error(*failed)
    if not is_main():
        yield
