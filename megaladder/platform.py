"""CUDA or CPU: the only file that knows. Everything else asks here and never says "cuda".

On a CUDA machine nothing is patched. Where there is no CUDA, `prepare_megatron` gives megatron-core
what it assumes, once:

* its modules see `torch` through a thin proxy whose factory functions read `device="cuda"` as the
CPU and whose `torch.cuda` answers
  for a machine with one synchronous CPU device (streams and events that do nothing). The real
  `torch` is not touched, so no other library and no hot path pays for it;
* `Tensor.type()` answers with the CUDA names that megatron-core's optimizer compares with, only
  when asked from that optimizer;
* `Tensor.cuda()` is the identity, only when asked from megatron-core;
* RNG-state juggling for dropout on the device is a no-op (our models have no dropout; weights are
  initialised on the CPU);
* its small functions for `torch.compile` stay as they are: the compiler alone takes as long to
  import as all the rest, and needs a C++ compiler at run time.

It does not make megatron-core's CUDA-only features (fused kernels, CUDA graphs, FP8) work on a CPU;
the configuration refuses those.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import resource
import sys
import types
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch

from megaladder.capabilities import Machine
from megaladder.console.expected import silence_expected_warnings
from megaladder.errors import ConfigError
from megaladder.process.gpu_stack import cudnn_remedy

_CPU = torch.device("cpu")
_STANDS_FOR_CUDA: ContextVar[bool] = ContextVar("stands_for_cuda", default=False)
_FACTORIES = (
    "empty",
    "zeros",
    "ones",
    "full",
    "tensor",
    "arange",
    "rand",
    "randn",
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
)
_MEGATRON_MODULES = (
    "megatron.core",
    "megatron.core.dist_checkpointing",
    "megatron.core.dist_checkpointing.strategies.async_utils",
    "megatron.core.dist_checkpointing.strategies.fully_parallel",
    "megatron.core.dist_checkpointing.strategies.torch",
    "megatron.core.distributed",
    "megatron.core.models.gpt",
    "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.core.optimizer",
    "megatron.core.optimizer.distrib_optimizer",
    "megatron.core.pipeline_parallel",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.tensor_parallel",
)


def has_cuda() -> bool:
    """True when this process computes on a CUDA device.

    MEGALADDER_PLATFORM=cpu forces the CPU (for tests on a GPU machine)."""
    return os.environ.get("MEGALADDER_PLATFORM") != "cpu" and torch.cuda.is_available()


def overlaps() -> bool:
    """True where collectives run beside computation.

    On CUDA, and in a dry run, which stands for it."""
    return has_cuda() or _STANDS_FOR_CUDA.get()


@contextlib.contextmanager
def standing_for_cuda() -> Iterator[None]:
    """Inside it this process chooses what it would on CUDA.

    As far as tensors without data can follow: precision, communication schedule. A dry run's."""
    token = _STANDS_FOR_CUDA.set(True)
    try:
        yield
    finally:
        _STANDS_FOR_CUDA.reset(token)


def device() -> torch.device:
    """The device that this process's model lives on."""
    return torch.device("cuda", torch.cuda.current_device()) if has_cuda() else _CPU


def bind_device(local_rank: int) -> None:
    """Gives each local rank its own GPU.

    On the CPU, its share of the cores is set by the launcher through OMP_NUM_THREADS.

    One visible device is this rank's own (Slurm's --gpus-per-task, a CUDA_VISIBLE_DEVICES per
    rank); of several it takes LOCAL_RANK.

    Raises:
        ConfigError: more local ranks than GPUs. Two on one GPU would hang in their first
        collective.
    """
    if not has_cuda():
        return
    visible = torch.cuda.device_count()
    if visible > 1 and local_rank >= visible:
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise ConfigError(
            f"local rank {local_rank} has no GPU: {visible} are visible here (CUDA_VISIBLE_DEVICES"
            f" {named}); fix: at most {visible} ranks on this machine, or let it see more GPUs"
        )
    torch.cuda.set_device(local_rank if visible > 1 else 0)


def record_collectives(folder: str, entries: int) -> None:
    """Before the process groups start.

    torch keeps the last `entries` collectives of each rank and writes them to
    `folder`/nccl_trace_<rank> when one runs into its timeout. No effect on a CPU, nor over what the
    environment says already.
    """
    if not has_cuda() or not entries:
        return
    os.makedirs(folder, exist_ok=True)
    for name, value in {
        "TORCH_FR_BUFFER_SIZE": str(entries),
        "TORCH_NCCL_TRACE_BUFFER_SIZE": str(entries),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": os.path.join(folder, "nccl_trace_"),
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": os.path.join(folder, "nccl_trace_"),
    }.items():
        os.environ.setdefault(name, value)


