"""Sends the trainer's weights to the engine, as a new version.

Collective: every training rank calls `WeightSync.send`.

All transports stream the model as Hugging Face tensors through the converter's own tables
(`live_model.iter_hf_tensors`: pipeline broadcast, tensor-parallel gather, one parameter at a time):

    file  a safetensors folder in shared memory, of each node with engines, which they reload; any
    machine; the oracle for the others
    ipc   vLLM's native CUDA IPC transfer in packed buckets: trainer and engine share each GPU
    nccl  vLLM's native NCCL broadcast in packed buckets: the engines have GPUs of their own, on any
          node
    adapter  as file, the adapters alone as a PEFT folder (weights travel merged with them elsewhere)

ipc and nccl use vLLM's trainer-side classes, found by looking (0.32's `metadata()`/`__iter__` and
0.33's `metadata`/`iter_full`); they need CUDA. Where engine and trainer share devices, the engine
sleeps between rounds: `rest` drops its weights (level 2; with adapters it keeps them on the host),
`send` wakes the weights' memory, fills it, and wakes the key/value cache. Until a version is whole
in the engine it refuses to generate.
"""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from megaladder import parallel, platform
from megaladder.checkpoints_conv.adapters.run import RunAdapters
from megaladder.checkpoints_conv.families import name_table
from megaladder.checkpoints_conv.live_model import export_hf, iter_hf_tensors
from megaladder.checkpoints_conv.writer import WriteOptions
from megaladder.errors import EngineError, MissingDependencyError
from megaladder.files.shared_memory import SharedFolder, weight_folder
from megaladder.model.hf_config import ModelShape
from megaladder.model.weights import gathered
from megaladder.process.faults import fault_point
from megaladder.rollout.engine import Engine, FileWeights, WeightClient
from megaladder.rollout.remote.clients import PickledHandles, RankedWorkers
from megaladder.rollout.weight_check import CheckResult, compare_checksums
from megaladder.types import required

Transport = Literal["file", "ipc", "nccl", "adapter"]


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What is sent to the engine.

    This rank's chunks, the model's shape, the folder that configuration and tokenizer come from,
    and the adapters that are sent instead."""

    chunks: Sequence[Any]
    shape: ModelShape
    folder: Path
    adapters: RunAdapters | None = None

    @property
    def dtype(self) -> torch.dtype:
        return next(self.chunks[0].parameters()).dtype

    @property
    def num_bytes(self) -> int:
        """Of all tensors together."""
        if self.adapters is not None:
            return self.adapters.num_bytes(self.dtype)
        return sum(self._tensor_bytes())

    def bucket_bytes(self, wanted: int) -> int:
        """`wanted`, or as much as the largest tensor takes.

        vLLM's packed buckets hold whole tensors."""
        return max(wanted, *self._tensor_bytes())

    def _tensor_bytes(self) -> list[int]:
        return [
            torch.Size(size).numel() * self.dtype.itemsize
            for size in name_table(self.shape).hf_shapes.values()
        ]


@dataclass(frozen=True, slots=True)
class SyncReport:
    """One transfer. `check`: on rank 0, where the engine's checksums were compared."""

    version: int
    seconds: float
    num_bytes: int
    check: CheckResult | None = None


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """transport; bytes of a bucket; which transfers are checked.

    The folder that file transport falls back to; whether the engine sleeps between rounds (it
    shares the trainer's devices); the ranks that write files: the first of each node that has
    engines; a folder that trainer and engines both see, instead (engines on machines where no rank
    runs)."""

    transport: Transport
    bucket_bytes: int
    check: Literal["never", "first", "always"]
    run_dir: Path
    colocated: bool = False
    engine_tp: int = 1
    writers: tuple[int, ...] = (0,)
    shared_dir: Path | None = None


class Carrier(Protocol):
    """One way of bringing weights over. Collective; `engine` is None but on rank 0."""

    def send(self, engine: Engine | None, version: int) -> None: ...

    def close(self) -> None: ...