def spare_devices(num_local_ranks: int) -> int:
    """GPUs of this machine that none of its training ranks has; 0 on a CPU."""
    return max(0, torch.cuda.device_count() - num_local_ranks) if has_cuda() else 0


def collective_backend() -> str:
    """The torch.distributed backend for this machine."""
    return "nccl" if has_cuda() else "gloo"


def device_name() -> str | None:
    """What the driver calls this process's GPU; None on the CPU."""
    return torch.cuda.get_device_name() if has_cuda() else None


def nvtx_range(name: str) -> contextlib.AbstractContextManager[None]:
    """A named range in a profile of Nsight Systems."""
    return torch.cuda.nvtx.range(name)


@contextlib.contextmanager
def nsys_capture(name: str) -> Iterator[None]:
    """What `nsys profile --capture-range=cudaProfilerApi` records, as one named range."""
    torch.cuda.profiler.start()
    with nvtx_range(name):
        yield
    torch.cuda.profiler.stop()


def synchronize() -> None:
    """Waits for the device; a no-op on the CPU."""
    if has_cuda():
        torch.cuda.synchronize()


def default_precision() -> str:
    """What `precision: auto` means here."""
    return "bf16" if overlaps() else "fp32"


def memory_peak_bytes() -> int:
    """Peak memory of this process: allocated on the GPU, resident on the CPU."""
    if has_cuda():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_in_use_bytes() -> int | None:
    """Of this process's GPU, by all processes together; None on the CPU."""
    if not has_cuda():
        return None
    free, total = torch.cuda.mem_get_info()
    return total - free


def memory_free_bytes() -> int | None:
    """What this process's device has left, blocks that torch holds unused included.

    None without a GPU. Does not wait for the device."""
    if not has_cuda():
        return None
    held = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return torch.cuda.mem_get_info()[0] + held


def reset_memory_peak() -> None:
    """Starts `memory_peak_bytes` anew on the GPU; the peak of a CPU process is that of its life."""
    if has_cuda():
        torch.cuda.reset_peak_memory_stats()


def release_memory() -> None:
    """Gives memory that nothing holds any more back to the device."""
    gc.collect()
    if has_cuda():
        torch.cuda.empty_cache()


_PEAK_FLOPS = {  # dense bf16 FLOP/s from the vendors' data sheets
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "A100": 312e12,
}


def peak_flops_per_second() -> float | None:
    """Dense bf16 peak of this process's GPU.

    None where it is not known (then no MFU is printed)."""
    name = device_name()
    if name is None:
        return None
    return next(
        (
            flops
            for key, flops in sorted(_PEAK_FLOPS.items(), key=lambda item: -len(item[0]))
            if key in name
        ),
        None,
    )


def share_of_peak(flops_per_second: float, num_devices: int) -> float | None:
    """Model FLOP/s of all devices over their peak (MFU); None where the peak is not known."""
    peak = peak_flops_per_second()
    return flops_per_second / (peak * num_devices) if peak else None


@functools.lru_cache(maxsize=1)
def transformer_engine_problem() -> str | None:
    """Why Transformer Engine's torch part cannot be imported; None if it can.

    Imports it (seconds) the first time."""
    try:
        importlib.import_module("transformer_engine.pytorch")
    except ModuleNotFoundError as error:
        return f"it is not installed (no module {error.name})"
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # a build for another torch, CUDA or C library
        text = " ".join(str(error).split())
        return f"it cannot be imported: {cudnn_remedy(text) or text[:200]}"
    return None


def has_transformer_engine() -> bool:
    """True when Transformer Engine's torch part imports and there is a CUDA device to run it on."""
    return has_cuda() and transformer_engine_problem() is None


def has_apex_accumulation() -> bool:
    """apex's kernel that adds a weight gradient to DDP's fp32 buffer inside the product.

    Used by the portable layers on CUDA where it is there (Transformer Engine's linears have their
    own); without it autograd makes the gradient in bf16 and DDP adds it.
    """
    return has_cuda() and importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None


def machine() -> Machine:
    """What this process computes on, for `capabilities` and the rules."""
    if not has_cuda():
        return Machine()
    problem = transformer_engine_problem()
    te = None if problem else _major_minor(importlib.metadata.version("transformer-engine"))
    return Machine(
        True,
        torch.cuda.get_device_name(),
        torch.cuda.get_device_capability(),
        _major_minor(torch.version.cuda) if torch.version.cuda else None,
        te,
        problem,
    )


def _major_minor(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


class _NoStream:
    """Stands in for a CUDA stream or event on a machine where every operation is synchronous."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> _NoStream:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def record_event(self, event: Any = None) -> Any:
        return self if event is None else event

    def wait_stream(self, stream: Any = None) -> None:
        return None

    wait_event = record = synchronize = wait = wait_stream


def _no_op(*args: Any, **kwargs: Any) -> None:
    return None


def _cuda_namespace() -> types.ModuleType:
    """`torch.cuda` of a machine whose only device is the CPU."""
    real, fake = torch.cuda, types.ModuleType("torch.cuda")
    for name in ("current_stream", "default_stream", "Stream", "Event"):
        setattr(fake, name, _NoStream)
    for name in ("synchronize", "empty_cache", "manual_seed", "set_device", "set_rng_state"):
        setattr(fake, name, _no_op)
    vars(fake).update(
        __getattr__=lambda name: getattr(real, name),
        current_device=lambda: _CPU,
        stream=lambda *a, **k: contextlib.nullcontext(),
        get_rng_state=lambda *a, **k: torch.empty(0, dtype=torch.uint8),
        nvtx=types.SimpleNamespace(range_push=_no_op, range_pop=_no_op),
    )
    return fake


def _is_cuda_name(value: Any) -> bool:
    return (isinstance(value, str) and value.startswith("cuda")) or (
        isinstance(value, torch.device) and value.type == "cuda"
    )


def _on_cpu(factory: Any) -> Any:
    @functools.wraps(factory)
    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        if _is_cuda_name(kwargs.get("device")):
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return call


def _torch_proxy() -> types.ModuleType:
    """What megatron-core's modules see as `torch`: the real one, but "cuda" means the CPU."""
    proxy = types.ModuleType("torch")
    for name in _FACTORIES:
        setattr(proxy, name, _on_cpu(getattr(torch, name)))
    vars(proxy).update(__getattr__=lambda name: getattr(torch, name), cuda=_cuda_namespace())
    return proxy


def _caller_module(depth: int = 2) -> str:
    return sys._getframe(depth).f_globals.get("__name__", "")


def _patch_tensor_methods() -> None:
    real_type, real_cuda = torch.Tensor.type, torch.Tensor.cuda

    def tensor_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out = real_type(self, *args, **kwargs)
        if isinstance(out, str) and _caller_module().startswith("megatron.core.optimizer"):
            return out.replace("torch.", "torch.cuda.")
        return out

    def tensor_cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return (
            self
            if _caller_module().startswith("megatron.core")
            else real_cuda(self, *args, **kwargs)
        )

    # wrappers that pass on whatever the real methods take; their signatures do not repeat it
    torch.Tensor.type = tensor_type  # type: ignore[method-assign, assignment]
    torch.Tensor.cuda = tensor_cuda  # type: ignore[method-assign, assignment]


def _counts_on_cpu(
    tensor: torch.Tensor | None, as_numpy: bool = False, **_unused: Any
) -> torch.Tensor | np.ndarray | None:
    """What megatron-core's copy of a count to the host gives.

    Here it is there already, and would stay a tensor that collectives take for no list of sizes."""
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor


@contextlib.contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Inside it `torch.compile` gives a function back as it is, also as a decorator with options.

    megatron-core keeps the one that it finds when it is first imported."""

    def as_it_is(function: Any = None, **_options: object) -> Any:
        return as_it_is if function is None else function

    real = torch.compile
    torch.compile = as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = real


class _FusedAdamW(torch.optim.AdamW):
    """torch's single-pass AdamW kernel in the place of the fused AdamW.

    megatron-core takes the latter from Transformer Engine or apex."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, fused=True, **kwargs)


@functools.lru_cache(maxsize=1)
def prepare_megatron() -> None:
    """Imports megatron-core and, without CUDA, meets its assumptions.

    Call before using it; further calls do nothing."""
    if has_cuda():
        # megatron-core orders TP collectives before GEMMs by it
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        # read when Transformer Engine is imported; Blackwell wants powers of two
        if torch.cuda.get_device_capability() < (10, 0):
            os.environ.setdefault("NVTE_FP8_BLOCK_SCALING_FP32_SCALES", "1")
        return
    silence_expected_warnings()
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    with _nothing_compiled():
        for name in _MEGATRON_MODULES:
            importlib.import_module(name)
    proxy = _torch_proxy()
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core") and getattr(module, "torch", None) is torch:
            module.torch = proxy  # type: ignore[attr-defined]
    random = importlib.import_module("megatron.core.tensor_parallel.random")
    vars(random).update(_set_cuda_rng_state=_no_op, _get_cuda_rng_state=proxy.cuda.get_rng_state)
    vars(importlib.import_module("megatron.core.optimizer"))["Adam"] = _FusedAdamW
    dispatcher = importlib.import_module("megatron.core.transformer.moe.token_dispatcher")
    vars(dispatcher)["maybe_move_tensor_to_cpu"] = _counts_on_cpu
    _patch_tensor_methods()