def chosen_transport(
    wanted: Transport | Literal["auto"], servers: bool = False, lora: bool = False
) -> Transport:
    """What `rollout.sync` means on this machine.

    `servers`: the engines are on others; `lora`: adapters are trained.

    Raises:
        MissingDependencyError: ipc or nccl without CUDA.
    """
    if wanted == "adapter" or (wanted == "auto" and lora and not servers):
        return "adapter"
    if wanted == "auto":
        return ("nccl" if servers else "ipc") if platform.has_cuda() else "file"
    if wanted != "file" and not platform.has_cuda():
        raise MissingDependencyError(
            f"rollout.sync {wanted} needs CUDA, this machine has none; fix: rollout.sync file (or"
            " auto)"
        )
    return wanted


class WeightSync:
    """Versions of the weights in the engine.

    `version` is what the engine holds, the same number on every rank. `engine`: None but on rank 0.
    """

    def __init__(
        self,
        model: TrainedModel,
        options: SyncOptions,
        engine: Engine | None,
        version: int | None = None,
    ) -> None:
        self._model, self._options, self._engine = model, options, engine
        self.version = version  # None: nothing that the trainer knows of
        self._resting = False
        self._checked = False
        carriers: dict[Transport, Callable[[TrainedModel, SyncOptions], Carrier]] = {
            "file": FileCarrier,
            "ipc": IpcCarrier,
            "nccl": NcclCarrier,
            "adapter": FileCarrier,
        }
        self._carrier = carriers[options.transport](model, options)

    def send(self, version: int) -> SyncReport | None:
        """Brings the model to the engine as `version`; None when it holds that version already.

        Collective.

        Raises:
            EngineError: the engine failed, or holds another tensor than was sent (rank 0's error,
            raised on every rank).
        """
        if version == self.version and not self._resting:
            return None
        began = time.perf_counter()
        with gathered(self._model.chunks):
            return self._send_complete(version, began)

    def _send_complete(self, version: int, began: float) -> SyncReport:
        if self._resting:
            parallel.on_main(
                lambda: _unless_dead(_main(self._engine), lambda engine: engine.wake(["weights"]))
            )
        due = self._check_due()
        if due:
            parallel.on_main(lambda: _unless_dead(_main(self._engine), _watch))
        self._carrier.send(self._engine, version)
        if self._resting and not parallel.on_main(self._wake_cache):
            # lost while it woke: the one in its place takes the weights again
            self._carrier.send(self._engine, version)
            parallel.on_main(lambda: _main(self._engine).wake(["kv_cache"]))
        seconds = time.perf_counter() - began
        self.version, self._resting = version, False
        fault_point("after_sync")
        check = self._check() if due else None
        return SyncReport(version, seconds, self._model.num_bytes, check)

    def _wake_cache(self) -> bool:
        return _unless_dead(_main(self._engine), lambda engine: engine.wake(["kv_cache"]))

    def rest(self) -> None:
        """Between rounds: an engine on the trainer's devices gives them back and drops its weights.

        Collective."""
        if self._options.colocated and not self._resting:
            level = 2 if self._model.adapters is None else 1
            self._resting = parallel.on_main(
                lambda: _unless_dead(_main(self._engine), lambda engine: engine.sleep(level))
            )

    def close(self) -> None:
        self._carrier.close()

    def _check_due(self) -> bool:
        """Whether the engine's checksums are compared after the coming transfer."""
        if self._model.adapters is not None:  # the engine's weights are its own
            return False
        check = self._options.check
        return check == "always" or (check == "first" and not self._checked)

    def _check(self) -> CheckResult | None:
        """Compares every tensor that the engine shows with the trainer's.

        Collective: all ranks gather, rank 0 compares.
        """
        self._checked = True
        said: list[dict[str, str]] = []

        def ask() -> bool:
            found = _checksums(_main(self._engine))
            said.extend(found or ())
            return found is not None

        if not parallel.on_main(ask):
            return None
        result: CheckResult | None = None
        if parallel.weight_replica() == 0:
            tensors = iter_hf_tensors(self._model.chunks, self._model.shape)
            if parallel.is_main():
                result = compare_checksums(
                    tensors, said, self._model.shape, self._options.engine_tp
                )
            else:
                for _ in tensors:
                    pass

        def verdict() -> None:
            assert result is not None, "rank 0 compares"
            if result.differing:
                raise EngineError(
                    f"after the update to weights version {self.version} the engine holds other"
                    f" values in {len(result.differing)} tensors, e.g. {result.differing[0]}; fix:"
                    " rollout.sync file, and report this"
                )

        parallel.on_main(verdict)
        return result


def _main(engine: Engine | None) -> Engine:
    """For what runs on rank 0 only."""
    return required(engine, "rank 0's engine")


def _unless_dead(engine: Engine, action: Callable[[Engine], object]) -> bool:
    """Sleeping and waking are of no use to an engine whose process has died.

    The next `update_weights` starts it again, and counts that. Returns whether the action was
    carried out."""
    try:
        action(engine)
        return True
    except EngineError:
        if not getattr(engine, "dead_replicas", []):
            raise
        return False


class NoSync:
    """In the place of `WeightSync` where no engine samples (replay)."""

    def send(self, version: int) -> None:
        """There is nobody to send to."""

    def rest(self) -> None:
        """There is nobody to rest."""

    def close(self) -> None:
        """Nothing is held."""


def _watch(engine: Engine) -> None:
    """Asks for the checksums of what comes; nothing where the engine has none (the fake)."""
    watch = getattr(engine, "watch_weights", None)
    if watch is not None:
        watch()


def _checksums(engine: Engine) -> list[dict[str, str]] | None:
    """What the engine says it holds; None from one that cannot say (the fake)."""
    ask = getattr(engine, "weight_checksums", None)
    return ask() if ask is not None else None


class FileCarrier:
    """Carries the weights in a safetensors folder.

    In shared memory (of each node with engines), or in the run folder where that is too small, or
    in a folder that all machines see. It stays there: a restarted engine reads it."""

    def __init__(self, model: TrainedModel, options: SyncOptions) -> None:
        self._model, self._writers = model, options.writers
        own: Path | None = None
        self._shared: SharedFolder | None = None
        if parallel.rank() in self._writers:
            node = self._writers.index(parallel.rank())
            place = weight_folder(model.num_bytes, options.run_dir, node, options.shared_dir)
            self._shared = place if isinstance(place, SharedFolder) else None
            own = place.path if isinstance(place, SharedFolder) else place
        self.folders = [folder for folder in parallel.all_gather(own) if folder is not None]
        self.folder = own or self.folders[0]

    def write(self) -> Path:
        """The model's folder, or that of its adapters, by each writer. Collective."""
        model, out = self._model, self.folder
        if model.adapters is not None:
            model.adapters.export(model.chunks, out, writers=self._writers, digests=False)
            return out
        options = WriteOptions(force=True, digests=False)
        how: dict[str, Any] = {"options": options, "writers": self._writers}
        export_hf(model.chunks, model.shape, out, source_dir=model.folder, **how)
        return self.folder

    def send(self, engine: Engine | None, version: int) -> None:
        """Writes, then has the engine reload."""
        self.write()
        first, *others = map(str, self.folders)
        weights = FileWeights(first, tuple(others))
        parallel.on_main(lambda: _main(engine).update_weights(weights, version))

    def close(self) -> None:
        if self._shared is not None:
            self._shared.close()
        elif parallel.rank() in self._writers:
            shutil.rmtree(self.folder, ignore_errors=True)


class _NativeCarrier:
    """vLLM's own transfer, driven from both ends.

    Every rank iterates the tensors, rank 0 talks to the engine as well."""

    resendable = False  # a restarted engine needs all training ranks again

    def __init__(self, model: TrainedModel, options: SyncOptions) -> None:
        self._model, self._options = model, options
        self._sender: Any = None
        self._engine: Engine | None = None

    def send(self, engine: Engine | None, version: int) -> None:
        """`engine.update_weights` on rank 0 calls `_Transport.send`.

        The other ranks take part in the gathering at the same time.
        """
        self._engine = engine
        if parallel.is_main():
            _main(engine).update_weights(_Transport(self), version)
        else:
            self._transfer(_NoClient())

    def _transfer(self, client: WeightClient) -> None:
        if self._sender is None:
            self._sender = self._init(client)
        self._sender.client = client
        self._sender.send_weights()

    def _init(self, client: WeightClient) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        if self._sender is not None:
            self._sender.shutdown()


@dataclass
class _Transport:
    """`engine.WeightTransport` of one transfer."""

    carrier: _NativeCarrier
    resendable = False

    def send(self, client: WeightClient) -> None:
        self.carrier._transfer(client)


class _NoClient:
    """On ranks other than 0 nobody may talk to the engine."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"rank {parallel.rank()} called {name} of the engine")


class IpcCarrier(_NativeCarrier):
    """CUDA IPC handles of packed buckets, for an engine on the same GPUs."""

    def _init(self, client: WeightClient) -> Any:
        native = _native("vllm.distributed.weight_transfer.ipc_engine")
        size = self._model.bucket_bytes(self._options.bucket_bytes)
        info = native.IPCTrainerInitInfo(
            rank=parallel.rank(), packed=True, packed_buffer_size_bytes=size
        )
        return _factory().trainer_init(info, client=client, source=weight_source(self._model))

    def _transfer(self, client: WeightClient) -> None:
        super()._transfer(PickledHandles(client))


class NcclCarrier(_NativeCarrier):
    """An NCCL group of rank 0 and the workers of all engines, wherever they are.

    Rank 0 broadcasts packed buckets.
    """

    def _init(self, client: WeightClient) -> Any:
        native = _native("vllm.distributed.weight_transfer.nccl_engine")
        host, port, replicas = "127.0.0.1", 0, 1
        if parallel.is_main():
            replicas = getattr(self._engine, "num_replicas", 1)
            host = os.environ.get("MASTER_ADDR", host)  # where the other nodes find rank 0
            with socket.socket() as probe:
                probe.bind(("", 0))
                port = probe.getsockname()[1]
        info = native.NCCLTrainerInitInfo(
            master_address=host,
            master_port=port,
            world_size=1 + replicas * self._options.engine_tp,
            rank=parallel.rank(),
            packed=True,
            packed_buffer_size_bytes=self._model.bucket_bytes(self._options.bucket_bytes),
        )
        return _factory().trainer_init(info, client=client, source=weight_source(self._model))

    def _transfer(self, client: WeightClient) -> None:
        super()._transfer(
            RankedWorkers(client, getattr(self._engine, "num_replicas", 1), self._options.engine_tp)
        )


def _native(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"this vLLM has no {module} ({error}); fix: rollout.sync file, or the vLLM that doctor"
            " names"
        ) from None


def _factory() -> Any:
    factory = getattr(
        _native("vllm.distributed.weight_transfer.factory"), "WeightTransferTrainerFactory", None
    )
    if factory is None:
        raise MissingDependencyError(
            "this vLLM has no trainer-side weight transfer; fix: rollout.sync file, or vLLM 0.28 or"
            " later"
        )
    return factory


def weight_source(model: TrainedModel) -> Any:
    """The model as vLLM's `WeightSource`, in the form that the installed version asks for."""
    base = _native("vllm.distributed.weight_transfer.base")
    shapes = name_table(model.shape).hf_shapes

    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in iter_hf_tensors(model.chunks, model.shape):
            yield name, tensor.detach().contiguous()

    metadata = [base.ParamMeta(name, model.dtype, tuple(size)) for name, size in shapes.items()]
    if hasattr(base.WeightSource, "iter_full"):  # 0.33
        body = {
            "metadata": property(lambda self: metadata),
            "iter_full": lambda self: stream(),
            "__iter__": lambda self: stream(),
        }
    else:
        body = {"metadata": lambda self: metadata, "__iter__": lambda self: stream()}
    return type("MegaladderSource", (base.WeightSource,), body)()
